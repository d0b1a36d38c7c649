//! The packet as the decisions see it.

use network_types::{ip::Ipv4Hdr, tcp::TcpHdr, udp::UdpHdr, vxlan::VxlanHdr};

use crate::MacAddr;

/// Length of an Ethernet header.
pub const ETHERNET_LENGTH: usize = 14;
/// Length of a MAC, in bytes.
pub const MAC_LENGTH: usize = 6;
/// Length of an IPv4 header without options.
pub const IPV4_LENGTH: usize = Ipv4Hdr::LEN;
/// Length of a UDP header.
pub const UDP_LENGTH: usize = 8;

/// `EtherType` of IPv4, in network order.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// `EtherType` of IPv6, in network order.
pub const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// `EtherType` of ARP, in network order.
pub const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// `EtherType` of a customer's VLAN tag (IEEE 802.1Q), in network order.
pub const ETHERTYPE_8021Q: [u8; 2] = [0x81, 0x00];
/// `EtherType` of a service's VLAN tag (IEEE 802.1ad), in network order.
pub const ETHERTYPE_8021AD: [u8; 2] = [0x88, 0xa8];
/// IPv4 protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IPv4 protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IPv4 protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;

/// A header that can be read from any bytes at any address.
///
/// # Safety
/// Alignment is 1 and every byte pattern is a value.
pub unsafe trait Header: Copy {}

/// An Ethernet header. `network-types` has one of alignment 2, which the inner header of a VXLAN
/// packet does not have.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination MAC.
    pub destination: MacAddr,
    /// Source MAC.
    pub source: MacAddr,
    /// `EtherType`, in network order.
    pub ethertype: [u8; 2],
}

/// An ARP packet between Ethernet and IPv4 (RFC 826).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Hardware type, protocol type, and the lengths of their addresses.
    pub kind: [u8; 6],
    /// What it is: request, reply.
    pub operation: [u8; 2],
    /// The sender's MAC.
    pub sender_mac: MacAddr,
    /// The sender's address, which receivers learn with the MAC.
    pub sender: [u8; 4],
}

impl Arp {
    /// Of Ethernet and IPv4.
    pub const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

    /// Whether the kernel believes it on an Ethernet: that has hardware type 6, IEEE 802, for the same
    /// (`arp_process`, net/ipv4/arp.c).
    #[inline(always)]
    pub const fn is_believed(&self) -> bool {
        matches!(self.kind, [0, 1 | 6, 8, 0, 6, 4])
    }
}

// SAFETY: all five consist of integers and byte arrays only; the assertions below hold the alignment.
unsafe impl Header for Ethernet {}
// SAFETY: as above.
unsafe impl Header for Arp {}
// SAFETY: as above.
unsafe impl Header for Ipv4Hdr {}
// SAFETY: as above.
unsafe impl Header for UdpHdr {}
// SAFETY: as above.
unsafe impl Header for VxlanHdr {}
// SAFETY: as above.
unsafe impl Header for u8 {}
// SAFETY: as above.
unsafe impl Header for [u8; 8] {}
// SAFETY: as above.
unsafe impl Header for [u8; 4] {}
// SAFETY: as above.
unsafe impl Header for [u8; 2] {}

const _: () = {
    assert!(size_of::<Ethernet>() == ETHERNET_LENGTH && align_of::<Ethernet>() == 1);
    assert!(size_of::<Arp>() == 18 && align_of::<Arp>() == 1);
    assert!(size_of::<Ipv4Hdr>() == IPV4_LENGTH && align_of::<Ipv4Hdr>() == 1);
    assert!(size_of::<UdpHdr>() == UDP_LENGTH && align_of::<UdpHdr>() == 1);
    assert!(size_of::<VxlanHdr>() == 8 && align_of::<VxlanHdr>() == 1);
};

/// Offset of the byte in a TCP header whose upper half is the header's length in 32-bit words.
pub const TCP_DATA_OFFSET: usize = 12;
const _: () = assert!(size_of::<TcpHdr>() == 20);

/// Flag of TCP (RFC 9293, section 3.1) in the byte that follows: no more data.
pub const TCP_FIN: u8 = 1;
/// The connection begins.
pub const TCP_SYN: u8 = 2;
/// The connection is aborted.
pub const TCP_RST: u8 = 4;
/// The acknowledgment number counts.
pub const TCP_ACK: u8 = 16;

/// A packet that starts with its Ethernet header.
pub trait Packet {
    /// Copies the header at `offset`, or nothing where the packet ends before the header does.
    fn load<T: Header>(&self, offset: usize) -> Option<T>;

    /// Length in bytes, Ethernet header included.
    fn length(&self) -> u32;

    /// Payload of one segment where the packet is an aggregate (GRO, GSO); 0 where it is not.
    fn segment_size(&self) -> u32;

    /// Whether the kernel has taken a VLAN tag off and keeps it beside the packet.
    fn has_vlan_tag(&self) -> bool;

    /// The identifier in that tag; 0 where there is none.
    fn vlan_id(&self) -> u16;

    /// Whether its MAC is not that of the interface it came by: only a bridge or the like takes it from there.
    fn is_for_another_host(&self) -> bool;

    /// Whether the network card, or the kernel, has found the outermost checksum right.
    fn checksum_verified(&self) -> bool;

    /// The kernel's mark of it, which netfilter's rules and routing go by; 0 for none.
    fn mark(&self) -> u32;

    /// `EtherType` of what is behind the Ethernet header and that tag, in network order.
    fn protocol(&self) -> [u8; 2];

    /// Copies a header that starts `offset` bytes behind the Ethernet header, wherever in memory it is, also of
    /// packets without an Ethernet header. For checks, where [`load`](Self::load) is for what is frequent.
    fn network<T: Header>(&self, offset: usize) -> Option<T>;
}

#[cfg(test)]
pub(crate) mod test_support {
    use super::*;

    /// A packet in memory.
    #[expect(clippy::struct_field_names, reason = "the bytes are what it is about")]
    #[derive(Clone)]
    pub(crate) struct Bytes {
        pub(crate) bytes: Vec<u8>,
        pub(crate) segment_size: u32,
        /// What the kernel has taken off.
        pub(crate) vlan: Option<u16>,
        pub(crate) for_another_host: bool,
        pub(crate) mark: u32,
    }

    impl Packet for Bytes {
        fn load<T: Header>(&self, offset: usize) -> Option<T> {
            let bytes = self.bytes.get(offset..)?.get(..size_of::<T>())?;
            // SAFETY: the slice has the size of `T`, and a `Header` can be read from any bytes.
            Some(unsafe { bytes.as_ptr().cast::<T>().read() })
        }

        fn length(&self) -> u32 {
            u32::try_from(self.bytes.len()).expect("test packets are small")
        }

        fn segment_size(&self) -> u32 {
            self.segment_size
        }

        fn has_vlan_tag(&self) -> bool {
            self.vlan.is_some()
        }

        fn vlan_id(&self) -> u16 {
            self.vlan.unwrap_or(0)
        }

        fn is_for_another_host(&self) -> bool {
            self.for_another_host
        }

        fn checksum_verified(&self) -> bool {
            false
        }

        fn mark(&self) -> u32 {
            self.mark
        }

        fn protocol(&self) -> [u8; 2] {
            self.load::<Ethernet>(0).map_or([0; 2], |ethernet| ethernet.ethertype)
        }

        fn network<T: Header>(&self, offset: usize) -> Option<T> {
            self.load(ETHERNET_LENGTH + offset)
        }
    }

    /// An IPv4 header that carries UDP, its checksum not filled in.
    pub(crate) fn ipv4(src: [u8; 4], dst: [u8; 4]) -> Ipv4Hdr {
        Ipv4Hdr {
            vihl: 0x45,
            tos: 0,
            tot_len: [0, 20],
            id: [0, 0],
            frags: [0, 0],
            ttl: 64,
            proto: PROTOCOL_UDP,
            check: [0, 0],
            src_addr: src,
            dst_addr: dst,
        }
    }

    /// The bytes of a header.
    pub(crate) fn bytes_of<T: Header>(header: &T) -> &[u8] {
        // SAFETY: a `Header` has alignment 1 and no padding.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(header).cast(), size_of::<T>()) }
    }
}
