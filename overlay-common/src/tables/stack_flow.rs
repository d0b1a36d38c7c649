use crate::abi::map_type;

/// Name of the map and of its pin.
pub const STACK_FLOWS_MAP: &str = "stack_flows";

/// The least recently used flow makes room for a new one: it then has its answers delivered directly,
/// which is wrong only if the stack still rewrites it.
pub const STACK_FLOWS_CAPACITY: usize = 16_384;

/// Name of the map and of its pin.
pub const STACK_STATE_MAP: &str = "stack_state";

map_type! {
    /// A flow of a local container that left through the host's stack, seen from here.
    pub struct StackFlowKey[16] {
        /// The container's address.
        pub local: [u8; 4],
        /// The other end's address, as it is on the wire.
        pub remote: [u8; 4],
        /// The container's port, in network order; the identifier of an ICMP echo; 0 for protocols
        /// without ports.
        pub local_port: [u8; 2],
        /// The other end's port, in network order.
        pub remote_port: [u8; 2],
        /// IPv4 protocol number.
        pub protocol: u32,
    }
}

map_type! {
    /// That such a flow exists is all there is to know of it.
    pub struct StackFlow[4] {
        /// Always 1.
        pub present: u32,
    }
}

map_type! {
    /// Whether there ever was such a flow: while there was none, nobody pays for looking. The only entry
    /// of its map.
    pub struct StackState[4] {
        /// 0 or 1.
        pub any: u32,
    }
}
