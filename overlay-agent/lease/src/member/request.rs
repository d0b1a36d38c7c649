//! What a host that wants a lease says of itself, and how it comes by one.

use std::{net::Ipv4Addr, time::Duration};

use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;

/// What this host brings along.
#[derive(Clone, Debug)]
pub struct Request {
    /// The address to publish.
    pub public_ip: Ipv4Addr,
    /// The subnet that `subnet.env`, or else the state file, says we had.
    pub previous: Option<Ipv4Network>,
    /// The MAC that this host has published, as its device or its state file says. A lease that has it is ours,
    /// whatever its address: the host's has changed. It is published if no lease of ours says another.
    pub vtep_mac: Option<MacAddr>,
    /// The address that this host has published the last time, if that is known. If it is another than now, a
    /// lease with the address of now may be of the host that had it before.
    pub last_address: Option<Ipv4Addr>,
    /// Whether this very process has kept the lease until now, so that nobody has to be asked whose it is.
    pub is_running: bool,
    /// The TTL of the etcd lease.
    pub ttl: Duration,
    /// Networks that this host is in otherwise: no new subnet is chosen over them.
    pub occupied: Vec<Ipv4Network>,
}

/// How a lease became ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseOrigin {
    /// It was: it has our MAC.
    Mac,
    /// It was, and its key held what is no lease of it.
    Damaged,
    /// It was: it has our address.
    PublicIp,
    /// `subnet.env` says it was, and nobody had it since.
    SubnetFile,
    /// It was free.
    Free,
}
