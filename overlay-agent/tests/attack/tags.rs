//! VLAN tags in front of what is checked: the kernel takes a tag without an identifier away and goes on.

use crate::tools::{
    frame::{IPV4, Ip, PORT, Tag, UDP, VXLAN_PORT, datagram, ethernet, udp},
    site::{
        ATTACKER, ATTACKER_MAC, GATEWAY_MAC, HOST_MAC, NOBODY, OWNER, OWNER_MAC, PEER, PEER_MAC,
        REMOTE, Site, speaking_for_the_host,
    },
    trial::{Expected, Trial},
};

/// How many of each kind.
const EACH: u64 = 2;

/// Stacks of tags, and whether the kernel takes what is behind them as if there were none.
fn stacks() -> Vec<(Vec<Tag>, bool)> {
    let mut stacks = Vec::new();
    for protocol in [0x8100, 0x88a8] {
        for depth in 1..=5 {
            stacks.push((vec![Tag { protocol, vid: 0 }; depth], true));
        }
        for depth in [1, 2] {
            stacks.push((vec![Tag { protocol, vid: 5 }; depth], false));
        }
    }
    for vid in [0, 5] {
        stacks.push((vec![Tag { protocol: 0x9100, vid }], false));
    }
    let tag = |protocol, vid| Tag { protocol, vid };
    let mixed = [
        vec![tag(0x8100, 0), tag(0x88a8, 0)],
        vec![tag(0x88a8, 0), tag(0x8100, 0)],
        vec![tag(0x8100, 0), tag(0x8100, 5)],
        vec![tag(0x8100, 5), tag(0x8100, 0)],
        vec![tag(0x8100, 0), tag(0x9100, 0)],
        // A priority, and the bit that says that a frame may be lost: no identifier.
        vec![tag(0x8100, 0xf000)],
        vec![tag(0x8100, 0x1000)],
    ];
    stacks.extend(mixed.map(|tags| {
        let seen_through = tags.iter().all(|tag| tag.vid << 4 == 0 && tag.protocol != 0x9100);
        (tags, seen_through)
    }));
    stacks
}

fn name(tags: &[Tag]) -> String {
    let names: Vec<String> =
        tags.iter().map(|tag| format!("{:04x}/{:x}", tag.protocol, tag.vid)).collect();
    names.join(" ")
}

/// Tries every stack of tags in front of what is refused without.
fn behind_tags(trial: &mut Trial, what: &str, send: impl Fn(&[Tag], [u8; 4])) {
    trial.refuses(&format!("{what}, untagged"), EACH, |marker| {
        (0..EACH).for_each(|_| send(&[], marker));
    });
    for (tags, seen_through) in stacks() {
        let expected = if seen_through { Expected::Refused } else { Expected::Stopped };
        trial.attempt(&format!("{what} behind {}", name(&tags)), EACH, expected, |marker| {
            (0..EACH).for_each(|_| send(&tags, marker));
        });
    }
}

fn a_neighbours_address(site: &Site) {
    let port = site.attacker_port();
    let mut trial = Trial::new(site);
    trial.delivers("an honest datagram", |marker| {
        let packet = datagram(ATTACKER, REMOTE, &marker);
        port.send(&ethernet(GATEWAY_MAC, ATTACKER_MAC, &[], IPV4, &packet)).unwrap();
    });
    behind_tags(&mut trial, "a neighbour's address", |tags, marker| {
        let packet = datagram(OWNER, REMOTE, &marker);
        port.send(&ethernet(GATEWAY_MAC, ATTACKER_MAC, tags, IPV4, &packet)).unwrap();
    });
    trial.finish();
}

#[test]
fn a_tag_does_not_hide_a_neighbours_address() {
    a_neighbours_address(&Site::new());
}

#[test]
fn a_tag_does_not_hide_a_neighbours_address_without_the_fast_path() {
    a_neighbours_address(&Site::with(|options| options.fast_path(false)));
}

/// The frame of another container, its MAC and all.
#[test]
fn a_tag_does_not_hide_a_neighbours_mac() {
    let site = Site::new();
    let port = site.attacker_port();
    let mut trial = Trial::new(&site);
    behind_tags(&mut trial, "a neighbour's MAC and address", |tags, marker| {
        let packet = datagram(OWNER, REMOTE, &marker);
        port.send(&ethernet(GATEWAY_MAC, OWNER_MAC, tags, IPV4, &packet)).unwrap();
    });
    trial.finish();
}

#[test]
fn a_tag_does_not_hide_vxlan_to_a_vtep() {
    let site = Site::new();
    site.masquerade();
    let port = site.attacker_port();
    let mut trial = Trial::new(&site);
    behind_tags(&mut trial, "VXLAN to a VTEP", |tags, marker| {
        let payload = udp(PORT, VXLAN_PORT, &speaking_for_the_host(&marker));
        let packet = Ip::new(ATTACKER, PEER, UDP).packet(&payload);
        port.send(&ethernet(GATEWAY_MAC, ATTACKER_MAC, tags, IPV4, &packet)).unwrap();
    });
    trial.finish();
}

#[test]
fn a_tag_does_not_hide_an_unencapsulated_packet_on_the_wire() {
    let site = Site::new();
    let port = site.wire_port();
    let mut trial = Trial::new(&site);
    for source in [NOBODY, REMOTE] {
        let what = format!("a packet of {source} without encapsulation");
        behind_tags(&mut trial, &what, |tags, marker| {
            let packet = datagram(source, OWNER, &marker);
            port.send(&ethernet(HOST_MAC, PEER_MAC, tags, IPV4, &packet)).unwrap();
        });
    }
    trial.finish();
}
