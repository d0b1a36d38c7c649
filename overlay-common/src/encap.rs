//! The headers in front of an encapsulated packet.
//!
//! ```text
//!  0        14          34     42      50          64
//!  | outer  | outer     | UDP  | VXLAN | inner     | inner IPv4 packet
//!  | Eth    | IPv4      |      |       | Eth       |
//!           |<------------ OuterHeaders --------->|
//! ```
//! The packet's own Ethernet header becomes the outer one; everything between it and the inner IPv4
//! header is new.

use network_types::{
    ip::Ipv4Hdr,
    udp::UdpHdr,
    vxlan::{VXLAN_I_FLAG_MASK, VxlanHdr},
};

use crate::{
    MacAddr, checksum, ecn,
    packet::{
        ETHERNET_LENGTH, ETHERTYPE_IPV4, Ethernet, Header, IPV4_LENGTH, PROTOCOL_UDP, UDP_LENGTH,
    },
    tables::{HostConfig, Peer},
};

/// What encapsulation adds to a packet, in bytes: the overlay's MTU is the uplink's less this.
pub const OVERHEAD: usize = size_of::<OuterHeaders>();

/// Length of a VXLAN header.
pub const VXLAN_LENGTH: usize = size_of::<VxlanHdr>();

/// In the VXLAN header's flags: the header carries the packet's group, in the last two of the three bytes behind them
/// (draft-smith-vxlan-group-policy; the kernel's `VXLAN_HF_GBP`).
pub const VXLAN_G_FLAG_MASK: u8 = 0x80;

/// Offset of the VXLAN header in a packet whose outer IPv4 header has no options.
pub const VXLAN_OFFSET: usize = ETHERNET_LENGTH + IPV4_LENGTH + UDP_LENGTH;
/// Offset of the inner Ethernet header.
pub const INNER_ETHERNET_OFFSET: usize = VXLAN_OFFSET + VXLAN_LENGTH;
/// Offset of the inner IPv4 header.
pub const INNER_IPV4_OFFSET: usize = INNER_ETHERNET_OFFSET + ETHERNET_LENGTH;

/// TTL of outer packets, as a kernel VTEP sends them.
pub const OUTER_TTL: u8 = 64;

/// Everything that encapsulation inserts after the Ethernet header (RFC 7348, section 5).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct OuterHeaders {
    /// Outer IPv4 header.
    pub ipv4: Ipv4Hdr,
    /// UDP header.
    pub udp: UdpHdr,
    /// VXLAN header: one word, because three reserved bytes alone become a call of `memset`, which BPF
    /// does not have.
    pub vxlan: [u8; VXLAN_LENGTH],
    /// Inner Ethernet header.
    pub ethernet: Ethernet,
}

const _: () = assert!(size_of::<OuterHeaders>() == 50 && align_of::<OuterHeaders>() == 1);

// SAFETY: it consists of headers; the assertion above holds the alignment.
unsafe impl Header for OuterHeaders {}

impl OuterHeaders {
    /// Headers for a packet of `inner_length` bytes from its IPv4 header on, sent to `peer`.
    ///
    /// Don't-fragment is clear, so `identification` must be random (RFC 6864). The UDP checksum is
    /// zero: BPF cannot have the kernel fill it in per segment, and RFC 7348 allows it.
    #[inline(always)]
    pub const fn new(
        host: &HostConfig,
        peer: &Peer,
        inner_tos: u8,
        inner_length: u16,
        source_port: u16,
        identification: u16,
    ) -> Self {
        let overhead = size_of::<Self>() as u16;
        let mut ipv4 = Ipv4Hdr {
            vihl: 0x45,
            tos: ecn::encap(inner_tos),
            tot_len: (inner_length + overhead).to_be_bytes(),
            id: identification.to_be_bytes(),
            frags: [0; 2],
            ttl: OUTER_TTL,
            proto: PROTOCOL_UDP,
            check: [0; 2],
            src_addr: host.uplink_address,
            dst_addr: peer.public_address,
        };
        ipv4.check = checksum::ipv4_header(&ipv4);
        // Flags, 24 reserved bits, identifier, 8 reserved bits.
        let vxlan = ((VXLAN_I_FLAG_MASK as u64) << 56) | ((host.vni as u64) << 8);
        Self {
            ipv4,
            udp: UdpHdr {
                src: source_port.to_be_bytes(),
                dst: host.port.to_be_bytes(),
                len: (inner_length + overhead - IPV4_LENGTH as u16).to_be_bytes(),
                check: [0; 2],
            },
            vxlan: vxlan.to_be_bytes(),
            ethernet: Ethernet {
                destination: MacAddr(peer.vtep_mac),
                source: MacAddr(host.vtep_mac),
                ethertype: ETHERTYPE_IPV4,
            },
        }
    }
}

/// The outer UDP source port for a flow, out of the kernel's default local port range and by its own
/// arithmetic (`udp_flow_src_port`), so that routers spread our flows as they do a kernel VTEP's.
#[inline(always)]
pub const fn source_port(flow_hash: u32) -> u16 {
    const FIRST: u32 = 32_768;
    const LAST: u32 = 60_999;
    let hash = flow_hash ^ (flow_hash << 16);
    (((hash as u64 * (LAST - FIRST) as u64) >> 32) as u32 + FIRST) as u16
}

/// A hash of the flow that a packet belongs to, for packets to which the kernel has given none. Cheap rather
/// than good: it only has to spread flows over source ports, and nothing depends on its secrecy.
#[inline(always)]
pub const fn flow_hash(ipv4: &Ipv4Hdr, ports: [u8; 4]) -> u32 {
    // The 32-bit golden ratio; multiplying by it and taking the high half mixes all bits downwards.
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let addresses = ((u32::from_ne_bytes(ipv4.src_addr) as u64) << 32)
        | u32::from_ne_bytes(ipv4.dst_addr) as u64;
    let transport = ((u32::from_ne_bytes(ports) as u64) << 8) | ipv4.proto as u64;
    let mixed = (addresses ^ transport.wrapping_mul(MIX)).wrapping_mul(MIX);
    (mixed >> 32) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::test_support::bytes_of;

    fn host() -> HostConfig {
        HostConfig {
            vni: 1,
            port: 8472,
            uplink_address: [192, 168, 33, 10],
            vtep_mac: [2, 0, 0, 0, 0, 1],
            ..HostConfig::default()
        }
    }

    #[test]
    fn golden_headers() {
        let peer = Peer {
            public_address: [192, 168, 33, 11],
            vtep_mac: [2, 0, 0, 0, 0, 2],
            ..Peer::default()
        };
        let headers = OuterHeaders::new(&host(), &peer, 0, 84, 40_000, 0x1234);
        #[rustfmt::skip]
        let expected = [
            0x45, 0x00, 0x00, 0x86, 0x12, 0x34, 0x00, 0x00, 0x40, 0x11, 0xa4, 0xcd,
            192, 168, 33, 10, 192, 168, 33, 11,
            0x9c, 0x40, 0x21, 0x18, 0x00, 0x72, 0x00, 0x00,
            0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00,
            2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00,
        ];
        assert_eq!(bytes_of(&headers), expected);
    }

    proptest! {
        #[test]
        fn the_outer_header_is_consistent(
            tos: u8, length in 20_u16..=65_485, port: u16, id: u16, vni in 0_u32..1 << 24,
        ) {
            let host = HostConfig { vni, ..host() };
            let headers = OuterHeaders::new(&host, &Peer::default(), tos, length, port, id);
            prop_assert!(checksum::is_valid(&headers.ipv4));
            prop_assert_eq!(headers.ipv4.tot_len(), length + 50);
            prop_assert_eq!(headers.udp.len(), length + 30);
            prop_assert_eq!(u64::from_be_bytes(headers.vxlan), 8 << 56 | u64::from(vni) << 8);
        }

        #[test]
        fn source_ports_stay_in_the_ephemeral_range(hash: u32) {
            prop_assert!((32_768..61_000).contains(&source_port(hash)));
        }
    }

    #[test]
    fn flows_that_the_kernel_has_not_hashed_spread_too() {
        use crate::packet::test_support::ipv4;
        let hashes = |count: u16, change: fn(u16) -> (u8, u16)| {
            (0..count)
                .map(|flow| {
                    let (host, port) = change(flow);
                    let [high, low] = port.to_be_bytes();
                    let header = ipv4([10, 1, 15, host], [10, 1, 20, 2]);
                    source_port(flow_hash(&header, [high, low, 0, 53]))
                })
                .collect::<std::collections::HashSet<_>>()
                .len()
        };
        assert!(hashes(1000, |flow| (2, 32_768 + flow)) > 950, "neighbouring ports");
        assert!(hashes(200, |flow| (flow.to_be_bytes()[1], 4000)) > 190, "neighbouring hosts");
    }

    #[test]
    fn flows_spread_over_source_ports() {
        let ports: std::collections::HashSet<_> =
            (0..1000_u32).map(|flow| source_port(flow.wrapping_mul(2_654_435_761))).collect();
        assert!(ports.len() > 900, "{} ports for 1000 flows", ports.len());
    }
}
