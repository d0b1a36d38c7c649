use network_types::{ip::Ipv4Hdr, udp::UdpHdr, vxlan::VxlanHdr};

use super::{
    Recipient, Tables, check_inner,
    contents::Contents,
    from_interface::unmasqueraded,
    has_options, is_fragment, is_nobodys, load_headers, lookup_peer,
    policy::check_arriving,
    recipient,
    rules::{may_pass, underlay_may_pass},
    stack_flow::answers_a_stack_flow,
};
use crate::{
    Reason, checksum, ecn,
    encap::{INNER_ETHERNET_OFFSET, INNER_IPV4_OFFSET, VXLAN_G_FLAG_MASK, VXLAN_OFFSET},
    packet::{ETHERNET_LENGTH, IPV4_LENGTH, PROTOCOL_TCP, PROTOCOL_UDP, Packet},
    tables::{Direction, HostConfig, VtepKey},
};

/// A packet that may be delivered, and to whom.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Whether it has to be decapsulated before.
    pub encapsulated: bool,
    /// Whom its inner packet is for.
    pub recipient: Recipient<'a>,
    /// Its inner IPv4 header.
    pub ipv4: Ipv4Hdr,
    /// TOS that the inner packet must carry on (RFC 6040).
    pub tos: u8,
}

impl Arrival<'_> {
    /// Where its inner IPv4 header is.
    #[inline(always)]
    pub const fn offset(&self) -> usize {
        if self.encapsulated { INNER_IPV4_OFFSET } else { ETHERNET_LENGTH }
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
pub fn from_uplink<'a>(
    packet: &impl Packet,
    host: &HostConfig,
    tables: &'a impl Tables,
    reaches: impl Fn([u8; 4]) -> bool,
) -> Result<Arrival<'a>, Reason> {
    // The kernel drops it, unless it is a bridge's or the like.
    if packet.is_for_another_host() {
        return Err(Reason::OtherHost);
    }
    // Read as if they had one, packets without an Ethernet header could be made to look like any other.
    if host.has_no_ethernet() {
        return Err(check_other(packet, host, tables, reaches));
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
    if answers_a_stack_flow(packet, INNER_IPV4_OFFSET, &ipv4, Direction::Arrived, tables) {
        return Err(Reason::StackFlow);
    }
    let is_aggregate = packet.segment_size() != 0;
    let recipient = if may_pass(packet, INNER_IPV4_OFFSET, &ipv4, Direction::Arrived, host, tables)
    {
        recipient(tables, ipv4.dst_addr)
    } else if !is_aggregate && underlay_may_pass(outer.src_addr, Direction::Arrived, host, tables) {
        Recipient::Netfilter
    } else {
        return Err(Reason::AwaitsRules);
    };
    match recipient {
        Recipient::Host => return Err(Reason::HostDestination),
        Recipient::Subnet if is_aggregate => return Err(Reason::Aggregate),
        // A UDP socket cuts an aggregate up again, and stumbles over the tunnel state that is left on it.
        Recipient::Endpoint(_) if is_aggregate && ipv4.proto != PROTOCOL_TCP => {
            return Err(Reason::Aggregate);
        }
        Recipient::Subnet | Recipient::Endpoint(_) | Recipient::Netfilter => {}
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
fn from_link<'a>(
    packet: &impl Packet,
    host: &HostConfig,
    tables: &'a impl Tables,
    ipv4: Ipv4Hdr,
    reaches: impl Fn([u8; 4]) -> bool,
) -> Result<Arrival<'a>, Reason> {
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
mod tests;
