//! The lease protocol against a real etcd. Every test has its own, on loopback.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agent;
mod auth;
mod claims;
mod cluster;
mod conformance;
mod endpoints;
mod etcd;
mod grace;
mod identity;
mod operator;
mod realm;
mod requests;
mod roles;
mod rotation;
mod scale;
mod support;
mod wire;
