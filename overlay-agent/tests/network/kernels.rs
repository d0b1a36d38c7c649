//! What must hold on every kernel that people run. `cargo xtask test vm` runs these inside virtual machines, without
//! hardware support: nothing here measures, and traffic is as little as proves something.

use std::time::Duration;

use overlay_agent::{exit::Exit, fail};
use overlay_lab::{AgentOptions, EVERY_KIND_VARIABLE, Host, Lab, UPLINK, eventually, tun::TunWire};
use serde_json::Value;

use crate::{
    overlay::{Overlay, SOON, peers_file},
    survival::nothing_is_lost,
    throughput::{file, transfer},
};

/// Filters even where the kernel has TCX.
pub(crate) fn by_filters(options: AgentOptions) -> AgentOptions {
    options.environment(fail::WITHOUT_VARIABLE, "tcx")
}

/// Filters of ours on one side of an interface, by hook.
pub(crate) fn filters(host: &Host, interface: &str, side: &str) -> Vec<String> {
    let shown =
        host.command("tc").args(["-j", "filter", "show", "dev", interface, side]).read().unwrap();
    let shown: Vec<Value> = serde_json::from_str(&shown).unwrap();
    shown
        .iter()
        .filter_map(|filter| filter["options"]["bpf_name"].as_str())
        .filter(|name| overlay_common::Hook::ALL.iter().any(|hook| hook.name() == *name))
        .map(str::to_owned)
        .collect()
}

/// Pings of several sizes and a file each way, with offloads and without, and the counters that say which path they
/// took.
fn talk(fast_path: bool) {
    let overlay = Overlay::by_file(|options| options.fast_path(fast_path));
    let [one, two] = overlay.pair();
    for imitate_wire in [false, true] {
        overlay.lab.wire().imitate(imitate_wire).unwrap();
        let counted = [
            ("from_container", "encapsulated"),
            ("from_uplink", "to_endpoint"),
            ("to_tunnel", "tunnel_key_set"),
            ("from_tunnel", ""),
        ]
        .map(|(hook, reason)| overlay.rise(hook, reason));
        for size in ["0", "56", "1000", "1422"] {
            one.command("ping")
                .args(["-n", "-c", "5", "-i", "0.05", "-W", "5", "-p", "a5c3", "-s", size])
                .arg(two.address().to_string())
                .deadline(Duration::from_mins(1))
                .run()
                .unwrap();
        }
        let sent = file();
        assert!(transfer(one, two, sent.clone()) == sent, "one to two");
        assert!(transfer(two, one, sent.clone()) == sent, "two to one");

        let [sent_fast, received_fast, sent_slow, received_slow] =
            counted.map(|counter| counter.of(&overlay));
        println!(
            "wire imitated {imitate_wire}, fast path {fast_path}: fast {sent_fast:?} out, \
             {received_fast:?} in; slow {sent_slow:?} out, {received_slow:?} in"
        );
        for host in [0, 1] {
            let fast = [sent_fast[host], received_fast[host]];
            let slow = [sent_slow[host], received_slow[host]];
            let [taken, avoided] = if fast_path { [fast, slow] } else { [slow, fast] };
            assert!(taken.iter().all(|&packets| packets > 40), "{taken:?}");
            assert_eq!(avoided, [0, 0], "packets that took the other path");
        }
    }
}

#[test]
fn containers_talk_by_the_fast_path_with_offloads_and_without() {
    talk(true);
}

#[test]
fn containers_talk_by_the_slow_path_with_offloads_and_without() {
    talk(false);
}

/// A kind of uplink, made of the interface on the wire.
struct Kind {
    name: &'static str,
    /// Commands, in which `ADDRESS` is the host's, `OUTER` and `OTHER` are the two of a network below, and `PEER` is the
    /// other host's key. A host's own key is their input.
    made: &'static [&'static str],
    /// The program that delivers what comes by it. Where packets have no Ethernet header, that is the kernel's way.
    delivers: &'static str,
    /// The largest echo that the overlay carries whole.
    largest: &'static str,
    /// Whether it is new to the kernel's path, too, which else is the same by any of them.
    slowly_too: bool,
    /// Whether every kernel has it, this machine's too: others have no time for it.
    everywhere: bool,
}

/// An uplink takes over the address of the interface on the wire.
const TAKES_OVER: &[&str] = &[
    "ip address del ADDRESS dev eth0",
    "ip link set eth0 up",
    "ip link set up0 up",
    "ip address add ADDRESS dev up0",
];

/// Private and public key of `WireGuard`, of either host: made for this, and good for nothing else.
const KEYS: [[&str; 2]; 2] = [
    [
        "0KGUDh1UKm16/nohsZ6KtLX+3naJ9tbjz2TH9cV+Mno=",
        "loeOAg0cj5M8LOJefmqmorpakXC/BDNa9UPG+Rn7iFc=",
    ],
    [
        "IOOkCtr4vnVA4zR54JuxdWAXg6gfh91cRBgGKESeQlw=",
        "OiSJxnbT96gzDP8tWn2YWt1AhPRCMy/j+QCF8dIRKns=",
    ],
];

/// Both hosts' ends of it are made at once.
const TUN: &str = "tun";

const VRF: &str = "vrf";

const WITH_ETHERNET: [Kind; 5] = [
    Kind::ethernet("vlan", &["ip link add link eth0 name up0 type vlan id 7"]),
    Kind::ethernet(
        "bond",
        &[
            "ip link add up0 type bond mode active-backup miimon 100",
            "ip link set eth0 down",
            "ip link set eth0 master up0",
        ],
    ),
    Kind {
        everywhere: true,
        ..Kind::ethernet("macvlan", &["ip link add link eth0 name up0 type macvlan mode bridge"])
    },
    Kind {
        everywhere: true,
        ..Kind::ethernet("bridge", &["ip link add up0 type bridge", "ip link set eth0 master up0"])
    },
    Kind {
        slowly_too: true,
        ..Kind::ethernet(
            VRF,
            &[
                "ip link add blue type vrf table 17",
                "ip link set blue up",
                "ip link add link eth0 name up0 type macvlan mode bridge",
                "ip link set up0 master blue",
            ],
        )
    },
];

const WITHOUT_ETHERNET: [Kind; 3] = [
    Kind {
        name: TUN,
        made: &[],
        delivers: "from_tunnel",
        largest: "1422",
        slowly_too: true,
        everywhere: false,
    },
    Kind {
        name: "ipip",
        made: &[
            "ip address add OUTER/24 dev eth0",
            "ip link add name up0 type ipip local OUTER remote OTHER",
        ],
        delivers: "from_tunnel",
        largest: "1402",
        slowly_too: false,
        everywhere: false,
    },
    Kind {
        name: "wireguard",
        made: &[
            "ip address add OUTER/24 dev eth0",
            "ip link add up0 type wireguard",
            "wg set up0 listen-port 51820 private-key /proc/self/fd/0 \
             peer PEER allowed-ips 0.0.0.0/0 endpoint OTHER:51820",
        ],
        delivers: "from_tunnel",
        largest: "1342",
        slowly_too: false,
        everywhere: false,
    },
];

impl Kind {
    const fn ethernet(name: &'static str, made: &'static [&'static str]) -> Self {
        Self {
            name,
            made,
            delivers: "from_uplink",
            largest: "1422",
            slowly_too: false,
            everywhere: false,
        }
    }

    /// Makes a host's uplink. Not every kernel has every kind.
    fn make(&self, host: &Host) -> anyhow::Result<()> {
        // The interface below a macvlan would answer for it, and packets come by that.
        host.namespace().sysctl("net.ipv4.conf.all.arp_ignore", "1")?;
        let address = host.address();
        let number = address.octets()[3];
        let outer = |number: u8| format!("198.18.0.{number}");
        // The lab's two hosts are .10 and .11.
        let other = number ^ 1;
        let [[key, _], [_, public]] = [number, other].map(|number| KEYS[usize::from(number & 1)]);
        self.made.iter().chain(TAKES_OVER).try_for_each(|command| {
            let command = command
                .replace("ADDRESS", &format!("{address}/24"))
                .replace("OUTER", &outer(number))
                .replace("OTHER", &outer(other))
                .replace("PEER", public);
            let mut words = command.split_ascii_whitespace();
            let program = words.next().unwrap_or_default();
            host.command(program).args(words).input(key).run().map(drop)
        })
    }

    /// A ping and a file, and the counters that say which path they took.
    fn carries(&self, overlay: &Overlay, counted: [(&str, &str); 2]) {
        let [one, two] = overlay.pair();
        eventually(SOON, "a ping to go through", || one.ping(two.address())).unwrap();
        let counters = counted.map(|(hook, reason)| overlay.rise(hook, reason));
        one.command("ping")
            .args(["-n", "-c", "5", "-i", "0.05", "-W", "5", "-s", self.largest])
            .arg(two.address().to_string())
            .deadline(Duration::from_mins(1))
            .run()
            .unwrap();
        let sent = file();
        assert!(transfer(one, two, sent.clone()) == sent, "{}", self.name);
        for ((hook, reason), counter) in counted.into_iter().zip(counters) {
            let packets = counter.of(overlay);
            let enough = packets.iter().all(|&packets| packets > 5);
            let agents = overlay.agents.iter();
            let all = || agents.map(|agent| agent.counters().unwrap()).collect::<Vec<_>>();
            let name = self.name;
            assert!(enough, "{name}: {packets:?} of {hook} {reason}, of all:\n{:#?}", all());
        }
    }
}

/// Has both hosts' uplinks be TUN devices, as long as what is returned lives.
pub(crate) fn tun_uplinks(lab: &Lab) -> TunWire {
    let [one, two] = [0, 1].map(|number| lab.host(number).namespace());
    let wire = TunWire::between(one, two, "up0").unwrap();
    let [tun, ..] = WITHOUT_ETHERNET;
    lab.hosts().iter().try_for_each(|host| tun.make(host)).unwrap();
    wire
}

fn everywhere(lab: &Lab, command: &str) {
    for host in lab.hosts() {
        host.ip(command.split(' ')).unwrap();
    }
}

/// Stops both agents and starts others, with something done between.
fn start_anew(overlay: &mut Overlay, options: &AgentOptions, between: impl FnOnce(&Lab)) {
    overlay.agents.iter_mut().for_each(|agent| agent.stop().unwrap());
    between(&overlay.lab);
    for number in [0, 1] {
        overlay.agents[number] = overlay.lab.host(number).start_agent(options).unwrap();
    }
    overlay.settle();
}

fn carried_by(kinds: &[Kind]) {
    // Machines are there for what this one's kernel lacks.
    let must_have = std::env::var_os(EVERY_KIND_VARIABLE).is_some();
    let kinds = || kinds.iter().filter(|kind| !(must_have && kind.everywhere));
    let mut tried = Vec::new();
    for kind in kinds() {
        let lab = Lab::builder().start().unwrap();
        let [one, two] = [0, 1].map(|number| lab.host(number).namespace());
        let _tun = (kind.name == TUN).then(|| TunWire::between(one, two, "up0").unwrap());
        match lab.hosts().iter().try_for_each(|host| kind.make(host)) {
            Err(error) if format!("{error:#}").contains("Unknown device type") => continue,
            outcome => outcome.unwrap(),
        }
        println!("{}", kind.name);
        let options = peers_file(&lab).argument("--iface=up0").argument("--peer-timeout=6");
        let mut overlay = Overlay::on(lab, None, options);
        kind.carries(
            &overlay,
            [("from_container", "encapsulated"), (kind.delivers, "to_endpoint")],
        );
        for number in [0, 1] {
            overlay.agents[number]
                .wait_status(SOON, "the peer to answer, and nothing to be wrong", |status| {
                    let answered = &status["peers"][0]["answered"]["by"];
                    // Our programs answer where they see an Ethernet header.
                    let by = if kind.delivers == "from_uplink" { "vxlan" } else { "icmp" };
                    anyhow::ensure!(answered == by, "{}", status["peers"]);
                    let problems = status["problems"].as_array().map_or(1, Vec::len);
                    anyhow::ensure!(problems == 0, "{}", status["problems"]);
                    Ok(())
                })
                .unwrap();
        }
        tried.push(kind.name);
        if !kind.slowly_too {
            continue;
        }
        let slow = overlay.options.clone().fast_path(false);
        let by_stack = [("to_tunnel", "tunnel_key_set"), ("from_tunnel", "")];
        start_anew(&mut overlay, &slow, |_| ());
        kind.carries(&overlay, by_stack);
        if kind.name == VRF {
            everywhere(&overlay.lab, "link add red type vrf table 18");
            everywhere(&overlay.lab, "link set red up");
            everywhere(&overlay.lab, "link set up0 master red");
            kind.carries(&overlay, by_stack);
            // What the agents before have left listens in the other one.
            start_anew(&mut overlay, &slow, |lab| everywhere(lab, "link set up0 master blue"));
            kind.carries(&overlay, by_stack);
        }
    }
    println!("tried {tried:?}");
    let all: Vec<_> = kinds().map(|kind| kind.name).collect();
    assert!(!tried.is_empty() && (!must_have || tried == all), "{tried:?}");
}

#[test]
fn an_uplink_of_any_kind_carries_the_overlay() {
    carried_by(&WITH_ETHERNET);
}

#[test]
fn an_uplink_without_ethernet_headers_carries_the_overlay() {
    carried_by(&WITHOUT_ETHERNET);
}

#[test]
fn killing_and_starting_the_agent_loses_nothing_on_any_kernel() {
    let mut overlay = Overlay::by_file(|options| options);
    nothing_is_lost(&mut overlay, "kill -9 and start", |overlay| {
        overlay.agents[0].kill().unwrap();
        overlay.agents[0] = overlay.lab.host(0).start_agent(&overlay.options).unwrap();
    });
    overlay.settle();
}

#[test]
fn an_agent_takes_the_place_of_the_filters_of_the_one_before() {
    let mut overlay = Overlay::by_file(by_filters);
    let status = overlay.agents[0].status().unwrap();
    assert_eq!(status["attached_by"], "clsact");
    nothing_is_lost(&mut overlay, "filters: kill -9 and start", |overlay| {
        overlay.agents[0].kill().unwrap();
        overlay.agents[0] = overlay.lab.host(0).start_agent(&overlay.options).unwrap();
    });
    overlay.settle();
    let host = overlay.lab.host(0);
    let places = [
        (UPLINK, "ingress", "from_uplink"),
        (overlay_lab::BRIDGE, "ingress", "from_bridge"),
        (overlay_lab::BRIDGE, "egress", "to_bridge"),
        ("overlay.1", "ingress", "from_tunnel"),
        ("overlay.1", "egress", "to_tunnel"),
        (overlay.containers[0].veth(), "ingress", "from_container"),
    ];
    for (interface, side, hook) in places {
        assert_eq!(filters(host, interface, side), [hook], "{interface} {side}");
        host.command("tc")
            .args(["filter", "del", "dev", interface, side, "pref", "8472"])
            .run()
            .unwrap();
        eventually(Duration::from_secs(5), "the filter to be back", || {
            anyhow::ensure!(filters(host, interface, side) == [hook], "{interface} {side}");
            Ok(())
        })
        .unwrap();
    }
    overlay.ping();
}

#[test]
fn filters_of_others_are_left_alone() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let tc = |words: &str| host.command("tc").args(words.split(' ')).read().unwrap();
    tc(&format!("qdisc add dev {UPLINK} clsact"));
    // Classic filters that match nothing: return 0.
    for (side, priority) in [("ingress", "1"), ("ingress", "50000"), ("egress", "8472")] {
        host.command("tc")
            .args(["filter", "add", "dev", UPLINK, side, "prio", priority])
            .args(["bpf", "bytecode", "1,6 0 0 0"])
            .run()
            .unwrap();
    }
    let seen = || {
        [
            tc(&format!("qdisc show dev {UPLINK}")),
            tc(&format!("filter show dev {UPLINK} ingress pref 1")),
            tc(&format!("filter show dev {UPLINK} ingress pref 50000")),
            // Ours has the same priority there, and another handle.
            tc(&format!("filter show dev {UPLINK} egress"))
                .lines()
                .filter(|line| !line.contains("to_wire"))
                .map(|line| line.to_owned() + "\n")
                .collect(),
        ]
    };
    let before = seen();
    let options = by_filters(peers_file(&lab));
    for _ in 0..2 {
        let mut agent = host.start_agent(&options).unwrap();
        agent
            .wait_status(SOON, "the programs to be attached", |status| {
                let programs = status["programs"].to_string();
                anyhow::ensure!(programs.contains("from_uplink"), "{programs}");
                Ok(())
            })
            .unwrap();
        assert_eq!(filters(host, UPLINK, "ingress"), ["from_uplink"]);
        agent.stop().unwrap();
        assert_eq!(filters(host, UPLINK, "ingress"), ["from_uplink"], "the agent is gone");
        assert_eq!(seen(), before);
    }
    let removed = host.clean_up(env!("CARGO_BIN_EXE_overlay-agent")).unwrap();
    assert!(removed.contains(&format!("filters on {UPLINK}")), "{removed}");
    assert!(filters(host, UPLINK, "ingress").is_empty());
    assert_eq!(seen(), before);
}

#[test]
fn a_kernel_that_lacks_something_is_refused_by_name() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let options =
        AgentOptions::with_endpoints(env!("CARGO_BIN_EXE_overlay-agent"), "http://127.0.0.1:1");
    let output = options
        .environment(fail::WITHOUT_VARIABLE, "btf,redirect_neigh")
        .command(lab.host(0))
        .deadline(SOON)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(i32::from(Exit::Unavailable.code())), "{output:?}");
    assert!(
        output.stderr.contains("lacks redirect_neigh, which came with Linux 5.10"),
        "{}",
        output.stderr
    );
}
