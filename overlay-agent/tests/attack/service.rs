//! Services, whose flows netfilter rewrites: what a container does there is nobody else's loss.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::ensure;
use overlay_lab::{Namespace, eventually};

use crate::tools::{
    frame::{IPV4, Ip, UDP, ethernet, udp},
    site::{ATTACKER, ATTACKER_MAC, GATEWAY_MAC, OWNER, REMOTE, SOON, Site},
};

const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const SERVICE_PORT: u16 = 53;

/// Of the asker.
const CLIENT_PORT: u16 = 4242;
/// As many as are remembered of all containers together, and more.
const FLOWS: u32 = 140_000;
/// As many as can be told apart by the sender's port alone.
const PORTS: u32 = 60_000;

/// A datagram of the attacker's to the service, of a flow that this number alone has.
fn flow(number: u32) -> Vec<u8> {
    let from = u16::try_from(1024 + number % PORTS).unwrap();
    let to = SERVICE_PORT + u16::try_from(number / PORTS).unwrap();
    let packet = Ip::new(ATTACKER, SERVICE, UDP).packet(&udp(from, to, b"flood"));
    ethernet(GATEWAY_MAC, ATTACKER_MAC, &[], IPV4, &packet)
}

/// The answers of a flow that netfilter has rewritten have to come back through it. More flows than are remembered do
/// not make the host forget a neighbour's.
#[test]
fn a_neighbour_that_floods_a_service_takes_no_answer_away() {
    let site = Site::new();
    let rules = format!(
        "add table ip service
         add chain ip service prerouting {{ type nat hook prerouting priority dstnat; }}
         add rule ip service prerouting ip daddr {SERVICE} udp dport 53-60 dnat to {REMOTE}"
    );
    site.host().command("nft").args(["-f", "-"]).input(rules.as_bytes()).run().unwrap();
    let bound = |namespace: &Namespace, address: (Ipv4Addr, u16)| {
        let socket = namespace.within(move || {
            let socket = UdpSocket::bind(address)?;
            socket.set_read_timeout(Some(SOON))?;
            Ok(socket)
        });
        socket.unwrap()
    };
    let server = bound(site.remote.namespace(), (REMOTE, SERVICE_PORT));
    let mut buffer = [0; 64];
    // Each of its own flow, of which nothing has come back yet.
    let mut ask = |port| {
        let client = bound(site.owner.namespace(), (OWNER, port));
        client.connect((SERVICE, SERVICE_PORT)).unwrap();
        client.send(b"question").unwrap();
        let (_, asker) = server.recv_from(&mut buffer).unwrap();
        (client, asker)
    };
    let (client, asker) = ask(CLIENT_PORT);
    server.send_to(b"at once", asker).unwrap();
    assert_eq!(client.recv(&mut [0; 64]).unwrap(), 7, "the service works");
    let (client, asker) = ask(CLIENT_PORT + 1);

    // In the time that the server thinks.
    let port = site.attacker_port();
    let before = site.tally();
    let flows: Vec<u32> = (0..FLOWS).collect();
    for some in flows.chunks(64) {
        let frames: Vec<_> = some.iter().map(|number| flow(*number)).collect();
        port.send_many(&frames);
    }
    eventually(SOON, "the flood to have passed", || {
        let rise = site.tally().since(&before);
        let passed = rise.at_host(0, "to_tunnel");
        ensure!(passed > u64::from(FLOWS) * 9 / 10, "{passed} of {FLOWS} packets: {rise}");
        Ok(())
    })
    .unwrap();
    server.send_to(b"at last", asker).unwrap();
    assert_eq!(client.recv(&mut [0; 64]).unwrap(), 7);
}
