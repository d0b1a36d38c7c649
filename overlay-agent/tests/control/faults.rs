//! etcd killed, frozen, stopped and cut off, alone and one of three, with numbered datagrams flowing between
//! containers all the time: none is lost, and afterwards everybody knows exactly what etcd knows.
//!
//! `OVERLAY_FAULT_SECONDS` says how long each fault lasts; otherwise long enough for every time-out of ours.

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use overlay_lab::{
    Agent, Container, ETCD_PREFIX, Etcd, Host, Lab, NETWORK_CONFIG, eventually, stream::Stream,
};
use serde_json::{Value, json};

use crate::support::{SOON, options, options_for, problems};

/// A host that has gone while nobody could see it is kept for a minute, in case etcd was restored from a backup.
const GRACE: Duration = Duration::from_secs(75);

fn fault_lasts() -> Duration {
    let seconds = std::env::var("OVERLAY_FAULT_SECONDS").ok().map(|text| text.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(12))
}

/// A host that exists in etcd only.
fn put(etcd: &Etcd, third: u8, mac: u8) {
    let value = format!(
        r#"{{"PublicIP":"192.0.2.{third}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{mac:02x}"}}}}"#
    );
    // A member that was frozen for a minute, and led, takes its time.
    eventually(GRACE, "etcd to take a lease", || etcd.put(&key(third), &value)).unwrap();
}

fn key(third: u8) -> String {
    format!("{ETCD_PREFIX}/subnets/10.1.{third}.0-24")
}

/// Every lease: its subnet, and its public address and MAC.
type Leases = BTreeMap<String, (String, String)>;

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn leases_in(etcd: &Etcd) -> Leases {
    let directory = format!("{ETCD_PREFIX}/subnets/");
    let entries = etcd.list(&directory).unwrap();
    let lease = |(key, value): &(String, String)| {
        let value: Value = serde_json::from_str(value).unwrap();
        let subnet = key.trim_start_matches(&directory).replace('-', "/");
        (subnet, (text(&value["PublicIP"]), text(&value["BackendData"]["VtepMAC"])))
    };
    entries.iter().map(lease).collect()
}

fn leases_known_to(agent: &Agent) -> anyhow::Result<Leases> {
    let status = agent.status()?;
    let lease = |of: &Value| (text(&of["subnet"]), (text(&of["public_ip"]), text(&of["vtep_mac"])));
    let mut leases: Leases = status["peers"].as_array().into_iter().flatten().map(lease).collect();
    let (subnet, rest) = lease(&status["lease"]);
    leases.insert(subnet, rest);
    anyhow::ensure!(status["problems"] == json!([]), "{:?}", problems(&status));
    Ok(leases)
}

/// Two hosts whose containers talk, and what etcd and the agents know of each other.
struct World<'a> {
    agents: Vec<Agent>,
    streams: Vec<Stream>,
    first: Leases,
    containers: &'a [Container],
}

impl<'a> World<'a> {
    fn new(agents: Vec<Agent>, containers: &'a [Container], etcd: &Etcd) -> Self {
        let [one, two] = [&containers[0], &containers[1]];
        eventually(SOON, "a first ping", || one.ping(two.address())).unwrap();
        let streams =
            vec![Stream::start(one, two, 7001).unwrap(), Stream::start(two, one, 7002).unwrap()];
        Self { agents, streams, first: leases_in(etcd), containers }
    }

    /// Waits until every agent knows what this etcd knows.
    fn agrees_with(&self, etcd: &Etcd, within: Duration, what: &str) {
        let expected = leases_in(etcd);
        for (subnet, lease) in &self.first {
            assert_eq!(expected.get(subnet), Some(lease), "{what}: the hosts' own leases stay");
        }
        for agent in &self.agents {
            eventually(within, &format!("{what}: agents and etcd to agree"), || {
                let known = leases_known_to(agent)?;
                anyhow::ensure!(known == expected, "{known:?} is not {expected:?}");
                Ok(())
            })
            .unwrap();
        }
    }

    fn ends(self, what: &str) {
        self.containers[0].ping(self.containers[1].address()).unwrap();
        for stream in self.streams {
            let seen = stream.stop().unwrap();
            println!("{what}: {seen:?}");
            assert_eq!((seen.lost, seen.doubled), (0, 0), "{what}: {seen:?}");
        }
    }
}

fn containers(hosts: &[Host]) -> Vec<Container> {
    hosts.iter().take(2).map(|host| host.add_container("c").unwrap()).collect()
}

#[test]
fn faults_of_the_only_etcd_cost_nothing() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let mut etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let agents: Vec<_> =
        lab.hosts().iter().map(|host| host.start_agent(&options(&etcd)).unwrap()).collect();
    let containers = containers(lab.hosts());
    let world = World::new(agents, &containers, &etcd);

    etcd.process().kill().unwrap();
    sleep(fault_lasts());
    etcd.start_again().unwrap();
    put(&etcd, 250, 1);
    world.agrees_with(&etcd, SOON, "killed");

    etcd.freeze().unwrap();
    sleep(fault_lasts());
    etcd.thaw().unwrap();
    put(&etcd, 251, 1);
    world.agrees_with(&etcd, SOON, "frozen");

    etcd.stop().unwrap();
    sleep(fault_lasts());
    etcd.start_again().unwrap();
    put(&etcd, 250, 2);
    world.agrees_with(&etcd, SOON, "stopped");

    // The second host alone, by a rule that answers nothing, while leases come, change and go.
    let firewall = |rule: &str| lab.host(1).command("nft").arg(rule).run().unwrap();
    firewall("add table ip cut");
    firewall("add chain ip cut output { type filter hook output priority filter; }");
    firewall("add rule ip cut output tcp dport 2379 drop");
    sleep(fault_lasts());
    put(&etcd, 252, 1);
    put(&etcd, 251, 2);
    etcd.delete(&key(250)).unwrap();
    sleep(fault_lasts());
    firewall("delete table ip cut");
    world.agrees_with(&etcd, GRACE, "cut off");
    world.ends("one etcd");
}

#[test]
fn faults_of_one_member_of_three_cost_nothing_and_hide_nothing() {
    let lab = Lab::builder().hosts(3).start().unwrap();
    let mut cluster = Etcd::cluster(lab.hosts()).unwrap();
    cluster[0].put(&format!("{ETCD_PREFIX}/config"), NETWORK_CONFIG).unwrap();
    let endpoints: Vec<_> = cluster.iter().map(Etcd::endpoint).collect();
    let options = options_for(&endpoints.join(","));
    let agents: Vec<_> =
        lab.hosts()[..2].iter().map(|host| host.start_agent(&options).unwrap()).collect();
    let containers = containers(lab.hosts());
    let world = World::new(agents, &containers, &cluster[0]);

    let mut third = 200;
    // One after the other: whichever leads, and whichever an agent is connected to, is among them.
    for failing in 0..cluster.len() {
        let survivor = (failing + 1) % cluster.len();
        for kind in ["killed", "frozen"] {
            if kind == "killed" {
                cluster[failing].process().kill().unwrap();
            } else {
                cluster[failing].freeze().unwrap();
            }
            third += 1;
            // There may be no leader for a moment.
            eventually(SOON, "the others to elect one", || cluster[survivor].get(&key(third)))
                .unwrap();
            put(&cluster[survivor], third, 1);
            let what = format!("member {failing} {kind}");
            world.agrees_with(&cluster[survivor], SOON, &what);
            sleep(fault_lasts() / 2);
            if kind == "killed" {
                cluster[failing].start_again().unwrap();
            } else {
                cluster[failing].thaw().unwrap();
            }
            cluster[failing].wait_healthy().unwrap();
            third += 1;
            put(&cluster[failing], third, 1);
            world.agrees_with(&cluster[failing], SOON, &format!("{what} and back"));
        }
    }
    world.ends("one of three");
}

/// An agent hears of the others from etcd itself, and knows them after a reboot.
#[test]
fn the_only_member_that_an_agent_was_configured_with_is_lost() {
    let lab = Lab::builder().hosts(3).start().unwrap();
    let mut cluster = Etcd::cluster(lab.hosts()).unwrap();
    cluster[0].put(&format!("{ETCD_PREFIX}/config"), NETWORK_CONFIG).unwrap();
    let host = lab.host(2);
    let options = options_for(&cluster[0].endpoint()).argument("--start-without-etcd=0");
    let mut agent = host.start_agent(&options).unwrap();
    let members = host.state_file().with_file_name("etcd-members.json");
    eventually(SOON, "the agent to hear of the others", || {
        let known = std::fs::read_to_string(&members)?;
        for member in &cluster {
            anyhow::ensure!(known.contains(&member.endpoint()), "{known}");
        }
        Ok(())
    })
    .unwrap();
    let _container = host.add_container("c").unwrap();

    cluster[0].process().kill().unwrap();
    let hears_of = |agent: &Agent, third: u8| {
        put(&cluster[1], third, 1);
        eventually(SOON, "the agent to hear what is new", || {
            anyhow::ensure!(leases_known_to(agent)? == leases_in(&cluster[1]), "it has not");
            Ok(())
        })
        .unwrap();
    };
    hears_of(&agent, 201);
    agent.kill().unwrap();
    let agent = host.start_agent(&options).unwrap();
    hears_of(&agent, 202);
}
