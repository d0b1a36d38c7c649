use super::{
    Tables, has_options, is_fragment, load_headers, lookup_peer, stack_flow::answers_a_stack_flow,
};
use crate::{
    Reason,
    encap::OVERHEAD,
    packet::{
        ETHERNET_LENGTH, Ethernet, IPV4_LENGTH, PROTOCOL_TCP, PROTOCOL_UDP, Packet,
        TCP_DATA_OFFSET, UDP_LENGTH,
    },
    tables::{Direction, EndpointKey, HostConfig, Peer, VtepKey},
};
use network_types::{ip::Ipv4Hdr, udp::UdpHdr};

/// A packet that can be encapsulated: to whom, and what of it the outer header depends on.
#[derive(Clone, Copy, Debug)]
pub struct Encapsulation {
    /// Where it goes.
    pub peer: Peer,
    /// Its IPv4 header, as the container sent it.
    pub ipv4: Ipv4Hdr,
    /// Its length from the IPv4 header on, in bytes.
    pub inner_length: u16,
    /// Its ports, or whatever its protocol has in their place; zero where the packet is too short.
    pub ports: [u8; 4],
}

/// Decides about a packet that a container sent into its veth `ifindex`: encapsulate it, leave it to the
/// stack, or, where it forges VXLAN or another's address, drop it.
#[inline(always)]
pub fn from_container(
    packet: &impl Packet,
    ifindex: u32,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<Encapsulation, Reason> {
    let (ethernet, ipv4) = load_headers(packet)?;
    if ethernet.destination.0 != host.bridge_mac {
        return Err(Reason::NotForGateway);
    }
    check_source(Some(ifindex), &ethernet, &ipv4, tables)?;
    if !host.network().contains(ipv4.dst_addr) {
        return Err(outside_the_overlay(packet, host, tables, &ipv4));
    }
    if host.subnet().contains(ipv4.dst_addr) {
        return Err(Reason::LocalDestination);
    }
    if !host.fast_path() {
        return Err(Reason::FastPathOff);
    }
    if !host.subnet().contains(ipv4.src_addr) {
        return Err(Reason::ForeignSource);
    }
    if has_options(&ipv4) {
        return Err(Reason::IpOptions);
    }
    if is_fragment(&ipv4) {
        return Err(Reason::Fragment);
    }
    if ipv4.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    if answers_a_stack_flow(packet, ETHERNET_LENGTH, &ipv4, Direction::Left, tables) {
        return Err(Reason::StackFlow);
    }
    let inner_length = fitting_length(packet, host, &ipv4)?;
    let peer = lookup_peer(host, tables, ipv4.dst_addr).ok_or(Reason::NoPeer)?;
    let ports = packet.load(ETHERNET_LENGTH + IPV4_LENGTH).unwrap_or_default();
    Ok(Encapsulation { peer, ipv4, inner_length, ports })
}

/// Checks a packet that a container sent and that the bridge, which has forgotten the port, hands to the
/// stack. Not for the fast path: bridges let netfilter rewrite packets before this hook (`br_netfilter`),
/// and what it rewrote has to come back through it.
#[inline(always)]
pub fn from_bridge(
    packet: &impl Packet,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<(), Reason> {
    let (ethernet, ipv4) = load_headers(packet)?;
    check_source(None, &ethernet, &ipv4, tables)?;
    if host.network().contains(ipv4.dst_addr) {
        return Ok(());
    }
    match outside_the_overlay(packet, host, tables, &ipv4) {
        Reason::ContainerVxlan => Err(Reason::ContainerVxlan),
        _ => Ok(()),
    }
}

/// An address that the host knows a container by is that container's alone.
#[inline(always)]
fn check_source(
    ifindex: Option<u32>,
    ethernet: &Ethernet,
    ipv4: &Ipv4Hdr,
    tables: &impl Tables,
) -> Result<(), Reason> {
    let Some(owner) = tables.endpoint(&EndpointKey { address: ipv4.src_addr }) else {
        return Ok(());
    };
    let same_port = match ifindex {
        Some(ifindex) => owner.ifindex == ifindex,
        None => !owner.is_host(),
    };
    if same_port && owner.mac == ethernet.source.0 { Ok(()) } else { Err(Reason::SpoofedSource) }
}

/// A container that could send VXLAN to a VTEP would speak for this whole host once masquerading has
/// given its packets the host's address.
#[inline(always)]
fn outside_the_overlay(
    packet: &impl Packet,
    host: &HostConfig,
    tables: &impl Tables,
    ipv4: &Ipv4Hdr,
) -> Reason {
    if ipv4.proto != PROTOCOL_UDP || u16::from_be_bytes(ipv4.frags) & 0x1fff != 0 {
        return Reason::NotOverlay;
    }
    // 5 to 15 words: the mask keeps the offset bounded for the verifier.
    let header_length = usize::from(ipv4.vihl & 0x0f) * 4;
    let Some(udp) = packet.load::<UdpHdr>(ETHERNET_LENGTH + header_length) else {
        return Reason::NotOverlay;
    };
    let to_a_vtep = || tables.vtep(&VtepKey { public_address: ipv4.dst_addr }).is_some();
    if udp.dst == host.port.to_be_bytes() && to_a_vtep() {
        Reason::ContainerVxlan
    } else {
        Reason::NotOverlay
    }
}

/// The packet's length from its IPv4 header on, if every segment of it fits the overlay's MTU and the
/// whole, encapsulated, still has a length that an IPv4 header can state.
#[inline(always)]
fn fitting_length(packet: &impl Packet, host: &HostConfig, ipv4: &Ipv4Hdr) -> Result<u16, Reason> {
    let length = packet.length() - ETHERNET_LENGTH as u32;
    let segment = match packet.segment_size() {
        0 => u32::from(u16::from_be_bytes(ipv4.tot_len)),
        payload => payload + IPV4_LENGTH as u32 + transport_header_length(packet, ipv4)?,
    };
    if segment > u32::from(host.mtu) || length + OVERHEAD as u32 > u32::from(u16::MAX) {
        return Err(Reason::TooBig);
    }
    Ok(length as u16)
}

#[inline(always)]
fn transport_header_length(packet: &impl Packet, ipv4: &Ipv4Hdr) -> Result<u32, Reason> {
    if ipv4.proto != PROTOCOL_TCP {
        return Ok(UDP_LENGTH as u32);
    }
    let data_offset: u8 =
        packet.load(ETHERNET_LENGTH + IPV4_LENGTH + TCP_DATA_OFFSET).ok_or(Reason::NotIpv4)?;
    Ok(u32::from(data_offset >> 4) * 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::test_support::{ENDPOINT, HOST, LOCAL, PEER, REMOTE, World, udp_packet};

    const PORT: u32 = ENDPOINT.ifindex;

    type Edit = fn(&mut Vec<u8>);

    fn decide(world: &World, edit: impl FnOnce(&mut Vec<u8>)) -> Result<Encapsulation, Reason> {
        let mut packet = udp_packet(LOCAL, REMOTE, 100);
        edit(&mut packet.bytes);
        from_container(&packet, PORT, &world.host, world)
    }

    #[test]
    fn a_packet_for_a_peer_is_encapsulated() {
        let plan = decide(&World::new(), |_| ()).expect("a plan");
        assert_eq!(plan.peer, PEER);
        assert_eq!(plan.inner_length, 128);
    }

    #[test]
    fn what_the_fast_path_cannot_carry_is_left_to_the_stack() {
        let world = World::new();
        let cases: [(Reason, Edit); 10] = [
            (Reason::NotIpv4, |bytes| bytes[12] = 0x86),
            (Reason::NotIpv4, |bytes| bytes.truncate(30)),
            (Reason::NotOverlay, |bytes| bytes[30] = 11),
            (Reason::LocalDestination, |bytes| bytes[32] = 15),
            (Reason::ForeignSource, |bytes| bytes[28] = 99),
            (Reason::NotForGateway, |bytes| bytes[5] ^= 8),
            (Reason::IpOptions, |bytes| bytes[14] = 0x46),
            (Reason::Fragment, |bytes| bytes[20] = 0x20),
            (Reason::TtlExpired, |bytes| bytes[22] = 1),
            (Reason::NoPeer, |bytes| bytes[32] = 200),
        ];
        for (reason, edit) in cases {
            assert_eq!(decide(&world, edit).expect_err("declined"), reason);
        }
    }

    #[test]
    fn the_switch_turns_it_off() {
        let mut world = World::new();
        world.host.flags = 0;
        assert_eq!(decide(&world, |_| ()).expect_err("declined"), Reason::FastPathOff);
    }

    #[test]
    fn segments_are_measured_not_the_aggregate() {
        let world = World::new();
        let mut packet = udp_packet(LOCAL, REMOTE, 30_000);
        packet.segment_size = 1422;
        assert!(from_container(&packet, PORT, &world.host, &world).is_ok());
        packet.segment_size = 1423;
        assert_eq!(
            from_container(&packet, PORT, &world.host, &world).expect_err("1451 bytes a segment"),
            Reason::TooBig
        );
        let whole = udp_packet(LOCAL, REMOTE, 1423);
        assert_eq!(
            from_container(&whole, PORT, &world.host, &world).expect_err("1451 bytes"),
            Reason::TooBig
        );
    }

    #[test]
    fn an_aggregate_that_would_overflow_the_outer_length_is_declined() {
        let world = World::new();
        let mut packet = udp_packet(LOCAL, REMOTE, 65_535 - 50 - 28 + 1);
        packet.segment_size = 1000;
        assert_eq!(
            from_container(&packet, PORT, &world.host, &world).expect_err("65,536 bytes"),
            Reason::TooBig
        );
    }

    #[test]
    fn a_container_may_not_send_vxlan_to_a_vtep() {
        let world = World::new();
        let mut packet = udp_packet(LOCAL, PEER.public_address, 100);
        packet.bytes[36..38].copy_from_slice(&8472_u16.to_be_bytes());
        let refused = from_container(&packet, PORT, &world.host, &world).expect_err("refused");
        assert_eq!(refused, Reason::ContainerVxlan);
        let refused = from_bridge(&packet, &world.host, &world).expect_err("refused");
        assert_eq!(refused, Reason::ContainerVxlan);
        packet.bytes[36..38].copy_from_slice(&53_u16.to_be_bytes());
        let passed = from_container(&packet, PORT, &world.host, &world).expect_err("not ours");
        assert_eq!(passed, Reason::NotOverlay);
    }

    #[test]
    fn an_address_belongs_to_one_port_and_one_mac() {
        let world = World::new();
        let refused = |src, ifindex, edit: Edit| {
            let mut packet = udp_packet(src, REMOTE, 100);
            edit(&mut packet.bytes);
            from_container(&packet, ifindex, &world.host, &world).err()
        };
        let refused_on_bridge = |src, edit: Edit| {
            let mut packet = udp_packet(src, REMOTE, 100);
            edit(&mut packet.bytes);
            from_bridge(&packet, &world.host, &world).err()
        };
        assert_eq!(refused(LOCAL, PORT, |_| ()), None);
        assert_eq!(refused_on_bridge(LOCAL, |_| ()), None);
        let spoofed = Some(Reason::SpoofedSource);
        assert_eq!(refused(LOCAL, 99, |_| ()), spoofed, "another port");
        assert_eq!(refused(LOCAL, PORT, |bytes| bytes[11] ^= 1), spoofed, "another MAC");
        assert_eq!(refused_on_bridge(LOCAL, |bytes| bytes[11] ^= 1), spoofed, "another MAC");
        assert_eq!(refused(HOST, PORT, |_| ()), spoofed, "the gateway's address");
        assert_eq!(refused_on_bridge(HOST, |_| ()), spoofed, "the gateway's address");
        assert_eq!(refused([10, 1, 15, 77], PORT, |_| ()), None, "nobody's address");
    }
}
