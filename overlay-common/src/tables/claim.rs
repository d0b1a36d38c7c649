use crate::abi::map_type;

/// Name of the map and of its pin.
pub const CLAIMS_MAP: &str = "claims";

/// The least recently repeated claim makes room for a new one.
pub const CLAIMS_CAPACITY: usize = 256;

map_type! {
    /// A container's claim of an address that is another's.
    pub struct ClaimKey[8] {
        /// The address.
        pub address: [u8; 4],
        /// The container's port.
        pub ifindex: u32,
    }
}

map_type! {
    /// How often it was made, and refused.
    pub struct Claim[8] {
        /// Packets.
        pub packets: u64,
    }
}
