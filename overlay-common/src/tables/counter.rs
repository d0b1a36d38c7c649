use crate::{Hook, Reason, abi::map_type};

/// Name of the map and of its pin.
pub const COUNTERS_MAP: &str = "counters";

map_type! {
    /// Packets and bytes that left one hook for one reason, on one CPU. An aggregate (GRO, GSO) counts
    /// as one packet; bytes are those of the frame as the hook first saw it.
    pub struct Counter[16] {
        /// Packets.
        pub packets: u64,
        /// Bytes, Ethernet header included.
        pub bytes: u64,
    }
}

/// Slots of the counters map: every hook × every reason.
pub const fn counter_slots() -> u32 {
    Hook::COUNT * Reason::COUNT
}

/// Slot of the counters map that counts `reason` at `hook`.
#[inline(always)]
pub const fn counter_index(hook: Hook, reason: Reason) -> u32 {
    hook as u32 * Reason::COUNT + reason as u32
}
