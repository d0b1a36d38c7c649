//! Where the fast path ends: whatever it declines must work all the same.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use overlay_lab::{BRIDGE, Container, Lab, eventually, stream::Stream};

use crate::overlay::{Overlay, SOON, network_of};

fn ping(from: &Container, arguments: &[&str]) -> String {
    let output = from
        .command("ping")
        .args(["-n", "-c", "3", "-i", "0.2", "-W", "2"])
        .args(arguments)
        .output();
    output.unwrap().stdout
}

fn answered(output: &str) -> bool {
    output.contains("3 received")
}

#[test]
fn a_service_address_is_rewritten_back_by_the_stack() {
    let overlay = Overlay::new();
    let [client, server] = overlay.pair();
    let server_address = server.address().to_string();
    for command in [
        "add table ip services",
        "add chain ip services prerouting { type nat hook prerouting priority dstnat; }",
        &format!("add rule ip services prerouting ip daddr 10.99.0.1 dnat to {server_address}"),
    ] {
        overlay.lab.host(0).command("nft").arg(command).run().unwrap();
    }
    // Both ways at once: the same two containers directly, by the fast path, and by the service.
    overlay.ping();
    let answers = overlay.rise("from_uplink", "stack_flow");
    assert!(answered(&ping(client, &["10.99.0.1"])));
    assert!(answers.of(&overlay)[0] >= 3, "the answers go through the stack");
    let directly = overlay.rise("from_uplink", "to_endpoint");
    overlay.ping();
    assert!(directly.of(&overlay)[0] > 0, "other flows do not");

    let moved = transfer(client, server, &["10.99.0.1"]);
    assert!(moved > 10_000_000, "{moved} bytes in a second");
}

/// As Docker publishes a port: a peer's packet for an address of the host goes on to a container, whose
/// answer the client expects from the host.
#[test]
fn a_published_port_is_reached_by_an_overlay_address_of_its_host() {
    let overlay = Overlay::new();
    let [server, client] = overlay.pair();
    let gateway = overlay.lab.host(0).subnet().unwrap().gateway.to_string();
    for command in [
        "add table ip publish",
        "add chain ip publish prerouting { type nat hook prerouting priority dstnat; }",
        &format!(
            "add rule ip publish prerouting ip daddr {gateway} tcp dport 8080 dnat to {}:5201",
            server.address()
        ),
    ] {
        overlay.lab.host(0).command("nft").arg(command).run().unwrap();
    }
    // The containers have talked directly before: endpoints are known, the fast path is in use.
    overlay.ping();
    let arrived = overlay.rise("to_bridge", "from_stack");
    let answered = overlay.rise("from_container", "stack_flow");
    let received = transfer(client, server, &[&gateway, "-p", "8080"]);
    assert!(received > 10_000_000, "{received} bytes in a second");
    assert!(arrived.of(&overlay)[0] > 0, "the question arrives through the stack");
    assert!(answered.of(&overlay)[0] > 0, "the answer leaves through the stack");

    let directly = overlay.rise("from_container", "encapsulated");
    let delivered = overlay.rise("to_bridge", "from_stack");
    transfer(client, server, &[&server.address().to_string()]);
    assert!(directly.of(&overlay)[0] > 100, "other flows take the fast path");
    assert_eq!(delivered.of(&overlay), [0, 0], "and are not taken for what the stack forwards");
}

/// An address that is not on a container's own interface is found by the bridge, past netfilter.
#[test]
fn what_is_delivered_to_the_bridge_is_not_taken_for_the_stacks() {
    let overlay = Overlay::new();
    let host = overlay.lab.host(0);
    let second = host.add_container("second").unwrap();
    let [a, b, c, _] = second.address().octets();
    let service = Ipv4Addr::new(a, b, c, 99);
    second.namespace().ip(["address", "add", &format!("{service}/32"), "dev", "lo"]).unwrap();
    let delivered = overlay.rise("to_bridge", "delivered");
    overlay.pair()[1].ping(service).unwrap();
    assert!(delivered.of(&overlay)[0] > 0, "it is for an address that no port is known to have");
    assert_eq!(overlay.packets("to_bridge", "from_stack"), [0, 0]);
}

/// Bridges forget MACs that they do not see, five minutes after the last packet, and they see none of a container that
/// talks by the fast path.
#[test]
fn a_container_is_known_longer_than_the_bridge_remembers_it() {
    let mut overlay = Overlay::new();
    // Hundredths of a second.
    let ageing = ["link", "set", BRIDGE, "type", "bridge", "ageing_time", "50"];
    overlay.lab.host(0).ip(ageing).unwrap();
    let stream = Stream::start(&overlay.containers[1], &overlay.containers[0], 7001).unwrap();
    for what in ["the first agent", "its successor"] {
        if what == "its successor" {
            overlay.agents[0].kill().unwrap();
            overlay.agents[0] = overlay.lab.host(0).start_agent(&overlay.options).unwrap();
        }
        let host = overlay.lab.host(0);
        let mac = overlay.containers[0].namespace().mac("eth0").unwrap();
        eventually(SOON, "the bridge to forget the container", || {
            let known = host.command("bridge").args(["fdb", "show", "br", BRIDGE]).read()?;
            anyhow::ensure!(!known.contains(&mac), "{known}");
            Ok(())
        })
        .unwrap();
        let [fast, slow] =
            ["to_endpoint", "bridged"].map(|reason| overlay.rise("from_uplink", reason));
        eventually(SOON, &format!("{what} to let packets take the fast path"), || {
            anyhow::ensure!(fast.of(&overlay)[0] > 1000, "{:?}", fast.of(&overlay));
            Ok(())
        })
        .unwrap();
        assert_eq!(slow.of(&overlay)[0], 0, "{what}");
    }
    let seen = stream.stop().unwrap();
    assert_eq!((seen.lost, seen.doubled), (0, 0), "{seen:?}");
}

/// One second of one TCP stream; bytes received.
fn transfer(client: &Container, server: &Container, to: &[&str]) -> u64 {
    server.command("iperf3").args(["-s", "-1", "-D"]).run().unwrap();
    let report = eventually(SOON, "iperf3 to connect", || {
        client
            .command("iperf3")
            .args(["-J", "-t1", "-c"])
            .args(to)
            .deadline(Duration::from_secs(20))
            .read()
    })
    .unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    report["end"]["sum_received"]["bytes"].as_u64().unwrap()
}

#[test]
fn a_ttl_that_ends_at_the_host_is_answered_by_the_gateway() {
    let overlay = Overlay::new();
    let [client, server] = overlay.pair();
    let gateway = overlay.lab.host(0).subnet().unwrap().gateway.to_string();
    let output = ping(client, &["-t", "1", &server.address().to_string()]);
    assert!(
        output.contains(&format!("From {gateway}")) && output.contains("Time to live exceeded"),
        "{output}"
    );
    assert!(answered(&ping(client, &["-t", "2", &server.address().to_string()])));
}

#[test]
fn packets_larger_than_the_overlay_are_answered_or_fragmented() {
    let overlay = Overlay::new();
    let [client, server] = overlay.pair();
    // Containers that believe in 1,500 bytes, as when Docker was not told the MTU.
    for (index, container) in overlay.containers.iter().enumerate() {
        let host = overlay.lab.host(index);
        host.ip(["link", "set", container.veth(), "mtu", "1500"]).unwrap();
        host.ip(["link", "set", "docker0", "mtu", "1500"]).unwrap();
        container.namespace().ip(["link", "set", "eth0", "mtu", "1500"]).unwrap();
    }
    let to = server.address().to_string();
    let gateway = overlay.lab.host(0).subnet().unwrap().gateway.to_string();
    let too_big = overlay.rise("from_container", "too_big");
    let output = ping(client, &["-M", "do", "-s", "1430", &to]);
    assert!(output.contains(&format!("From {gateway}")), "{output}");
    assert!(output.contains("mtu = 1450") || output.contains("mtu=1450"), "{output}");
    assert!(too_big.of(&overlay)[0] >= 1);
    client.namespace().ip(["route", "flush", "cache"]).unwrap();
    assert!(answered(&ping(client, &["-M", "dont", "-s", "1430", &to])), "without DF");
    // TCP learns the path's MTU and then moves.
    client.namespace().ip(["route", "flush", "cache"]).unwrap();
    let moved = overlay.tcp_throughput(2);
    assert!(moved > 0.3e9, "{moved:.2e} bit/s");
}

#[test]
fn fragments_and_ip_options_take_the_slow_path() {
    let overlay = Overlay::new();
    let [client, server] = overlay.pair();
    let to = server.address().to_string();
    let fragments = overlay.rise("from_container", "fragment");
    assert!(answered(&ping(client, &["-s", "6000", &to])));
    let fragments = fragments.of(&overlay);
    assert!(fragments[0] >= 15 && fragments[1] >= 15, "{fragments:?}");
    let options = overlay.rise("from_container", "ip_options");
    assert!(answered(&ping(client, &["-R", &to])));
    assert!(options.of(&overlay)[0] >= 3);
}

/// QUIC senders hand the kernel many datagrams as one.
#[test]
fn udp_aggregates_are_cut_into_the_datagrams_they_are_made_of() {
    const SEGMENT: usize = 1200;
    const SEGMENTS: u8 = 40;
    for imitate_wire in [false, true] {
        let overlay = Overlay::with(Lab::builder().imitate_wire(imitate_wire), |options| options);
        let [client, server] = overlay.pair();
        let to = SocketAddr::from((server.address(), 4433));
        let listener = server
            .namespace()
            .within(move || {
                let socket = UdpSocket::bind(to)?;
                socket.set_read_timeout(Some(SOON))?;
                Ok(socket)
            })
            .unwrap();
        let sent: Vec<u8> = (0..SEGMENTS).flat_map(|number| [number; SEGMENT]).collect();
        let payload = sent.clone();
        let fast = overlay.rise("from_container", "encapsulated");
        client
            .namespace()
            .within(move || {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                setsockopt(&socket, UdpGsoSegment, &i32::try_from(SEGMENT)?)?;
                socket.send_to(&payload, to)?;
                Ok(())
            })
            .unwrap();
        let mut received = Vec::new();
        let mut datagram = [0; 2048];
        for _ in 0..SEGMENTS {
            let length = listener.recv(&mut datagram).unwrap();
            assert_eq!(length, SEGMENT);
            received.extend_from_slice(&datagram[..length]);
        }
        assert!(received == sent, "wire imitated: {imitate_wire}");
        assert_eq!(fast.of(&overlay)[0], 1, "one aggregate leaves by the fast path");
    }
}

#[test]
fn a_tunnel_between_containers_works() {
    // What is encapsulated already is the kernel's to encapsulate once more, also where netfilter has let it out.
    for (imitate_wire, rules) in
        [(false, "bypass"), (true, "bypass"), (false, "honour"), (true, "honour")]
    {
        let lab = Lab::builder().imitate_wire(imitate_wire);
        let overlay = Overlay::with(lab, |options| options.argument(&format!("--rules={rules}")));
        let [one, two] = overlay.pair();
        for (container, peer, address) in [(one, two, "172.30.0.1/24"), (two, one, "172.30.0.2/24")]
        {
            let inside = container.namespace();
            let peer = peer.address().to_string();
            let add = format!(
                "link add vx0 mtu 1400 type vxlan id 42 dstport 8472 dev eth0 remote {peer}"
            );
            inside.ip(add.split(' ')).unwrap();
            inside.ip(["address", "add", address, "dev", "vx0"]).unwrap();
            inside.ip(["link", "set", "vx0", "up"]).unwrap();
        }
        assert!(answered(&ping(one, &["172.30.0.2"])));
        two.command("iperf3").args(["-s", "-1", "-D"]).run().unwrap();
        let report = eventually(SOON, "iperf3 to connect through the tunnel", || {
            one.command("iperf3")
                .args(["-J", "-t1", "-c", "172.30.0.2"])
                .deadline(Duration::from_secs(20))
                .read()
        })
        .unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let moved = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
        assert!(
            moved > 10_000_000,
            "{moved} bytes in a second, wire imitated: {imitate_wire}, {rules}"
        );
    }
}

#[test]
fn what_has_no_lease_is_answered_by_the_host() {
    let overlay = Overlay::new();
    let [client, _] = overlay.pair();
    let no_peer = overlay.rise("from_container", "no_peer");
    for address in ["10.1.255.255", "10.1.0.77"] {
        let ping = ["-n", "-c1", "-W1", "-b", address];
        let said = client.command("ping").args(ping).output().unwrap();
        assert!(said.stdout.contains("Unreachable"), "{said:?}");
    }
    assert_eq!(no_peer.of(&overlay)[0], 2);
}

#[test]
fn containers_reach_their_own_host() {
    let overlay = Overlay::new();
    let [client, _] = overlay.pair();
    let own = network_of(client.address());
    for address in
        [own, overlay.lab.host(0).subnet().unwrap().gateway, overlay.lab.host(0).address()]
    {
        client.ping(address).unwrap();
    }
}

/// A container that forwards (Docker in Docker, a VPN) gets aggregates that it has to send on.
#[test]
fn a_container_that_forwards_passes_bulk_traffic_on() {
    for imitate_wire in [false, true] {
        let overlay = Overlay::with(Lab::builder().imitate_wire(imitate_wire), |options| options);
        let [client, router] = overlay.pair();
        let inner = overlay_lab::Namespace::create(overlay.lab.ledger(), "inner").unwrap();
        let outside = router.namespace();
        let commands = [
            format!("link add in0 type veth peer name eth0 netns {}", inner.name()),
            "address add 172.31.0.1/24 dev in0".to_owned(),
            "link set in0 up".to_owned(),
        ];
        for command in commands {
            outside.ip(command.split(' ')).unwrap();
        }
        for command in [
            "address add 172.31.0.2/24 dev eth0",
            "link set eth0 up",
            "route add default via 172.31.0.1",
        ] {
            inner.ip(command.split(' ')).unwrap();
        }
        outside.sysctl("net.ipv4.ip_forward", "1").unwrap();
        for command in [
            "add table ip inner",
            "add chain ip inner prerouting { type nat hook prerouting priority dstnat; }",
            "add rule ip inner prerouting tcp dport 5201 dnat to 172.31.0.2",
        ] {
            router.command("nft").arg(command).run().unwrap();
        }
        inner.command("iperf3").args(["-s", "-1", "-D"]).run().unwrap();
        let to = router.address().to_string();
        let report = eventually(SOON, "iperf3 to connect", || {
            client
                .command("iperf3")
                .args(["-J", "-t3", "-c", &to])
                .deadline(Duration::from_secs(20))
                .read()
        })
        .unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let moved = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
        println!("{:.2} Gbit/s, wire imitated: {imitate_wire}", moved / 1e9);
        assert!(moved > 0.5e9, "{moved:.2e} bit/s, wire imitated: {imitate_wire}");
    }
}
