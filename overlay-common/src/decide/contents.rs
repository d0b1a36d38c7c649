//! What the kernel would take a frame for: it takes tags of priority off, as deep as there are any, and hands
//! frames with another tag to that VLAN's own interface.

use network_types::ip::Ipv4Hdr;

use crate::{
    Reason,
    packet::{ETHERTYPE_8021AD, ETHERTYPE_8021Q, ETHERTYPE_IPV4, Packet},
};

/// Tags that are read through behind the one that the kernel has taken off by itself. Nobody needs as many; the
/// kernel takes off any number.
const TAGS: usize = 3;

/// The twelve lower bits of a tag are its VLAN's identifier; 0 is none, and the tag is of priority only.
const VLAN_ID: u16 = 0x0fff;

/// What is behind a frame's priority tags.
#[derive(Clone, Copy)]
pub(super) struct Contents {
    /// Its `EtherType`, in network order.
    pub(super) ethertype: [u8; 2],
    /// Where it starts, for [`Packet::network`].
    pub(super) offset: usize,
}

impl Contents {
    /// Reads through the tags. Where a tag leads elsewhere, or is one too many, the reason.
    #[inline(always)]
    pub(super) fn of(packet: &impl Packet) -> Result<Self, Reason> {
        if packet.vlan_id() & VLAN_ID != 0 {
            return Err(Reason::OtherVlan);
        }
        let mut ethertype = packet.protocol();
        let mut offset = 0;
        for _ in 0..TAGS {
            if !is_tag(ethertype) {
                break;
            }
            let [high, low, first, second] =
                packet.network::<[u8; 4]>(offset).ok_or(Reason::Unreadable)?;
            if u16::from_be_bytes([high, low]) & VLAN_ID != 0 {
                return Err(Reason::OtherVlan);
            }
            ethertype = [first, second];
            offset += 4;
        }
        if is_tag(ethertype) { Err(Reason::TagsTooDeep) } else { Ok(Self { ethertype, offset }) }
    }

    /// The IPv4 header, if the kernel would take it for one.
    #[inline(always)]
    pub(super) fn ipv4(self, packet: &impl Packet) -> Result<Ipv4Hdr, Reason> {
        if self.ethertype != ETHERTYPE_IPV4 {
            return Err(Reason::NotIpv4);
        }
        let ipv4: Ipv4Hdr = packet.network(self.offset).ok_or(Reason::Unreadable)?;
        if ipv4.vihl >> 4 == 4 { Ok(ipv4) } else { Err(Reason::NotIpv4) }
    }
}

#[inline(always)]
const fn is_tag(ethertype: [u8; 2]) -> bool {
    matches!(ethertype, ETHERTYPE_8021Q | ETHERTYPE_8021AD)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::test_support::{LOCAL, REMOTE, tagged, udp_packet},
        packet::test_support::Bytes,
    };

    fn seen(tags: &[[u8; 4]]) -> Result<[u8; 4], Reason> {
        let packet = tagged(udp_packet(LOCAL, REMOTE, 10), tags);
        Contents::of(&packet)?.ipv4(&packet).map(|ipv4| ipv4.src_addr)
    }

    #[test]
    fn priority_tags_are_read_through() {
        let (q, ad) = ([0x81, 0, 0xe0, 0], [0x88, 0xa8, 0, 0]);
        for tags in [vec![], vec![q], vec![ad], vec![q, q], vec![ad, q, q]] {
            assert_eq!(seen(&tags), Ok(LOCAL), "{tags:?}");
        }
        assert_eq!(seen(&[q, q, q, q]), Err(Reason::TagsTooDeep));
    }

    #[test]
    fn a_vlans_frames_are_its_own_interfaces_business() {
        let (priority, vlan) = ([0x81, 0, 0, 0], [0x81, 0, 0, 5]);
        assert_eq!(seen(&[vlan]), Err(Reason::OtherVlan));
        assert_eq!(seen(&[priority, vlan]), Err(Reason::OtherVlan));
        let taken_off = Bytes { vlan: Some(5), ..udp_packet(LOCAL, REMOTE, 10) };
        assert_eq!(Contents::of(&taken_off).err(), Some(Reason::OtherVlan));
        let taken_off = Bytes { vlan: Some(0xe000), ..udp_packet(LOCAL, REMOTE, 10) };
        assert!(Contents::of(&taken_off).is_ok());
    }

    #[test]
    fn what_ends_inside_a_tag_or_header_is_unreadable() {
        let mut packet = tagged(udp_packet(LOCAL, REMOTE, 10), &[[0x81, 0, 0, 0]]);
        packet.bytes.truncate(30);
        let contents = Contents::of(&packet).expect("the tag is whole");
        assert_eq!(contents.ipv4(&packet).err(), Some(Reason::Unreadable));
        packet.bytes.truncate(16);
        assert_eq!(Contents::of(&packet).err(), Some(Reason::Unreadable));
    }
}
