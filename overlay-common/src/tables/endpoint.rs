use crate::abi::map_type;

/// Name of the map and of its pin.
pub const ENDPOINTS_MAP: &str = "endpoints";

/// A bridge holds at most 1,024 ports; a container may own several addresses.
pub const ENDPOINTS_CAPACITY: usize = 4096;

map_type! {
    /// Address of a local container.
    pub struct EndpointKey[4] {
        /// IPv4 address.
        pub address: [u8; 4],
    }
}

map_type! {
    /// How to reach a local container without the bridge: through the host's half of its veth pair.
    pub struct Endpoint[12] {
        /// Host-side veth; packets are delivered to its peer.
        pub ifindex: u32,
        /// MAC of the container's interface.
        pub mac: [u8; 6],
        /// Padding, zero.
        pub reserved: [u8; 2],
    }
}
