use crate::abi::map_type;

/// Name of the map and of its pin.
pub const HOMES_MAP: &str = "homes";

/// As many as there are endpoints.
pub const HOMES_CAPACITY: usize = super::ENDPOINTS_CAPACITY;

map_type! {
    /// A container's address in the overlay, and another bridge of the host that the container is behind.
    pub struct HomeKey[8] {
        /// IPv4 address.
        pub address: [u8; 4],
        /// The other bridge.
        pub ifindex: u32,
    }
}

map_type! {
    /// What the container's packets look like there: whatever its default route leads to that bridge leaves by
    /// it, answers from its overlay address among them.
    pub struct Home[8] {
        /// MAC of the container's interface on that bridge.
        pub mac: [u8; 6],
        /// Padding, zero.
        pub reserved: [u8; 2],
    }
}

impl HomeKey {
    /// Stands for an interface that has just appeared and may be a port of a containers' bridge in the next moment: a
    /// packet from an address of our subnet is not refused there yet.
    #[inline(always)]
    pub const fn newcomer(ifindex: u32) -> Self {
        Self { address: [0; 4], ifindex }
    }
}
