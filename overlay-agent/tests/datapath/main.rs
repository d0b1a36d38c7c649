//! Every program through `BPF_PROG_TEST_RUN`: verdict, rewritten bytes and counter.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod bridges;
mod budget;
mod coverage;
mod direct;
mod features;
mod forged;
mod from_container;
mod from_tunnel;
mod from_uplink;
mod fuzz;
mod packets;
mod pins;
mod policy;
mod roundtrip;
mod settings;
mod to_bridge;
mod to_tunnel;
mod world;
