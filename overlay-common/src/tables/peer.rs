use crate::{Prefix, abi::map_type};

/// Name of the map and of its pin.
pub const PEERS_MAP: &str = "peers";

/// 65,536 leases, and room for a second prefix length while a network is being changed.
pub const PEERS_CAPACITY: usize = 131_072;

map_type! {
    /// The subnet that another host has leased.
    ///
    /// An exact hash over the masked address, tried once per prefix length in use, is cheaper than a
    /// longest-prefix-match trie, and one length is the rule.
    pub struct PeerKey[8] {
        /// Network address of the lease.
        pub subnet: [u8; 4],
        /// Its prefix length.
        pub prefix_length: u32,
    }
}

map_type! {
    /// Where to send packets for a peer's subnet. Aligned, lest addresses be read byte by byte.
    #[repr(align(4))]
    pub struct Peer[16] {
        /// Outer destination: `PublicIP` of the lease.
        pub public_address: [u8; 4],
        /// The neighbour that the uplink sends outer packets to; zero where only the kernel's routing can
        /// tell, packet by packet.
        pub next_hop: [u8; 4],
        /// Inner destination MAC: `VtepMAC` of the lease. A kernel VTEP drops every other.
        pub vtep_mac: [u8; 6],
        /// 1 where containers' packets go to the peer as they are, over the link that both are on
        /// (`DirectRouting`); else 0. The stack has a route for that.
        pub direct: u8,
        /// 1 where the kernel's way to the peer is not by the uplink, or not known: only the stack sends there; else 0.
        pub elsewhere: u8,
    }
}

impl Peer {
    /// Whether packets may go to the peer, and come from it, without encapsulation.
    #[inline(always)]
    pub const fn is_direct(&self) -> bool {
        self.direct != 0
    }

    /// Whether only the stack knows the way to the peer.
    #[inline(always)]
    pub const fn is_elsewhere(&self) -> bool {
        self.elsewhere != 0
    }
}

impl PeerKey {
    /// The key of lease `subnet`; host bits are masked off.
    #[inline(always)]
    pub const fn new(subnet: Prefix) -> Self {
        Self { subnet: subnet.masked(), prefix_length: subnet.length as u32 }
    }
}
