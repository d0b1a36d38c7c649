//! Every decision of the datapath, one file per hook: pure functions over a [`Packet`] and the
//! [`Tables`], tested without a kernel. The eBPF programs carry out what they return.

mod contents;
mod echo;
mod encapsulation;
mod flow;
mod from_container;
mod from_interface;
mod from_tunnel;
mod from_uplink;
mod policy;
mod rules;
mod sender;
mod stack_flow;
mod to_bridge;
mod to_tunnel;
mod to_wire;

use network_types::ip::Ipv4Hdr;

pub use echo::is_question;
pub use encapsulation::Encapsulation;
pub use from_container::{from_bridge, from_container};
pub use from_interface::from_interface;
pub use from_tunnel::{Delivery, TunnelSource, from_tunnel};
pub use from_uplink::{Arrival, from_uplink};
pub use stack_flow::{hand_over, remember, remember_leaving};
pub use to_bridge::{Origin, to_bridge};
pub use to_tunnel::{TunnelTarget, encapsulate, to_tunnel};
pub use to_wire::{Sender, to_wire};

use crate::{
    Reason,
    packet::{
        ETHERNET_LENGTH, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4_LENGTH, PROTOCOL_TCP,
        Packet, TCP_DATA_OFFSET, UDP_LENGTH,
    },
    prefix::Prefix,
    tables::{
        Accepted, Bridge, BridgeKey, Direction, Endpoint, EndpointKey, Home, HomeKey, HostConfig,
        Peer, PeerKey, PolicyField, PolicyFlow, PolicyRule, Port, PortKey, RuleSet, SeatKey,
        StackFlow, StackFlowKey, Vtep, VtepKey,
    },
};

/// The maps that decisions look into.
pub trait Tables {
    /// The peer that leases exactly this subnet.
    fn peer(&self, key: &PeerKey) -> Option<Peer>;
    /// The lease that this outer source may speak for.
    fn vtep(&self, key: &VtepKey) -> Option<Vtep>;
    /// The containers' bridge that this interface is, or is a port of.
    fn bridge(&self, key: &BridgeKey) -> Option<Bridge>;
    /// The local container that has this address.
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint>;
    /// The port that frames with this MAC may come by.
    fn port(&self, key: &PortKey) -> Option<Port>;
    /// The local container that has this address and is behind this other bridge, too.
    fn home(&self, key: &HomeKey) -> Option<Home>;
    /// Notes that whoever is behind a port claims an address that is another's; nothing where the port is 0, which is
    /// none.
    fn note_claim(&self, port: u32, address: [u8; 4]);
    /// The ways that any flow of a local container ever went through the stack.
    fn stack_flows(&self) -> u32;
    /// What is remembered of this one; no direction where nothing is.
    fn stack_flow(&self, key: &StackFlowKey) -> StackFlow;
    /// Remembers it, and that there is one that went this way.
    fn remember_stack_flow(&self, key: &StackFlowKey, flow: StackFlow, direction: Direction);
    /// Forgets this one: it turns out that nobody rewrites it.
    fn forget_stack_flow(&self, key: &StackFlowKey);
    /// Whose turn it is among the places of a container's share; the next call says the next.
    fn next_turn(&self, local: [u8; 4]) -> u32;
    /// The flow that has a place.
    fn seated(&self, key: &SeatKey) -> Option<StackFlowKey>;
    /// Takes a place away from whoever has it; false where somebody else has done so in this moment.
    fn unseat(&self, key: &SeatKey) -> bool;
    /// Gives a flow a place; false where one has it already.
    fn seat(&self, key: &SeatKey, flow: &StackFlowKey) -> bool;
    /// The flow of the packet that was last left to the stack on this processor.
    fn handed_over(&self) -> StackFlowKey;
    /// What netfilter has let through of a flow; nothing where it is not known.
    fn accepted(&self, key: &StackFlowKey) -> Accepted;
    /// Notes what it has let through: `note` gets what is known, or nothing known yet, and changes it.
    fn accept(&self, key: &StackFlowKey, note: impl FnOnce(&mut Accepted));
    /// The rules of the policy that concern a packet by one of its fields.
    fn policy_rules(&self, field: &PolicyField) -> Option<&RuleSet>;
    /// The rule at a place of its map; one that does nothing where there is none.
    fn policy_rule(&self, index: u32) -> PolicyRule;
    /// Counts a packet of so many bytes that a rule has denied.
    fn count_denied(&self, rule: &PolicyRule, bytes: u32);
    /// What is known of a flow under the policy.
    fn policy_flow(&self, key: &StackFlowKey) -> PolicyFlow;
    /// Notes what is known of a flow under the policy.
    fn note_policy_flow(&self, key: &StackFlowKey, flow: PolicyFlow);
    /// Nanoseconds of the kernel's clock, to a few milliseconds.
    fn now(&self) -> u64;
}

/// Whom a received packet is for, as far as the maps tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipient<'a> {
    /// A container behind this veth. What is not copied takes no room on the stack.
    Endpoint(&'a Endpoint),
    /// The host itself.
    Host,
    /// An address of our subnet that the kernel has to look up.
    Subnet,
    /// Whom it is for is netfilter's to decide.
    Netfilter,
}

/// The peer whose lease covers `destination`.
#[inline(always)]
fn lookup_peer(host: &HostConfig, tables: &impl Tables, destination: [u8; 4]) -> Option<Peer> {
    for length in host.peer_lengths {
        if length == 0 {
            return None;
        }
        let key = PeerKey::new(Prefix { address: destination, length });
        if let Some(peer) = tables.peer(&key) {
            return Some(peer);
        }
    }
    None
}

/// Whether an address of the network that no peer has, nor this host, is known to be nobody's: only leases are the
/// overlay's, as with flannel, and all else is the host's own business.
#[inline(always)]
const fn is_nobodys(host: &HostConfig, address: [u8; 4]) -> bool {
    host.leases_listed() && !host.subnet().contains(address)
}

#[inline(always)]
fn recipient(tables: &impl Tables, address: [u8; 4]) -> Recipient<'_> {
    match tables.endpoint(&EndpointKey { address }) {
        Some(endpoint) if endpoint.is_host() => Recipient::Host,
        Some(endpoint) => Recipient::Endpoint(endpoint),
        None => Recipient::Subnet,
    }
}

/// The Ethernet header at the packet's start and the IPv4 header behind it, unless a tag or another
/// protocol is in the way.
#[inline(always)]
fn load_headers(packet: &impl Packet) -> Result<(Ethernet, Ipv4Hdr), Reason> {
    let ethernet: Ethernet = packet.load(0).ok_or(Reason::NotIpv4)?;
    let ipv4 = plain_ipv4(packet, &ethernet)?;
    Ok((ethernet, ipv4))
}

/// The IPv4 header behind an Ethernet header without tags.
#[inline(always)]
fn plain_ipv4(packet: &impl Packet, ethernet: &Ethernet) -> Result<Ipv4Hdr, Reason> {
    if ethernet.ethertype != ETHERTYPE_IPV4 || packet.has_vlan_tag() {
        return Err(Reason::NotIpv4);
    }
    let ipv4: Ipv4Hdr = packet.load(ETHERNET_LENGTH).ok_or(Reason::NotIpv4)?;
    if ipv4.vihl >> 4 == 4 { Ok(ipv4) } else { Err(Reason::NotIpv4) }
}

#[inline(always)]
const fn has_options(ipv4: &Ipv4Hdr) -> bool {
    ipv4.vihl != 0x45
}

/// Whether this is a fragment: an offset, or more to come. Reads the flags and offset field of
/// RFC 791, section 3.1, whose two upper bits (reserved, don't fragment) do not matter here.
#[inline(always)]
const fn is_fragment(ipv4: &Ipv4Hdr) -> bool {
    u16::from_be_bytes(ipv4.frags) & 0x3fff != 0
}

/// The length from the IPv4 header on that a link has to carry: the packet's, or that of each of an aggregate's segments.
/// `offset` is that of the IPv4 header, which has no options.
#[inline(always)]
fn segment_length(packet: &impl Packet, offset: usize, ipv4: &Ipv4Hdr) -> Result<u32, Reason> {
    let transport = match (packet.segment_size(), ipv4.proto) {
        (0, _) => return Ok(u32::from(u16::from_be_bytes(ipv4.tot_len))),
        (_, PROTOCOL_TCP) => {
            let data_offset: u8 =
                packet.load(offset + IPV4_LENGTH + TCP_DATA_OFFSET).ok_or(Reason::NotIpv4)?;
            u32::from(data_offset >> 4) * 4
        }
        _ => UDP_LENGTH as u32,
    };
    Ok(packet.segment_size().saturating_add(IPV4_LENGTH as u32 + transport))
}

/// Whether the stack would put a packet on a bridge of this MTU as it is: what it would not is its own to fragment, or to
/// answer. `offset` is that of the IPv4 header.
#[inline(always)]
pub fn fits_bridge(packet: &impl Packet, offset: usize, ipv4: &Ipv4Hdr, mtu: u32) -> bool {
    segment_length(packet, offset, ipv4).is_ok_and(|length| length <= mtu)
}

/// Whether an interface is a containers' bridge.
#[inline(always)]
fn is_bridge(ifindex: u32, tables: &impl Tables) -> bool {
    tables.bridge(&BridgeKey { ifindex }).is_some_and(|bridge| bridge.ifindex == ifindex)
}

/// Checks the inner packet of a VXLAN packet from `remote`, who speaks for `vtep` and for its own address, and
/// returns its IPv4 header. `offset` is that of the inner Ethernet header.
#[inline(always)]
fn check_inner(
    packet: &impl Packet,
    offset: usize,
    host: &HostConfig,
    remote: [u8; 4],
    vtep: Vtep,
) -> Result<Ipv4Hdr, Reason> {
    let ethernet: Ethernet = packet.load(offset).ok_or(Reason::InnerTruncated)?;
    if ethernet.destination.0 != host.vtep_mac {
        return Err(Reason::WrongInnerMac);
    }
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_IPV6 => return Err(Reason::InnerIpv6),
        _ => return Err(Reason::InnerNotIpv4),
    }
    let start = offset + ETHERNET_LENGTH;
    let ipv4: Ipv4Hdr = packet.load(start).ok_or(Reason::InnerTruncated)?;
    if ipv4.vihl >> 4 != 4 {
        return Err(Reason::InnerNotIpv4);
    }
    let length = u32::from(u16::from_be_bytes(ipv4.tot_len));
    if length < IPV4_LENGTH as u32 || length > packet.length().saturating_sub(start as u32) {
        return Err(Reason::InnerTruncated);
    }
    if !vtep.subnet().contains(ipv4.src_addr) && ipv4.src_addr != remote {
        return Err(Reason::ForeignInnerSource);
    }
    if !host.subnet().contains(ipv4.dst_addr) {
        return Err(Reason::ForeignInnerDestination);
    }
    Ok(ipv4)
}

#[cfg(test)]
mod test_support;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        test_support::{
            ENDPOINT, LOCAL, PEER, REMOTE, World, inner_packet, udp_packet, vxlan_packet,
        },
        *,
    };
    use crate::{packet::test_support::Bytes, tables::Direction};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Any bytes at all, or a good packet of which some are any: there is a decision about it, and no
        /// arithmetic overflows on the way.
        #[test]
        fn whatever_arrives_is_decided(
            start in 0_usize..4,
            noise in proptest::collection::vec((0_usize..100, any::<u8>()), 0..6),
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            length in 0_usize..120,
            segment_size in prop_oneof![Just(0), any::<u32>()],
            peer_way: u8,
        ) {
            let mut world = World::new();
            world.peer.way = peer_way;
            let mut packet = match start {
                0 => vxlan_packet(&world.host, REMOTE, LOCAL),
                1 => inner_packet(&world.host, REMOTE, LOCAL),
                2 => udp_packet(LOCAL, REMOTE, 40),
                _ => Bytes { bytes, segment_size: 0, vlan: None, for_another_host: false, mark: 0 },
            };
            packet.segment_size = segment_size;
            for (place, byte) in noise {
                if let Some(there) = packet.bytes.get_mut(place) {
                    *there = byte;
                }
            }
            packet.bytes.truncate(length);
            let (host, source) = (&world.host, TunnelSource {
                remote: PEER.public_address,
                local: world.host.uplink_address,
                vni: 1,
                group: 0,
            });
            if let Ok(arrival) = from_uplink(&packet, host, &world, |_| true) {
                prop_assert!(host.subnet().contains(arrival.ipv4.dst_addr));
                prop_assert_eq!(arrival.ipv4.src_addr[..3].to_vec(), REMOTE[..3].to_vec());
            }
            if let Ok(delivery) = from_tunnel(&packet, source, host, &world) {
                prop_assert!(host.subnet().contains(delivery.ipv4.dst_addr));
            }
            if let Ok(plan) = from_container(&packet, ENDPOINT.ifindex, host, &world) {
                prop_assert!(host.subnet().contains(plan.ipv4.src_addr) && plan.ipv4.ttl > 1);
            }
            if let Ok(target) = to_tunnel(&packet, 9, host, &world) {
                prop_assert_eq!(target.peer, world.peer);
                encapsulate(&packet, &target, host, &world).ok();
            }
            from_bridge(&packet, 3, host, &world).ok();
            let origin = Origin { ifindex: 9, delivered: false, admitted: false };
            to_bridge(&packet, origin, host, &world, |_, _| true, |_| ()).ok();
            hand_over(&packet, Direction::Left, |_| ());
            from_interface(&packet, 9, host, &world, |_| true, |_| true).ok();
            for sender in [Sender::Program, Sender::Host, Sender::Forwarded] {
                to_wire(&packet, sender, host, &world, |_| ()).ok();
            }
            remember_leaving(&packet, host, &world, |_| ());
        }
    }
}
