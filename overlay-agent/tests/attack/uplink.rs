//! Forged packets keep coming while somebody works on the uplink: none gets in, and status says what does not work.

use std::{net::Ipv4Addr, time::Duration};

use overlay_lab::{Namespace, UPLINK, eventually};

use crate::tools::{
    barrage::Barrage,
    frame::{IPV4, Ip, UDP, VXLAN_PORT, datagram, ethernet, udp, vxlan},
    site::{
        HOST, HOST_MAC, HOST_VTEP, NOBODY, OUTLAW, OWNER, PEER, PEER_MAC, PEER_VTEP, REMOTE, SOON,
        Site, from_peer, text,
    },
    sniffer::{Marker, Sniffer},
};

/// Everything that is refused by the uplink's program.
fn forged(marker: Marker) -> Vec<Vec<u8>> {
    let wire = |packet: &[u8]| ethernet(HOST_MAC, PEER_MAC, &[], IPV4, packet);
    let outer = |source: Ipv4Addr, inner: Ipv4Addr| {
        let inner = datagram(inner, OWNER, &marker.0);
        let payload = vxlan(&ethernet(HOST_VTEP, PEER_VTEP, &[], IPV4, &inner));
        wire(&Ip::new(source, HOST, UDP).packet(&udp(50_000, VXLAN_PORT, &payload)))
    };
    vec![
        wire(&datagram(NOBODY, OWNER, &marker.0)),
        wire(&datagram(REMOTE, OWNER, &marker.0)),
        outer(OUTLAW, REMOTE),
        outer(PEER, NOBODY),
    ]
}

fn mend_uplink(site: &Site) {
    let host = site.host();
    host.ip(["address", "replace", &format!("{HOST}/24"), "dev", UPLINK]).unwrap();
    host.ip(["link", "set", UPLINK, "up"]).unwrap();
}

/// What somebody does to the uplink, step by step, and whether it is as before at the end.
type Act = fn(&Site);

/// Nothing forged arrives during `act`. Then either everything works, or status says what does not.
fn nothing_gets_in_while(site: &Site, act: Act) {
    let marker = Marker::unique();
    // Both the program's work and the barrage's: it refuses what comes before anything is done.
    let before = site.tally();
    let barrage = Barrage::start(site.wire_port(), forged(marker), Duration::from_millis(1));
    eventually(SOON, "forged packets to be refused", || {
        let rise = site.tally().since(&before);
        anyhow::ensure!(rise.dropped() > 100, "{rise}");
        Ok(())
    })
    .unwrap();
    act(site);
    (0..50).for_each(|_| barrage.go_on());
    let works_or_is_named = eventually(SOON, "the uplink to work, or to be named", || {
        let status = site.agents[0].status()?;
        let named = status["problems"].as_array().is_some_and(|problems| !problems.is_empty());
        anyhow::ensure!(named || site.owner.ping(REMOTE).is_ok(), "neither: {status}");
        Ok(())
    });
    (0..50).for_each(|_| barrage.go_on());
    let sent = barrage.stop();
    Sniffer::settle(&site.sniffers);
    let rise = site.tally().since(&before);
    let arrived: Vec<String> = site
        .sniffers
        .iter()
        .map(|sniffer| (sniffer.count(marker), &sniffer.place))
        .filter(|(count, _)| *count > 0)
        .map(|(count, place)| format!("{count} reached {place}"))
        .collect();
    assert!(arrived.is_empty(), "of {sent}, {}; {rise}", arrived.join(", "));
    works_or_is_named.unwrap();
}

/// What works afterwards is seen to work.
fn an_honest_packet_arrives(site: &Site) {
    let port = site.wire_port();
    eventually(SOON, "the peer's own packets to arrive", || {
        let marker = Marker::unique();
        port.send(&from_peer(&datagram(REMOTE, OWNER, &marker.0)))?;
        Sniffer::settle(&site.sniffers);
        anyhow::ensure!(site.sniffers[0].count(marker) == 1, "it does not");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_renamed_uplink_keeps_its_program() {
    let site = Site::new();
    nothing_gets_in_while(&site, |site| {
        let host = site.host();
        host.ip(["link", "set", UPLINK, "down"]).unwrap();
        host.ip(["link", "set", UPLINK, "name", "ens3"]).unwrap();
        host.ip(["link", "set", "ens3", "up"]).unwrap();
    });
    an_honest_packet_arrives(&site);
    let status = site.agents[0].status().unwrap();
    let told = status["problems"].to_string().contains("eth0")
        || status["uplink"]["name"] == "ens3" && !status["programs"].to_string().contains("eth0");
    assert!(told, "the name is neither followed nor missed: {status}");
}

#[test]
fn an_uplink_renamed_while_it_is_up_keeps_its_program() {
    let site = Site::new();
    nothing_gets_in_while(&site, |site| {
        for (from, to) in [(UPLINK, "up1"), ("up1", "up2"), ("up2", UPLINK), (UPLINK, "ens3")] {
            site.host().ip(["link", "set", from, "name", to]).unwrap();
        }
    });
    an_honest_packet_arrives(&site);
}

#[test]
fn an_uplink_that_goes_down_and_comes_back_lets_nothing_in() {
    let site = Site::new();
    nothing_gets_in_while(&site, |site| {
        for _ in 0..5 {
            site.host().ip(["link", "set", UPLINK, "down"]).unwrap();
            site.host().ip(["link", "set", UPLINK, "up"]).unwrap();
        }
        mend_uplink(site);
    });
    an_honest_packet_arrives(&site);
}

#[test]
fn a_new_uplink_of_the_same_name_lets_nothing_in() {
    let site = Site::new();
    nothing_gets_in_while(&site, |site| {
        let (host, switch) = (site.host(), site.lab.wire().switch());
        host.ip(["link", "delete", UPLINK]).unwrap();
        let name = host.namespace().name();
        switch
            .ip(["link", "add", "p-again", "type", "veth", "peer", "name", UPLINK])
            .and_then(|_| switch.ip(["link", "set", UPLINK, "address", &text(HOST_MAC)]))
            .and_then(|_| switch.ip(["link", "set", "p-again", "master", "switch", "up"]))
            // What the wire says is for the host comes by the new cable from its first moment on.
            .and_then(|_| switch.ip(["link", "set", UPLINK, "netns", name, "up"]))
            .unwrap();
        mend_uplink(site);
    });
}

#[test]
fn an_uplink_moved_under_a_bridge_and_back_lets_nothing_in() {
    let site = Site::new();
    nothing_gets_in_while(&site, |site| {
        let host = site.host();
        host.ip(["link", "add", "br-up", "address", &text(HOST_MAC), "type", "bridge"]).unwrap();
        host.ip(["link", "set", "br-up", "up"]).unwrap();
        host.ip(["link", "set", UPLINK, "master", "br-up"]).unwrap();
        host.ip(["address", "delete", &format!("{HOST}/24"), "dev", UPLINK]).unwrap();
        host.ip(["address", "add", &format!("{HOST}/24"), "dev", "br-up"]).unwrap();
        eventually(SOON, "the peer to answer by the bridge", || {
            host.command("ping").args(["-c", "1", "-W", "1", &PEER.to_string()]).run()
        })
        .unwrap();
        host.ip(["link", "set", UPLINK, "nomaster"]).unwrap();
        host.ip(["link", "delete", "br-up"]).unwrap();
        mend_uplink(site);
    });
}

#[test]
fn an_uplink_moved_under_a_bridge_lets_nothing_in() {
    let site = Site::new();
    nothing_gets_in_while(&site, |site| {
        let host = site.host();
        host.ip(["link", "add", "br-up", "address", &text(HOST_MAC), "type", "bridge"]).unwrap();
        host.ip(["link", "set", "br-up", "up"]).unwrap();
        host.ip(["address", "delete", &format!("{HOST}/24"), "dev", UPLINK]).unwrap();
        host.ip(["address", "add", &format!("{HOST}/24"), "dev", "br-up"]).unwrap();
        host.ip(["link", "set", UPLINK, "master", "br-up"]).unwrap();
    });
}

#[test]
fn an_uplink_that_was_in_another_namespace_lets_nothing_in() {
    let mut site = Site::new();
    site.others.push(Namespace::create(site.lab.ledger(), "elsewhere").unwrap());
    nothing_gets_in_while(&site, |site| {
        let elsewhere = &site.others[0];
        site.host().ip(["link", "set", UPLINK, "netns", elsewhere.name()]).unwrap();
        let home = site.host().namespace().name();
        elsewhere.ip(["link", "set", UPLINK, "netns", home, "up"]).unwrap();
        mend_uplink(site);
    });
}

#[test]
fn an_uplink_that_is_gone_is_named_in_status() {
    let site = Site::new();
    site.host().ip(["link", "delete", UPLINK]).unwrap();
    eventually(SOON, "status to name the uplink", || {
        let problems = site.agents[0].status()?["problems"].to_string();
        anyhow::ensure!(problems.contains(UPLINK), "{problems}");
        Ok(())
    })
    .unwrap();
}
