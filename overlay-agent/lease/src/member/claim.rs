//! What a store says about one lease, and since when.
//!
//! Whether it is believed is for the agent to judge, by what is carried here beside the lease.

use std::fmt;

use crate::wire::{Lease, key::SubnetKey};

/// A lease as a store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its key. Two keys may name one subnet, where one of them names an IPv6 subnet, too.
    pub key: SubnetKey,
    /// What key and value say.
    pub lease: Lease,
    /// The revision at which the key came to be. Renewals and other values of the same key leave it.
    pub created: i64,
    /// The revision at which it was last written.
    pub written: i64,
    /// Whether somebody keeps it alive. A key that hangs on no etcd lease stays until it is deleted, with or
    /// without a host.
    pub kept: bool,
}

/// Later than any revision that a store will ever have.
const DOUBT: i64 = 1 << 62;

/// Who came first; among those of one revision, the order of keys.
pub type Rank = (i64, SubnetKey);

impl Claim {
    /// One of a store that has no revisions, and vouches for all of them alike.
    pub const fn listed(lease: Lease) -> Self {
        let key = SubnetKey { subnet: lease.subnet, ipv6: None };
        Self { key, lease, created: 0, written: 0, kept: true }
    }

    /// The same, of a store that has it no more for the moment: younger than whatever the store has, and as old as
    /// before among its likes.
    #[must_use]
    pub const fn doubtful(self) -> Self {
        if self.created >= DOUBT {
            return self;
        }
        Self { created: self.created + DOUBT, kept: false, ..self }
    }

    /// Its place among all claims, the oldest first.
    pub const fn rank(&self) -> Rank {
        (self.created, self.key)
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lease.fmt(out)
    }
}
