//! Two agents on each of two hosts, for a network each, as `docs/from-flannel.md` says it is done: neither takes anything
//! of the other's for its own.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use aya::programs::{
    TcAttachType,
    tc::{NlOptions, TcAttachOptions, TcHandle},
};
use overlay_agent::kernel::datapath::{DEFAULT_PIN_PATH, Programs};
use overlay_common::Hook;
use overlay_lab::{Agent, AgentOptions, Container, Host, Lab, UPLINK, eventually, stream::Stream};

use crate::{
    kernels::{by_filters, filters},
    overlay::{Overlay, SOON},
    survival::nothing_is_lost,
};

const PREFIX: &str = "/second/network";

/// One network more on the hosts of another.
struct Second {
    agents: Vec<Agent>,
    containers: Vec<Container>,
    options: AgentOptions,
    hosts: Vec<Host>,
}

impl Second {
    fn beside(overlay: &Overlay, backend: &str) -> Self {
        let config = format!(r#"{{"Network":"10.2.0.0/16","Backend":{backend}}}"#);
        overlay.etcd().put(&format!("{PREFIX}/config"), &config).unwrap();
        let options = overlay.options.clone().etcd_prefix(PREFIX);
        let hosts = overlay.lab.hosts().iter().map(|host| host.beside("second").unwrap());
        let hosts: Vec<_> = hosts.collect();
        let agents = hosts.iter().map(|host| host.start_agent(&options).unwrap()).collect();
        let containers = hosts.iter().map(|host| host.add_container("c").unwrap()).collect();
        Self { agents, containers, options, hosts }
    }

    fn stream(&self, port: u16) -> Stream {
        Stream::start(&self.containers[0], &self.containers[1], port).unwrap()
    }
}

/// The rules about addresses are made once before the containers' bridge is there, and once more; but not those for
/// `DirectRouting`, which do not name it.
fn rules_are_made(host: &Host, device: &str, backend: &str) {
    if backend.contains("DirectRouting") {
        return;
    }
    eventually(SOON, "the rules to name the bridge", || {
        let table = host.command("nft").args(["list", "table", "ip", device]).read()?;
        ensure!(table.contains(host.bridge()), "{table}");
        Ok(())
    })
    .unwrap();
}

/// Until every agent sees nothing wrong, its peer and its container, and has nothing left to do.
fn at_rest(agents: &[&Agent]) {
    let numbers = |agent: &Agent| -> Result<(u64, u64)> {
        let status = agent.status()?;
        ensure!(status["problems"] == serde_json::json!([]), "{}", status["problems"]);
        ensure!(status["peers"].as_array().is_some_and(|peers| peers.len() == 1), "{status}");
        ensure!(status["endpoints"] != 0, "no endpoint: {status}");
        let number = |name: &str| status[name].as_u64().unwrap_or_default();
        Ok((number("verifications"), number("repairs")))
    };
    let all = || agents.iter().map(|agent| numbers(agent)).collect::<Result<Vec<_>>>();
    // Two that mend what the other does never have four passes without a repair.
    let mut since = Vec::new();
    eventually(Duration::from_secs(30), "four passes of every agent without a repair", || {
        let now = all()?;
        let quiet = since.iter().map(|(_, repairs)| *repairs).eq(now.iter().map(|(_, r)| *r));
        if !quiet {
            since.clone_from(&now);
        }
        let passed = since.iter().zip(&now).all(|((then, _), (now, _))| then + 4 <= *now);
        ensure!(quiet && passed, "{since:?}, then {now:?}");
        Ok(())
    })
    .unwrap();
}

fn repairs(agent: &Agent) -> u64 {
    agent.status().unwrap()["repairs"].as_u64().unwrap()
}

fn received(agent: &Agent) -> u64 {
    agent.packets("from_uplink", "to_endpoint").unwrap()
}

fn two_agents_leave_each_other_alone(
    backends: [&str; 2],
    options: impl FnOnce(AgentOptions) -> AgentOptions,
    fast: bool,
) {
    let config = format!(r#"{{"Network":"10.1.0.0/16","Backend":{}}}"#, backends[0]);
    let mut overlay = Overlay::of(&config, Lab::builder(), options);
    overlay.lab.hosts().iter().for_each(|host| rules_are_made(host, "overlay.1", backends[0]));
    at_rest(&overlay.agents.iter().collect::<Vec<_>>());
    let untouched = repairs(&overlay.agents[1]);
    let mut second = Second::beside(&overlay, backends[1]);
    second.hosts.iter().for_each(|host| rules_are_made(host, "overlay.2", backends[1]));
    let agents = |overlay: &Overlay, second: &Second| {
        at_rest(&overlay.agents.iter().chain(&second.agents).collect::<Vec<_>>());
    };
    agents(&overlay, &second);
    let also_untouched = repairs(&second.agents[0]);

    // Each packet by its own network's fast path, on both.
    for (agents, containers) in
        [(&overlay.agents, &overlay.containers), (&second.agents, &second.containers)]
    {
        let before = [received(&agents[0]), received(&agents[1])];
        containers[0].ping(containers[1].address()).unwrap();
        let after = [received(&agents[0]), received(&agents[1])];
        assert!(!fast || (after[0] > before[0] && after[1] > before[1]), "{before:?}, {after:?}");
    }

    // Whatever becomes of one, the other loses nothing.
    let stream = [
        Stream::start(&overlay.containers[0], &overlay.containers[1], 7001).unwrap(),
        second.stream(7002),
    ];
    overlay.agents[0].kill().unwrap();
    overlay.agents[0] = overlay.lab.host(0).start_agent(&overlay.options).unwrap();
    agents(&overlay, &second);
    second.agents[1].stop().unwrap();
    second.agents[1] = second.hosts[1].start_agent(&second.options).unwrap();
    agents(&overlay, &second);
    for stream in stream {
        let seen = stream.stop().unwrap();
        assert_eq!((seen.lost, seen.doubled), (0, 0), "{seen:?}");
    }

    assert_eq!(repairs(&second.agents[0]), also_untouched, "nothing had to be made anew");
    assert_eq!(repairs(&overlay.agents[1]), untouched, "nothing had to be made anew");

    // One goes for good.
    let stream = Stream::start(&overlay.containers[0], &overlay.containers[1], 7003).unwrap();
    let host = overlay.lab.host(0);
    let shown = |words: &str| host.ip(words.split(' ')).unwrap();
    // With the device's number: another one would be another device.
    let kept =
        || [shown("-o link show overlay.1"), shown("route show proto 111 to root 10.1.0.0/16")];
    let before = kept();
    for (agent, host) in second.agents.iter_mut().zip(&second.hosts) {
        agent.stop().unwrap();
        host.clean_up(env!("CARGO_BIN_EXE_overlay-agent")).unwrap();
    }
    let seen = stream.stop().unwrap();
    assert_eq!((seen.lost, seen.doubled), (0, 0), "{seen:?}");
    at_rest(&overlay.agents.iter().collect::<Vec<_>>());
    assert_eq!(kept(), before);
    assert_eq!(shown("route show proto 111 to root 10.2.0.0/16"), "");
    assert!(!shown("link").contains("overlay.2"), "{}", shown("link"));
    assert!(!second.hosts[0].pins().exists());
    // It is one interface more to the other agent, which watches it.
    for side in ["ingress", "egress"] {
        let mut on = filters(host, second.hosts[0].bridge(), side);
        on.retain(|hook| hook != "from_interface");
        assert!(on.is_empty(), "{on:?}");
    }
    overlay.ping();
    eventually(SOON, "no word of the second network in the firewall", || {
        let rules = host.command("iptables-save").read()?;
        let tables = host.command("nft").args(["list", "tables"]).read()?;
        ensure!(!format!("{rules}{tables}").contains("overlay.2"), "{rules}{tables}");
        Ok(())
    })
    .unwrap();
}

const ONE: &str = r#"{"Type":"vxlan"}"#;
const TWO: &str = r#"{"Type":"vxlan","VNI":2,"Port":8473}"#;

#[test]
fn two_agents_on_one_host_leave_each_other_alone() {
    two_agents_leave_each_other_alone([ONE, TWO], |options| options, true);
}

#[test]
fn two_agents_on_one_host_leave_each_others_devices_and_routes_alone() {
    let slow = |options: AgentOptions| options.fast_path(false);
    two_agents_leave_each_other_alone([ONE, TWO], slow, false);
}

#[test]
fn two_agents_on_one_host_leave_each_others_filters_alone() {
    two_agents_leave_each_other_alone([ONE, TWO], by_filters, true);
}

#[test]
fn two_agents_on_one_host_leave_each_others_routes_to_peers_on_the_same_link_alone() {
    let direct = [
        r#"{"Type":"vxlan","DirectRouting":true}"#,
        r#"{"Type":"vxlan","VNI":2,"Port":8473,"DirectRouting":true}"#,
    ];
    two_agents_leave_each_other_alone(direct, |options| options, false);
}

/// Earlier versions gave filters the same numbers at every pin path.
#[test]
fn a_filter_that_an_earlier_version_made_gives_way_to_ours() {
    let mut overlay = Overlay::by_file(by_filters);
    overlay.agents[0].kill().unwrap();
    let host = overlay.lab.host(0);
    // Its maps are empty, so that it lets everything pass.
    let earlier = || {
        let mut programs = Programs::load_unpinned()?;
        let handle = TcHandle::new(0, 1 + Hook::FromUplink as u16);
        let options = TcAttachOptions::Netlink(NlOptions { priority: 8472, handle, classid: None });
        let program = programs.get(Hook::FromUplink)?;
        let link = program.attach_with_options(UPLINK, TcAttachType::Ingress, options)?;
        // A handle that is dropped takes its filter along.
        std::mem::forget(program.take_link(link)?);
        Ok(())
    };
    host.namespace().within(earlier).unwrap();
    assert_eq!(filters(host, UPLINK, "ingress"), ["from_uplink", "from_uplink"]);
    nothing_is_lost(&mut overlay, "an earlier version's filter goes", |overlay| {
        overlay.agents[0] = overlay.lab.host(0).start_agent(&overlay.options).unwrap();
    });
    overlay.settle();
    // Where somebody has pins at the default path, it is theirs.
    let owners = 1 + usize::from(Path::new(DEFAULT_PIN_PATH).exists());
    assert_eq!(filters(overlay.lab.host(0), UPLINK, "ingress").len(), owners);
}

/// Filters keep settings alive of which nobody knows by then whose they were, but for the subnet.
#[test]
fn an_agent_whose_pins_were_removed_by_hand_is_cleaned_up_all_the_same() {
    let mut overlay = Overlay::by_file(by_filters);
    overlay.agents[0].kill().unwrap();
    let host = overlay.lab.host(0);
    std::fs::remove_dir_all(host.pins()).unwrap();
    let removed = host.clean_up(env!("CARGO_BIN_EXE_overlay-agent")).unwrap();
    assert!(removed.contains("overlay.1") && removed.contains("filters on"), "{removed}");
    assert!(!host.ip(["link"]).unwrap().contains("overlay.1"));
}
