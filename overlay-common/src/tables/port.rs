use crate::abi::map_type;

/// Name of the map and of its pin.
pub const PORTS_MAP: &str = "ports";

/// A bridge holds at most 1,024 ports, of which a host has several, and each port has one container's MAC.
pub const PORTS_CAPACITY: usize = 4096;

map_type! {
    /// MAC of a local container, and its bridge: elsewhere, the same MAC is another's.
    pub struct PortKey[12] {
        /// The bridge that the container is behind.
        pub bridge: u32,
        /// The MAC.
        pub mac: [u8; 6],
        /// Padding, zero.
        pub reserved: [u8; 2],
    }
}

map_type! {
    /// The one port of that bridge by which frames with this MAC may come.
    pub struct Port[8] {
        /// The host's half of the container's veth pair.
        pub ifindex: u32,
        /// Bits `SOURCE_ANY`, …
        pub flags: u32,
    }
}

impl PortKey {
    /// The key of a MAC behind a bridge.
    #[inline(always)]
    pub const fn new(bridge: u32, mac: [u8; 6]) -> Self {
        Self { bridge, mac, reserved: [0; 2] }
    }
}

impl Port {
    /// Bit of `flags`: this container may use any source address.
    pub const SOURCE_ANY: u32 = 1;

    /// Whether this container may use any source address.
    #[inline(always)]
    pub const fn source_any(&self) -> bool {
        self.flags & Self::SOURCE_ANY != 0
    }
}
