//! A lease as it is written, and what follows from that alone.
//!
//! A lease is one key in a store. The key names the subnet, the value says how to reach the host that
//! has it, and, in etcd, the lease that the key hangs on (a different thing, unluckily of the same name)
//! says for how long. [`key`] and [`value`] own the bytes, which are flannel's; [`allocate`] owns the choice of a free subnet,
//! [`guard`] what must not exist when it is taken. [`identity`] is how hosts ask who may write which, [`trust`] how they are told
//! whom to believe.

pub mod allocate;
pub mod guard;
pub mod identity;
pub mod key;
pub mod trust;
pub mod value;

use std::{fmt, net::Ipv4Addr};

use ipnetwork::Ipv4Network;
use overlay_common::{MacAddr, Vni};

use self::value::{Backend, LeaseValue};

/// One host's place in the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The subnet of the host's containers.
    pub subnet: Ipv4Network,
    /// Where the host's outer packets come from and are received.
    pub public_ip: Ipv4Addr,
    /// The inner destination MAC that the host's tunnel device accepts.
    pub vtep_mac: MacAddr,
    /// The VNI that the host says it uses; old flannel versions do not say.
    pub vni: Option<Vni>,
}

impl Lease {
    /// Puts together what a key and its value say; `None` if the value is another backend's.
    pub const fn from_parts(subnet: Ipv4Network, value: &LeaseValue) -> Option<Self> {
        match value.backend {
            Backend::Vxlan { vni, vtep_mac } => {
                Some(Self { subnet, public_ip: value.public_ip, vtep_mac, vni })
            }
            Backend::Other(_) => None,
        }
    }

    /// The value to publish for this lease.
    pub const fn value(&self) -> LeaseValue {
        LeaseValue {
            public_ip: self.public_ip,
            backend: Backend::Vxlan { vni: self.vni, vtep_mac: self.vtep_mac },
        }
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subnet, public_ip, vtep_mac, .. } = self;
        write!(out, "{subnet} of {public_ip} ({vtep_mac})")
    }
}
