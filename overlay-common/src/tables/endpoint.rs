use crate::abi::map_type;

/// Name of the map and of its pin.
pub const ENDPOINTS_MAP: &str = "endpoints";

/// A bridge holds at most 1,024 ports, of which a host has several; a container may own several addresses.
pub const ENDPOINTS_CAPACITY: usize = 4096;

map_type! {
    /// Address of a local container, or of the host.
    pub struct EndpointKey[4] {
        /// IPv4 address.
        pub address: [u8; 4],
    }
}

map_type! {
    /// How to reach a local container without its bridge: through the host's half of its veth pair. What is asked of
    /// the bridge for each packet is here, too, so that one look is enough.
    pub struct Endpoint[24] {
        /// Host-side veth; packets are delivered to its peer. 0 where the address is the host's own.
        pub ifindex: u32,
        /// The bridge that the veth is a port of.
        pub bridge: u32,
        /// Largest packet, in bytes, that the stack would put on that bridge.
        pub mtu: u32,
        /// MAC of the container's interface.
        pub mac: [u8; 6],
        /// MAC of the bridge: what the container knows as its gateway.
        pub gateway: [u8; 6],
    }
}

impl Endpoint {
    /// Stands for the host itself: no container may use its addresses.
    pub const HOST: Self = Self { ifindex: 0, bridge: 0, mtu: 0, mac: [0; 6], gateway: [0; 6] };

    /// Whether the address is the host's own.
    #[inline(always)]
    pub const fn is_host(&self) -> bool {
        self.ifindex == 0
    }
}
