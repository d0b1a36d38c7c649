//! The host's kernel: what it looks like, and what we do to it.

pub mod datapath;
pub mod firewall;
pub mod icmp;
pub mod netlink;
pub mod policy;
pub mod repairs;
pub mod uplink;
