//! Whether a container is who it says it is: its MAC, its address, its ARP. What decides is what the agent was
//! told of ports, never what other packets have said.

use network_types::{ip::Ipv4Hdr, udp::UdpHdr};

use super::{Tables, contents::Contents, has_options};
use crate::{
    Reason,
    packet::{Arp, ETHERNET_LENGTH, ETHERTYPE_ARP, Ethernet, IPV4_LENGTH, PROTOCOL_UDP, Packet},
    tables::{BridgeKey, EndpointKey, HomeKey, HostConfig, PortKey},
};

/// Whether a packet with this source may come from this MAC by the interface `here`: the container's port, or the bridge,
/// which has forgotten by which it came. Returns the MAC of the gateway there.
#[inline(always)]
pub(super) fn check_source(
    here: u32,
    ethernet: &Ethernet,
    ipv4: &Ipv4Hdr,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<[u8; 6], Reason> {
    if let Some(owner) = tables.endpoint(&EndpointKey { address: ipv4.src_addr })
        && (owner.ifindex == here || owner.bridge == here)
        && owner.mac == ethernet.source.0
    {
        return Ok(owner.gateway);
    }
    check_stranger(here, ethernet.source.0, ipv4.src_addr, host, tables)?;
    Ok(tables.bridge(&BridgeKey { ifindex: here }).unwrap_or_default().mac)
}

/// A source that is not the sender's own, as far as is known: nobody's, or another's. A function of its own, as are
/// others below: what is seldom must not be in the way of what is frequent. They take no headers by reference, because
/// these would have to be in memory for it.
#[inline(never)]
fn check_stranger(
    here: u32,
    mac: [u8; 6],
    source: [u8; 4],
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<(), Reason> {
    check_mac(here, mac, tables)?;
    let bridge = tables.bridge(&BridgeKey { ifindex: here }).unwrap_or_default();
    let sender = tables.port(&PortKey::new(bridge.ifindex, mac));
    if host.source_any() || sender.is_some_and(|sender| sender.source_any()) {
        return Ok(());
    }
    let owner = tables.endpoint(&EndpointKey { address: source });
    let is_anothers = owner.is_some()
        || source == host.uplink_address
        || (host.network().contains(source)
            && !(host.subnet().contains(source) && bridge.subnet().contains(source)));
    if !is_anothers && !host.source_strict() || is_at_home(source, mac, bridge.ifindex, tables) {
        return Ok(());
    }
    // Its own address with another MAC is no claim: the MAC may have changed a moment ago.
    if owner.is_none_or(|owner| owner.ifindex != here) {
        note_claim(here, bridge.ifindex, source, tables);
    }
    Err(Reason::SpoofedSource)
}

/// Whether an address is that of a container which is behind this bridge, too, where it has this MAC: its default route
/// may lead whatever it sends there.
#[inline(always)]
fn is_at_home(address: [u8; 4], mac: [u8; 6], bridge: u32, tables: &impl Tables) -> bool {
    tables.home(&HomeKey { address, ifindex: bridge }).is_some_and(|home| home.mac == mac)
}

/// Who claims an address is known where the port is.
#[inline(always)]
fn note_claim(here: u32, bridge: u32, address: [u8; 4], tables: &impl Tables) {
    tables.note_claim(if here == bridge { 0 } else { here }, address);
}

/// Bridges learn from any frame where a MAC is. None may say that another container's is here; nor anybody anything
/// where it is not known which bridge that is.
#[inline(always)]
fn check_mac(here: u32, mac: [u8; 6], tables: &impl Tables) -> Result<(), Reason> {
    let Some(bridge) = tables.bridge(&BridgeKey { ifindex: here }) else {
        return Err(Reason::ForeignMac);
    };
    let foreign = match tables.port(&PortKey::new(bridge.ifindex, mac)) {
        Some(owner) => here != bridge.ifindex && owner.ifindex != here,
        None => mac == bridge.mac,
    };
    if foreign { Err(Reason::ForeignMac) } else { Ok(()) }
}

/// Checks a frame that is no plain IPv4 packet: whose it is, and what the kernel would make of it. All is well with an
/// IPv4 packet behind tags, of which it says where its header is and where it goes; or the reason says what else it is.
#[inline(never)]
pub(super) fn check_other(
    packet: &impl Packet,
    here: u32,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<(usize, [u8; 4]), Reason> {
    let ethernet: Ethernet = packet.load(0).ok_or(Reason::Unreadable)?;
    check_mac(here, ethernet.source.0, tables)?;
    let contents = Contents::of(packet)?;
    if contents.ethertype == ETHERTYPE_ARP {
        check_arp(packet, here, contents.offset, tables)?;
    }
    let ipv4 = contents.ipv4(packet)?;
    check_source(here, &ethernet, &ipv4, host, tables)?;
    check_no_vxlan(packet, contents.offset, &ipv4, host, tables)?;
    Ok((contents.offset, ipv4.dst_addr))
}

/// The kernel and other containers believe a sender's address and MAC of any ARP packet.
#[inline(always)]
fn check_arp(
    packet: &impl Packet,
    here: u32,
    offset: usize,
    tables: &impl Tables,
) -> Result<(), Reason> {
    let arp: Arp = packet.network(offset).ok_or(Reason::Unreadable)?;
    if !arp.is_believed() {
        return Ok(());
    }
    let mac = arp.sender_mac.0;
    let bridge = tables.bridge(&BridgeKey { ifindex: here }).unwrap_or_default().ifindex;
    if check_mac(here, mac, tables).is_err() {
        note_claim(here, bridge, arp.sender, tables);
        return Err(Reason::SpoofedArp);
    }
    let Some(owner) = tables.endpoint(&EndpointKey { address: arp.sender }) else {
        return Ok(());
    };
    let own = (owner.ifindex == here || owner.bridge == here) && owner.mac == mac;
    if own || is_at_home(arp.sender, mac, bridge, tables) {
        return Ok(());
    }
    if owner.ifindex != here {
        note_claim(here, bridge, arp.sender, tables);
    }
    Err(Reason::SpoofedArp)
}

/// A container that could send VXLAN to a VTEP would speak for this whole host once masquerading has given its
/// packets the host's address; to this host's own, for whatever peer it names as the sender. To containers it may.
/// `offset` is that of the IPv4 header.
#[inline(always)]
pub(super) fn check_no_vxlan(
    packet: &impl Packet,
    offset: usize,
    ipv4: &Ipv4Hdr,
    host: &HostConfig,
    tables: &impl Tables,
) -> Result<(), Reason> {
    // Mostly, the header is where it can be read in place.
    let plain = offset == 0 && !has_options(ipv4) && ipv4.proto == PROTOCOL_UDP;
    let udp = packet.load::<UdpHdr>(ETHERNET_LENGTH + IPV4_LENGTH).filter(|_| plain);
    let is_vxlan = match udp {
        Some(udp) => is_first(ipv4) && udp.dst == host.port.to_be_bytes(),
        None => is_vxlan(packet, offset, ipv4, host)?,
    };
    if !is_vxlan {
        return Ok(());
    }
    let to_container = host.network().contains(ipv4.dst_addr)
        && tables
            .endpoint(&EndpointKey { address: ipv4.dst_addr })
            .is_none_or(|owner| !owner.is_host());
    if to_container { Ok(()) } else { Err(Reason::ContainerVxlan) }
}

/// Whether a packet begins with its transport header: no fragment, or the first. The lower 13 bits of the field are
/// the offset (RFC 791, section 3.1).
#[inline(always)]
pub(super) const fn is_first(ipv4: &Ipv4Hdr) -> bool {
    matches!([ipv4.frags[0] & 0x1f, ipv4.frags[1]], [0, 0])
}

/// Whether a packet shows that it is for the VXLAN port: of fragments, only the first does.
#[inline(always)]
pub(super) fn is_vxlan(
    packet: &impl Packet,
    offset: usize,
    ipv4: &Ipv4Hdr,
    host: &HostConfig,
) -> Result<bool, Reason> {
    if ipv4.proto != PROTOCOL_UDP || !is_first(ipv4) {
        return Ok(false);
    }
    // 5 to 15 words: the mask keeps the offset bounded for the verifier.
    let header_length = usize::from(ipv4.vihl & 0x0f) * 4;
    is_for_port(packet, offset + header_length, host.port)
}

/// Whether the UDP header at this offset is for a port.
#[inline(never)]
fn is_for_port(packet: &impl Packet, offset: usize, port: u16) -> Result<bool, Reason> {
    let udp: UdpHdr = packet.network(offset).ok_or(Reason::Unreadable)?;
    Ok(udp.dst == port.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        MacAddr,
        decide::{
            from_bridge, from_container,
            test_support::{
                BRIDGE, ENDPOINT, HOST, LOCAL, NEIGHBOUR, NEIGHBOUR_ENDPOINT, PEER, REMOTE, SECOND,
                SECOND_ENDPOINT, World, arp, tagged, udp_packet,
            },
        },
        packet::test_support::Bytes,
    };

    const PORT: u32 = ENDPOINT.ifindex;
    const PRIORITY: [u8; 4] = [0x81, 0, 0, 0];

    /// Why the container's port and the bridge refuse a packet, if they do.
    fn refusals(world: &World, packet: &Bytes) -> [Option<Reason>; 2] {
        let dropped =
            |reason: Reason| Some(reason).filter(|reason| reason.class() == crate::Class::Dropped);
        [
            from_container(packet, PORT, &world.host, world).err().and_then(dropped),
            from_bridge(packet, BRIDGE.ifindex, &world.host, world).err().and_then(dropped),
        ]
    }

    fn with_mac(mac: [u8; 6], mut packet: Bytes) -> Bytes {
        packet.bytes[6..12].copy_from_slice(&mac);
        packet
    }

    #[test]
    fn an_address_that_the_host_knows_is_one_containers_alone_tagged_or_not() {
        let world = World::new();
        let spoofed = Some(Reason::SpoofedSource);
        for tags in [&[][..], &[PRIORITY], &[PRIORITY, [0x88, 0xa8, 0, 0]]] {
            let refused = |from| refusals(&world, &tagged(udp_packet(from, REMOTE, 10), tags));
            assert_eq!(refused(LOCAL), [None; 2]);
            assert_eq!(refused(NEIGHBOUR), [spoofed; 2], "another's, with the own MAC");
            assert_eq!(refused(HOST), [spoofed; 2], "the gateway's");
            assert_eq!(refused(world.host.uplink_address), [spoofed; 2], "the host's");
            assert_eq!(refused(REMOTE), [spoofed; 2], "of a peer's lease");
            assert_eq!(refused([10, 1, 99, 9]), [spoofed; 2], "of another host's, if it came");
            assert_eq!(refused([10, 1, 15, 77]), [None; 2], "nobody's");
            assert_eq!(refused([172, 18, 0, 2]), [None; 2], "of another network");
        }
    }

    #[test]
    fn another_containers_mac_is_refused_in_any_frame() {
        let world = World::new();
        let foreign = Some(Reason::ForeignMac);
        let theirs = |packet| refusals(&world, &with_mac(NEIGHBOUR_ENDPOINT.mac, packet))[0];
        assert_eq!(theirs(udp_packet(LOCAL, REMOTE, 10)), foreign);
        assert_eq!(theirs(udp_packet(NEIGHBOUR, REMOTE, 10)), foreign);
        assert_eq!(theirs(udp_packet([10, 1, 15, 77], REMOTE, 10)), foreign);
        assert_eq!(theirs(tagged(udp_packet(LOCAL, REMOTE, 10), &[[0x81, 0, 0, 9]])), foreign);
        let mut junk = udp_packet(LOCAL, REMOTE, 10);
        junk.bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
        assert_eq!(theirs(junk), foreign);
        let bridges = with_mac(BRIDGE.mac, udp_packet([10, 1, 15, 77], REMOTE, 10));
        assert_eq!(refusals(&world, &bridges), [foreign; 2]);
    }

    #[test]
    fn a_container_does_not_speak_as_one_of_another_bridge() {
        let mut world = World::new();
        let spoofed = [Some(Reason::SpoofedSource); 2];
        let nobodys = udp_packet([10, 1, 15, 131], REMOTE, 10);
        assert_eq!(refusals(&world, &udp_packet(SECOND, REMOTE, 10)), spoofed);
        assert_eq!(refusals(&world, &nobodys), spoofed, "nobody's there");
        let claims_it = arp(MacAddr(ENDPOINT.mac), SECOND);
        assert_eq!(refusals(&world, &claims_it), [Some(Reason::SpoofedArp); 2]);
        // What is on another bridge has a MAC for itself.
        let twin = with_mac(SECOND_ENDPOINT.mac, udp_packet([10, 1, 15, 77], REMOTE, 10));
        assert_eq!(refusals(&world, &twin), [None; 2]);
        // A container behind both answers by its default route.
        world.second_home = Some((SECOND, BRIDGE.ifindex));
        assert_eq!(refusals(&world, &udp_packet(SECOND, REMOTE, 10)), [None; 2]);
        assert_eq!(refusals(&world, &claims_it), [None; 2]);
        assert_eq!(refusals(&world, &nobodys), spoofed);
        let neighbours = with_mac(NEIGHBOUR_ENDPOINT.mac, udp_packet(SECOND, REMOTE, 10));
        assert_eq!(refusals(&world, &neighbours)[1], Some(Reason::SpoofedSource));
    }

    #[test]
    fn who_comes_by_no_bridge_that_is_known_is_nobody() {
        let world = World::new();
        let packet = udp_packet([10, 1, 15, 77], REMOTE, 10);
        let refused = from_container(&packet, 99, &world.host, &world);
        assert_eq!(refused.err(), Some(Reason::ForeignMac));
    }

    #[test]
    fn a_packet_to_any_mac_of_the_host_is_checked_first() {
        let world = World::new();
        let mut packet = udp_packet(NEIGHBOUR, REMOTE, 10);
        packet.bytes[0..6].copy_from_slice(&[2, 0, 0, 0, 0, 77]);
        assert_eq!(refusals(&world, &packet)[0], Some(Reason::SpoofedSource));
    }

    #[test]
    fn an_address_is_claimed_by_its_owner_alone() {
        let world = World::new();
        let refused =
            |mac, address, tags: &[[u8; 4]]| refusals(&world, &tagged(arp(mac, address), tags));
        let (own, neighbours) = (MacAddr(ENDPOINT.mac), MacAddr(NEIGHBOUR_ENDPOINT.mac));
        let spoofed = Some(Reason::SpoofedArp);
        for tags in [&[][..], &[PRIORITY]] {
            assert_eq!(refused(own, LOCAL, tags), [None; 2]);
            assert_eq!(refused(own, [0; 4], tags), [None; 2], "a probe");
            assert_eq!(refused(own, [10, 1, 15, 77], tags), [None; 2], "nobody's");
            assert_eq!(refused(own, NEIGHBOUR, tags), [spoofed; 2]);
            assert_eq!(refused(own, HOST, tags), [spoofed; 2]);
            assert_eq!(refused(neighbours, [10, 1, 15, 77], tags)[0], spoofed);
            let mut ieee_802 = tagged(arp(own, NEIGHBOUR), tags);
            ieee_802.bytes[15 + 4 * tags.len()] = 6;
            assert_eq!(refusals(&world, &ieee_802), [spoofed; 2], "the kernel believes it, too");
        }
    }

    #[test]
    fn who_claims_what_is_noted() {
        let world = World::new();
        refusals(&world, &arp(MacAddr(ENDPOINT.mac), NEIGHBOUR));
        refusals(&world, &udp_packet(HOST, REMOTE, 10));
        refusals(&world, &udp_packet(LOCAL, REMOTE, 10));
        let mut other_mac = udp_packet(LOCAL, REMOTE, 10);
        other_mac.bytes[11] ^= 8;
        assert_eq!(refusals(&world, &other_mac)[0], Some(Reason::SpoofedSource), "no claim");
        let claims = [(PORT, NEIGHBOUR), (0, NEIGHBOUR), (PORT, HOST), (0, HOST), (0, LOCAL)];
        assert_eq!(*world.claims.borrow(), claims);
    }

    #[test]
    fn how_strict_to_be_can_be_chosen() {
        let mut world = World::new();
        let nobodys = udp_packet([10, 1, 15, 77], REMOTE, 10);
        let neighbours = udp_packet(NEIGHBOUR, REMOTE, 10);
        let foreign_mac = with_mac(NEIGHBOUR_ENDPOINT.mac, udp_packet(NEIGHBOUR, REMOTE, 10));
        let spoofed = [Some(Reason::SpoofedSource); 2];
        world.host.flags |= HostConfig::SOURCE_STRICT;
        assert_eq!(refusals(&world, &nobodys), spoofed);
        assert_eq!(refusals(&world, &udp_packet(LOCAL, REMOTE, 10)), [None; 2]);
        // Direct server return: this container answers with the address of the one that was asked.
        world.exempt = true;
        assert_eq!(refusals(&world, &neighbours), [None; 2]);
        assert_eq!(refusals(&world, &foreign_mac)[0], Some(Reason::ForeignMac));
        world.exempt = false;
        world.host.flags = HostConfig::FAST_PATH | HostConfig::SOURCE_ANY;
        assert_eq!(refusals(&world, &neighbours), [None; 2]);
    }

    #[test]
    fn vxlan_leaves_no_container_but_for_containers() {
        let world = World::new();
        let to = |destination, tags: &[[u8; 4]]| {
            let mut packet = udp_packet(LOCAL, destination, 60);
            packet.bytes[36..38].copy_from_slice(&world.host.port.to_be_bytes());
            refusals(&world, &tagged(packet, tags))
        };
        let refused = [Some(Reason::ContainerVxlan); 2];
        for tags in [&[][..], &[PRIORITY]] {
            assert_eq!(to(PEER.public_address, tags), refused);
            assert_eq!(to([192, 168, 44, 11], tags), refused, "a second address of whomever");
            assert_eq!(to(world.host.uplink_address, tags), refused, "our own VTEP");
            assert_eq!(to(HOST, tags), refused, "the gateway's address leads there too");
            assert_eq!(to(REMOTE, tags), [None; 2]);
            let mut bridged = udp_packet(LOCAL, PEER.public_address, 60);
            bridged.bytes[36..38].copy_from_slice(&world.host.port.to_be_bytes());
            bridged.bytes[5] ^= 8;
            assert_eq!(refusals(&world, &bridged), refused, "by whomever");
            assert_eq!(to(NEIGHBOUR, tags), [None; 2]);
        }
    }

    #[test]
    fn what_ends_before_a_check_can_be_made_is_dropped() {
        let world = World::new();
        let unreadable = [Some(Reason::Unreadable); 2];
        let cut = |length| {
            let mut packet = udp_packet(LOCAL, PEER.public_address, 60);
            packet.bytes.truncate(length);
            refusals(&world, &packet)
        };
        assert_eq!(cut(33), unreadable, "inside the IPv4 header");
        assert_eq!(cut(40), unreadable, "inside the UDP header");
        assert_eq!(cut(42), [None; 2]);
        let mut tag = tagged(udp_packet(LOCAL, REMOTE, 10), &[PRIORITY]);
        tag.bytes.truncate(17);
        assert_eq!(refusals(&world, &tag), unreadable, "inside a tag");
    }
}
