//! Containers that connect as their first act, before anybody has heard of them, and keep the connection.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
};

use nix::sys::signal::Signal;
use overlay_lab::{AgentOptions, BRIDGE, Container, Lab, NETWORK_CONFIG, eventually};

use crate::overlay::{Overlay, SOON};

/// A connection between two containers, whose far end sends back what comes.
fn connect(client: &Container, server: &Container, port: u16) -> TcpStream {
    let address = SocketAddr::from((server.address(), port));
    let listener = server.namespace().within(move || Ok(TcpListener::bind(address)?)).unwrap();
    std::thread::spawn(move || {
        let Ok((mut stream, _)) = listener.accept() else { return };
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
    });
    let stream =
        client.namespace().within(move || Ok(TcpStream::connect_timeout(&address, SOON)?)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn exchange(stream: &mut TcpStream, times: u64) {
    for _ in 0..times {
        stream.write_all(&[7]).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
}

/// With the agent frozen, the container's port has no program, and everything takes the stack.
#[test]
fn a_connection_that_began_through_the_stack_takes_the_fast_path_as_soon_as_it_can() {
    const EXCHANGES: u64 = 100;
    let mut overlay = Overlay::new();
    let as_it_was = overlay.rise("to_bridge", "not_rewritten");
    overlay.agents[0].process().signal(Signal::SIGSTOP).unwrap();
    let early = overlay.lab.host(0).add_container("early").unwrap();
    let mut stream = connect(&early, &overlay.containers[1], 7100);
    exchange(&mut stream, EXCHANGES);
    overlay.agents[0].process().signal(Signal::SIGCONT).unwrap();
    eventually(SOON, "the new container to be known", || {
        let status = overlay.agents[0].status()?;
        anyhow::ensure!(status["endpoints"] == 2, "{}", status["endpoints"]);
        Ok(())
    })
    .unwrap();
    assert!(as_it_was.of(&overlay)[0] >= EXCHANGES, "the answers took the stack, too");
    exchange(&mut stream, 1);
    let slow = ["from_container", "from_uplink"].map(|hook| overlay.rise(hook, "stack_flow"));
    let sent = overlay.rise("from_container", "encapsulated");
    let delivered = overlay.rise("from_uplink", "to_endpoint");
    exchange(&mut stream, EXCHANGES);
    assert_eq!(slow.map(|slow| slow.of(&overlay)), [[0; 2]; 2], "what netfilter does not rewrite");
    for rise in [sent.of(&overlay), delivered.of(&overlay)] {
        assert!(rise.iter().all(|packets| *packets >= EXCHANGES), "{rise:?}");
    }
}

/// A second after the last of many has connected, every packet of all their connections takes the fast path.
/// `OVERLAY_FIRST_ACTS` says of how many.
#[test]
fn many_that_connect_as_their_first_act_are_fast_a_second_later() {
    const EXCHANGES: u64 = 5;
    let number = std::env::var("OVERLAY_FIRST_ACTS").map_or(24, |number| number.parse().unwrap());
    let lab = Lab::builder().start().unwrap();
    // Room for a thousand, which is also as many ports as a bridge has.
    let config = r#"{"Network":"10.1.0.0/16","SubnetLen":21,"Backend":{"Type":"vxlan"}}"#;
    let etcd = lab.start_etcd(config).unwrap();
    let options = AgentOptions::new(env!("CARGO_BIN_EXE_overlay-agent"), &etcd);
    let agents: Vec<_> =
        lab.hosts().iter().map(|host| host.start_agent(&options).unwrap()).collect();
    let server = lab.host(1).add_container("server").unwrap();
    let mut clients = Vec::new();
    let mut streams = Vec::new();
    for at in 0..number {
        let client = lab.host(0).add_container(&format!("c{at}")).unwrap();
        if at == 0 {
            // As Docker has it: else it is the lowest of its ports', and another with many a new one.
            lab.host(0).ip(["link", "set", BRIDGE, "address", "02:42:0a:01:00:01"]).unwrap();
        }
        streams.push(connect(&client, &server, 7200 + at));
        clients.push(client);
    }
    std::thread::sleep(std::time::Duration::from_secs(1));
    let counted = |hook, reason| {
        let packets = agents.iter().map(|agent| agent.packets(hook, reason).unwrap());
        packets.collect::<Vec<_>>()
    };
    let fast = counted("from_container", "encapsulated");
    let slow = counted("to_tunnel", "tunnel_key_set");
    for stream in &mut streams {
        exchange(stream, EXCHANGES);
    }
    let wanted = EXCHANGES * streams.len() as u64;
    for (before, after) in fast.iter().zip(counted("from_container", "encapsulated")) {
        assert!(after - before >= wanted, "{} of {wanted}", after - before);
    }
    assert_eq!(counted("to_tunnel", "tunnel_key_set"), slow, "of {wanted} each way");
}

/// Docker makes its bridge first and gives it its address then; a bridge that it had before gets another address. The
/// agent takes either for an interface of the host's, until it hears of the address.
#[test]
fn a_bridge_is_the_containers_as_soon_as_it_has_the_address() {
    for before in [None, Some("172.17.0.1/16")] {
        let lab = Lab::builder().hosts(1).start().unwrap();
        let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
        let options = AgentOptions::new(env!("CARGO_BIN_EXE_overlay-agent"), &etcd);
        let host = lab.host(0);
        let mut agent = host.start_agent(&options).unwrap();
        host.ip(["link", "add", BRIDGE, "type", "bridge"]).unwrap();
        if let Some(address) = before {
            host.ip(["address", "add", address, "dev", BRIDGE]).unwrap();
        }
        eventually(SOON, "the bridge to have the program of an interface", || {
            let status = agent.status()?;
            let wanted = serde_json::json!({ "hook": "from_interface", "interface": BRIDGE });
            let programs = status["programs"].as_array().cloned().unwrap_or_default();
            anyhow::ensure!(programs.contains(&wanted), "{programs:?}");
            Ok(())
        })
        .unwrap();
        agent.process().signal(Signal::SIGSTOP).unwrap();
        let gateway = host.subnet().unwrap().gateway_cidr();
        if let Some(address) = before {
            host.ip(["address", "delete", address, "dev", BRIDGE]).unwrap();
        }
        host.ip(["address", "add", &gateway, "dev", BRIDGE]).unwrap();
        host.ip(["link", "set", BRIDGE, "up"]).unwrap();
        let container = host.add_container("early").unwrap();
        container.ping(host.subnet().unwrap().gateway).unwrap();
        container.ping(host.address()).unwrap();
        agent.process().signal(Signal::SIGCONT).unwrap();
        agent.wait_ready(SOON).unwrap();
        assert!(agent.packets("from_interface", "checked").unwrap() > 0);
    }
}

/// One packet that the fast path leaves to the stack, here by its IP options, does not take its flow along.
#[test]
fn a_declined_packet_does_not_make_its_flow_the_stacks() {
    let overlay = Overlay::new();
    let [client, server] = overlay.pair();
    let declined = overlay.rise("from_container", "ip_options");
    let to = server.address().to_string();
    client.command("ping").args(["-n", "-c", "1", "-W", "2", "-T", "tsonly", &to]).run().unwrap();
    assert!(declined.of(&overlay)[0] > 0);
    for which in [0, 1] {
        let pins = overlay.lab.host(which).pins().join("stack_flows");
        let flows = overlay.lab.host(which).command("bpftool");
        let flows = flows.args(["-j", "map", "dump", "pinned"]).arg(pins).read().unwrap();
        assert_eq!(flows.trim(), "[]", "host {which}");
    }
}
