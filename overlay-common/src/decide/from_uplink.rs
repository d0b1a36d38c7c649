use network_types::{ip::Ipv4Hdr, udp::UdpHdr, vxlan::VxlanHdr};

use super::{
    Recipient, Tables, check_inner, contents::Contents, fits_bridge, from_interface::unmasqueraded,
    has_options, is_fragment, is_nobodys, load_headers, lookup_peer, policy::check_arriving,
    recipient, rules::may_pass, stack_flow::answers_a_stack_flow,
};
use crate::{
    Reason, checksum, ecn,
    encap::{INNER_ETHERNET_OFFSET, INNER_IPV4_OFFSET, VXLAN_G_FLAG_MASK, VXLAN_OFFSET},
    packet::{ETHERNET_LENGTH, IPV4_LENGTH, PROTOCOL_TCP, PROTOCOL_UDP, Packet},
    tables::{Direction, HostConfig, VtepKey},
};

/// A packet that may be delivered, and to whom.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Whether it has to be decapsulated before.
    pub encapsulated: bool,
    /// Whom its inner packet is for.
    pub recipient: Recipient,
    /// Its inner IPv4 header.
    pub ipv4: Ipv4Hdr,
    /// TOS that the inner packet must carry on (RFC 6040).
    pub tos: u8,
}

impl Arrival {
    /// Checks that the bridge carries it: what it does not is the stack's to fragment, or to answer.
    #[inline(always)]
    pub fn check_fits_bridge(&self, packet: &impl Packet, host: &HostConfig) -> Result<(), Reason> {
        let offset = if self.encapsulated { INNER_IPV4_OFFSET } else { ETHERNET_LENGTH };
        fits_bridge(packet, offset, &self.ipv4, host).then_some(()).ok_or(Reason::TooBig)
    }
}

/// Decides about a packet from the wire: decapsulate it, leave it to the stack, or refuse it.
///
/// Refusals come before everything that only concerns the fast path, so that they hold for packets
/// that the kernel will decapsulate too.
///
/// `reaches` tells whether the kernel has a way to an address out of the uplink: what is in no lease comes by that
/// interface only (the feasible path of RFC 3704).
#[inline(always)]
pub fn from_uplink(
    packet: &impl Packet,
    host: &HostConfig,
    tables: &impl Tables,
    reaches: impl Fn([u8; 4]) -> bool,
) -> Result<Arrival, Reason> {
    // The kernel drops it, unless it is a bridge's or the like.
    if packet.is_for_another_host() {
        return Err(Reason::OtherHost);
    }
    let Ok((_, outer)) = load_headers(packet) else {
        return Err(check_other(packet, host, tables, reaches));
    };
    if host.subnet().contains(outer.dst_addr) {
        return from_link(packet, host, tables, outer, reaches);
    }
    if outer.dst_addr != host.uplink_address || outer.proto != PROTOCOL_UDP {
        return Err(check_plain(host, tables, &outer));
    }
    // A fragment shows no port; from_tunnel checks what the stack reassembles.
    if is_fragment(&outer) || has_options(&outer) {
        return Err(match check_plain(host, tables, &outer) {
            Reason::NotVxlan if is_fragment(&outer) => Reason::Fragment,
            Reason::NotVxlan => Reason::IpOptions,
            reason => reason,
        });
    }
    let udp: UdpHdr = packet.load(ETHERNET_LENGTH + IPV4_LENGTH).ok_or(Reason::VxlanTruncated)?;
    if udp.dst != host.port.to_be_bytes() {
        return Err(check_plain(host, tables, &outer));
    }
    let vxlan: VxlanHdr = packet.load(VXLAN_OFFSET).ok_or(Reason::VxlanTruncated)?;
    check_vxlan(host, &vxlan)?;
    let vtep =
        tables.vtep(&VtepKey { public_address: outer.src_addr }).ok_or(Reason::UnknownVtep)?;
    let ipv4 = check_inner(packet, INNER_ETHERNET_OFFSET, host, outer.src_addr, vtep)?;
    let tos = ecn::decap(outer.tos, ipv4.tos).ok_or(Reason::CongestionLost)?;

    if !host.fast_path() {
        return Err(Reason::FastPathOff);
    }
    if host.carries_groups() && carries_group(packet) {
        return Err(Reason::GroupPolicy);
    }
    if !vtep.subnet().contains(ipv4.src_addr) {
        return Err(Reason::PublicSource);
    }
    if !checksum::is_valid(&outer) {
        return Err(Reason::BadOuterChecksum);
    }
    check_datagram(packet, &outer, &udp)?;
    if has_options(&ipv4) {
        return Err(Reason::IpOptions);
    }
    let recipient = recipient(tables, ipv4.dst_addr);
    if answers_a_stack_flow(packet, INNER_IPV4_OFFSET, &ipv4, Direction::Arrived, tables) {
        return Err(Reason::StackFlow);
    }
    if !may_pass(packet, INNER_IPV4_OFFSET, &ipv4, Direction::Arrived, host, tables) {
        return Err(Reason::AwaitsRules);
    }
    let is_aggregate = packet.segment_size() != 0;
    match recipient {
        Recipient::Host => return Err(Reason::HostDestination),
        Recipient::Subnet if is_aggregate => return Err(Reason::Aggregate),
        // A UDP socket cuts an aggregate up again, and stumbles over the tunnel state that is left on it.
        Recipient::Endpoint(_) if is_aggregate && ipv4.proto != PROTOCOL_TCP => {
            return Err(Reason::Aggregate);
        }
        Recipient::Subnet | Recipient::Endpoint(_) => {}
    }
    // What is left to the kernel, from_tunnel asks about.
    check_arriving(packet, INNER_IPV4_OFFSET - ETHERNET_LENGTH, host, tables)?;
    Ok(Arrival { encapsulated: true, recipient, ipv4, tos })
}

/// Reads the flags once more, where that is asked for: kept from before, they would cost every other network a place on the stack.
#[inline(always)]
fn carries_group(packet: &impl Packet) -> bool {
    packet.load::<VxlanHdr>(VXLAN_OFFSET).is_some_and(|vxlan| vxlan.flags & VXLAN_G_FLAG_MASK != 0)
}

/// What the kernel's socket would look at, too: the lengths, and the checksum where there is one.
#[inline(always)]
fn check_datagram(packet: &impl Packet, outer: &Ipv4Hdr, udp: &UdpHdr) -> Result<(), Reason> {
    let length = packet.length() - ETHERNET_LENGTH as u32;
    let datagram = length.wrapping_sub(IPV4_LENGTH as u32);
    let stated = [outer.tot_len, udp.len].map(|length| u32::from(u16::from_be_bytes(length)));
    if stated != [length, datagram] {
        return Err(Reason::BadOuterLength);
    }
    if udp.check != [0; 2] && !packet.checksum_verified() {
        return Err(Reason::UdpChecksum);
    }
    Ok(())
}

/// A packet that is not encapsulated, nor for our subnet: from our own subnet it is forged, from another host's it
/// may be for us or whomever we route for.
#[inline(always)]
fn check_plain(host: &HostConfig, tables: &impl Tables, ipv4: &Ipv4Hdr) -> Reason {
    if host.network().contains(ipv4.src_addr) {
        check_overlay_source(host, tables, ipv4.src_addr, ipv4.dst_addr, has_options(ipv4))
    } else {
        Reason::NotVxlan
    }
}

#[inline(never)]
fn check_overlay_source(
    host: &HostConfig,
    tables: &impl Tables,
    source: [u8; 4],
    destination: [u8; 4],
    has_options: bool,
) -> Reason {
    if host.subnet().contains(source) {
        return Reason::Unencapsulated;
    }
    match unmasqueraded(host, tables, [source, destination], has_options, |_| true) {
        Ok(()) => Reason::NotVxlan,
        Err(reason) => reason,
    }
}

/// Checks a frame that is no plain IPv4 packet. VXLAN is checked again once the kernel has decapsulated it, but
/// nothing looks at an unencapsulated packet again.
#[inline(never)]
fn check_other(
    packet: &impl Packet,
    host: &HostConfig,
    tables: &impl Tables,
    reaches: impl Fn([u8; 4]) -> bool,
) -> Reason {
    let ipv4 = match Contents::of(packet).and_then(|contents| contents.ipv4(packet)) {
        Ok(ipv4) => ipv4,
        Err(reason) => return reason,
    };
    if host.subnet().contains(ipv4.dst_addr)
        && host.network().contains(ipv4.src_addr)
        && !comes_from_nobodys(host, tables, ipv4.src_addr, reaches)
    {
        return Reason::Unencapsulated;
    }
    match check_plain(host, tables, &ipv4) {
        Reason::NotVxlan => Reason::Tagged,
        reason => reason,
    }
}

/// Whether an address of the network is in no lease, and where the packet comes from is where the kernel would send to it.
#[inline(never)]
fn comes_from_nobodys(
    host: &HostConfig,
    tables: &impl Tables,
    source: [u8; 4],
    reaches: impl Fn([u8; 4]) -> bool,
) -> bool {
    is_nobodys(host, source) && lookup_peer(host, tables, source).is_none() && reaches(source)
}

/// Decides about a packet for our subnet that is not encapsulated: from a peer on the same link, it is
/// delivered like others (`DirectRouting`); from any other address of the overlay, it is forged.
#[inline(always)]
fn from_link(
    packet: &impl Packet,
    host: &HostConfig,
    tables: &impl Tables,
    ipv4: Ipv4Hdr,
    reaches: impl Fn([u8; 4]) -> bool,
) -> Result<Arrival, Reason> {
    if !host.network().contains(ipv4.src_addr) {
        return Err(Reason::NotVxlan);
    }
    let Some(peer) = lookup_peer(host, tables, ipv4.src_addr) else {
        let nobodys = comes_from_nobodys(host, tables, ipv4.src_addr, reaches);
        return Err(if nobodys { Reason::NotVxlan } else { Reason::Unencapsulated });
    };
    if !peer.is_direct() {
        return Err(Reason::Unencapsulated);
    }
    check_arriving(packet, 0, host, tables)?;
    if !host.fast_path() {
        return Err(Reason::FastPathOff);
    }
    if has_options(&ipv4) {
        return Err(Reason::IpOptions);
    }
    if is_fragment(&ipv4) {
        return Err(Reason::Fragment);
    }
    if !checksum::is_valid(&ipv4) {
        return Err(Reason::BadOuterChecksum);
    }
    if answers_a_stack_flow(packet, ETHERNET_LENGTH, &ipv4, Direction::Arrived, tables) {
        return Err(Reason::StackFlow);
    }
    if !may_pass(packet, ETHERNET_LENGTH, &ipv4, Direction::Arrived, host, tables) {
        return Err(Reason::AwaitsRules);
    }
    let recipient = recipient(tables, ipv4.dst_addr);
    if recipient == Recipient::Host {
        return Err(Reason::HostDestination);
    }
    Ok(Arrival { encapsulated: false, recipient, ipv4, tos: ipv4.tos })
}

/// RFC 7348, section 5: the identifier must be flagged as valid; reserved bits are ignored.
#[inline(always)]
fn check_vxlan(host: &HostConfig, vxlan: &VxlanHdr) -> Result<(), Reason> {
    if !vxlan.vni_present() {
        return Err(Reason::VxlanFlags);
    }
    let [high, mid, low] = vxlan.vni;
    if u32::from_be_bytes([0, high, mid, low]) != host.vni {
        return Err(Reason::WrongVni);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::test_support::{
            ENDPOINT, HOST, LOCAL, PEER, REMOTE, World, tagged, udp_packet, vxlan_packet,
        },
        packet::test_support::Bytes,
        tables::Peer,
    };

    fn decide(edit: impl FnOnce(&mut Vec<u8>)) -> Result<Arrival, Reason> {
        let world = World::new();
        let mut packet = vxlan_packet(&world.host, REMOTE, LOCAL);
        edit(&mut packet.bytes);
        from_uplink(&packet, &world.host, &world, |_| true)
    }

    #[test]
    fn a_packet_for_a_container_is_decapsulated() {
        let plan = decide(|_| ()).expect("a plan");
        assert_eq!(plan.recipient, Recipient::Endpoint(ENDPOINT));
        assert_eq!(plan.ipv4.dst_addr, LOCAL);
    }

    #[test]
    fn reserved_bits_are_ignored_on_receipt() {
        assert!(
            decide(|bytes| {
                bytes[42] |= 0xf7;
                bytes[43] = 0xff;
                bytes[49] = 0xff;
            })
            .is_ok()
        );
    }

    #[test]
    fn a_group_is_the_stacks_to_read_where_the_network_carries_groups() {
        let mut world = World::new();
        let mut packet = vxlan_packet(&world.host, REMOTE, LOCAL);
        packet.bytes[VXLAN_OFFSET] |= VXLAN_G_FLAG_MASK;
        assert!(from_uplink(&packet, &world.host, &world, |_| true).is_ok());
        world.host.flags |= HostConfig::GROUP_POLICY;
        let outcome = from_uplink(&packet, &world.host, &world, |_| true);
        assert_eq!(outcome.err(), Some(Reason::GroupPolicy));
        packet.bytes[VXLAN_OFFSET] &= !VXLAN_G_FLAG_MASK;
        assert!(from_uplink(&packet, &world.host, &world, |_| true).is_ok());
    }

    #[test]
    fn what_the_bridge_does_not_carry_is_the_stacks() {
        let mut world = World::new();
        let packet = vxlan_packet(&world.host, REMOTE, LOCAL);
        let length = u32::try_from(packet.bytes.len() - INNER_IPV4_OFFSET).expect("it is short");
        for (mtu, expected) in [(length, None), (length - 1, Some(Reason::TooBig))] {
            world.host.bridge_mtu = mtu;
            let plan = from_uplink(&packet, &world.host, &world, |_| true).expect("a plan");
            assert_eq!(plan.check_fits_bridge(&packet, &world.host).err(), expected, "MTU {mtu}");
        }
    }

    #[test]
    fn every_refusal_has_its_name() {
        let cases: [(Reason, Edit); 16] = [
            (Reason::NotIpv4, |bytes| bytes[13] = 0x06),
            (Reason::NotVxlan, |bytes| bytes[33] ^= 1),
            (Reason::NotVxlan, |bytes| bytes[23] = 6),
            (Reason::NotVxlan, |bytes| bytes[37] ^= 1),
            (Reason::Fragment, |bytes| bytes[21] = 1),
            (Reason::IpOptions, |bytes| bytes[14] = 0x46),
            (Reason::VxlanTruncated, |bytes| bytes.truncate(38)),
            (Reason::VxlanTruncated, |bytes| bytes.truncate(46)),
            (Reason::VxlanFlags, |bytes| bytes[42] = 0),
            (Reason::WrongVni, |bytes| bytes[48] = 2),
            (Reason::UnknownVtep, |bytes| bytes[29] = 99),
            (Reason::WrongInnerMac, |bytes| bytes[50] ^= 4),
            (Reason::InnerNotIpv4, |bytes| bytes[62] = 0x86),
            (Reason::InnerTruncated, |bytes| bytes.truncate(80)),
            (Reason::ForeignInnerSource, |bytes| bytes[78] ^= 1),
            (Reason::ForeignInnerDestination, |bytes| bytes[82] ^= 1),
        ];
        for (reason, edit) in cases {
            assert_eq!(decide(edit).expect_err("refused"), reason);
        }
    }

    #[test]
    fn a_lying_inner_length_is_refused() {
        assert_eq!(
            decide(|bytes| bytes[66..68].copy_from_slice(&2000_u16.to_be_bytes()))
                .expect_err("longer than the packet"),
            Reason::InnerTruncated
        );
        assert_eq!(
            decide(|bytes| bytes[66..68].copy_from_slice(&19_u16.to_be_bytes()))
                .expect_err("shorter than its header"),
            Reason::InnerTruncated
        );
    }

    #[test]
    fn a_host_may_send_from_its_own_public_address_and_the_stack_delivers_it() {
        let from = |source: [u8; 4]| {
            decide(|bytes| bytes[76..80].copy_from_slice(&source)).expect_err("not by us")
        };
        assert_eq!(from(PEER.public_address), Reason::PublicSource);
        assert_eq!(from([192, 168, 33, 12]), Reason::ForeignInnerSource);
    }

    #[test]
    fn tags_hide_nothing() {
        let world = World::new();
        let seen = |from, to, tags: &[[u8; 4]]| {
            let packet = tagged(udp_packet(from, to, 10), tags);
            from_uplink(&packet, &world.host, &world, |_| true).expect_err("not for the fast path")
        };
        for tags in [&[[0x81, 0, 0xe0, 0]][..], &[[0x88, 0xa8, 0, 0], [0x81, 0, 0, 0]]] {
            assert_eq!(seen(REMOTE, LOCAL, tags), Reason::Unencapsulated);
            assert_eq!(seen([10, 1, 99, 9], LOCAL, tags), Reason::Tagged, "of no lease");
            assert_eq!(seen([8, 8, 8, 8], LOCAL, tags), Reason::Tagged);
        }
        assert_eq!(seen(REMOTE, LOCAL, &[[0x81, 0, 0, 5]]), Reason::OtherVlan);
    }

    #[test]
    fn an_address_in_no_lease_is_the_hosts_own_business_once_leases_are_known() {
        let mut world = World::new();
        let seen = |world: &World| {
            let packet = udp_packet([10, 1, 99, 9], LOCAL, 10);
            from_uplink(&packet, &world.host, world, |_| true).expect_err("not for the fast path")
        };
        assert_eq!(seen(&world), Reason::NotVxlan);
        let packet = udp_packet([10, 1, 99, 9], LOCAL, 10);
        let not_that_way = from_uplink(&packet, &world.host, &world, |_| false);
        assert_eq!(not_that_way.expect_err("forged"), Reason::Unencapsulated);
        world.host.flags &= !HostConfig::LEASES_LISTED;
        assert_eq!(seen(&world), Reason::Unencapsulated);
    }

    #[test]
    fn our_own_subnet_does_not_come_from_the_wire() {
        let world = World::new();
        let seen = |from, to| {
            let packet = udp_packet(from, to, 10);
            from_uplink(&packet, &world.host, &world, |_| true).expect_err("not for the fast path")
        };
        let us = world.host.uplink_address;
        for to in [LOCAL, us, [8, 8, 8, 8]] {
            assert_eq!(seen(LOCAL, to), Reason::Unencapsulated);
        }
        assert_eq!(seen(REMOTE, us), Reason::Unmasqueraded, "to this host, as with flannel");
        assert_eq!(seen(REMOTE, [10, 1, 77, 7]), Reason::Unencapsulated, "through us");
        assert_eq!(seen([10, 1, 99, 9], us), Reason::NotVxlan, "of no lease");
    }

    #[test]
    fn a_wrong_outer_checksum_is_left_to_the_stack() {
        assert_eq!(decide(|bytes| bytes[24] ^= 1).expect_err("declined"), Reason::BadOuterChecksum);
    }

    #[test]
    fn what_the_kernels_socket_would_not_take_is_left_to_it() {
        let declined = |edit: Edit| decide(edit).expect_err("declined");
        assert_eq!(declined(|bytes| bytes.extend([0; 4])), Reason::BadOuterLength);
        assert_eq!(declined(|bytes| bytes[39] ^= 1), Reason::BadOuterLength, "the datagram's");
        assert_eq!(declined(|bytes| bytes[40] = 1), Reason::UdpChecksum);
        let world = World::new();
        let others = Bytes { for_another_host: true, ..vxlan_packet(&world.host, REMOTE, LOCAL) };
        let reason = from_uplink(&others, &world.host, &world, |_| true).expect_err("declined");
        assert_eq!(reason, Reason::OtherHost);
    }

    #[test]
    fn refusals_hold_with_the_fast_path_off() {
        let mut world = World::new();
        world.host.flags = 0;
        let mut packet = vxlan_packet(&world.host, REMOTE, LOCAL);
        let declined = from_uplink(&packet, &world.host, &world, |_| true).expect_err("declined");
        assert_eq!(declined, Reason::FastPathOff);
        packet.bytes[48] = 2;
        let refused = from_uplink(&packet, &world.host, &world, |_| true).expect_err("refused");
        assert_eq!(refused, Reason::WrongVni);
    }

    #[test]
    fn an_aggregate_needs_a_known_container() {
        let world = World::new();
        let mut packet = vxlan_packet(&world.host, REMOTE, [10, 1, 15, 77]);
        packet.bytes[73] = PROTOCOL_TCP;
        let single = from_uplink(&packet, &world.host, &world, |_| true).expect("a plan");
        assert_eq!(single.recipient, Recipient::Subnet);
        packet.segment_size = 1398;
        let aggregate = from_uplink(&packet, &world.host, &world, |_| true).expect_err("declined");
        assert_eq!(aggregate, Reason::Aggregate);
        let mut packet = vxlan_packet(&world.host, REMOTE, LOCAL);
        packet.segment_size = 1398;
        let udp = from_uplink(&packet, &world.host, &world, |_| true).expect_err("declined");
        assert_eq!(udp, Reason::Aggregate);
        packet.bytes[73] = PROTOCOL_TCP;
        assert!(from_uplink(&packet, &world.host, &world, |_| true).is_ok());
    }

    fn from_link(peer: Peer, edit: impl FnOnce(&mut Vec<u8>)) -> Result<Arrival, Reason> {
        let world = World { peer, ..World::new() };
        let mut packet = udp_packet(REMOTE, LOCAL, 10);
        edit(&mut packet.bytes);
        from_uplink(&packet, &world.host, &world, |_| true)
    }

    type Edit = fn(&mut Vec<u8>);

    #[test]
    fn a_peer_on_the_link_may_send_packets_as_they_are() {
        let on_link = Peer { direct: 1, ..PEER };
        let arrival = from_link(on_link, |_| ()).expect("delivered");
        assert_eq!(
            (arrival.encapsulated, arrival.recipient),
            (false, Recipient::Endpoint(ENDPOINT))
        );
        let cases: [(Reason, Edit); 8] = [
            (Reason::NotVxlan, |bytes| bytes[26] = 11),
            (Reason::NotVxlan, |bytes| bytes[28] = 21),
            (Reason::Unencapsulated, |bytes| bytes[28] = 15),
            (Reason::IpOptions, |bytes| bytes[14] = 0x46),
            (Reason::Fragment, |bytes| bytes[20] = 0x20),
            (Reason::BadOuterChecksum, |bytes| bytes[24] ^= 1),
            (Reason::HostDestination, |bytes| {
                (bytes[33], bytes[25]) = (HOST[3], bytes[25].wrapping_add(1));
            }),
            (Reason::Unencapsulated, |bytes| bytes[32] = 16),
        ];
        for (reason, edit) in cases {
            assert_eq!(from_link(on_link, edit).expect_err("not delivered"), reason);
        }
        let refused = from_link(PEER, |_| ()).expect_err("not delivered");
        assert_eq!(refused, Reason::Unencapsulated, "not on the link");
    }
}
