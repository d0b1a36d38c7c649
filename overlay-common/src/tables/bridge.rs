use crate::{Prefix, abi::map_type};

/// Name of the map and of its pin.
pub const BRIDGES_MAP: &str = "bridges";

/// As many as there are ports, and the bridges themselves.
pub const BRIDGES_CAPACITY: usize = 2 * super::PORTS_CAPACITY;

map_type! {
    /// An interface that containers' packets come by: a bridge of theirs, or a port of one.
    pub struct BridgeKey[4] {
        /// Its number.
        pub ifindex: u32,
    }
}

map_type! {
    /// The bridge that it is, or is a port of. What is asked of it for each packet of a known container is in
    /// [`Endpoint`](super::Endpoint): only what concerns others looks here.
    pub struct Bridge[20] {
        /// The bridge's number.
        pub ifindex: u32,
        /// Largest packet, in bytes, that the stack would put on it.
        pub mtu: u32,
        /// The addresses that are behind it.
        pub subnet: [u8; 4],
        /// Its MAC.
        pub mac: [u8; 6],
        /// Prefix length of `subnet`; 0, which is all addresses, where it has none.
        pub subnet_length: u8,
        /// Padding, zero.
        pub reserved: u8,
    }
}

impl Bridge {
    /// The addresses that are behind it.
    #[inline(always)]
    pub const fn subnet(&self) -> Prefix {
        Prefix { address: self.subnet, length: self.subnet_length }
    }
}
