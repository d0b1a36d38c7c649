//! What has happened to our lease and was put right, for people to know.

use std::{fmt, net::Ipv4Addr};

use ipnetwork::Ipv4Network;

/// One thing that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incident {
    /// Our key held something else than our lease.
    Repaired {
        /// The key.
        key: String,
        /// What was found in it.
        found: String,
    },
    /// Our key was gone.
    Retaken {
        /// The subnet.
        subnet: Ipv4Network,
    },
    /// A host at another address has started with what makes us known: our VTEP's MAC.
    Copied {
        /// Its address.
        by: Ipv4Addr,
    },
    /// What makes this host known is another's, who lives: this host has become a new one.
    IsCopy {
        /// The other one's address.
        of: Ipv4Addr,
        /// Its subnet.
        subnet: Ipv4Network,
    },
}

impl fmt::Display for Incident {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repaired { key, found } => {
                write!(out, "Somebody wrote to {key}, which is ours: {found}. It was put right.")
            }
            Self::Retaken { subnet } => {
                write!(out, "The lease of {subnet} was lost, and is ours again.")
            }
            Self::Copied { by } => write!(
                out,
                "The host at {by} runs with a copy of this host's identity, its VtepMAC: it has to take another \
                 subnet. Its state file is that of this host and must not be copied."
            ),
            Self::IsCopy { of, subnet } => write!(
                out,
                "The host at {of} lives, and has {subnet} and the identity that this host's state file says: this \
                 host is a copy of it, and has taken another subnet and another VtepMAC."
            ),
        }
    }
}
