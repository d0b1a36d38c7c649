//! What this host is in the overlay, for its next start: its VTEP's MAC, its subnet, its address.
//!
//! `subnet.env` and the tunnel device are gone after a reboot, and an address may have changed meanwhile. What is
//! in this file stays, and so the lease is found again. A disk that is copied to another machine takes the file
//! along: it counts only where an interface has the MAC that the uplink had when it was written.

use std::{collections::BTreeMap, fs, io, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};
use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;
use overlay_lease::wire::{Lease, key::KeyPrefix};

use crate::{dotenv, subnet_env::replace};

/// Where it is, unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/var/lib/overlay/state.env";

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostState {
    /// The place of the network in etcd.
    pub prefix: String,
    /// The subnet that this host had.
    pub subnet: Ipv4Network,
    /// The MAC of its tunnel device.
    pub vtep_mac: MacAddr,
    /// The address that it published.
    pub public_ip: Ipv4Addr,
    /// The MAC of its uplink, if that had one: what tells the machine from a copy of its disk.
    pub uplink_mac: Option<MacAddr>,
}

impl HostState {
    /// This host's, with this lease.
    pub fn new(prefix: &KeyPrefix, lease: &Lease, uplink_mac: Option<MacAddr>) -> Self {
        let Lease { subnet, vtep_mac, public_ip, .. } = *lease;
        Self { prefix: prefix.to_string(), subnet, vtep_mac, public_ip, uplink_mac }
    }

    /// What an earlier run wrote to `path`. `None` if there is no file, or it says nothing of use: then this host
    /// is known by other things.
    ///
    /// # Errors
    ///
    /// Fails if there is a file that cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read the state file {}", path.display()))
            }
        }
    }

    /// Replaces the file at `path` in one step, unless it says the same.
    ///
    /// # Errors
    ///
    /// Fails if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = self.encode();
        if fs::read(path).is_ok_and(|found| found == text.as_bytes()) {
            return Ok(());
        }
        replace(path, text.as_bytes())
            .with_context(|| format!("cannot write the state file {}", path.display()))
    }

    /// Whether it was written on a machine that has these MACs and for the network at this place.
    ///
    /// # Errors
    ///
    /// Says why it was not.
    pub fn check(
        &self,
        prefix: &KeyPrefix,
        macs: impl IntoIterator<Item = MacAddr>,
    ) -> Result<(), String> {
        if self.prefix != prefix.to_string() {
            return Err(format!("it is that of the network at {}", self.prefix));
        }
        match self.uplink_mac {
            Some(mac) if !macs.into_iter().any(|found| found == mac) => Err(format!(
                "it is that of a machine whose uplink has MAC {mac}, which no interface of this one has"
            )),
            _ => Ok(()),
        }
    }

    fn encode(&self) -> String {
        let Self { prefix, subnet, vtep_mac, public_ip, uplink_mac } = self;
        let uplink_mac = uplink_mac.map(|mac| mac.to_string()).unwrap_or_default();
        format!(
            "# By this, overlay-agent finds this host's lease again. It must not be copied to another host.\n\
             OVERLAY_PREFIX=\"{prefix}\"\n\
             OVERLAY_SUBNET={subnet}\n\
             OVERLAY_VTEP_MAC={vtep_mac}\n\
             OVERLAY_PUBLIC_IP={public_ip}\n\
             OVERLAY_UPLINK_MAC={uplink_mac}\n"
        )
    }

    fn parse(text: &str) -> Option<Self> {
        let fields: BTreeMap<_, _> = dotenv::assignments(text).collect();
        let field = |name: &str| fields.get(name).copied();
        let uplink_mac = match field("OVERLAY_UPLINK_MAC")? {
            "" => None,
            mac => Some(mac.parse().ok()?),
        };
        let subnet: Ipv4Network = field("OVERLAY_SUBNET")?.parse().ok()?;
        let vtep_mac: MacAddr = field("OVERLAY_VTEP_MAC")?.parse().ok()?;
        (subnet.ip() == subnet.network() && vtep_mac.is_unicast()).then_some(())?;
        Some(Self {
            prefix: field("OVERLAY_PREFIX")?.to_owned(),
            subnet,
            vtep_mac,
            public_ip: field("OVERLAY_PUBLIC_IP")?.parse().ok()?,
            uplink_mac,
        })
    }
}

/// Removes the file, and says whether there was one.
///
/// # Errors
///
/// Fails if it is there and cannot be removed.
pub fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => {
            Err(error).with_context(|| format!("cannot remove the state file {}", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UPLINK: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);

    fn example() -> HostState {
        HostState {
            prefix: "/coreos.com/network".to_owned(),
            subnet: "10.5.52.0/24".parse().unwrap(),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            public_ip: Ipv4Addr::new(192, 0, 2, 1),
            uplink_mac: Some(UPLINK),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new").join("state.env");
        assert_eq!(HostState::read(&path).unwrap(), None);
        for uplink_mac in [Some(UPLINK), None] {
            let state = HostState { uplink_mac, ..example() };
            state.write(&path).unwrap();
            assert_eq!(HostState::read(&path).unwrap(), Some(state));
        }
        assert!(remove(&path).unwrap() && !remove(&path).unwrap());
    }

    #[test]
    fn a_file_that_came_with_a_copied_disk_or_is_of_another_network_does_not_count() {
        let state = example();
        let prefix = KeyPrefix::new("/coreos.com/network");
        state.check(&prefix, [MacAddr([2, 0, 0, 0, 0, 9]), UPLINK]).unwrap();
        let copied = state.check(&prefix, [MacAddr([2, 0, 0, 0, 0, 9])]).unwrap_err();
        assert!(copied.contains("52:54:00:01:02:03"), "{copied}");
        let other = state.check(&KeyPrefix::new("/other"), [UPLINK]).unwrap_err();
        assert!(other.contains("/coreos.com/network"), "{other}");
    }

    proptest! {
        #[test]
        fn half_a_file_or_nonsense_is_none(cut in 0_usize..120, text in "\\PC*|[A-Z_=\"0-9.:/ \n]*") {
            let whole = example().encode();
            let end = whole.rfind("OVERLAY_UPLINK_MAC").unwrap().min(whole.len() - 1 - cut);
            prop_assert_eq!(HostState::parse(&whole[..end]), None);
            HostState::parse(&text);
        }
    }
}
