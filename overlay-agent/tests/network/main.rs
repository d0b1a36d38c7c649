//! Hosts and containers as network namespaces, with real devices, a real etcd and the real agent.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod bad_input;
mod bridges;
mod chaos;
mod corners;
mod crashes;
mod damage;
mod direct;
mod doctor;
mod drops;
mod first_act;
mod flannel;
mod foreign;
mod idle;
mod kernels;
mod load;
mod masquerade;
mod matrix;
mod mutation;
mod others;
mod overlay;
mod paths;
mod pins;
mod policy;
mod presence;
mod rules;
mod side_by_side;
mod survival;
mod switching;
mod throughput;
mod trust;
mod vrf;
mod wire;
