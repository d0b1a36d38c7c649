//! `DirectRouting`: peers on the same link without encapsulation.

use std::net::Ipv4Addr;

use overlay_lab::{ETCD_PREFIX, Lab, UPLINK, eventually, stream::Stream};

use crate::overlay::{Overlay, SOON, network_of};

const CONFIG: &str =
    r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","DirectRouting":DIRECT}}"#;

fn switch(overlay: &Overlay, direct: bool) {
    let config = CONFIG.replace("DIRECT", &direct.to_string());
    overlay.etcd().put(&format!("{ETCD_PREFIX}/config"), &config).unwrap();
    for agent in &overlay.agents {
        eventually(SOON, "the agent to follow the config", || {
            let log = agent.log()?;
            let last = log.lines().rfind(|line| line.contains("direct routing was switched"));
            let done = last.is_some_and(|line| line.contains(&format!("direct={direct}")));
            anyhow::ensure!(done, "{log}");
            Ok(())
        })
        .unwrap();
    }
}

/// On all hosts, while they run.
pub(crate) fn switch_on(overlay: &Overlay) {
    switch(overlay, true);
}

fn ping_from_host(overlay: &Overlay, host: usize, address: Ipv4Addr) {
    let ping = overlay.lab.host(host).command("ping");
    ping.args(["-n", "-c1", "-W2", &address.to_string()]).run().unwrap();
}

#[test]
fn peers_on_one_link_exchange_packets_as_they_are_also_after_switching_under_traffic() {
    let overlay = Overlay::new();
    let [one, two] = overlay.pair();
    let streams =
        [Stream::start(one, two, 7001), Stream::start(two, one, 7002)].map(Result::unwrap);
    switch(&overlay, true);
    let mut wire = overlay.lab.host(0).capture("udp port 8472").unwrap();
    let rises = [("from_container", "routed"), ("from_uplink", "to_endpoint")]
        .map(|(hook, reason)| overlay.rise(hook, reason));
    assert!(overlay.tcp_throughput(1) > 1e8, "bits per second");
    for rise in &rises {
        let packets = rise.of(&overlay);
        assert!(packets[0] > 100 && packets[1] > 100, "{packets:?}");
    }
    wire.stop().unwrap();
    assert_eq!(wire.fields("udp", &["frame.number"]).unwrap(), Vec::<Vec<String>>::new());
    // Hosts, too, by their own addresses in the overlay: what the stack sends is encapsulated, and answered directly.
    ping_from_host(&overlay, 0, two.address());
    ping_from_host(&overlay, 0, network_of(two.address()));

    switch(&overlay, false);
    let refused = overlay.rise("from_uplink", "unencapsulated");
    let encapsulated = overlay.rise("from_container", "encapsulated");
    overlay.ping();
    assert_eq!(refused.of(&overlay), [0, 0]);
    assert!(encapsulated.of(&overlay)[0] > 0);
    for stream in streams {
        let seen = stream.stop().unwrap();
        println!("{seen:?}");
        // The hosts do not switch in the same moment, and one that encapsulates takes nothing else.
        assert!(seen.lost < 100, "{seen:?}");
    }
}

/// Where forwarding is refused, what peers on the link send to the stack needs rules: those by address, which stay.
#[test]
fn rules_by_address_let_the_firewall_forward_what_comes_over_the_link() {
    let overlay = Overlay::with(Lab::builder(), |options| options.argument("--iptables-resync=1"));
    let rules = || {
        let listing = overlay.lab.host(0).command("iptables").args(["-S", "FORWARD"]).read()?;
        let ours = listing.lines().filter(|rule| rule.contains("overlay-1-network"));
        anyhow::Ok(ours.map(str::to_owned).collect::<Vec<_>>())
    };
    let wait_for = |count: usize| {
        eventually(SOON, &format!("{count} rules"), || {
            let rules = rules()?;
            anyhow::ensure!(rules.len() == count, "{rules:?}");
            Ok(())
        })
        .unwrap();
    };
    wait_for(2);
    switch(&overlay, true);
    // As an agent of before has left it.
    let old = "-A FORWARD -i eth0 -m comment --comment overlay-1-direct-routing -j ACCEPT";
    overlay.lab.host(0).command("iptables").args(old.split(' ')).run().unwrap();
    eventually(SOON, "the old rule to be gone", || {
        let listing = overlay.lab.host(0).command("iptables").args(["-S", "FORWARD"]).read()?;
        anyhow::ensure!(!listing.contains("overlay-1-direct-routing"), "{listing}");
        Ok(())
    })
    .unwrap();
    let numbers = || {
        let status = overlay.agents[0].status().unwrap();
        [&status["verifications"], &status["repairs"]].map(|number| number.as_u64().unwrap())
    };
    let [looked, repairs] = numbers();
    // Four a second: the firewall is looked at three times meanwhile.
    eventually(SOON, "verifications", || {
        anyhow::ensure!(numbers()[0] > looked + 16, "not yet");
        Ok(())
    })
    .unwrap();
    assert_eq!(rules().unwrap().len(), 2, "{:?}", rules());
    assert_eq!(numbers()[1], repairs, "nothing is made anew");
    switch(&overlay, false);
    wait_for(2);
}

/// The answer to what netfilter has rewritten comes past it, from a peer that does not encapsulate.
#[test]
fn a_service_on_a_peer_on_the_link_is_rewritten_back() {
    let overlay = Overlay::new();
    switch(&overlay, true);
    let [client, server] = overlay.pair();
    for command in [
        "add table ip services",
        "add chain ip services prerouting { type nat hook prerouting priority dstnat; }",
        &format!("add rule ip services prerouting ip daddr 10.99.0.1 dnat to {}", server.address()),
    ] {
        overlay.lab.host(0).command("nft").arg(command).run().unwrap();
    }
    overlay.ping();
    let answers = overlay.rise("from_uplink", "stack_flow");
    client.ping("10.99.0.1".parse().unwrap()).unwrap();
    assert!(answers.of(&overlay)[0] > 0, "the answer goes through the stack");
}

#[test]
fn without_direct_routing_an_unencapsulated_packet_with_an_overlay_address_is_refused() {
    let overlay = Overlay::new();
    let [one, two] = overlay.pair();
    // As anybody on the link could: the containers' subnet by way of the host's own address.
    let route = format!("{}/32 via {} dev {UPLINK}", one.address(), overlay.lab.host(0).address());
    let mut add = vec!["route", "add"];
    add.extend(route.split(' '));
    overlay.lab.host(1).ip(add).unwrap();
    let refused = overlay.rise("from_uplink", "unencapsulated");
    let forger = network_of(two.address()).to_string();
    let output = overlay
        .lab
        .host(1)
        .command("ping")
        .args(["-n", "-c3", "-i0.2", "-W1", "-I", &forger, &one.address().to_string()])
        .output()
        .unwrap();
    assert!(output.stdout.contains("0 received"), "{}", output.stdout);
    assert_eq!(refused.of(&overlay), [3, 0]);
}
