//! Two hosts with agents, containers whose every address is known beforehand, and a third host on their wire that
//! belongs to nobody.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use overlay_lab::{
    Agent, AgentOptions, BRIDGE, Container, Host, Lab, Namespace, UPLINK, eventually,
};

use super::{
    frame::{self, Mac},
    port::{self, Port},
    ring::Ring,
    sniffer::Sniffer,
    tally::Tally,
};

/// For whatever takes milliseconds when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Addresses are the same in every lab, so that a frame that got through can be kept.
pub(crate) const OWNER: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 2);
pub(crate) const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 3);
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 2);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 1);
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 10);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 11);
pub(crate) const OUTLAW: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 12);
/// Of all on the wire.
pub(crate) const BROADCAST: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 255);
/// Of the overlay, but nobody's.
pub(crate) const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 1, 199, 7);

pub(crate) const OWNER_MAC: Mac = [2, 0, 10, 1, 1, 2];
pub(crate) const ATTACKER_MAC: Mac = [2, 0, 10, 1, 1, 3];
pub(crate) const REMOTE_MAC: Mac = [2, 0, 10, 1, 2, 2];
/// The MAC of the first host's bridge.
pub(crate) const GATEWAY_MAC: Mac = [2, 0x42, 10, 1, 1, 1];
const PEER_GATEWAY_MAC: Mac = [2, 0x42, 10, 1, 2, 1];
/// The host's end of the attacker's cable.
pub(crate) const PORT_MAC: Mac = [2, 0xf0, 10, 1, 1, 3];
pub(crate) const HOST_MAC: Mac = [2, 0, 192, 168, 33, 10];
pub(crate) const PEER_MAC: Mac = [2, 0, 192, 168, 33, 11];
/// As the agent makes them of the hosts' addresses where a peers file has none.
pub(crate) const HOST_VTEP: Mac = [2, 0x6f, 192, 168, 33, 10];
pub(crate) const PEER_VTEP: Mac = [2, 0x6f, 192, 168, 33, 11];

const PEERS: &str = "network = \"10.1.0.0/16\"\n\
    [[host]]\npublic-ip = \"192.168.33.10\"\nsubnet = \"10.1.1.0/24\"\n\
    [[host]]\npublic-ip = \"192.168.33.11\"\nsubnet = \"10.1.2.0/24\"\n";

/// Fields are dropped in order: what runs on the lab before the lab.
pub(crate) struct Site {
    pub(crate) sniffers: Vec<Sniffer>,
    pub(crate) agents: Vec<Agent>,
    /// On the first host, with the attacker beside it.
    pub(crate) owner: Container,
    pub(crate) attacker: Container,
    /// On the second host.
    pub(crate) remote: Container,
    /// Bound in every container, or else its stack would answer that nobody listens.
    _sockets: Vec<UdpSocket>,
    /// What else is in network namespaces.
    pub(crate) others: Vec<Namespace>,
    pub(crate) options: AgentOptions,
    pub(crate) lab: Lab,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with(|options| options)
    }

    pub(crate) fn with(options: impl FnOnce(AgentOptions) -> AgentOptions) -> Self {
        let lab = Lab::builder().hosts(3).start().unwrap();
        harden_switch(&lab);
        let file = lab.directory().join("peers.toml");
        std::fs::write(&file, PEERS).unwrap();
        // Nobody listens there, and nobody must ask.
        let binary = env!("CARGO_BIN_EXE_overlay-agent");
        let options = options(
            AgentOptions::with_endpoints(binary, "http://127.0.0.1:1")
                .argument(&format!("--peers={}", file.display())),
        );
        let agents =
            [0, 1].map(|host| lab.host(host).start_agent(&options).unwrap()).into_iter().collect();
        let owner = container(lab.host(0), "owner", OWNER_MAC);
        let attacker = container(lab.host(0), "attacker", ATTACKER_MAC);
        let remote = container(lab.host(1), "remote", REMOTE_MAC);
        assert_eq!(
            [owner.address(), attacker.address(), remote.address()],
            [OWNER, ATTACKER, REMOTE]
        );
        let host = lab.host(0);
        host.ip(["link", "set", BRIDGE, "address", &text(GATEWAY_MAC)]).unwrap();
        lab.host(1).ip(["link", "set", BRIDGE, "address", &text(PEER_GATEWAY_MAC)]).unwrap();
        host.ip(["link", "set", attacker.veth(), "address", &text(PORT_MAC)]).unwrap();
        let sniffers = vec![
            Sniffer::marked(owner.namespace(), "the owner"),
            Sniffer::marked(remote.namespace(), "the remote container"),
            Sniffer::host(host.namespace(), "the first host"),
            Sniffer::host(lab.host(1).namespace(), "the second host"),
        ];
        let sockets = [&owner, &attacker, &remote].map(|container| {
            let bound = || {
                let socket = UdpSocket::bind(("0.0.0.0", frame::PORT))?;
                // What waited to be read would hold its sender's ring.
                port::deaf(&socket)?;
                Ok(socket)
            };
            container.namespace().within(bound).unwrap()
        });
        let sockets = sockets.into();
        let site = Self {
            sniffers,
            agents,
            owner,
            attacker,
            remote,
            _sockets: sockets,
            others: Vec::new(),
            options,
            lab,
        };
        site.settle();
        site
    }

    /// Waits until every container is known to its host, and reached by the others.
    pub(crate) fn settle(&self) {
        for (container, gateway) in [
            (&self.owner, GATEWAY),
            (&self.attacker, GATEWAY),
            (&self.remote, Ipv4Addr::new(10, 1, 2, 1)),
        ] {
            eventually(SOON, "a gateway to answer", || container.ping(gateway)).unwrap();
        }
        for (agent, endpoints) in self.agents.iter().zip([2, 1]) {
            eventually(SOON, "peers and containers to be known", || {
                let status = agent.status()?;
                let known = status["endpoints"].as_u64().unwrap_or_default();
                anyhow::ensure!(known >= endpoints, "{known} endpoints: {status}");
                anyhow::ensure!(status["problems"] == serde_json::json!([]), "{status}");
                Ok(())
            })
            .unwrap();
        }
        for container in [&self.owner, &self.attacker] {
            eventually(SOON, "the remote container to answer", || container.ping(REMOTE)).unwrap();
        }
    }

    pub(crate) fn host(&self) -> &Host {
        self.lab.host(0)
    }

    pub(crate) fn peer(&self) -> &Host {
        self.lab.host(1)
    }

    /// On the wire, and nobody's.
    pub(crate) fn outlaw(&self) -> &Host {
        self.lab.host(2)
    }

    /// Where the attacker sends from.
    pub(crate) fn attacker_port(&self) -> Port {
        Port::open(self.attacker.namespace(), "eth0")
    }

    pub(crate) fn attacker_ring(&self) -> Ring {
        Ring::open(self.attacker.namespace(), "eth0")
    }

    /// Where the wire sends from.
    pub(crate) fn wire_port(&self) -> Port {
        Port::open(self.outlaw().namespace(), UPLINK)
    }

    pub(crate) fn wire_ring(&self) -> Ring {
        Ring::open(self.outlaw().namespace(), UPLINK)
    }

    /// Packets that a device of the first host has received.
    pub(crate) fn received(&self, device: &str) -> u64 {
        let shown = self.host().ip(["-s", "-j", "link", "show", "dev", device]).unwrap();
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
    }

    pub(crate) fn tally(&self) -> Tally {
        // Where one has none any more, it is the first.
        let running = 2 - self.agents.len()..2;
        Tally::of(running.map(|number| (number, self.lab.host(number).agent_socket())))
    }

    /// The first host masquerades what its containers send to the underlay, as Docker does.
    pub(crate) fn masquerade(&self) {
        masquerade(self.host(), "10.1.1.0/24", "10.1.0.0/16");
    }

    /// A network of the first host's own, with one container: what Docker makes when users ask for one.
    pub(crate) fn add_application_network(&mut self) {
        let host = self.host();
        let namespace = Namespace::create(self.lab.ledger(), "app").unwrap();
        host.ip(["link", "add", "br-app", "address", &text(APP_GATEWAY_MAC), "type", "bridge"])
            .unwrap();
        host.ip(["address", "add", "172.18.0.1/16", "dev", "br-app"]).unwrap();
        host.ip(["link", "set", "br-app", "up"]).unwrap();
        cable(host, &namespace, "veth-app", "eth0");
        host.ip(["link", "set", "veth-app", "master", "br-app"]).unwrap();
        namespace.ip(["address", "add", "172.18.0.2/16", "dev", "eth0"]).unwrap();
        namespace.ip(["route", "add", "default", "via", "172.18.0.1"]).unwrap();
        masquerade(host, "172.18.0.0/16", "172.18.0.0/16");
        self.others.push(namespace);
    }

    /// Somebody behind a second interface of the first host, `eth1`.
    pub(crate) fn add_outsider(&mut self) {
        let host = self.host();
        let namespace = Namespace::create(self.lab.ledger(), "outside").unwrap();
        cable(host, &namespace, "eth1", "eth0");
        host.ip(["link", "set", "eth1", "address", &text(SECOND_MAC)]).unwrap();
        host.ip(["address", "add", "10.99.0.1/24", "dev", "eth1"]).unwrap();
        namespace.ip(["address", "add", "10.99.0.2/24", "dev", "eth0"]).unwrap();
        namespace.ip(["route", "add", "default", "via", "10.99.0.1"]).unwrap();
        eventually(SOON, "the new interface to be no newcomer", || {
            let homes = host.pins().join("homes");
            let newcomers = host.command("bpftool").args(["-j", "map", "dump", "pinned"]);
            let newcomers = newcomers.arg(homes).read()?;
            anyhow::ensure!(newcomers.trim() == "[]", "{newcomers}");
            let programs = self.agents[0].status()?["programs"].to_string();
            anyhow::ensure!(programs.contains("eth1"), "{programs}");
            Ok(())
        })
        .unwrap();
        self.others.push(namespace);
    }
}

/// The MAC of the bridge of the application network, and of the second interface.
pub(crate) const APP_GATEWAY_MAC: Mac = [2, 0x42, 172, 18, 0, 1];
pub(crate) const SECOND_MAC: Mac = [2, 0, 10, 99, 0, 1];

pub(crate) fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A veth of the host whose other half is in a namespace, both up and without IPv6.
fn cable(host: &Host, namespace: &Namespace, here: &str, there: &str) {
    quiet(namespace);
    host.ip([
        "link",
        "add",
        here,
        "type",
        "veth",
        "peer",
        "name",
        there,
        "netns",
        namespace.name(),
    ])
    .unwrap();
    host.ip(["link", "set", here, "up"]).unwrap();
    namespace.ip(["link", "set", there, "up"]).unwrap();
}

fn container(host: &Host, name: &str, mac: Mac) -> Container {
    let container = host.add_container(name).unwrap();
    quiet(container.namespace());
    container.namespace().ip(["link", "set", "eth0", "address", &text(mac)]).unwrap();
    container
}

/// Nothing is sent that the test does not send.
fn quiet(namespace: &Namespace) {
    namespace.sysctl("net.ipv6.conf.all.disable_ipv6", "1").unwrap();
    namespace.sysctl("net.ipv6.conf.default.disable_ipv6", "1").unwrap();
}

fn masquerade(host: &Host, from: &str, inside: &str) {
    // In a table for each network, as nobody else makes them: not all machines have `iptables`.
    let table = from.replace(['.', '/'], "_");
    let rules = format!(
        "add table ip of_{table}
         add chain ip of_{table} postrouting {{ type nat hook postrouting priority srcnat; }}
         add rule ip of_{table} postrouting ip saddr {from} ip daddr != {inside} oifname {UPLINK} masquerade"
    );
    host.command("nft").args(["-f", "-"]).input(rules.as_bytes()).run().unwrap();
}

const BRIDGE_NETFILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Gives uplinks their MACs, and keeps the switch from believing what the outlaw says about them.
fn harden_switch(lab: &Lab) {
    let switch = lab.wire().switch();
    // Both would look into what it forwards, and so make readable in place what was not. Where the first is not there,
    // nobody does.
    if switch.command("test").args(["-e", BRIDGE_NETFILTER]).run().is_ok() {
        switch.sysctl("net.bridge.bridge-nf-call-iptables", "0").unwrap();
    }
    switch.ip(["link", "set", "switch", "type", "bridge", "mcast_snooping", "0"]).unwrap();
    for (host, mac) in lab.hosts().iter().zip([HOST_MAC, PEER_MAC]) {
        host.ip(["link", "set", UPLINK, "address", &text(mac)]).unwrap();
        let port = port_of(switch, host);
        switch
            .command("bridge")
            .args(["fdb", "replace", &text(mac), "dev", &port, "master", "static"])
            .run()
            .unwrap();
    }
    let port = port_of(switch, lab.host(2));
    switch.command("bridge").args(["link", "set", "dev", &port, "learning", "off"]).run().unwrap();
    let outlaw = lab.host(2).namespace();
    quiet(outlaw);
}

/// The switch's end of a host's cable.
fn port_of(switch: &Namespace, host: &Host) -> String {
    let uplink = host.ip(["-o", "link", "show", UPLINK]).unwrap();
    let index = uplink.split_once("@if").unwrap().1.split_once(':').unwrap().0.to_owned();
    let ports = switch.ip(["-o", "link", "show"]).unwrap();
    let line = ports.lines().find(|line| line.starts_with(&format!("{index}: "))).unwrap();
    line.split_once(": ").unwrap().1.split_once('@').unwrap().0.to_owned()
}

/// What the second host would send to the first's VXLAN port: a datagram of its container for the owner.
pub(crate) fn from_peer(inner: &[u8]) -> Vec<u8> {
    let outer = frame::Ip::new(PEER, HOST, frame::UDP);
    let inner = frame::ethernet(HOST_VTEP, PEER_VTEP, &[], frame::IPV4, inner);
    let packet = outer.packet(&frame::udp(50_000, frame::VXLAN_PORT, &frame::vxlan(&inner)));
    frame::ethernet(HOST_MAC, PEER_MAC, &[], frame::IPV4, &packet)
}

/// A frame that the attacker sends to its gateway.
pub(crate) fn to_gateway(packet: &[u8]) -> Vec<u8> {
    frame::ethernet(GATEWAY_MAC, ATTACKER_MAC, &[], frame::IPV4, packet)
}

/// VXLAN to a VTEP as a datagram's payload, in which our host seems to say what the owner never said.
pub(crate) fn speaking_for_the_host(marker: &[u8]) -> Vec<u8> {
    let inner = frame::datagram(OWNER, REMOTE, marker);
    frame::vxlan(&frame::ethernet(PEER_VTEP, HOST_VTEP, &[], frame::IPV4, &inner))
}
