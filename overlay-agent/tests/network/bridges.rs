//! Hosts with several bridges, as Docker makes them for its networks.

use anyhow::{Result, ensure};
use overlay_lab::{
    Agent, AgentOptions, BRIDGE, Bridge, Container, Etcd, Host, Lab, NETWORK_CONFIG, eventually,
    stream::Stream,
};

use crate::overlay::SOON;

const NAMES: [&str; 3] = [BRIDGE, "br-one", "br-two"];

/// Two hosts with three bridges each, and a container behind each bridge. Fields are dropped in order.
struct Site {
    agents: Vec<Agent>,
    containers: Vec<Vec<Container>>,
    bridges: Vec<Vec<Bridge>>,
    options: AgentOptions,
    _etcd: Etcd,
    lab: Lab,
}

impl Site {
    fn new(options: impl FnOnce(AgentOptions) -> AgentOptions) -> Self {
        let lab = Lab::builder().start().unwrap();
        let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
        let options = options(AgentOptions::new(env!("CARGO_BIN_EXE_overlay-agent"), &etcd));
        let agents: Vec<_> =
            lab.hosts().iter().take(2).map(|host| host.start_agent(&options).unwrap()).collect();
        let mut bridges = Vec::new();
        let mut containers = Vec::new();
        for host in lab.hosts().iter().take(2) {
            let own: Vec<_> = (0..)
                .zip(NAMES)
                .map(|(part, name)| Bridge::new(host, name, part, 26).unwrap())
                .collect();
            containers.push(own.iter().map(|bridge| add(host, bridge)).collect());
            bridges.push(own);
        }
        let site = Self { agents, containers, bridges, options, _etcd: etcd, lab };
        for host in [0, 1] {
            site.knows(host, 3);
        }
        site
    }

    /// Waits until an agent knows all of its containers and every peer.
    fn knows(&self, host: usize, containers: usize) {
        eventually(SOON, "containers and peers to be known", || {
            let status = self.agents[host].status()?;
            ensure!(status["endpoints"] == containers, "{status}");
            ensure!(status["peers"].as_array().map_or(0, Vec::len) == 1, "{status}");
            Ok(())
        })
        .unwrap();
    }

    fn packets(&self, host: usize, hook: &str, reason: &str) -> u64 {
        self.agents[host].packets(hook, reason).unwrap()
    }

    /// Sends a ping, which has to go by the fast path there and back.
    fn pings_fast(&self, from: &Container, to: &Container) -> Result<()> {
        let count = || {
            [0, 1].map(|host| {
                self.packets(host, "from_container", "encapsulated")
                    + self.packets(host, "from_uplink", "to_endpoint")
            })
        };
        let before = count();
        from.ping(to.address())?;
        let after = count();
        // One packet left and one arrived, on each.
        ensure!([0, 1].map(|host| after[host] - before[host]) == [2, 2], "{before:?} {after:?}");
        Ok(())
    }
}

fn add(host: &Host, bridge: &Bridge) -> Container {
    bridge.appear(host).unwrap();
    bridge.add_container(host, &format!("c-{}", bridge.name())).unwrap()
}

#[test]
fn every_container_reaches_those_behind_every_bridge_of_another_host_by_the_fast_path() {
    let site = Site::new(|options| options);
    for one in &site.containers[0] {
        for two in &site.containers[1] {
            let what = format!("{} to reach {}", one.name(), two.name());
            // Neighbours are found by the first packet.
            eventually(SOON, &what, || site.pings_fast(one, two)).unwrap();
            eventually(SOON, &what, || site.pings_fast(two, one)).unwrap();
        }
    }
    let status = site.agents[0].status().unwrap();
    assert_eq!(status["bridges"].as_array().unwrap().len(), 3, "{status}");
    assert_eq!(status["problems"], serde_json::json!([]));
}

#[test]
fn packets_between_bridges_of_one_host_pass_only_where_the_host_lets_them() {
    let site = Site::new(|options| options);
    let host = site.lab.host(0);
    let [one, two, _] = &site.containers[0][..] else { panic!("three") };
    one.ping(two.address()).unwrap();
    // Docker isolates its networks, for example like this.
    for (from, to) in [(BRIDGE, "br-one"), ("br-one", BRIDGE)] {
        let arguments = ["-I", "FORWARD", "-i", from, "-o", to, "-j", "DROP"];
        host.command("iptables").args(arguments).run().unwrap();
    }
    one.ping(two.address()).unwrap_err();
    two.ping(one.address()).unwrap_err();
    // Where nothing is said of them, but all that is not said is refused.
    host.command("iptables").args(["-D", "FORWARD", "1"]).run().unwrap();
    host.command("iptables").args(["-D", "FORWARD", "1"]).run().unwrap();
    one.ping(two.address()).unwrap();
    host.command("iptables").args(["-P", "FORWARD", "DROP"]).run().unwrap();
    one.ping(two.address()).unwrap_err();
    let other = &site.containers[1][1];
    one.ping(other.address()).unwrap();
    assert_eq!(site.packets(0, "from_container", "spoofed_source"), 0);
}

#[test]
fn a_container_of_one_bridge_does_not_speak_as_one_of_another() {
    let site = Site::new(|options| options);
    let host = site.lab.host(0);
    let remote = &site.containers[1][0];
    let [one, two, _] = &site.containers[0][..] else { panic!("three") };
    let victim = two.address().to_string();
    // So that it knows its gateway, which it may not ask for in another's name.
    one.ping(remote.address()).unwrap();
    one.namespace().ip(["address", "add", &format!("{victim}/32"), "dev", "lo"]).unwrap();
    let before = site.packets(0, "from_container", "spoofed_source");
    one.command("ping")
        .args(["-n", "-c", "1", "-W", "1", "-I", &victim, &remote.address().to_string()])
        .run()
        .unwrap_err();
    assert!(site.packets(0, "from_container", "spoofed_source") > before);
    // On its very interface: the host looks for that address behind another bridge.
    one.namespace().ip(["address", "del", &format!("{victim}/32"), "dev", "lo"]).unwrap();
    one.namespace().ip(["address", "add", &format!("{victim}/32"), "dev", "eth0"]).unwrap();
    host.ip(["link", "set", two.veth(), "down"]).unwrap();
    site.knows(0, 2);
    remote.ping(two.address()).unwrap_err();
    host.ip(["link", "set", two.veth(), "up"]).unwrap();
    site.knows(0, 3);
    eventually(SOON, "the owner to be reached", || site.pings_fast(remote, two)).unwrap();
}

/// A container behind two bridges answers by its default route whoever asks for its other address.
#[test]
fn a_container_behind_two_bridges_is_reached_by_both_addresses() {
    let site = Site::new(|options| options);
    let host = site.lab.host(0);
    let second = &site.bridges[0][1];
    let [container, ..] = &site.containers[0][..] else { panic!("three") };
    let namespace = container.namespace();
    let address = second.subnet().container(40);
    let peer = ["peer", "name", "eth1", "netns", namespace.name()];
    host.ip(["link", "add", "both", "type", "veth"].iter().chain(&peer)).unwrap();
    host.ip(["link", "set", "both", "master", second.name(), "up"]).unwrap();
    namespace.ip(["address", "add", &format!("{address}/26"), "dev", "eth1"]).unwrap();
    namespace.ip(["link", "set", "eth1", "up"]).unwrap();
    site.knows(0, 4);
    let remote = &site.containers[1][0];
    let before = site.packets(0, "from_container", "encapsulated");
    eventually(SOON, "its other address to answer", || remote.ping(address)).unwrap();
    assert!(site.packets(0, "from_container", "encapsulated") > before);
    remote.ping(container.address()).unwrap();
    assert_eq!(site.packets(0, "from_container", "spoofed_source"), 0);
    assert_eq!(site.packets(0, "from_container", "spoofed_arp"), 0);
}

#[test]
fn bridges_come_and_go_in_any_order_while_others_carry_a_stream() {
    let mut site = Site::new(|options| options);
    let streams = [(0, 1, 7001), (1, 0, 7002)].map(|(from, to, port)| {
        Stream::start(&site.containers[from][1], &site.containers[to][1], port).unwrap()
    });
    for number in [2, 0, 0, 2] {
        let host = site.lab.host(0);
        site.bridges[0][number].disappear(host).unwrap();
        site.containers[0].remove(number);
        site.knows(0, 2);
        let added = add(host, &site.bridges[0][number]);
        site.containers[0].insert(number, added);
        site.knows(0, 3);
        let (new, remote) = (&site.containers[0][number], &site.containers[1][number]);
        eventually(SOON, "the new bridge's container to be reached", || site.pings(remote, new))
            .unwrap();
    }
    // What the first agent did is done again by the next.
    site.agents[0].kill().unwrap();
    site.agents[0] = site.lab.host(0).start_agent(&site.options).unwrap();
    site.knows(0, 3);
    for stream in streams {
        let seen = stream.stop().unwrap();
        assert_eq!((seen.lost, seen.doubled), (0, 0), "{seen:?}");
    }
}

impl Site {
    fn pings(&self, from: &Container, to: &Container) -> Result<()> {
        let before = self.packets(0, "from_uplink", "to_endpoint");
        from.ping(to.address())?;
        ensure!(self.packets(0, "from_uplink", "to_endpoint") > before, "not by the fast path");
        Ok(())
    }
}

#[test]
fn a_bridge_that_gets_its_address_later_is_served_from_then_on() {
    let site = Site::new(|options| options);
    let host = site.lab.host(0);
    let late = Bridge::new(host, "br-late", 3, 26).unwrap();
    host.ip(["link", "add", "br-late", "type", "bridge"]).unwrap();
    host.ip(["link", "set", "br-late", "up"]).unwrap();
    let container = late.add_container(host, "late").unwrap();
    let served = || -> Result<bool> {
        let status = site.agents[0].status()?;
        Ok(status["bridges"].as_array().is_some_and(|all| all.iter().any(|one| one == "br-late")))
    };
    assert!(!served().unwrap());
    host.ip(["address", "add", &late.subnet().gateway_cidr(), "dev", "br-late"]).unwrap();
    site.knows(0, 4);
    assert!(served().unwrap());
    let remote = &site.containers[1][2];
    eventually(SOON, "its container to be reached", || site.pings_fast(remote, &container))
        .unwrap();
    host.ip(["address", "del", &late.subnet().gateway_cidr(), "dev", "br-late"]).unwrap();
    site.knows(0, 3);
    assert!(!served().unwrap());
}

#[test]
fn of_several_bridges_those_are_served_that_are_named() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let options = AgentOptions::new(env!("CARGO_BIN_EXE_overlay-agent"), &etcd)
        .argument("--bridge=br-one")
        .argument("--bridge=br-none")
        .argument("--bridge=br-two");
    let host = lab.host(0);
    let agent = host.start_agent(&options).unwrap();
    let bridges = [0, 1, 2].map(|part| {
        let bridge = Bridge::new(host, NAMES[part as usize], part, 26).unwrap();
        bridge.appear(host).unwrap();
        bridge
    });
    assert_eq!(bridges.len(), 3);
    eventually(SOON, "the named bridges to be served", || {
        let status = agent.status()?;
        ensure!(status["bridges"] == serde_json::json!(["br-one", "br-two"]), "{status}");
        let problems = serde_json::json!(["There is no bridge br-none, which --bridge names."]);
        ensure!(status["problems"] == problems, "{status}");
        Ok(())
    })
    .unwrap();
}
