//! Which path packets take, and that each of them carries everything alone.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use overlay_lab::{Lab, Namespace, eventually};

use crate::overlay::{Overlay, SOON};

#[test]
fn containers_talk_by_the_fast_path() {
    let overlay = Overlay::new();
    let sent = overlay.rise("from_container", "encapsulated");
    let received = overlay.rise("from_uplink", "to_endpoint");
    for _ in 0..10 {
        overlay.ping();
    }
    assert_eq!((sent.of(&overlay), received.of(&overlay)), ([10, 10], [10, 10]));
    assert_eq!(overlay.rise("to_tunnel", "tunnel_key_set").start, [0, 0]);
}

#[test]
fn the_fast_path_carries_containers_without_the_tunnel_device() {
    let mut overlay = Overlay::new();
    // A running agent would bring the device back up; the datapath does not need it.
    for agent in &mut overlay.agents {
        agent.stop().unwrap();
    }
    for host in overlay.lab.hosts() {
        host.ip(["link", "set", "overlay.1", "down"]).unwrap();
    }
    for _ in 0..10 {
        overlay.ping();
    }
    let [client, server] = overlay.pair();
    client.ping(server.address()).unwrap();
    let moved = overlay.tcp_throughput(2);
    assert!(moved > 0.1e9, "TCP moves only {moved:.2e} bit/s");
}

#[test]
fn the_slow_path_carries_containers_with_the_fast_path_off() {
    let overlay = Overlay::with(Lab::builder(), |options| options.fast_path(false));
    let declined = overlay.rise("from_container", "fast_path_off");
    let sent = overlay.rise("to_tunnel", "tunnel_key_set");
    let received = overlay.rise("from_tunnel", "to_stack");
    for _ in 0..10 {
        overlay.ping();
    }
    assert_eq!(declined.of(&overlay), [10, 10]);
    assert_eq!((sent.of(&overlay), received.of(&overlay)), ([10, 10], [10, 10]));
    let fast = overlay.rise("from_container", "encapsulated").start;
    assert_eq!(fast, [0, 0]);
    let moved = overlay.tcp_throughput(2);
    assert!(moved > 0.1e9, "TCP moves only {moved:.2e} bit/s");
}

#[test]
fn the_host_itself_reaches_remote_containers_and_hosts() {
    let overlay = Overlay::new();
    let sent = overlay.rise("to_tunnel", "tunnel_key_set");
    let there = overlay.containers[1].address();
    let host = overlay.lab.host(0);
    let ping = |address: std::net::Ipv4Addr| {
        host.command("ping").args(["-n", "-c1", "-W2", &address.to_string()]).run().unwrap();
    };
    ping(there);
    let remote = overlay.lab.host(1).subnet().unwrap();
    ping(remote.gateway);
    let [a, b, c, _] = remote.gateway.octets();
    ping([a, b, c, 0].into());
    assert!(sent.of(&overlay)[0] >= 3, "the host's own packets take the tunnel device");
}

#[test]
fn an_address_that_no_port_is_known_to_have_is_found_through_the_bridge() {
    let overlay = Overlay::new();
    let server = &overlay.containers[1];
    let [a, b, c, _] = server.address().octets();
    let service = std::net::Ipv4Addr::new(a, b, c, 99);
    server.namespace().ip(["address", "add", &format!("{service}/32"), "dev", "lo"]).unwrap();
    let bridged = overlay.rise("from_uplink", "bridged");
    overlay.containers[0].ping(service).unwrap();
    assert_eq!(bridged.of(&overlay)[1], 1);
}

/// The kernel tells of it: nobody has to wait for its first packet.
#[test]
fn a_container_that_has_never_sent_anything_is_delivered_to_directly() {
    let overlay = Overlay::new();
    let silent = overlay.lab.host(1).add_container("silent").unwrap();
    eventually(SOON, "the container to be known", || {
        let status = overlay.agents[1].status()?;
        anyhow::ensure!(status["endpoints"] == 2, "{}", status["endpoints"]);
        Ok(())
    })
    .unwrap();
    let direct = overlay.rise("from_uplink", "to_endpoint");
    overlay.containers[0].ping(silent.address()).unwrap();
    assert_eq!(direct.of(&overlay)[1], 1);
}

/// Two containers of one host swap addresses and come back behind new veths 200 times while the other host
/// sends to both addresses: each datagram that arrives must arrive where its address is.
#[test]
fn nothing_is_ever_delivered_to_the_wrong_container() {
    let overlay = Overlay::new();
    let host = overlay.lab.host(1);
    let subnet = host.subnet().unwrap();
    let inside = ["a", "b"].map(|name| Namespace::create(overlay.lab.ledger(), name).unwrap());
    let addresses = [subnet.container(50), subnet.container(51)];
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let sending = overlay.containers[0]
        .namespace()
        .within(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            Ok(std::thread::spawn(move || {
                let mut sent = 0_u64;
                while !stopped.load(Ordering::Relaxed) {
                    for address in addresses {
                        // The address in the payload, to be compared with the one it arrives at.
                        socket.send_to(&address.octets(), (address, 4000)).ok();
                        sent += 1;
                    }
                    std::thread::sleep(Duration::from_micros(500));
                }
                sent
            }))
        })
        .unwrap();
    let mut arrived = 0;
    for round in 0..200 {
        for outer in ["swap0", "swap1"] {
            host.command("ip").args(["link", "del", outer]).output().unwrap();
        }
        // Who has which address alternates; both get a new veth, with a new MAC.
        for (number, namespace) in inside.iter().enumerate() {
            let address = addresses[(number + round) % 2];
            let outer = format!("swap{number}");
            let add =
                format!("link add {outer} type veth peer name swap netns {}", namespace.name());
            host.ip(add.split(' ')).unwrap();
            namespace.ip(["address", "add", &format!("{address}/24"), "dev", "swap"]).unwrap();
            namespace.ip(["link", "set", "swap", "up"]).unwrap();
            host.ip(["link", "set", &outer, "master", "docker0", "up"]).unwrap();
            // As a container does when it starts: its first packet tells the host who has the address.
            let gateway = subnet.gateway.to_string();
            eventually(SOON, "the container to reach its gateway", || {
                namespace
                    .command("ping")
                    .args(["-n", "-c1", "-W1", "-I", "swap", &gateway])
                    .run()
                    .map(drop)
            })
            .unwrap();
        }
        for (number, namespace) in inside.iter().enumerate() {
            let address = addresses[(number + round) % 2];
            // Bound to the device, whatever the address: what is not for us would be seen, too.
            let seen = namespace
                .within(move || {
                    let socket = UdpSocket::bind(("0.0.0.0", 4000))?;
                    socket.set_read_timeout(Some(Duration::from_millis(30)))?;
                    let mut seen = Vec::new();
                    let mut datagram = [0; 16];
                    while let Ok(length) = socket.recv(&mut datagram) {
                        seen.push(datagram[..length].to_vec());
                        if seen.len() >= 10 {
                            break;
                        }
                    }
                    Ok(seen)
                })
                .unwrap();
            arrived += seen.len();
            let wrong = seen.iter().find(|payload| **payload != address.octets());
            assert_eq!(wrong, None, "round {round}: {address} got another's datagram");
        }
    }
    stop.store(true, Ordering::Relaxed);
    let sent = sending.join().unwrap();
    println!("{arrived} datagrams looked at, {sent} sent");
    assert!(arrived > 200, "{arrived} of {sent} arrived");
}

#[test]
fn a_container_that_moves_to_another_veth_is_followed() {
    let overlay = Overlay::new();
    let [client, server] = overlay.pair();
    let host = overlay.lab.host(1);
    let address = format!("{}/24", server.address());
    let gateway = host.subnet().unwrap().gateway.to_string();
    for round in 0..5 {
        client.ping(server.address()).unwrap();
        // The same address behind a new veth with a new MAC, as when Docker restarts a container.
        let name = format!("again{round}");
        host.ip(["link", "del", if round == 0 { server.veth() } else { "again" }]).unwrap();
        let inside = server.namespace();
        host.ip([
            "link",
            "add",
            "again",
            "type",
            "veth",
            "peer",
            "name",
            &name,
            "netns",
            inside.name(),
        ])
        .unwrap();
        host.ip(["link", "set", "again", "master", "docker0", "up"]).unwrap();
        inside.ip(["address", "add", &address, "dev", &name]).unwrap();
        inside.ip(["link", "set", &name, "up"]).unwrap();
        inside.ip(["route", "add", "default", "via", &gateway]).unwrap();
        server.ping(host.subnet().unwrap().gateway).unwrap();
        client.ping(server.address()).unwrap();
    }
}

#[test]
fn the_overlays_mtu_follows_the_uplinks() {
    let overlay = Overlay::new();
    let host = overlay.lab.host(0);
    assert_eq!(host.subnet().unwrap().mtu, 1450);
    host.ip(["link", "set", overlay_lab::UPLINK, "mtu", "1400"]).unwrap();
    eventually(SOON, "device and subnet file to have the new MTU", || {
        let link = host.ip(["link", "show", "overlay.1"])?;
        anyhow::ensure!(link.contains("mtu 1350"), "{link}");
        anyhow::ensure!(host.subnet()?.mtu == 1350, "{:?}", host.subnet()?);
        Ok(())
    })
    .unwrap();
    // The program knows it, too: what was small enough is now answered by the stack.
    let too_big = overlay.rise("from_container", "too_big");
    let [client, server] = overlay.pair();
    client
        .command("ping")
        .args(["-n", "-c1", "-W1", "-M", "do", "-s", "1400", &server.address().to_string()])
        .output()
        .unwrap();
    assert_eq!(too_big.of(&overlay)[0], 1);
}
