//! The lease protocol against a real etcd. Every test has its own, on loopback.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod acquire;
mod agent;
mod auth;
mod cluster;
mod config;
mod etcd;
mod follow;
mod grace;
mod keeper;
mod operator;
mod requests;
mod scale;
mod support;
mod wire;
