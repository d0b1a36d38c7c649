//! What hides its headers: buffers that cannot be read in place, options, fragments, other framings.

use std::net::Ipv4Addr;

use crate::tools::{
    frame::{IPV4, Ip, MORE, PORT, UDP, VXLAN_PORT, datagram, ethernet, udp},
    site::{
        ATTACKER, ATTACKER_MAC, GATEWAY, GATEWAY_MAC, HOST, HOST_MAC, NOBODY, OWNER, OWNER_MAC,
        PEER, PEER_MAC, REMOTE, Site, from_peer, speaking_for_the_host, to_gateway,
    },
    trial::Trial,
};

const EACH: u64 = 3;

fn times(frame: &[u8]) -> Vec<Vec<u8>> {
    (0..EACH).map(|_| frame.to_vec()).collect()
}

/// VXLAN to the peer's VTEP, behind this header.
fn vxlan_to_peer(header: &Ip, marker: [u8; 4]) -> Vec<u8> {
    header.packet(&udp(PORT, VXLAN_PORT, &speaking_for_the_host(&marker)))
}

fn a_short_frame_by_a_packet_ring(site: &Site) {
    let mut ring = site.attacker_ring();
    let mut trial = Trial::new(site);
    trial.delivers("an honest datagram by a packet ring", |marker| {
        ring.send(&[to_gateway(&datagram(ATTACKER, REMOTE, &marker))]).unwrap();
    });
    for (what, destination) in [("a remote container", REMOTE), ("the gateway", GATEWAY)] {
        for (whose, mac) in [("its own MAC", ATTACKER_MAC), ("the neighbour's MAC", OWNER_MAC)] {
            let what = format!("46 bytes with a neighbour's address and {whose} to {what}");
            trial.refuses(&what, EACH, |marker| {
                let packet = datagram(OWNER, destination, &marker);
                let frame = ethernet(GATEWAY_MAC, mac, &[], IPV4, &packet);
                assert_eq!(frame.len(), 46);
                ring.send(&times(&frame)).unwrap();
            });
        }
    }
    // No transport at all behind the header, and more than the program pulls anyway.
    for length in [0, 1, 100, 1000] {
        let what = format!("a neighbour's address and {length} more bytes by a packet ring");
        trial.refuses(&what, EACH, |marker| {
            let payload = [&marker[..], &vec![0; length]].concat();
            let packet = Ip::new(OWNER, REMOTE, 253).packet(&payload);
            ring.send(&times(&to_gateway(&packet))).unwrap();
        });
    }
    trial.finish();
}

#[test]
fn a_packet_ring_does_not_hide_a_neighbours_address() {
    a_short_frame_by_a_packet_ring(&Site::new());
}

#[test]
fn a_packet_ring_does_not_hide_a_neighbours_address_without_the_fast_path() {
    a_short_frame_by_a_packet_ring(&Site::with(|options| options.fast_path(false)));
}

#[test]
fn options_do_not_hide_vxlan_to_a_vtep() {
    let site = Site::new();
    site.masquerade();
    let port = site.attacker_port();
    let mut ring = site.attacker_ring();
    let mut trial = Trial::new(&site);
    for options in [0, 4, 20, 36, 40] {
        let header = Ip::new(ATTACKER, PEER, UDP).options(options);
        trial.refuses(&format!("VXLAN behind {options} bytes of options"), EACH, |marker| {
            let frame = to_gateway(&vxlan_to_peer(&header, marker));
            (0..EACH).for_each(|_| port.send(&frame).unwrap());
        });
        let what = format!("VXLAN behind {options} bytes of options by a packet ring");
        trial.refuses(&what, EACH, |marker| {
            ring.send(&times(&to_gateway(&vxlan_to_peer(&header, marker)))).unwrap();
        });
    }
    trial.finish();
}

#[test]
fn options_do_not_hide_a_neighbours_address() {
    let site = Site::new();
    let port = site.attacker_port();
    let mut ring = site.attacker_ring();
    let mut trial = Trial::new(&site);
    for options in [4, 40] {
        let header = Ip::new(OWNER, REMOTE, UDP).options(options);
        let frame = |marker: [u8; 4]| to_gateway(&header.packet(&udp(PORT, PORT, &marker)));
        let what = format!("a neighbour's address and {options} bytes of options");
        trial.refuses(&what, EACH, |marker| {
            (0..EACH).for_each(|_| port.send(&frame(marker)).unwrap());
        });
        trial.refuses(&format!("{what} by a packet ring"), EACH, |marker| {
            ring.send(&times(&frame(marker))).unwrap();
        });
    }
    trial.finish();
}

/// The first fragment shows the port. Whoever reassembles needs it, so nothing is left of the others.
#[test]
fn fragments_do_not_hide_vxlan_to_a_vtep() {
    let site = Site::new();
    site.masquerade();
    let mut trial = Trial::new(&site);
    let honest = udp(PORT, 53, &[0; 72]);
    for (name, cuts) in [("tiny", &[8, 16, 24][..]), ("two", &[32][..]), ("uneven", &[8, 48][..])] {
        for turned in [false, true] {
            let port = site.attacker_port();
            let what = format!("VXLAN in {name} fragments, the first sent last: {turned}");
            trial.stops(&what, 1, |marker| {
                let whole = udp(PORT, VXLAN_PORT, &speaking_for_the_host(&marker));
                let mut frames = fragments(&whole, cuts, 700 + u16::from(turned));
                if turned {
                    frames.reverse();
                }
                assert_eq!(port.send_many(&frames), frames.len());
            });
        }
    }
    for (name, honest_first) in [("after", true), ("before", false)] {
        let port = site.attacker_port();
        let what = format!("VXLAN that overlaps with a harmless first fragment sent {name}");
        trial.stops(&what, 1, |marker| {
            let whole = udp(PORT, VXLAN_PORT, &speaking_for_the_host(&marker));
            let id = if honest_first { 900 } else { 901 };
            let header = Ip::new(ATTACKER, PEER, UDP).fragment(id, MORE);
            let mut frames = vec![to_gateway(&header.packet(&honest[..16]))];
            frames.extend(fragments(&whole, &[8, 16], id));
            if !honest_first {
                frames.rotate_left(1);
            }
            assert_eq!(port.send_many(&frames), frames.len());
        });
    }
    trial.finish();
}

/// A packet of the attacker's to the peer, cut at these offsets.
fn fragments(whole: &[u8], cuts: &[usize], id: u16) -> Vec<Vec<u8>> {
    let starts = [&[0], cuts].concat();
    let ends = [cuts, &[whole.len()]].concat();
    let pieces = starts.into_iter().zip(ends).map(|(start, end)| {
        let more = if end == whole.len() { 0 } else { MORE };
        let offset = u16::try_from(start / 8).unwrap();
        let header = Ip::new(ATTACKER, PEER, UDP).fragment(id, more | offset);
        to_gateway(&header.packet(&whole[start..end]))
    });
    pieces.collect()
}

/// Frames from the wire that the program could not read in place.
#[test]
fn a_packet_ring_does_not_hide_what_comes_from_the_wire() {
    let site = Site::new();
    let mut ring = site.wire_ring();
    let mut trial = Trial::new(&site);
    trial.delivers("the peer's VXLAN", |marker| {
        ring.send(&[from_peer(&datagram(REMOTE, OWNER, &marker))]).unwrap();
    });
    for source in [NOBODY, REMOTE, ATTACKER] {
        for length in [0, 60, 1000] {
            let what = format!("a packet of {source} without encapsulation, {length} bytes more");
            trial.refuses(&what, EACH, |marker| {
                let payload = [&marker[..], &vec![0; length]].concat();
                let packet = datagram(source, OWNER, &payload);
                let frame = ethernet(HOST_MAC, PEER_MAC, &[], IPV4, &packet);
                ring.send(&times(&frame)).unwrap();
            });
        }
        if source != REMOTE {
            trial.refuses(&format!("the peer's VXLAN with {source} inside"), EACH, |marker| {
                ring.send(&times(&from_peer(&datagram(source, OWNER, &marker)))).unwrap();
            });
        }
    }
    trial.finish();
}

/// Framings of IPv4 that a host must not see through, and tunnels that it must not open.
#[test]
fn other_framings_and_tunnels_carry_nothing_to_anybody() {
    let site = Site::new();
    site.masquerade();
    let [inside, outside] = [site.attacker_port(), site.wire_port()];
    let mut trial = Trial::new(&site);
    let framings: [(&str, u16, &[u8]); 5] = [
        ("SNAP", 0, &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0]),
        ("LLC with IP's own number", 0, &[6, 6, 3]),
        ("a PPPoE session", 0x8864, &[0x11, 0, 0, 1, 0, 34, 0, 0x21]),
        ("MPLS", 0x8847, &[0, 0x10, 1, 64]),
        ("MPLS without a label", 0x8847, &[0, 0, 1, 64]),
    ];
    for (name, ethertype, header) in framings {
        let framed = |packet: &[u8]| {
            let body = [header, packet].concat();
            // In an IEEE 802.3 frame, a length stands where the EtherType does otherwise.
            let length = u16::try_from(body.len()).unwrap();
            (if ethertype == 0 { length } else { ethertype }, body)
        };
        trial.stops(&format!("a neighbour's address behind {name}"), EACH, |marker| {
            let (kind, body) = framed(&datagram(OWNER, REMOTE, &marker));
            let frame = ethernet(GATEWAY_MAC, ATTACKER_MAC, &[], kind, &body);
            (0..EACH).for_each(|_| inside.send(&frame).unwrap());
        });
        trial.stops(&format!("an overlay source from the wire behind {name}"), EACH, |marker| {
            let (kind, body) = framed(&datagram(REMOTE, OWNER, &marker));
            let frame = ethernet(HOST_MAC, PEER_MAC, &[], kind, &body);
            (0..EACH).for_each(|_| outside.send(&frame).unwrap());
        });
    }
    let tunnels: [(&str, u8, &[u8]); 3] = [
        ("IP in IP", 4, &[]),
        ("GRE", 47, &[0, 0, 8, 0]),
        ("GRE with Ethernet", 47, &[0, 0, 0x65, 0x58, 2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]),
    ];
    for (name, protocol, header) in tunnels {
        for (to, destination) in [("the gateway", GATEWAY), ("the peer", PEER)] {
            trial.stops(&format!("{name} from a container to {to}"), EACH, |marker| {
                let inner = [header, &datagram(OWNER, REMOTE, &marker)].concat();
                let packet = Ip::new(ATTACKER, destination, protocol).packet(&inner);
                (0..EACH).for_each(|_| inside.send(&to_gateway(&packet)).unwrap());
            });
        }
        trial.stops(&format!("{name} from the wire"), EACH, |marker| {
            let inner = [header, &datagram(REMOTE, OWNER, &marker)].concat();
            let packet = Ip::new(PEER, HOST, protocol).packet(&inner);
            let frame = ethernet(HOST_MAC, PEER_MAC, &[], IPV4, &packet);
            (0..EACH).for_each(|_| outside.send(&frame).unwrap());
        });
    }
    trial.finish();
}

/// A packet for the host that says by which other address it wants to go on. Such routes are followed by hosts whose
/// `accept_source_route` is on, as the kernel has it where nobody has switched it off.
#[test]
fn a_source_route_is_no_way_around() {
    let site = Site::new();
    site.masquerade();
    for host in [site.host(), site.peer()] {
        for interface in ["all", "eth0", "docker0", "overlay.1"] {
            let name = format!("net/ipv4/conf/{interface}/accept_source_route");
            host.namespace().sysctl(&name, "1").unwrap();
        }
    }
    let by_way_of = |via: Ipv4Addr, kind: u8| {
        let [a, b, c, d] = via.octets();
        vec![1, kind, 7, 4, a, b, c, d]
    };
    let [inside, outside] = [site.attacker_port(), site.wire_port()];
    let mut trial = Trial::new(&site);
    trial.delivers("an honest datagram by a source route", |marker| {
        let header = Ip { options: by_way_of(REMOTE, 0x83), ..Ip::new(ATTACKER, GATEWAY, UDP) };
        inside.send(&to_gateway(&header.packet(&udp(PORT, PORT, &marker)))).unwrap();
    });
    for (name, kind) in [("loose", 0x83), ("strict", 0x89)] {
        trial.refuses(&format!("VXLAN to a VTEP by a {name} source route"), EACH, |marker| {
            let header = Ip { options: by_way_of(PEER, kind), ..Ip::new(ATTACKER, GATEWAY, UDP) };
            let frame = to_gateway(&vxlan_to_peer(&header, marker));
            (0..EACH).for_each(|_| inside.send(&frame).unwrap());
        });
        for (whose, source) in [("a remote", REMOTE), ("nobody's", NOBODY), ("a local", ATTACKER)] {
            let what = format!("{whose} address from the wire by a {name} source route");
            trial.refuses(&what, EACH, |marker| {
                let header = Ip { options: by_way_of(OWNER, kind), ..Ip::new(source, HOST, UDP) };
                let packet = header.packet(&udp(PORT, PORT, &marker));
                let frame = ethernet(HOST_MAC, PEER_MAC, &[], IPV4, &packet);
                (0..EACH).for_each(|_| outside.send(&frame).unwrap());
            });
        }
        let what = format!("the neighbour's address by a {name} source route");
        trial.refuses(&what, EACH, |marker| {
            let header = Ip { options: by_way_of(REMOTE, kind), ..Ip::new(OWNER, GATEWAY, UDP) };
            let frame = to_gateway(&header.packet(&udp(PORT, PORT, &marker)));
            (0..EACH).for_each(|_| inside.send(&frame).unwrap());
        });
    }
    trial.finish();
}
