//! Agents on hosts, as operators see them: what they wait for, what they say is wrong, and what they do
//! when etcd, the network config or the peers file is not what it was.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod config;
mod faults;
mod fixed;
mod flanneld;
mod health;
mod identity;
mod leases;
mod monitoring;
mod release;
mod support;
