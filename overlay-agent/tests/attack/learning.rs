//! What the host learns of containers: nobody takes a neighbour's address or MAC away, or what is sent to them.

use std::{env, time::Duration};

use overlay_lab::{BRIDGE, eventually, stream::Stream};

use crate::tools::{
    barrage::Barrage,
    frame::{ARP, Arp, BROADCAST, IPV4, Mac, Tag, datagram, ethernet},
    site::{
        ATTACKER, ATTACKER_MAC, GATEWAY, GATEWAY_MAC, OWNER, OWNER_MAC, PORT_MAC, REMOTE, SOON,
        Site,
    },
    sniffer::Sniffer,
    trial::Trial,
};

const EACH: u64 = 3;
/// An `EtherType` for experiments, which nobody speaks.
const JUNK: u16 = 0x88b5;
const JUNK_TAG: Tag = Tag { protocol: 0x8100, vid: 0 };

/// How long what comes at a high rate goes on.
fn attack_seconds() -> Duration {
    let seconds = env::var("OVERLAY_ATTACK_SECONDS").ok();
    Duration::from_secs(seconds.map_or(3, |seconds| seconds.parse().unwrap()))
}

/// Waits for a time: these attacks are about what lasts.
fn for_a_while(barrage: &Barrage) {
    let start = std::time::Instant::now();
    while start.elapsed() < attack_seconds() {
        barrage.go_on();
    }
}

fn claims(sender: (Mac, std::net::Ipv4Addr)) -> [(&'static str, Mac, Arp); 4] {
    [
        (
            "a gratuitous question",
            BROADCAST,
            Arp { operation: 1, sender, target: ([0; 6], sender.1) },
        ),
        (
            "a gratuitous answer",
            BROADCAST,
            Arp { operation: 2, sender, target: (BROADCAST, sender.1) },
        ),
        (
            "an answer to the gateway",
            GATEWAY_MAC,
            Arp { operation: 2, sender, target: (GATEWAY_MAC, GATEWAY) },
        ),
        (
            "a question to the gateway",
            BROADCAST,
            Arp { operation: 1, sender, target: ([0; 6], GATEWAY) },
        ),
    ]
}

/// The owner talks with the remote container, both ways, while `frames` come from its neighbour again and again
/// after `pause`: it loses nothing, and the neighbour sees nothing of it.
fn the_owner_loses_nothing(site: &Site, frames: Vec<Vec<u8>>, pause: Duration) {
    let owner = OWNER.octets();
    let curious = Sniffer::frames(site.attacker.namespace(), "the attacker", move |frame| {
        frame[12..14] == IPV4.to_be_bytes() && (frame[26..30] == owner || frame[30..34] == owner)
    });
    let inwards = Stream::start(&site.remote, &site.owner, 7001).unwrap();
    let outwards = Stream::start(&site.owner, &site.remote, 7002).unwrap();
    let before = site.tally();
    let barrage = Barrage::start(site.attacker_port(), frames, pause);
    for_a_while(&barrage);
    let sent = barrage.stop();
    let rise = site.tally().since(&before);
    let seen = [inwards.stop().unwrap(), outwards.stop().unwrap()];
    let stolen = curious.seen().len();
    let lost = seen.map(|seen| seen.lost);
    assert!(
        lost == [0, 0] && stolen == 0 && rise.dropped() == sent,
        "lost to and from the owner: {lost:?}, seen by its neighbour: {stolen}, refused: {} of {sent} \
         ({rise}) {seen:?}",
        rise.dropped()
    );
}

#[test]
fn junk_with_a_neighbours_mac_takes_nothing_from_the_neighbour() {
    let frames = [BROADCAST, GATEWAY_MAC, [2, 0, 0, 0, 0, 99]]
        .repeat(8)
        .into_iter()
        .map(|to| ethernet(to, OWNER_MAC, &[], JUNK, &[0; 50]))
        .collect();
    the_owner_loses_nothing(&Site::new(), frames, Duration::from_millis(1));
}

/// Twice a second was enough to keep an owner out for good.
#[test]
fn a_little_junk_with_a_neighbours_mac_takes_nothing_either() {
    let site = Site::with(|options| options.fast_path(false));
    let frames = vec![ethernet(BROADCAST, OWNER_MAC, &[], JUNK, &[0; 50])];
    the_owner_loses_nothing(&site, frames, Duration::from_millis(50));
}

#[test]
fn a_claim_of_a_neighbours_address_takes_nothing_from_the_neighbour() {
    let frames = claims((ATTACKER_MAC, OWNER))
        .map(|(_, to, arp)| ethernet(to, ATTACKER_MAC, &[], ARP, &arp.bytes()));
    the_owner_loses_nothing(&Site::new(), frames.into(), Duration::from_millis(20));
}

#[test]
fn a_neighbours_mac_is_refused_whatever_the_frame_is() {
    let site = Site::new();
    let port = site.attacker_port();
    let mut trial = Trial::new(&site);
    for to in [BROADCAST, GATEWAY_MAC, PORT_MAC, OWNER_MAC, [1, 0, 0x5e, 0, 0, 1]] {
        for (name, ethertype) in
            [("junk", JUNK), ("IPv6", 0x86dd), ("IPv4 that is none", IPV4), ("a length", 64)]
        {
            for tags in [&[][..], &[JUNK_TAG][..]] {
                let tagged = if tags.is_empty() { "" } else { ", tagged" };
                let what = format!("{name} with a neighbour's MAC to {to:02x?}{tagged}");
                trial.refuses(&what, EACH, |marker| {
                    let payload = [&marker[..], &[0; 46]].concat();
                    let frame = ethernet(to, OWNER_MAC, tags, ethertype, &payload);
                    (0..EACH).for_each(|_| port.send(&frame).unwrap());
                });
            }
        }
    }
    // Nothing but a header: there is nothing to read behind it.
    trial.refuses("an Ethernet header with a neighbour's MAC", EACH, |_| {
        let frame = ethernet(BROADCAST, OWNER_MAC, &[], JUNK, &[]);
        (0..EACH).for_each(|_| port.send(&frame).unwrap());
    });
    trial.finish();
}

#[test]
fn nobody_sends_with_the_gateways_mac() {
    let site = Site::new();
    let port = site.attacker_port();
    let mut trial = Trial::new(&site);
    for to in [BROADCAST, OWNER_MAC] {
        trial.refuses(&format!("junk with the gateway's MAC to {to:02x?}"), EACH, |marker| {
            let frame = ethernet(to, GATEWAY_MAC, &[], JUNK, &[&marker[..], &[0; 46]].concat());
            (0..EACH).for_each(|_| port.send(&frame).unwrap());
        });
        trial.refuses(&format!("the gateway's own address and MAC to {to:02x?}"), EACH, |marker| {
            let frame = ethernet(to, GATEWAY_MAC, &[], IPV4, &datagram(GATEWAY, OWNER, &marker));
            (0..EACH).for_each(|_| port.send(&frame).unwrap());
        });
    }
    trial.finish();
}

#[test]
fn a_claim_of_anothers_address_is_refused_whatever_it_looks_like() {
    let site = Site::new();
    let port = site.attacker_port();
    let mut ring = site.attacker_ring();
    let mut trial = Trial::new(&site);
    for (whose, address) in [("the neighbour's", OWNER), ("the gateway's", GATEWAY)] {
        for (name, to, arp) in claims((ATTACKER_MAC, address)) {
            for tags in [&[][..], &[JUNK_TAG][..]] {
                let tagged = if tags.is_empty() { "" } else { ", tagged" };
                let what = format!("{name} that claims {whose} address{tagged}");
                trial.refuses(&what, EACH, |marker| {
                    let payload = [&arp.bytes()[..], &marker].concat();
                    let frame = ethernet(to, ATTACKER_MAC, tags, ARP, &payload);
                    (0..EACH).for_each(|_| port.send(&frame).unwrap());
                });
            }
            trial.refuses(
                &format!("{name} that claims {whose} address by a packet ring"),
                EACH,
                |_| {
                    let frame = ethernet(to, ATTACKER_MAC, &[], ARP, &arp.bytes());
                    ring.send(&vec![frame; usize::try_from(EACH).unwrap()]).unwrap();
                },
            );
        }
    }
    // Linux takes ARP for IEEE 802 networks as if it were Ethernet's.
    for (name, to, arp) in claims((ATTACKER_MAC, OWNER)) {
        trial.refuses(&format!("{name} for an IEEE 802 network"), EACH, |marker| {
            let mut payload = [&arp.bytes()[..], &marker].concat();
            payload[1] = 6;
            let frame = ethernet(to, ATTACKER_MAC, &[], ARP, &payload);
            (0..EACH).for_each(|_| port.send(&frame).unwrap());
        });
    }
    // The neighbour's own words, by another's mouth.
    for (name, to, arp) in claims((OWNER_MAC, OWNER)) {
        trial.refuses(&format!("{name} about the neighbour"), EACH, |marker| {
            let payload = [&arp.bytes()[..], &marker].concat();
            let frame = ethernet(to, ATTACKER_MAC, &[], ARP, &payload);
            (0..EACH).for_each(|_| port.send(&frame).unwrap());
        });
    }
    trial.finish();
}

#[test]
fn a_claimed_address_is_named_in_status() {
    let site = Site::new();
    let port = site.attacker_port();
    for (_, to, arp) in claims((ATTACKER_MAC, OWNER)) {
        port.send(&ethernet(to, ATTACKER_MAC, &[], ARP, &arp.bytes())).unwrap();
    }
    eventually(SOON, "status to name the address", || {
        let problems = site.agents[0].status()?["problems"].to_string();
        anyhow::ensure!(problems.contains(&OWNER.to_string()), "{problems}");
        Ok(())
    })
    .unwrap();
}

/// A frame to the host's end of the attacker's own cable reaches the stack like one to the bridge.
#[test]
fn the_mac_of_the_own_port_is_no_way_around() {
    let site = Site::new();
    let port = site.attacker_port();
    let mut trial = Trial::new(&site);
    trial.delivers("an honest datagram to the MAC of the port", |marker| {
        let packet = datagram(ATTACKER, REMOTE, &marker);
        port.send(&ethernet(PORT_MAC, ATTACKER_MAC, &[], IPV4, &packet)).unwrap();
    });
    for (name, to) in
        [("the own port", PORT_MAC), ("everybody", BROADCAST), ("the neighbour", OWNER_MAC)]
    {
        for (whose, from) in [("its own", ATTACKER_MAC), ("the neighbour's", OWNER_MAC)] {
            for destination in [REMOTE, GATEWAY] {
                let what =
                    format!("{destination} with the neighbour's address and {whose} MAC to {name}");
                trial.refuses(&what, EACH, |marker| {
                    let packet = datagram(OWNER, destination, &marker);
                    let frame = ethernet(to, from, &[], IPV4, &packet);
                    (0..EACH).for_each(|_| port.send(&frame).unwrap());
                });
            }
        }
    }
    trial.finish();
}

fn forgets_the_owner(site: &Site) {
    let host = site.host();
    host.ip(["neigh", "flush", "to", &OWNER.to_string()]).unwrap();
    host.ip(["neigh", "del", &OWNER.to_string(), "dev", BRIDGE]).ok();
    host.command("bridge")
        .args([
            "fdb",
            "del",
            &crate::tools::site::text(OWNER_MAC),
            "dev",
            site.owner.veth(),
            "master",
        ])
        .output()
        .unwrap();
}

fn speaks_for_the_forgotten(site: &Site, trial: &mut Trial, when: &str) {
    let port = site.attacker_port();
    for (whose, from) in [("its own", ATTACKER_MAC), ("the neighbour's", OWNER_MAC)] {
        for destination in [REMOTE, GATEWAY] {
            let what =
                format!("{destination} with the address of a neighbour {when} and {whose} MAC");
            trial.refuses(&what, 20, |marker| {
                let packet = datagram(OWNER, destination, &marker);
                let frame = ethernet(GATEWAY_MAC, from, &[], IPV4, &packet);
                forgets_the_owner(site);
                // Some come before anybody can have noticed, some after.
                for _ in 0..20 {
                    port.send(&frame).unwrap();
                    std::thread::sleep(Duration::from_millis(30));
                }
            });
        }
    }
}

#[test]
fn a_neighbour_that_the_kernel_has_forgotten_is_still_itself() {
    let site = Site::new();
    let mut trial = Trial::new(&site);
    speaks_for_the_forgotten(&site, &mut trial, "that the kernel has forgotten");
    trial.finish();
}

#[test]
fn a_neighbour_is_still_itself_after_the_agent_was_restarted() {
    let mut site = Site::new();
    site.agents[0].kill().unwrap();
    forgets_the_owner(&site);
    site.agents[0] = site.host().start_agent(&site.options).unwrap();
    let mut trial = Trial::new(&site);
    speaks_for_the_forgotten(&site, &mut trial, "that the agent has never seen");
    trial.finish();
}

/// Honest containers do these things too, and nothing of it is refused.
#[test]
fn what_a_container_says_of_itself_is_not_refused() {
    let site = Site::new();
    let before = site.tally();
    let mut trial = Trial::new(&site);
    let port = site.attacker_port();
    for (name, to, arp) in claims((ATTACKER_MAC, ATTACKER)) {
        trial.stops(name, 0, |_| {
            port.send(&ethernet(to, ATTACKER_MAC, &[], ARP, &arp.bytes())).unwrap();
        });
    }
    trial.stops("a question whether an address is free", 0, |_| {
        let sender = (ATTACKER_MAC, std::net::Ipv4Addr::UNSPECIFIED);
        let arp = Arp { operation: 1, sender, target: ([0; 6], OWNER) };
        port.send(&ethernet(BROADCAST, ATTACKER_MAC, &[], ARP, &arp.bytes())).unwrap();
    });
    trial.stops("junk with its own MAC", 0, |_| {
        port.send(&ethernet(BROADCAST, ATTACKER_MAC, &[], JUNK, &[0; 46])).unwrap();
    });
    trial.finish();
    let rise = site.tally().since(&before);
    assert_eq!(rise.dropped(), 0, "{rise}");
}
