//! The agent: leases a subnet, follows everybody else's leases, and keeps the kernel in step.

pub mod admin;
pub mod agent;
pub mod cleanup;
pub mod cli;
pub mod containers;
pub mod datapath;
pub mod dataplane;
pub mod docker_opts;
pub mod doctor;
mod dotenv;
pub mod exit;
pub mod fail;
pub mod firewall;
mod json;
pub mod lease;
pub mod netlink;
pub mod network_config;
pub mod peers;
pub mod provision;
pub mod repairs;
pub mod run;
pub mod run_config;
pub mod store;
pub mod subnet_env;
pub mod telemetry;
pub mod uplink;
