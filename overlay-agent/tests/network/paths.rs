//! Which path packets take, and that each of them carries everything alone.

use xtask::lab::Lab;

use crate::overlay::Overlay;

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
fn a_container_that_nobody_has_heard_of_is_found_through_the_bridge() {
    let overlay = Overlay::new();
    let silent = overlay.lab.host(1).add_container("silent").unwrap();
    let to_bridge = overlay.rise("from_uplink", "to_bridge");
    overlay.containers[0].ping(silent.address()).unwrap();
    assert_eq!(to_bridge.of(&overlay)[1], 1);
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
