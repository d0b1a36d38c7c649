//! Hosts and containers as network namespaces, with real devices, a real etcd and the real agent.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod bad_input;
mod corners;
mod flannel;
mod masquerade;
mod matrix;
mod mutation;
mod overlay;
mod paths;
mod stream;
mod survival;
mod throughput;
mod trust;
mod wire;
