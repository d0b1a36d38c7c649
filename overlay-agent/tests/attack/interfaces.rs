//! Packets of the overlay that come by interfaces where none belongs: other networks of the host, its other cards,
//! new ones, and the uplink without encapsulation.

use std::{net::Ipv4Addr, time::Duration};

use overlay_lab::{Namespace, eventually};

use crate::tools::{
    barrage::Barrage,
    frame::{IPV4, Mac, Tag, datagram, ethernet},
    port::Port,
    ring::Ring,
    site::{
        APP_GATEWAY_MAC, ATTACKER, ATTACKER_MAC, GATEWAY, GATEWAY_MAC, HOST_MAC, NOBODY, OWNER,
        OWNER_MAC, PEER_MAC, REMOTE, SECOND_MAC, SOON, Site, text,
    },
    sniffer::{Marker, Sniffer},
    trial::Trial,
};

const EACH: u64 = 3;

/// What may not come from outside the overlay: who it says it is from, and whom it is for.
const FORGED: [(Ipv4Addr, Ipv4Addr); 8] = [
    (REMOTE, OWNER),
    (NOBODY, OWNER),
    (ATTACKER, OWNER),
    (GATEWAY, OWNER),
    (OWNER, REMOTE),
    // Nobody has this address yet.
    (Ipv4Addr::new(10, 1, 1, 200), REMOTE),
    (Ipv4Addr::new(10, 1, 1, 200), OWNER),
    (REMOTE, GATEWAY),
];

/// Sends every forgery from a device to the host's MAC there: as it is, behind a tag, and by a packet ring.
fn forge_from(trial: &mut Trial, place: &str, namespace: &Namespace, to: Mac, from: Mac) {
    let port = Port::open(namespace, "eth0");
    let mut ring = Ring::open(namespace, "eth0");
    for (source, destination) in FORGED {
        let what = format!("{source} to {destination} from {place}");
        let frame = |tags: &[Tag], marker: [u8; 4]| {
            ethernet(to, from, tags, IPV4, &datagram(source, destination, &marker))
        };
        trial.refuses(&what, EACH, |marker| {
            (0..EACH).for_each(|_| port.send(&frame(&[], marker)).unwrap());
        });
        trial.refuses(&format!("{what}, tagged"), EACH, |marker| {
            let frame = frame(&[Tag { protocol: 0x8100, vid: 0 }], marker);
            (0..EACH).for_each(|_| port.send(&frame).unwrap());
        });
        trial.refuses(&format!("{what}, by a packet ring"), EACH, |marker| {
            ring.send(&vec![frame(&[], marker); usize::try_from(EACH).unwrap()]).unwrap();
        });
    }
}

fn by_a_second_interface(rp_filter: &str) {
    let mut site = Site::new();
    site.add_outsider();
    for interface in ["all", "eth1"] {
        let name = format!("net.ipv4.conf.{interface}.rp_filter");
        site.host().namespace().sysctl(&name, rp_filter).unwrap();
    }
    let outside = &site.others[0];
    let mut trial = Trial::new(&site);
    trial.delivers("an honest datagram from outside the overlay", |marker| {
        let packet = datagram(Ipv4Addr::new(10, 99, 0, 2), OWNER, &marker);
        let frame = ethernet(SECOND_MAC, [2, 0, 10, 99, 0, 2], &[], IPV4, &packet);
        Port::open(outside, "eth0").send(&frame).unwrap();
    });
    forge_from(&mut trial, "a second interface", outside, SECOND_MAC, [2, 0, 10, 99, 0, 2]);
    trial.finish();
}

#[test]
fn a_second_interface_brings_nothing_of_the_overlay() {
    by_a_second_interface("0");
}

#[test]
fn a_second_interface_brings_nothing_of_the_overlay_with_a_loose_filter() {
    by_a_second_interface("2");
}

#[test]
fn another_bridge_brings_nothing_of_the_overlay() {
    let mut site = Site::new();
    site.add_application_network();
    let application = &site.others[0];
    let mut trial = Trial::new(&site);
    trial.delivers("an honest datagram from another bridge", |marker| {
        let packet = datagram(Ipv4Addr::new(172, 18, 0, 2), OWNER, &marker);
        let frame = ethernet(APP_GATEWAY_MAC, [2, 0, 172, 18, 0, 2], &[], IPV4, &packet);
        Port::open(application, "eth0").send(&frame).unwrap();
    });
    forge_from(&mut trial, "another bridge", application, APP_GATEWAY_MAC, [2, 0, 172, 18, 0, 2]);
    trial.finish();
}

#[test]
fn the_wire_brings_nothing_of_the_overlay_without_encapsulation() {
    let site = Site::new();
    let outlaw = site.outlaw().namespace();
    let mut trial = Trial::new(&site);
    trial.delivers("an honest datagram from outside the overlay", |marker| {
        let packet = datagram(crate::tools::site::OUTLAW, OWNER, &marker);
        let frame = ethernet(HOST_MAC, PEER_MAC, &[], IPV4, &packet);
        site.wire_port().send(&frame).unwrap();
    });
    forge_from(&mut trial, "the wire", outlaw, HOST_MAC, PEER_MAC);
    trial.finish();
}

/// A container that speaks as one of another host, which a neighbour has no way to know.
#[test]
fn a_container_does_not_speak_for_another_hosts_container() {
    let site = Site::new();
    let port = site.attacker_port();
    let mut trial = Trial::new(&site);
    for (way, to) in [("by the gateway", GATEWAY_MAC), ("directly", OWNER_MAC)] {
        for source in [REMOTE, NOBODY] {
            for destination in [OWNER, GATEWAY, REMOTE] {
                let what = format!("{source} to {destination} from a container, {way}");
                trial.refuses(&what, EACH, |marker| {
                    let packet = datagram(source, destination, &marker);
                    let frame = ethernet(to, ATTACKER_MAC, &[], IPV4, &packet);
                    (0..EACH).for_each(|_| port.send(&frame).unwrap());
                });
            }
        }
    }
    trial.finish();
}

/// What is for a container, on this host or another.
fn for_containers() -> impl Iterator<Item = (Ipv4Addr, Ipv4Addr)> {
    FORGED.into_iter().filter(|(_, destination)| *destination != GATEWAY)
}

/// A veth that is plugged in later, and a barrage of forged packets at its other end.
struct NewInterface {
    name: String,
    marker: Marker,
    barrage: Barrage,
}

impl NewInterface {
    fn new(
        outside: &Namespace,
        number: u8,
        what: impl Iterator<Item = (Ipv4Addr, Ipv4Addr)>,
    ) -> Self {
        let marker = Marker::unique();
        let name = format!("new{number}");
        let mac: Mac = [2, 0, 0, 0, 3, number];
        let with_mac = ["address", &text(mac)];
        let pair = ["link", "add", "out", "type", "veth", "peer", "name", &name];
        outside.ip(pair.iter().chain(&with_mac)).unwrap();
        outside.ip(["link", "set", "out", "up"]).unwrap();
        let frames = what.map(|(source, destination)| {
            let packet = datagram(source, destination, &marker.0);
            ethernet(mac, [2, 0, 0, 0, 4, number], &[], IPV4, &packet)
        });
        // What is sent before the other end is up is dropped by the kernel.
        let port = Port::open(outside, "out");
        let barrage = Barrage::start(port, frames.collect(), Duration::from_millis(1));
        Self { name, marker, barrage }
    }

    fn plug_in(&self, outside: &Namespace, site: &Site) {
        let namespace = site.host().namespace().name();
        outside.ip(["link", "set", &self.name, "netns", namespace, "up"]).unwrap();
    }

    /// Waits until so many packets have come in.
    fn received(&self, site: &Site, enough: u64) {
        let before = site.received(&self.name);
        eventually(SOON, "packets to have come for a while", || {
            self.barrage.go_on();
            let received = site.received(&self.name) - before;
            anyhow::ensure!(received > enough, "{received} have");
            Ok(())
        })
        .unwrap();
    }

    fn arrived(&self, site: &Site) -> u64 {
        Sniffer::settle(&site.sniffers);
        site.sniffers.iter().map(|sniffer| sniffer.count(self.marker)).sum()
    }
}

/// Interfaces come, bring forged packets for containers, and go.
fn new_interfaces_bring_nothing(site: &Site) {
    let outside = Namespace::create(site.lab.ledger(), "new").unwrap();
    let host = site.host();
    let mut failures = Vec::new();
    for number in 0..4 {
        let new = NewInterface::new(&outside, number, for_containers());
        let before = site.tally();
        new.plug_in(&outside, site);
        new.received(site, 1000);
        let arrived = new.arrived(site);
        let rise = site.tally().since(&before);
        let sent = new.barrage.stop();
        if arrived > 0 {
            failures.push(format!("{}: {arrived} of {sent} arrived ({rise})", new.name));
        }
        if number % 2 == 0 {
            host.ip(["link", "delete", &new.name]).unwrap();
        } else {
            host.ip(["link", "set", &new.name, "netns", outside.name()]).unwrap();
            outside.ip(["link", "delete", "out"]).unwrap();
        }
    }
    assert!(failures.is_empty(), "{} failures:\n  {}", failures.len(), failures.join("\n  "));
}

/// The first packet comes before anybody can have noticed that there is an interface.
#[test]
fn a_new_interface_brings_containers_nothing_from_its_first_packet_on() {
    new_interfaces_bring_nothing(&Site::new());
}

/// The checks are in the kernel, and outlive the agent.
#[test]
fn a_new_interface_brings_containers_nothing_while_no_agent_runs() {
    let mut site = Site::new();
    site.agents[0].kill().unwrap();
    site.agents.remove(0);
    new_interfaces_bring_nothing(&site);
}

/// Of other hosts' containers, nothing reaches the host's own sockets either, with or without an agent.
#[test]
fn a_new_interface_brings_the_host_nothing_of_other_hosts_from_its_first_packet_on() {
    let mut site = Site::new();
    let of_others = || FORGED.into_iter().filter(|(source, _)| *source == REMOTE);
    host_hears_nothing(&site, 0, of_others(), true);
    site.agents[0].kill().unwrap();
    site.agents.remove(0);
    host_hears_nothing(&site, 1, of_others(), true);
}

/// Its own containers' addresses are guarded by the interface's program alone: a container has more than one way out.
#[test]
fn a_new_interface_brings_the_host_nothing_once_it_has_its_program() {
    host_hears_nothing(&Site::new(), 0, FORGED.into_iter(), false);
}

fn host_hears_nothing(
    site: &Site,
    number: u8,
    forged: impl Iterator<Item = (Ipv4Addr, Ipv4Addr)>,
    from_the_first: bool,
) {
    let outside = Namespace::create(site.lab.ledger(), &format!("new{number}")).unwrap();
    let new = NewInterface::new(&outside, number, forged);
    new.plug_in(&outside, site);
    if from_the_first {
        new.received(site, 1000);
        assert_eq!(new.arrived(site), 0, "of {} sent", new.barrage.stop());
        return;
    }
    eventually(SOON, "the interface to have its program, and to be no newcomer", || {
        new.barrage.go_on();
        let status = site.agents[0].status()?;
        let programs = status["programs"].to_string();
        anyhow::ensure!(programs.contains(&format!("\"{}\"", new.name)), "{programs}");
        Ok(())
    })
    .unwrap();
    let before = new.arrived(site);
    new.received(site, 1000);
    assert_eq!(new.arrived(site), before, "after the first moment");
    new.barrage.stop();
}
