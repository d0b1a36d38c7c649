use network_types::ip::Ipv4Hdr;

use super::{
    Recipient, Tables, check_inner,
    policy::check_arriving,
    recipient,
    rules::{accept_underlay, may_pass},
    stack_flow::answers_a_stack_flow,
};
use crate::{
    Reason,
    packet::{ETHERNET_LENGTH, Packet},
    tables::{Direction, HostConfig, VtepKey},
};

/// The tunnel key of a packet that the kernel decapsulated.
#[derive(Clone, Copy, Debug)]
pub struct TunnelSource {
    /// Outer source address.
    pub remote: [u8; 4],
    /// Outer destination address: the kernel's socket listens on all of the host's.
    pub local: [u8; 4],
    /// VXLAN network identifier.
    pub vni: u32,
    /// What the sender's host had marked the packet with, where the network carries that; else 0.
    pub group: u32,
}

/// A decapsulated packet that may be delivered.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// Whom it is for.
    pub recipient: Recipient<'a>,
    /// Its IPv4 header.
    pub ipv4: Ipv4Hdr,
}

/// Decides about a packet that the kernel decapsulated: the same checks as on the uplink, because
/// fragments pass that one unseen. Returns the recipient past the host's netfilter, or
/// [`Reason::ToStack`].
#[inline(always)]
pub fn from_tunnel<'a>(
    packet: &impl Packet,
    source: TunnelSource,
    host: &HostConfig,
    tables: &'a impl Tables,
) -> Result<Delivery<'a>, Reason> {
    if source.vni != host.vni {
        return Err(Reason::WrongVni);
    }
    if source.local != host.uplink_address {
        return Err(Reason::WrongVtepAddress);
    }
    let vtep =
        tables.vtep(&VtepKey { public_address: source.remote }).ok_or(Reason::UnknownVtep)?;
    accept_underlay(source.remote, Direction::Arrived, host, tables);
    let ipv4 = check_inner(packet, 0, host, source.remote, vtep)?;
    check_arriving(packet, 0, host, tables)?;
    if !host.fast_path() || source.group != 0 || !vtep.subnet().contains(ipv4.src_addr) {
        return Err(Reason::ToStack);
    }
    if answers_a_stack_flow(packet, ETHERNET_LENGTH, &ipv4, Direction::Arrived, tables)
        || !may_pass(packet, ETHERNET_LENGTH, &ipv4, Direction::Arrived, host, tables)
    {
        return Err(Reason::ToStack);
    }
    match recipient(tables, ipv4.dst_addr) {
        Recipient::Host => Err(Reason::ToStack),
        recipient => Ok(Delivery { recipient, ipv4 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::test_support::{ENDPOINT, LOCAL, PEER, REMOTE, World, inner_packet};

    const SOURCE: TunnelSource =
        TunnelSource { remote: PEER.public_address, local: [192, 168, 33, 10], vni: 1, group: 0 };

    fn refusal(packet: &impl Packet, source: TunnelSource, world: &World) -> Reason {
        from_tunnel(packet, source, &world.host, world).expect_err("not delivered")
    }

    #[test]
    fn a_checked_packet_goes_to_its_container() {
        let world = World::new();
        let packet = inner_packet(&world.host, REMOTE, LOCAL);
        let delivery = from_tunnel(&packet, SOURCE, &world.host, &world).expect("delivered");
        assert_eq!(delivery.recipient, Recipient::Endpoint(&ENDPOINT));
    }

    #[test]
    fn without_the_fast_path_netfilter_sees_it() {
        let mut world = World::new();
        world.host.flags = 0;
        let packet = inner_packet(&world.host, REMOTE, LOCAL);
        assert_eq!(refusal(&packet, SOURCE, &world), Reason::ToStack);
    }

    #[test]
    fn what_carries_a_group_is_for_netfilter() {
        let world = World::new();
        let packet = inner_packet(&world.host, REMOTE, LOCAL);
        let marked = TunnelSource { group: 7, ..SOURCE };
        assert_eq!(refusal(&packet, marked, &world), Reason::ToStack);
    }

    #[test]
    fn a_host_may_send_from_its_own_public_address_and_the_stack_delivers_it() {
        let world = World::new();
        let packet = inner_packet(&world.host, PEER.public_address, LOCAL);
        assert_eq!(refusal(&packet, SOURCE, &world), Reason::ToStack);
        let packet = inner_packet(&world.host, [192, 168, 33, 12], LOCAL);
        assert_eq!(refusal(&packet, SOURCE, &world), Reason::ForeignInnerSource);
    }

    #[test]
    fn the_uplinks_checks_are_made_again() {
        let world = World::new();
        let good = inner_packet(&world.host, REMOTE, LOCAL);
        let refuse = |source| refusal(&good, source, &world);
        assert_eq!(refuse(TunnelSource { vni: 2, ..SOURCE }), Reason::WrongVni);
        let stranger = TunnelSource { remote: [192, 168, 33, 99], ..SOURCE };
        assert_eq!(refuse(stranger), Reason::UnknownVtep);
        let elsewhere = TunnelSource { local: [192, 168, 44, 10], ..SOURCE };
        assert_eq!(refuse(elsewhere), Reason::WrongVtepAddress);
        let forged = inner_packet(&world.host, [10, 1, 99, 2], LOCAL);
        assert_eq!(refusal(&forged, SOURCE, &world), Reason::ForeignInnerSource);
        let misled = inner_packet(&world.host, REMOTE, [10, 1, 99, 2]);
        assert_eq!(refusal(&misled, SOURCE, &world), Reason::ForeignInnerDestination);
    }
}
