//! What looks like an attack and is none: packets between containers and hosts that nobody masquerades, and an
//! address that moves.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use overlay_lab::{BRIDGE, Host, Namespace, eventually};

use crate::tools::{
    frame::{IPV4, Ip, UDP, VXLAN_PORT, datagram, ethernet, udp, vxlan},
    site::{
        HOST, HOST_MAC, HOST_VTEP, OUTLAW, OWNER, PEER, PEER_MAC, PEER_VTEP, REMOTE, SOON, Site,
    },
    trial::Trial,
};

/// Whether a datagram from one place is answered from the address it was sent to.
fn answered(
    (from, source): (&Namespace, Ipv4Addr),
    (to, destination): (&Namespace, Ipv4Addr),
) -> anyhow::Result<()> {
    let server = to.within(move || {
        let socket = UdpSocket::bind((destination, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(socket)
    })?;
    let port = server.local_addr()?.port();
    let client = from.within(move || {
        let socket = UdpSocket::bind((source, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.connect((destination, port))?;
        socket.send(b"question")?;
        Ok(socket)
    })?;
    let mut text = [0; 16];
    let (length, asker) = server
        .recv_from(&mut text)
        .map_err(|error| anyhow::anyhow!("the question of {source} did not come: {error}"))?;
    anyhow::ensure!(asker.ip() == source, "{asker} asks, not {source}");
    anyhow::ensure!(&text[..length] == b"question", "it is another question");
    server.send_to(b"answer", asker)?;
    let length = client
        .recv(&mut text)
        .map_err(|error| anyhow::anyhow!("the answer of {destination} did not come: {error}"))?;
    anyhow::ensure!(&text[..length] == b"answer", "it is another answer");
    Ok(())
}

fn hosts_and_containers_answer_each_other(site: &Site) {
    let owner = (site.owner.namespace(), OWNER);
    let remote = (site.remote.namespace(), REMOTE);
    let host = (site.host().namespace(), HOST);
    let peer = (site.peer().namespace(), PEER);
    let mut failures = Vec::new();
    for (what, from, to) in [
        ("a container and the remote host's own address", owner, peer),
        ("the remote host's container and ours", remote, host),
        ("a socket bound to the host's address and a remote container", host, remote),
        ("the remote host's socket and our container", peer, owner),
    ] {
        if let Err(error) = eventually(Duration::from_secs(3), what, || answered(from, to)) {
            failures.push(format!("{error:#}"));
        }
    }
    assert!(failures.is_empty(), "{} of 4 fail:\n  {}", failures.len(), failures.join("\n  "));
}

#[test]
fn containers_and_remote_hosts_answer_each_other() {
    hosts_and_containers_answer_each_other(&Site::new());
}

#[test]
fn containers_and_remote_hosts_answer_each_other_without_the_fast_path() {
    hosts_and_containers_answer_each_other(&Site::with(|options| options.fast_path(false)));
}

/// The host's own address inside is as good as a lease; every other address of the underlay is not.
#[test]
fn only_its_own_address_is_as_good_as_a_hosts_lease() {
    let site = Site::new();
    let port = site.wire_port();
    let mut trial = Trial::new(&site);
    let frame = |source: Ipv4Addr, marker: [u8; 4]| {
        let inner = ethernet(HOST_VTEP, PEER_VTEP, &[], IPV4, &datagram(source, OWNER, &marker));
        let packet = Ip::new(PEER, HOST, UDP).packet(&udp(50_000, VXLAN_PORT, &vxlan(&inner)));
        ethernet(HOST_MAC, PEER_MAC, &[], IPV4, &packet)
    };
    for source in [HOST, OUTLAW, Ipv4Addr::new(8, 8, 8, 8)] {
        trial.refuses(&format!("the peer's VXLAN with {source} inside"), 3, |marker| {
            (0..3).for_each(|_| port.send(&frame(source, marker)).unwrap());
        });
    }
    trial.delivers("the peer's VXLAN with its own address inside", |marker| {
        port.send(&frame(PEER, marker)).unwrap();
    });
    trial.finish();
}

/// The kernel's own timers, short enough to wait for: an entry is asked about after some three seconds, and given up
/// three seconds later.
fn short_memory(host: &Host) {
    for (name, value) in [
        ("base_reachable_time_ms", "2000"),
        ("delay_first_probe_time", "1"),
        ("retrans_time_ms", "500"),
    ] {
        host.namespace().sysctl(&format!("net.ipv4.neigh.{BRIDGE}.{name}"), value).unwrap();
    }
}

/// How long after `from` has lost `address` to `to` it takes until `to` is reached by `asker`.
fn moves(
    asker: &Namespace,
    source: Ipv4Addr,
    [from, to]: [&Namespace; 2],
    address: Ipv4Addr,
    within: Duration,
) -> anyhow::Result<Duration> {
    let cidr = format!("{address}/32");
    from.ip(["address", "add", &cidr, "dev", "eth0"])?;
    eventually(SOON, "the address to answer at its first place", || {
        answered((asker, source), (from, address))
    })?;
    from.ip(["address", "delete", &cidr, "dev", "eth0"])?;
    to.ip(["address", "add", &cidr, "dev", "eth0"])?;
    let start = Instant::now();
    eventually(within, "the address to answer at its second place", || {
        answered((asker, source), (to, address))
    })?;
    Ok(start.elapsed())
}

/// As keepalived does it, but nobody announces anything.
fn an_address_moves(site: &Site) {
    short_memory(site.host());
    // What the kernel does without us: the same two containers on a bridge of a host that has no agent.
    let bare = site.lab.host(2);
    let gateway = Ipv4Addr::new(10, 7, 0, 1);
    bare.ip(["link", "add", BRIDGE, "type", "bridge"]).unwrap();
    bare.ip(["address", "add", &format!("{gateway}/24"), "dev", BRIDGE]).unwrap();
    bare.ip(["link", "set", BRIDGE, "up"]).unwrap();
    short_memory(bare);
    let containers = [2, 3].map(|number| {
        let namespace = Namespace::create(site.lab.ledger(), &format!("bare{number}")).unwrap();
        let veth = format!("bare{number}");
        let there = namespace.name();
        bare.ip(["link", "add", &veth, "type", "veth", "peer", "name", "eth0", "netns", there])
            .unwrap();
        bare.ip(["link", "set", &veth, "master", BRIDGE, "up"]).unwrap();
        namespace.ip(["address", "add", &format!("10.7.0.{number}/24"), "dev", "eth0"]).unwrap();
        namespace.ip(["link", "set", "eth0", "up"]).unwrap();
        namespace
    });
    let control = moves(
        bare.namespace(),
        gateway,
        [&containers[0], &containers[1]],
        Ipv4Addr::new(10, 7, 0, 50),
        Duration::from_secs(30),
    )
    .unwrap();
    let address = Ipv4Addr::new(10, 1, 1, 50);
    let [from, to] = [site.owner.namespace(), site.attacker.namespace()];
    // Its timers are random, from half to one and a half.
    let within = control + Duration::from_secs(5);
    let ours = moves(site.remote.namespace(), REMOTE, [from, to], address, within);
    assert!(ours.is_ok(), "the kernel needs {control:?}: {:#}", ours.unwrap_err());
    eventually(SOON, "the address to reach a remote container from its second place", || {
        answered((to, address), (site.remote.namespace(), REMOTE))
    })
    .unwrap();
}

#[test]
fn an_address_that_moves_without_a_word_is_found_as_soon_as_by_the_kernel() {
    an_address_moves(&Site::new());
}

#[test]
fn an_address_that_moves_is_found_without_the_fast_path_too() {
    an_address_moves(&Site::with(|options| options.fast_path(false)));
}
