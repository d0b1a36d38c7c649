//! What becomes known of everybody's leases.

use std::fmt;

use super::claim::LeaseClaim;
use crate::wire::key::SubnetKey;

/// A change to the set of leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseUpdate {
    /// All leases there are, in order of their keys. Whatever is not among them is gone.
    Snapshot(Vec<LeaseClaim>),
    /// This lease is new or has changed.
    Put(LeaseClaim),
    /// There is no such lease any more. It may be one that never was in an update.
    Removed(SubnetKey),
}

impl fmt::Display for LeaseUpdate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(leases) => write!(out, "leases in all: {}", leases.len()),
            Self::Put(claim) => write!(out, "lease: {claim}"),
            Self::Removed(key) => write!(out, "no lease any more: {key}"),
        }
    }
}
