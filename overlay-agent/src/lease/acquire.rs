//! Taking a subnet: the one this host has, the one it had, or a free one, in this order.
//!
//! Every attempt reads all leases at one revision, decides, and writes under the condition that
//! what the decision rests on still holds. A refused write means that somebody was faster: read
//! again.

use std::{net::Ipv4Addr, time::Duration};

use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;
use rand::Rng;
use tracing::{debug, info, warn};

use super::{
    Lease,
    allocate::{CANDIDATES, choose, overlap},
    guard::guards,
    value::{Backend, LeaseValue},
};
use crate::{
    network_config::NetworkConfig,
    store::{
        Entry, Etcd, Listing, StoreError,
        config::StoredConfig,
        etcd::Created,
        outage::{Outage, pause},
    },
};

/// What this host brings along.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The address to publish, by which our lease of earlier is recognised.
    pub public_ip: Ipv4Addr,
    /// The subnet that `subnet.env` says we had.
    pub previous: Option<Ipv4Network>,
    /// The MAC to publish if no lease of ours says another. A lease of the subnet of the file that has it is ours
    /// too, whatever its address: the host's has changed.
    pub vtep_mac: Option<MacAddr>,
    /// The TTL of the etcd lease.
    pub ttl: Duration,
}

/// A lease that is ours, and all others as of the moment it became so.
#[derive(Clone, Debug)]
pub struct Acquired {
    /// The lease.
    pub lease: Lease,
    /// What is to be kept alive; `None` for a reservation, which does not expire.
    pub etcd_lease: Option<i64>,
    /// How we came by it.
    pub origin: Origin,
    /// All leases, this one included: what to start following from.
    pub listing: Listing,
}

/// How a lease became ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was.
    PublicIp,
    /// `subnet.env` says it was, and nobody had it since.
    SubnetFile,
    /// It was free.
    Free,
}

/// There is no lease to be had.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// Every subnet is taken.
    #[error(
        "out of subnets: all {} from {min} to {max} (/{len}) are taken; widen SubnetMin and SubnetMax \
         or Network, or delete leases of hosts that are gone",
        capacity
    )]
    OutOfSubnets {
        /// The first subnet of the config.
        min: Ipv4Addr,
        /// The last one.
        max: Ipv4Addr,
        /// Their prefix length.
        len: u8,
        /// How many there are.
        capacity: u64,
    },
    /// Somebody has changed the network config meanwhile: read it again.
    #[error("the network config has changed while a subnet was being taken")]
    ConfigChanged,
}

/// Takes a lease for this host. Waits for etcd when it is away.
pub async fn acquire(
    store: &Etcd,
    config: &StoredConfig,
    request: &Request,
) -> Result<Acquired, AcquireError> {
    let mut attempt = Attempt { store, config, request, granted: None, limit: CANDIDATES };
    let mut outage = Outage::on("cannot take a subnet yet", store.troubles());
    let mut races = 0;
    let result = loop {
        let wait = match attempt.make().await {
            Ok(Step::Done(acquired)) => break Ok(*acquired),
            Ok(Step::Again) => {
                outage.over();
                races += 1;
                // Whoever starts with us looks at the same candidates: look further than they do.
                attempt.limit = attempt.limit.saturating_mul(2);
                debug!("somebody was faster, for the {races}. time");
                pause(races - 1, &mut rand::rng())
            }
            Err(Stop::Store(error)) => outage.failed(&error),
            Err(Stop::For(error)) => break Err(error),
        };
        tokio::time::sleep(wait).await;
    };
    attempt.give_back(result.as_ref().ok().and_then(|acquired| acquired.etcd_lease)).await;
    result
}

enum Step {
    Done(Box<Acquired>),
    Again,
}

enum Stop {
    Store(StoreError),
    For(AcquireError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

struct Attempt<'a> {
    store: &'a Etcd,
    config: &'a StoredConfig,
    request: &'a Request,
    /// The etcd lease that we were granted for this, used or not.
    granted: Option<i64>,
    /// How many free subnets to choose from.
    limit: usize,
}

impl Attempt<'_> {
    async fn make(&mut self) -> Result<Step, Stop> {
        let listing = self.store.list().await?;
        let survey = Survey::new(self.store, &listing, &self.config.config, self.request);
        if let Some(own) = survey.own {
            return self.reuse(listing, own).await;
        }
        if let Some(stale) = survey.stale {
            return self.discard(&stale).await;
        }
        let (subnet, origin) = self.pick(&survey)?;
        let vtep_mac = self.new_mac(&survey);
        self.create(listing, subnet, origin, vtep_mac).await
    }

    /// Our lease of earlier becomes our lease of now, with the same MAC: the peers need not change
    /// anything.
    async fn reuse(&mut self, mut listing: Listing, own: Own) -> Result<Step, Stop> {
        let vtep_mac = match own.value.backend {
            Backend::Vxlan { vtep_mac, .. } => vtep_mac,
            Backend::Other(_) => self.request.vtep_mac.unwrap_or_else(random_mac),
        };
        let lease = self.lease(own.subnet, vtep_mac);
        let value = lease.value().encode();
        let old = own.entry.etcd_lease;
        let unchanged = own.entry.value == value;
        let etcd_lease = match old {
            // A reservation: it had no TTL, and gets none.
            None => None,
            Some(id) if unchanged && self.is_good(id).await? => Some(id),
            Some(_) => Some(self.grant().await?),
        };
        if !unchanged || etcd_lease != old {
            let (key, revision) = (&own.entry.key, own.entry.mod_revision);
            let written = self.store.replace(key, revision, &value, etcd_lease).await?;
            let Some(mod_revision) = written else {
                return Ok(Step::Again);
            };
            if let Some(old) = old.filter(|old| etcd_lease != Some(*old)) {
                retire(self.store, old).await;
            }
            upsert(&mut listing, Entry { value, mod_revision, etcd_lease, ..own.entry });
        }
        Ok(done(lease, etcd_lease, Origin::PublicIp, listing))
    }

    /// Whether an etcd lease of ours can be used on, which saves everybody an event.
    async fn is_good(&self, id: i64) -> Result<bool, StoreError> {
        let wanted = i64::try_from(self.request.ttl.as_secs()).unwrap_or(i64::MAX);
        match self.store.etcd_lease(id).await? {
            Some(lease) if lease.granted == wanted => self.store.keep_alive(id).await,
            _ => Ok(false),
        }
    }

    /// Our lease of earlier does not fit the config of now.
    async fn discard(&self, stale: &Entry) -> Result<Step, Stop> {
        let key = String::from_utf8_lossy(&stale.key);
        warn!("deleting our own lease {key}: the network config does not allow it any more");
        if self.store.delete(&stale.key, stale.mod_revision).await?.is_some()
            && let Some(id) = stale.etcd_lease
        {
            retire(self.store, id).await;
        }
        Ok(Step::Again)
    }

    fn pick(&self, survey: &Survey) -> Result<(Ipv4Network, Origin), Stop> {
        let config = &self.config.config;
        if let Some(previous) = self.request.previous {
            let free = survey.is_free(self.store, previous);
            if config.admits(previous) && free {
                return Ok((previous, Origin::SubnetFile));
            }
            let reason = if free { "the network config does not allow it" } else { "it is taken" };
            info!("not taking {previous} of the subnet file again: {reason}");
        }
        let mut taken = survey.taken.clone();
        while let Some(subnet) = choose(config, taken.iter().copied(), self.limit, &mut rand::rng())
        {
            if survey.is_free(self.store, subnet) {
                return Ok((subnet, Origin::Free));
            }
            // Somebody's malformed key is in the way.
            taken.push(subnet);
        }
        Err(Stop::For(AcquireError::OutOfSubnets {
            min: config.subnet_min,
            max: config.subnet_max,
            len: config.subnet_len,
            capacity: config.capacity(),
        }))
    }

    async fn create(
        &mut self,
        mut listing: Listing,
        subnet: Ipv4Network,
        origin: Origin,
        vtep_mac: MacAddr,
    ) -> Result<Step, Stop> {
        let lease = self.lease(subnet, vtep_mac);
        let value = lease.value().encode();
        let etcd_lease = Some(self.grant().await?);
        let condition = Some(self.config.mod_revision);
        match self.store.create(subnet, &value, etcd_lease, condition).await? {
            Created::At(mod_revision) => {
                let key = self.store.prefix().subnet_key(subnet).into_bytes();
                let create_revision = mod_revision;
                let entry = Entry { key, value, create_revision, mod_revision, etcd_lease };
                upsert(&mut listing, entry);
                Ok(done(lease, etcd_lease, origin, listing))
            }
            Created::Refused(obstacles) if obstacles.is_empty() => {
                Err(Stop::For(AcquireError::ConfigChanged))
            }
            Created::Refused(_) => Ok(Step::Again),
        }
    }

    const fn lease(&self, subnet: Ipv4Network, vtep_mac: MacAddr) -> Lease {
        Lease {
            subnet,
            public_ip: self.request.public_ip,
            vtep_mac,
            vni: Some(self.config.config.vni),
        }
    }

    /// A MAC for a lease that has none: the wanted one, unless another host has it, as clones of
    /// one machine do.
    fn new_mac(&self, survey: &Survey) -> MacAddr {
        self.request
            .vtep_mac
            .filter(|mac| mac.is_unicast() && !survey.macs.contains(mac))
            .unwrap_or_else(random_mac)
    }

    /// One etcd lease serves all attempts.
    async fn grant(&mut self) -> Result<i64, StoreError> {
        // A wait between attempts may have outlasted it.
        if let Some(id) = self.granted
            && self.store.keep_alive(id).await?
        {
            return Ok(id);
        }
        let id = self.store.grant(self.request.ttl).await?;
        self.granted = Some(id);
        Ok(id)
    }

    /// The etcd lease that was granted and not used must not linger for its TTL.
    async fn give_back(&self, used: Option<i64>) {
        if let Some(id) = self.granted.filter(|id| used != Some(*id)) {
            retire(self.store, id).await;
        }
    }
}

/// All leases, seen from one host.
struct Survey {
    own: Option<Own>,
    /// A lease of ours that does not fit the config and may be deleted.
    stale: Option<Entry>,
    taken: Vec<Ipv4Network>,
    macs: Vec<MacAddr>,
    /// Keys that are no leases.
    malformed: Vec<Vec<u8>>,
}

/// Our own lease of earlier.
struct Own {
    entry: Entry,
    subnet: Ipv4Network,
    value: LeaseValue,
}

impl Survey {
    fn new(store: &Etcd, listing: &Listing, config: &NetworkConfig, request: &Request) -> Self {
        let mut survey = Self {
            own: None,
            stale: None,
            taken: Vec::with_capacity(listing.entries.len()),
            macs: Vec::new(),
            malformed: Vec::new(),
        };
        for entry in &listing.entries {
            let Ok(key) = store.prefix().parse_subnet_key(&entry.key) else {
                survey.malformed.push(entry.key.clone());
                continue;
            };
            survey.taken.push(key.subnet);
            let Ok(value) = LeaseValue::decode(&entry.value) else {
                continue;
            };
            let vtep_mac = match value.backend {
                Backend::Vxlan { vtep_mac, .. } => Some(vtep_mac),
                Backend::Other(_) => None,
            };
            let moved = request.previous == Some(key.subnet)
                && vtep_mac.is_some()
                && vtep_mac == request.vtep_mac;
            if value.public_ip != request.public_ip && !moved {
                survey.macs.extend(vtep_mac);
            } else if !config.admits(key.subnet) || key.ipv6.is_some() {
                survey.note_stale(entry);
            } else if survey.own.is_none() {
                survey.own = Some(Own { entry: entry.clone(), subnet: key.subnet, value });
            }
        }
        survey
    }

    /// An operator's reservation is his to delete, everything else expires anyway.
    fn note_stale(&mut self, entry: &Entry) {
        if entry.etcd_lease.is_some() {
            self.stale.get_or_insert_with(|| entry.clone());
        } else {
            let key = String::from_utf8_lossy(&entry.key);
            warn!(
                "ignoring the reservation {key} for this host: the network config does not allow it"
            );
        }
    }

    /// Whether `subnet` overlaps no lease, and etcd will agree.
    fn is_free(&self, store: &Etcd, subnet: Ipv4Network) -> bool {
        let guards = guards(store.prefix(), subnet);
        let blocks = |key: &Vec<u8>| guards.iter().any(|range| range.covers(key));
        !self.taken.iter().any(|taken| overlap(*taken, subnet))
            && !self.malformed.iter().any(blocks)
    }
}

fn done(lease: Lease, etcd_lease: Option<i64>, origin: Origin, listing: Listing) -> Step {
    Step::Done(Box::new(Acquired { lease, etcd_lease, origin, listing }))
}

/// Puts what we wrote into the listing it rests on.
fn upsert(listing: &mut Listing, entry: Entry) {
    match listing.entries.binary_search_by(|other| other.key.cmp(&entry.key)) {
        Ok(index) => listing.entries[index] = entry,
        Err(index) => listing.entries.insert(index, entry),
    }
}

/// A failure leaves an etcd lease behind that expires by itself, so it is nobody's failure.
pub(super) async fn retire(store: &Etcd, id: i64) {
    if let Err(error) = store.retire(id).await {
        debug!("an unused lease remains in etcd until it expires: {error}");
    }
}

fn random_mac() -> MacAddr {
    MacAddr::local(rand::rng().random())
}
