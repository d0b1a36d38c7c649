//! A malicious container and a malicious wire: what they send arrives nowhere, and is counted as refused.
//!
//! Every test first shows that its eyes are open: an honest packet of the same kind arrives.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod corpus;
mod hidden;
mod honest;
mod interfaces;
mod learning;
mod mutation;
mod promises;
mod service;
mod tags;
mod tools;
mod uplink;
mod vxlan;
