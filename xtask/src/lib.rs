//! The one door to the project: setting a machine up, building, checking, testing, showing, measuring.
//!
//! The binary is a thin command line over these modules. [`lab`] is also what the agent's
//! integration tests stand on: hosts, wires, etcd and Docker in network namespaces.

pub mod bench;
pub mod build;
pub mod check;
pub mod command;
pub mod demo;
pub mod dist;
pub mod docs;
pub mod interrupt;
pub mod lab;
pub mod release;
pub mod setup;
pub mod test;
pub mod verifier;
pub mod vm;
pub mod workspace;
