use super::{Tables, contents::Contents, has_options, is_nobodys, lookup_peer, sender::is_vxlan};
use crate::{
    Reason,
    packet::{Ethernet, Packet},
    tables::{HomeKey, HostConfig, VtepKey},
};

/// Decides about a packet that came by an interface of the host which is neither the uplink nor the containers':
/// it goes on, unless it comes from an address of the overlay or speaks VXLAN in the name of a host that this
/// interface does not lead to.
///
/// `reaches` tells whether the kernel has a way to an address out of that interface (the feasible path of RFC 3704);
/// `is_on_link`, whether it looks for the address itself there. Where it looks for our own containers, they are: the
/// agent has not yet seen what has become of that interface.
#[inline(always)]
pub fn from_interface(
    packet: &impl Packet,
    ifindex: u32,
    host: &HostConfig,
    tables: &impl Tables,
    reaches: impl Fn([u8; 4]) -> bool,
    is_on_link: impl Fn([u8; 4]) -> bool,
) -> Result<Reason, Reason> {
    // Ports of bridges carry such, also those that have just become one.
    if packet.is_for_another_host() {
        return Err(Reason::OtherHost);
    }
    let contents = Contents::of(packet)?;
    let ipv4 = contents.ipv4(packet)?;
    let source = ipv4.src_addr;
    if host.network().contains(source) {
        if !host.subnet().contains(source) {
            let addresses = [source, ipv4.dst_addr];
            unmasqueraded(host, tables, addresses, has_options(&ipv4), &reaches)?;
        } else if !is_home(packet, source, ifindex, tables)
            && tables.home(&HomeKey::newcomer(ifindex)).is_none()
            && !is_on_link(source)
        {
            return Err(Reason::Unencapsulated);
        }
    }
    if is_vxlan(packet, contents.offset, &ipv4, host)? {
        let in_our_name = source == host.uplink_address;
        let in_a_peers = tables.vtep(&VtepKey { public_address: source }).is_some();
        if in_our_name || (in_a_peers && !reaches(source)) {
            return Err(Reason::MisplacedVtep);
        }
    }
    Ok(Reason::Checked)
}

/// Whether this is a container's own packet that takes its other way out of the container.
#[inline(always)]
fn is_home(packet: &impl Packet, source: [u8; 4], ifindex: u32, tables: &impl Tables) -> bool {
    let Some(home) = tables.home(&HomeKey { address: source, ifindex }) else {
        return false;
    };
    packet.load::<Ethernet>(0).is_some_and(|ethernet| ethernet.source.0 == home.mac)
}

/// Decides about a packet from an address of the overlay outside our subnet that is not encapsulated: a container
/// that is not masqueraded speaks like this to what is outside the overlay, with flannel too. Never to containers.
/// What has an address of the network in no lease is no container, and comes by the interface that the kernel would
/// send to it by.
#[inline(always)]
pub(super) fn unmasqueraded(
    host: &HostConfig,
    tables: &impl Tables,
    [source, destination]: [[u8; 4]; 2],
    has_options: bool,
    reaches: impl Fn([u8; 4]) -> bool,
) -> Result<(), Reason> {
    match lookup_peer(host, tables, source) {
        // Options may name another destination than the header does.
        Some(_) if host.network().contains(destination) || has_options => {
            Err(Reason::Unencapsulated)
        }
        Some(peer) if reaches(peer.public_address) => Err(Reason::Unmasqueraded),
        Some(_) => Err(Reason::Unencapsulated),
        None if host.subnet().contains(destination)
            && !(is_nobodys(host, source) && reaches(source)) =>
        {
            Err(Reason::Unencapsulated)
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decide::test_support::{HOST, LOCAL, NEIGHBOUR, PEER, REMOTE, World, tagged, udp_packet},
        packet::test_support::Bytes,
    };

    const OTHER: u32 = 31;
    const OUTSIDE: [u8; 4] = [192, 168, 33, 10];

    fn decide(from: [u8; 4], to: [u8; 4], reaches: bool) -> Reason {
        let world = World::new();
        let mut seen = Vec::new();
        for tags in [&[][..], &[[0x81, 0, 0, 0]]] {
            let packet = tagged(udp_packet(from, to, 10), tags);
            let (Ok(reason) | Err(reason)) =
                from_interface(&packet, OTHER, &world.host, &world, |_| reaches, |_| false);
            seen.push(reason);
        }
        assert_eq!(seen[0], seen[1], "a tag changes nothing");
        seen[0]
    }

    #[test]
    fn overlay_sources_do_not_come_unencapsulated() {
        for to in [LOCAL, HOST, REMOTE] {
            assert_eq!(decide(REMOTE, to, true), Reason::Unencapsulated);
            assert_eq!(decide(NEIGHBOUR, to, true), Reason::Unencapsulated);
        }
        assert_eq!(decide([10, 1, 99, 9], LOCAL, true), Reason::Checked, "of no lease");
        assert_eq!(decide([10, 1, 99, 9], LOCAL, false), Reason::Unencapsulated, "not that way");
        assert_eq!(decide(NEIGHBOUR, OUTSIDE, true), Reason::Unencapsulated, "our own subnet's");
        assert_eq!(decide([8, 8, 8, 8], LOCAL, true), Reason::Checked);
        assert_eq!(decide([8, 8, 8, 8], OUTSIDE, true), Reason::Checked);
    }

    #[test]
    fn what_the_interface_does_not_take_is_not_checked() {
        let world = World::new();
        let bridged = Bytes { for_another_host: true, ..udp_packet(LOCAL, REMOTE, 10) };
        let reason = from_interface(&bridged, OTHER, &world.host, &world, |_| false, |_| false);
        assert_eq!(reason, Err(Reason::OtherHost));
    }

    #[test]
    fn a_container_that_is_not_masqueraded_reaches_what_is_outside_the_overlay() {
        assert_eq!(decide(REMOTE, OUTSIDE, true), Reason::Unmasqueraded);
        assert_eq!(decide(REMOTE, OUTSIDE, false), Reason::Unencapsulated, "its host is elsewhere");
        let world = World::new();
        let mut routed = udp_packet(REMOTE, OUTSIDE, 10);
        routed.bytes[14] = 0x46;
        let reason = from_interface(&routed, OTHER, &world.host, &world, |_| true, |_| false);
        assert_eq!(reason, Err(Reason::Unencapsulated), "options may lead on to a container");
    }

    #[test]
    fn what_may_be_a_port_of_the_bridge_in_a_moment_is_not_refused_its_own_addresses() {
        let world = World { newcomer: Some(OTHER), ..World::new() };
        let decide = |from| {
            from_interface(
                &udp_packet(from, LOCAL, 10),
                OTHER,
                &world.host,
                &world,
                |_| true,
                |_| false,
            )
        };
        assert_eq!(decide(NEIGHBOUR), Ok(Reason::Checked));
        assert_eq!(decide(REMOTE), Err(Reason::Unencapsulated));
    }

    #[test]
    fn a_bridge_that_the_kernel_knows_for_the_containers_is_theirs() {
        let world = World::new();
        let decide = |from| {
            let packet = udp_packet(from, LOCAL, 10);
            from_interface(&packet, OTHER, &world.host, &world, |_| true, |_| true)
        };
        assert_eq!(decide(NEIGHBOUR), Ok(Reason::Checked));
        assert_eq!(decide(REMOTE), Err(Reason::Unencapsulated));
    }

    #[test]
    fn a_container_with_a_second_network_sends_from_both() {
        let world = World { second_home: Some((LOCAL, OTHER)), ..World::new() };
        let decide = |ifindex| {
            from_interface(
                &udp_packet(LOCAL, REMOTE, 10),
                ifindex,
                &world.host,
                &world,
                |_| true,
                |_| false,
            )
        };
        assert_eq!(decide(OTHER), Ok(Reason::Checked));
        assert_eq!(decide(OTHER + 1), Err(Reason::Unencapsulated));
        let mut forged = udp_packet(LOCAL, REMOTE, 10);
        forged.bytes[11] ^= 1;
        let refused = from_interface(&forged, OTHER, &world.host, &world, |_| true, |_| false);
        assert_eq!(refused, Err(Reason::Unencapsulated), "another MAC");
    }

    #[test]
    fn vxlan_comes_by_the_way_to_its_sender() {
        let world = World::new();
        let decide = |from, reaches| {
            let mut packet = udp_packet(from, OUTSIDE, 60);
            packet.bytes[36..38].copy_from_slice(&world.host.port.to_be_bytes());
            from_interface(&packet, OTHER, &world.host, &world, |_| reaches, |_| false)
        };
        assert_eq!(decide(PEER.public_address, true), Ok(Reason::Checked));
        assert_eq!(decide(PEER.public_address, false), Err(Reason::MisplacedVtep));
        assert_eq!(decide(world.host.uplink_address, true), Err(Reason::MisplacedVtep));
        assert_eq!(decide([172, 18, 0, 2], false), Ok(Reason::Checked), "no peer's name");
    }
}
