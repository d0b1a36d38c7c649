//! One of a host's bridges, with a part of its subnet: what Docker makes for a network from a pool of addresses.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Result;

use crate::{Container, Host, container::ensure_bridge, subnet::LeasedSubnet};

/// A bridge and its part of the host's subnet.
#[derive(Debug)]
pub struct Bridge {
    name: String,
    subnet: LeasedSubnet,
    containers: AtomicU32,
}

impl Bridge {
    /// The part with this number, of those that have this prefix length. The bridge is not there yet.
    pub fn new(host: &Host, name: &str, part: u32, prefix_length: u8) -> Result<Self> {
        let leased = host.subnet()?;
        let size = 1 << (32 - u32::from(prefix_length));
        let gateway = Ipv4Addr::from_bits(leased.gateway.to_bits() + part * size);
        let subnet = LeasedSubnet { gateway, prefix_length, ..leased };
        Ok(Self { name: name.to_owned(), subnet, containers: AtomicU32::new(0) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its part of the subnet.
    pub const fn subnet(&self) -> &LeasedSubnet {
        &self.subnet
    }

    /// Makes it, unless it is there.
    pub fn appear(&self, host: &Host) -> Result<()> {
        ensure_bridge(host, &self.name, &self.subnet)
    }

    /// Removes it. What is behind it stays, and reaches nobody.
    pub fn disappear(&self, host: &Host) -> Result<()> {
        host.ip(["link", "del", &self.name]).map(drop)
    }

    /// Adds a container behind it, with the next address.
    pub fn add_container(&self, host: &Host, name: &str) -> Result<Container> {
        let number = self.containers.fetch_add(1, Ordering::Relaxed) + 1;
        Container::plug(host.ledger(), host, (&self.name, &self.subnet), name, number)
    }
}
