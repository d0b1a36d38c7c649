//! The story of our first users, with a real `dockerd` on each host.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod modes;
mod pools;
mod today;

use std::time::Duration;

use anyhow::ensure;
use overlay_lab::{Agent, AgentOptions, Docker, Etcd, Lab, NETWORK_CONFIG, eventually};

const AGENT: &str = env!("CARGO_BIN_EXE_overlay-agent");
const HELLO: &str = "Hello, it works !!";
const SOON: Duration = Duration::from_secs(20);

/// Fields are dropped in order: what runs on the lab before the lab.
struct Hosts {
    dockers: Vec<Docker>,
    agents: Vec<Agent>,
    _etcd: Etcd,
    lab: Lab,
}

impl Hosts {
    /// Two hosts, each with an agent, and a Docker that was started with its options.
    fn new(fast_path: bool) -> Self {
        Self::with(|options| options.fast_path(fast_path))
    }

    fn with(options: impl Fn(AgentOptions) -> AgentOptions) -> Self {
        let lab = Lab::builder().start().unwrap();
        let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
        let options = options(AgentOptions::new(AGENT, &etcd));
        let agents = start_agents(&lab, &options);
        let dockers: Vec<_> =
            lab.hosts().iter().map(|host| host.start_docker(AGENT.as_ref()).unwrap()).collect();
        Self { dockers, agents, _etcd: etcd, lab }
    }

    /// A container on the first host listens, one on the second speaks, and the listener's log has it.
    fn say_hello(&self, listener: &str, port: &str) {
        let [one, two] = [&self.dockers[0], &self.dockers[1]];
        // It listens again after each greeting: Docker may be slower to log one than the next comes.
        let listen = format!("while true; do nc -l -p {port}; done");
        one.run(listener, &["sh", "-c", &listen]).unwrap();
        let address = one.address(listener).unwrap().to_string();
        eventually(SOON, "the greeting to arrive", || {
            let script = format!("echo '{HELLO}' | nc -w 1 {address} {port}");
            two.exec("speaker", &["sh", "-c", &script])?;
            let log = one.logs(listener)?;
            ensure!(log.contains(HELLO), "the listener's log is {log:?}");
            Ok(())
        })
        .unwrap();
    }

    fn packets(&self, hook: &str, reason: &str) -> [u64; 2] {
        [0, 1].map(|host| self.agents[host].packets(hook, reason).unwrap())
    }
}

/// An agent on each host.
fn start_agents(lab: &Lab, options: &AgentOptions) -> Vec<Agent> {
    lab.hosts().iter().map(|host| host.start_agent(options).unwrap()).collect()
}

/// Both ways, over both paths; `busy` names what must have carried it, `idle` what must not.
fn containers_of_two_hosts_talk(fast_path: bool, busy: [(&str, &str); 2], idle: (&str, &str)) {
    let hosts = Hosts::new(fast_path);
    hosts.dockers[1].run("speaker", &["sleep", "600"]).unwrap();
    hosts.say_hello("listener", "5555");
    // A greeting is over before the host knows where its containers are; a ping is not.
    hosts.dockers[0].run("sleeper", &["sleep", "600"]).unwrap();
    let sleeper = hosts.dockers[0].address("sleeper").unwrap().to_string();
    hosts.dockers[1].exec("speaker", &["ping", "-c", "3", "-W", "2", &sleeper]).unwrap();
    for (hook, reason) in busy {
        let packets = hosts.packets(hook, reason);
        assert!(packets[0] > 0 && packets[1] > 0, "{hook} {reason}: {packets:?}");
    }
    assert_eq!(hosts.packets(idle.0, idle.1), [0, 0], "{idle:?}");
    // A container that Docker restarts has another veth, and often another MAC.
    hosts.dockers[0].remove("listener").unwrap();
    hosts.say_hello("again", "5556");
    let status = hosts.agents[0].status().unwrap();
    assert_eq!(status["problems"], serde_json::json!([]), "{status}");
    assert_eq!(status["bridges"], serde_json::json!(["docker0"]));
    let bridge = hosts.lab.host(0).ip(["-brief", "address", "show", "docker0"]).unwrap();
    let gateway = hosts.lab.host(0).subnet().unwrap().gateway_cidr();
    assert!(bridge.contains(&gateway), "{bridge} does not have {gateway}");
}

#[test]
fn containers_talk_by_the_fast_path() {
    containers_of_two_hosts_talk(
        true,
        [("from_container", "encapsulated"), ("from_uplink", "to_endpoint")],
        ("from_tunnel", "to_stack"),
    );
}

/// Docker's own rules drop what is forwarded to its bridge from outside: ours let the overlay through.
#[test]
fn containers_talk_by_the_slow_path_through_dockers_firewall() {
    containers_of_two_hosts_talk(
        false,
        [("to_tunnel", "tunnel_key_set"), ("from_tunnel", "to_stack")],
        ("from_container", "encapsulated"),
    );
}

/// Docker looks at the routes before it takes a subnet, and starts after the agent has made this one.
#[test]
fn docker_takes_a_subnet_that_has_a_blackhole_route() {
    let hosts = Hosts::with(|options| options.argument("--ip-blackhole-route"));
    hosts.dockers[1].run("speaker", &["sleep", "600"]).unwrap();
    hosts.say_hello("listener", "5555");
    for host in hosts.lab.hosts() {
        let routes = host.ip(["route", "show", "type", "blackhole"]).unwrap();
        assert_eq!(routes.lines().count(), 1, "{routes}");
    }
}
