use network_types::udp::UdpHdr;

use crate::{
    echo,
    encap::{INNER_ETHERNET_OFFSET, INNER_IPV4_OFFSET},
    packet::{ETHERNET_LENGTH, Ethernet, IPV4_LENGTH, Packet},
    tables::HostConfig,
};

/// Whether a VXLAN packet, which is a peer's and for this host but carries no IPv4, asks whether this host is there.
/// Only who asks from another port than VXLAN's is answered: an answer is never a question.
#[inline(always)]
pub fn is_question(packet: &impl Packet, host: &HostConfig) -> bool {
    let udp = packet.load::<UdpHdr>(ETHERNET_LENGTH + IPV4_LENGTH);
    let inner = packet.load::<Ethernet>(INNER_ETHERNET_OFFSET);
    udp.is_some_and(|udp| udp.src != host.port.to_be_bytes())
        && inner.is_some_and(|inner| inner.ethertype == echo::ETHERTYPE)
        && packet.load::<[u8; 8]>(INNER_IPV4_OFFSET) == Some(echo::MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        MacAddr, Reason, Vni,
        decide::{
            from_uplink,
            test_support::{LOCAL, REMOTE, World, vxlan_packet},
        },
        encap::VXLAN_OFFSET,
        packet::test_support::Bytes,
    };

    fn question(world: &World) -> Bytes {
        let mut packet = vxlan_packet(&world.host, REMOTE, LOCAL);
        packet.bytes.truncate(VXLAN_OFFSET);
        let vni = Vni::new(world.host.vni).expect("one");
        let [to, from] = [world.host.vtep_mac, [2, 0, 0, 0, 0, 11]].map(MacAddr);
        packet.bytes.extend(echo::question(vni, to, from, 7));
        packet
    }

    #[test]
    fn a_peers_question_is_one_and_an_answer_is_none() {
        let world = World::new();
        let mut packet = question(&world);
        let refused = from_uplink(&packet, &world.host, &world, |_| true).expect_err("no IPv4");
        assert_eq!(refused, Reason::InnerNotIpv4);
        assert!(is_question(&packet, &world.host));
        packet.bytes[34..36].copy_from_slice(&world.host.port.to_be_bytes());
        assert!(!is_question(&packet, &world.host), "of whom we would ask in turn");
        let mut packet = question(&world);
        packet.bytes[INNER_IPV4_OFFSET] ^= 1;
        assert!(!is_question(&packet, &world.host), "somebody else's experiment");
        assert!(!is_question(&vxlan_packet(&world.host, REMOTE, LOCAL), &world.host));
    }
}
