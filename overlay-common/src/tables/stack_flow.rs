use crate::abi::map_type;

/// Name of the map and of its pin.
pub const STACK_FLOWS_MAP: &str = "stack_flows";

/// Unless the kernel's connection tracking has room for more, which is where all these flows are, too. The least recently
/// used flow makes room for a new one: it then has its answers delivered directly, which is wrong only if the stack still
/// rewrites it.
pub const STACK_FLOWS_CAPACITY: usize = 16_384;

/// A container's share of them is one part of so many. Of a container that has used up its share, the oldest flow makes
/// room, not another container's.
pub const STACK_FLOWS_SHARES: usize = 8;

/// Name of the map and of its pin. It has as many entries as the other.
pub const STACK_SEATS_MAP: &str = "stack_seats";

/// Name of the map and of its pin.
pub const STACK_TURNS_MAP: &str = "stack_turns";

/// Containers whose turns are known. Of one that is forgotten, turns begin anew.
pub const STACK_TURNS_CAPACITY: usize = 4096;

/// Name of the map and of its pin.
pub const STACK_STATE_MAP: &str = "stack_state";

map_type! {
    /// A flow of a local container that went through the host's stack, seen from here.
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
    /// Which way the stack has seen a flow go.
    pub struct StackFlow[8] {
        /// The union of [`Direction`]s.
        pub directions: u32,
        /// Its place in its container's share.
        pub seat: u32,
    }
}

map_type! {
    /// A place in a container's share of the remembered flows.
    pub struct SeatKey[8] {
        /// The container's address; 0 for all that nobody knows.
        pub local: [u8; 4],
        /// Its number, below the size of a share.
        pub seat: u32,
    }
}

map_type! {
    /// Which place of its share a container uses next, modulo the size of a share.
    pub struct Turn[4] {
        /// Counts on, and over.
        pub next: u32,
    }
}

map_type! {
    /// Whether there ever was such a flow, in each direction: while there was none, nobody pays for looking. Each has
    /// a field of its own, which is only ever set: none gets lost between two processors. The only entry of its map.
    pub struct StackState[8] {
        /// 1 if one ever left.
        pub left: u32,
        /// 1 if one ever arrived.
        pub arrived: u32,
    }
}

/// Name of the map and of its pin. Its only entry, on each processor, is the flow of the packet that a program of ours
/// has last left to the stack there. If the packet leaves the stack with the same addresses and ports, netfilter has
/// not rewritten it, and its answers need not come back through the stack.
pub const HANDED_OVER_MAP: &str = "handed_over";

/// Which way a flow went through the stack: packets the other way have to go through it as well.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Out of a container, into the overlay.
    Left = 1,
    /// Out of the overlay, to a container.
    Arrived = 2,
}

impl Direction {
    /// The other one.
    #[inline(always)]
    #[must_use]
    pub const fn back(self) -> Self {
        match self {
            Self::Left => Self::Arrived,
            Self::Arrived => Self::Left,
        }
    }

    /// Whether it is among these.
    #[inline(always)]
    pub const fn is_in(self, directions: u32) -> bool {
        directions & self as u32 != 0
    }
}

impl StackState {
    /// The ways that a flow ever went.
    #[inline(always)]
    pub const fn directions(&self) -> u32 {
        (self.left * Direction::Left as u32) | (self.arrived * Direction::Arrived as u32)
    }
}
