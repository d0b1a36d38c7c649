//! The agent: leases a subnet, follows everybody else's leases, and keeps the kernel in step.

mod json;

pub mod containers;
pub mod datapath;
pub mod dataplane;
pub mod exit;
pub mod lease;
pub mod netlink;
pub mod network_config;
pub mod peers;
