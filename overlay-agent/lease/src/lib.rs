//! Leases: who in an overlay network has which subnet. Nothing here knows of a kernel or of a command line.
//!
//! By floors, of which each knows only those above it: [`config`] is the network config that all hosts share; [`wire`]
//! are the bytes of leases, which are flannel's, and what follows from them alone; [`store`] is where they are agreed on,
//! etcd or a file; [`member`] is a host that has a lease, keeps it and follows everybody else's. What fails meanwhile is
//! on one board, [`trouble`], what is counted among the [`figures`], and [`outage`] has the patience.

pub mod config;
pub mod figures;
mod json;
pub mod member;
pub mod outage;
pub mod store;
pub mod trouble;
pub mod wire;
