use crate::{Prefix, abi::map_type};

/// Name of the map and of its pin.
pub const VTEPS_MAP: &str = "vteps";

/// As many as there are peers.
pub const VTEPS_CAPACITY: usize = super::PEERS_CAPACITY;

map_type! {
    /// Outer source address of a peer.
    pub struct VtepKey[4] {
        /// `PublicIP` of its lease.
        pub public_address: [u8; 4],
    }
}

map_type! {
    /// The lease that a peer may speak for: inner sources outside of it are forged.
    pub struct Vtep[8] {
        /// Network address of the lease.
        pub subnet: [u8; 4],
        /// Its prefix length.
        pub prefix_length: u32,
    }
}

impl Vtep {
    /// The VTEP that speaks for `subnet`.
    pub const fn new(subnet: Prefix) -> Self {
        Self { subnet: subnet.masked(), prefix_length: subnet.length as u32 }
    }

    /// Its lease.
    #[inline(always)]
    pub const fn subnet(&self) -> Prefix {
        Prefix { address: self.subnet, length: self.prefix_length as u8 }
    }
}
