//! The agent: leases a subnet, follows everybody else's leases, and keeps the kernel in step.

mod json;
pub mod lease;
pub mod network_config;
