//! The agent: leases a subnet, follows everybody else's leases, and keeps the kernel in step.
//!
//! What stands higher uses what stands lower: `cli`, `bug_report`, `doctor`, `provision` (whole hosts), `control` (the loop),
//! `authority` (which host may do what in etcd),
//! `dataplane` (what the kernel should look like), `kernel` (what it looks like, and the few things we do to it).

pub mod address_pools;
pub mod admin;
pub mod authority;
pub mod bug_report;
pub mod certificate;
pub mod cleanup;
pub mod cli;
pub mod control;
pub mod dataplane;
pub mod docker_opts;
pub mod doctor;
mod dotenv;
pub mod drops;
pub mod exit;
pub mod fail;
mod files;
pub mod kernel;
pub mod output;
pub mod provision;
pub mod state_file;
pub mod subnet_env;
mod systemd;
pub mod telemetry;
