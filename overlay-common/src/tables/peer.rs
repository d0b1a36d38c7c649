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
        /// The number of a [`Way`].
        pub way: u8,
        /// Padding, zero.
        pub reserved: u8,
    }
}

/// How packets for a peer's containers get there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Way {
    /// In VXLAN, by the uplink.
    Vxlan = 0,
    /// As they are, over the link that both hosts are on (`DirectRouting`). The stack has a route for that.
    Direct = 1,
    /// As the stack knows: the kernel's way to the peer is not by the uplink, or not known.
    Stack = 2,
}

impl Peer {
    /// How packets get there: as the stack knows, where another version has written what this one does not know.
    #[inline(always)]
    pub const fn way(&self) -> Way {
        const VXLAN: u8 = Way::Vxlan as u8;
        const DIRECT: u8 = Way::Direct as u8;
        match self.way {
            VXLAN => Way::Vxlan,
            DIRECT => Way::Direct,
            _ => Way::Stack,
        }
    }

    /// Whether packets go to the peer, and may come from it, without encapsulation.
    #[inline(always)]
    pub const fn is_direct(&self) -> bool {
        matches!(self.way(), Way::Direct)
    }
}

impl PeerKey {
    /// The key of lease `subnet`; host bits are masked off.
    #[inline(always)]
    pub const fn new(subnet: Prefix) -> Self {
        Self { subnet: subnet.masked(), prefix_length: subnet.length as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_what_was_written_and_the_stacks_where_it_is_unknown() {
        let way = |way| Peer { way, ..Peer::default() }.way();
        for known in [Way::Vxlan, Way::Direct, Way::Stack] {
            assert_eq!(way(known as u8), known);
        }
        assert!((2..=u8::MAX).all(|unknown| way(unknown) == Way::Stack));
    }
}
