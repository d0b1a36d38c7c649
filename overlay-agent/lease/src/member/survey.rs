//! Which of all leases is this host's.
//!
//! A host is known by the MAC of its VTEP first, with its subnet or its last address: that stays, whatever address
//! DHCP gives. The subnet file and the public address come after it. An address that this host has only just got says nothing: the lease that
//! has it may be that of a host which had the address before.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;
use tracing::warn;

use super::request::{LeaseOrigin, Request};
use crate::{
    config::NetworkConfig,
    store::{Entry, Listing},
    wire::{
        allocate::overlap,
        guard::guards,
        key::{KeyPrefix, SubnetKey},
        value::{LeaseValue, public_ip_of},
    },
};

/// All leases, seen from one host.
pub(super) struct Survey<'a> {
    prefix: &'a KeyPrefix,
    /// The lease that this host has.
    pub(super) own: Option<Own>,
    /// A lease of ours that does not fit the config and may be deleted.
    pub(super) stale: Option<Entry>,
    /// The subnets of all leases.
    pub(super) taken: Vec<Ipv4Network>,
    /// The hosts' public addresses.
    pub(super) addresses: Vec<Ipv4Addr>,
    /// The MACs of other hosts.
    pub(super) macs: Vec<MacAddr>,
    /// Keys that are no leases.
    malformed: Vec<Vec<u8>>,
}

/// Our own lease of earlier.
pub(super) struct Own {
    pub(super) entry: Entry,
    pub(super) subnet: Ipv4Network,
    /// What its value says, unless that is what has to be mended.
    pub(super) value: Option<LeaseValue>,
    pub(super) tie: Tie,
}

/// What makes a lease ours, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tie {
    /// Its MAC.
    Mac,
    /// The subnet file says so, and its value says nothing, or what belongs to another key.
    Damaged,
    /// It is reserved for our address.
    Reserved,
    /// It has our address.
    Address,
}

impl Tie {
    pub(super) const fn origin(self) -> LeaseOrigin {
        match self {
            Self::Mac => LeaseOrigin::Mac,
            Self::Damaged => LeaseOrigin::Damaged,
            Self::Reserved | Self::Address => LeaseOrigin::PublicIp,
        }
    }
}

/// A key of a listing that names a subnet.
struct Seen<'a> {
    entry: &'a Entry,
    key: SubnetKey,
    value: Option<LeaseValue>,
    /// The host that it is for, which may be told although the rest makes no sense.
    address: Option<Ipv4Addr>,
}

impl Seen<'_> {
    fn mac(&self) -> Option<MacAddr> {
        self.value.as_ref()?.vtep_mac()
    }
}

impl<'a> Survey<'a> {
    pub(super) fn new(
        prefix: &'a KeyPrefix,
        listing: &Listing,
        config: &NetworkConfig,
        request: &Request,
    ) -> Self {
        let (mut seen, mut malformed) = (Vec::new(), Vec::new());
        for entry in &listing.entries {
            match prefix.parse_subnet_key(&entry.key) {
                Ok(key) => {
                    let value = LeaseValue::decode(&entry.value).ok();
                    let address = public_ip_of(&entry.value);
                    seen.push(Seen { entry, key, value, address });
                }
                Err(_) => malformed.push(entry.key.clone()),
            }
        }
        let taken = seen.iter().map(|seen| seen.key.subnet).collect();
        let values = seen.iter().filter_map(|seen| seen.value.as_ref());
        let addresses = values.map(|value| value.public_ip).collect();
        let mut survey =
            Self { prefix, own: None, stale: None, taken, addresses, macs: Vec::new(), malformed };
        let mut best = None;
        for (index, lease) in seen.iter().enumerate() {
            let Some(tie) = tie(lease, &seen, request) else {
                survey.macs.extend(lease.mac());
                continue;
            };
            let admitted = config.admits(lease.key.subnet) && lease.key.ipv6.is_none();
            if !admitted {
                survey.note_stale(lease.entry, tie);
                continue;
            }
            let is_previous = request.previous == Some(lease.key.subnet);
            let rank = (tie, !is_previous, lease.address != Some(request.public_ip), index);
            if best.is_none_or(|best| rank < best) {
                best = Some(rank);
            }
        }
        survey.own = best.map(|(tie, .., index)| {
            let Seen { entry, key, value, .. } = &seen[index];
            let value = value.clone().filter(|_| tie != Tie::Damaged);
            Own { entry: (*entry).clone(), subnet: key.subnet, value, tie }
        });
        survey
    }

    /// An operator's reservation is his to delete, everything else expires anyway.
    fn note_stale(&mut self, entry: &Entry, tie: Tie) {
        if entry.etcd_lease.is_none() {
            let key = String::from_utf8_lossy(&entry.key);
            warn!(
                "ignoring the reservation {key} for this host: the network config does not allow it"
            );
        } else if tie != Tie::Damaged {
            self.stale.get_or_insert_with(|| entry.clone());
        }
    }

    /// Whether `subnet` overlaps no lease, and etcd will agree.
    pub(super) fn is_free(&self, subnet: Ipv4Network) -> bool {
        let guards = guards(self.prefix, subnet);
        let blocks = |key: &Vec<u8>| guards.iter().any(|range| range.covers(key));
        !self.taken.iter().any(|taken| overlap(*taken, subnet))
            && !self.malformed.iter().any(blocks)
    }
}

/// Whether a lease is ours, and by what.
fn tie(lease: &Seen<'_>, all: &[Seen<'_>], request: &Request) -> Option<Tie> {
    let is_previous = request.previous == Some(lease.key.subnet);
    let has_address = lease.address == Some(request.public_ip);
    let Some(value) = &lease.value else {
        if is_previous {
            return lease.key.ipv6.is_none().then_some(Tie::Damaged);
        }
        // Nonsense beside our address: flannel goes by that alone.
        return if has_address { by_address(lease, request) } else { None };
    };
    // Machines that were copied have one MAC, so that is not enough by itself.
    let is_known = has_address || is_previous || Some(value.public_ip) == request.last_address;
    if request.vtep_mac.is_some() && lease.mac() == request.vtep_mac && is_known {
        return Some(Tie::Mac);
    }
    if !has_address {
        let is_copy = is_previous && belongs_elsewhere(lease, value, all);
        return is_copy.then_some(Tie::Damaged);
    }
    by_address(lease, request)
}

/// What a lease that names our address is to us: an address that is new may have been a dead host's.
fn by_address(lease: &Seen<'_>, request: &Request) -> Option<Tie> {
    if lease.entry.etcd_lease.is_none() {
        return Some(Tie::Reserved);
    }
    let is_previous = request.previous == Some(lease.key.subnet);
    let address_is_new = request.last_address.is_some_and(|last| last != request.public_ip);
    (!address_is_new || is_previous).then_some(Tie::Address)
}

/// Whether the host that a value names has it at another key.
fn belongs_elsewhere(lease: &Seen<'_>, value: &LeaseValue, all: &[Seen<'_>]) -> bool {
    all.iter().any(|other| {
        let theirs = other.value.as_ref().map(|theirs| (other.entry, theirs));
        theirs.is_some_and(|theirs| is_copy((lease.entry, value), theirs))
    })
}

/// Whether a value was copied from another key by somebody: no host has two subnets, and none takes one by
/// overwriting a key.
pub(super) fn is_copy(
    (entry, value): (&Entry, &LeaseValue),
    (other, theirs): (&Entry, &LeaseValue),
) -> bool {
    other.key != entry.key
        && value.vtep_mac().is_some()
        && theirs.is_same_host(value)
        && entry.create_revision < entry.mod_revision
        && other.create_revision < entry.mod_revision
}
