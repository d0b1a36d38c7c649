//! What a store says about one lease, and since when.
//!
//! Whether it is believed is for the agent to judge, by what is carried here beside the lease.

use std::fmt;

use crate::{
    store::Revision,
    wire::{Lease, key::SubnetKey},
};

/// A lease as a store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseClaim {
    /// Its key. Two keys may name one subnet, where one of them names an IPv6 subnet, too.
    pub key: SubnetKey,
    /// What key and value say.
    pub lease: Lease,
    /// The revision at which the key came to be. Renewals and other values of the same key leave it.
    pub created: Revision,
    /// The revision at which it was last written.
    pub written: Revision,
    /// Whether somebody keeps it alive. A key that hangs on no etcd lease stays until it is deleted, with or
    /// without a host.
    pub kept: bool,
    /// Whether the store has it no more for the moment.
    pub doubtful: bool,
}

/// Who came first, what is in doubt after everything; among those of one revision, the order of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Whether the store has it no more for the moment.
    pub doubtful: bool,
    /// When the key came to be.
    pub created: Revision,
    /// The key.
    pub key: SubnetKey,
}

impl Rank {
    /// Before all others.
    pub const FIRST: Self =
        Self { doubtful: false, created: Revision::NONE, key: SubnetKey::FIRST };

    /// After all others.
    pub const LAST: Self = Self { doubtful: true, created: Revision::LAST, key: SubnetKey::LAST };
}

impl LeaseClaim {
    /// One of a store that has no revisions, and vouches for all of them alike.
    pub const fn listed(lease: Lease) -> Self {
        let key = SubnetKey { subnet: lease.subnet, ipv6: None };
        let [created, written] = [Revision::NONE; 2];
        Self { key, lease, created, written, kept: true, doubtful: false }
    }

    /// The same, of a store that has it no more for the moment: younger than whatever the store has, and as old as
    /// before among its likes.
    #[must_use]
    pub const fn in_doubt(self) -> Self {
        Self { doubtful: true, kept: false, ..self }
    }

    /// Its place among all claims, the oldest first.
    pub const fn rank(&self) -> Rank {
        let Self { doubtful, created, key, .. } = *self;
        Rank { doubtful, created, key }
    }
}

impl fmt::Display for LeaseClaim {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lease.fmt(out)
    }
}
