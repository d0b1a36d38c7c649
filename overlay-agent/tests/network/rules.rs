//! `--rules`: what somebody's rules forbid does not pass, also of a flow that runs; what they allow takes the fast path.

use std::{
    io::{Read as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use overlay_lab::{ETCD_PREFIX, Host, Lab, Process, eventually};

use crate::overlay::{Overlay, SOON};

/// A rule stops a flow that runs within this time.
const STOPPED_WITHIN: Duration = Duration::from_secs(1);

/// Something that an operator forbids, and how it is allowed again: shell commands on the receiving host. `FROM` is the
/// sending container's address, `TO` the receiving one's.
const FORBIDDEN: [(&str, &str, &str); 8] = [
    (
        "DOCKER-USER",
        "iptables -N DOCKER-USER && iptables -I FORWARD -j DOCKER-USER && iptables -A DOCKER-USER -s FROM/24 -j DROP",
        "iptables -F DOCKER-USER",
    ),
    (
        "FORWARD, by address",
        "iptables -I FORWARD -d TO -j REJECT",
        "iptables -D FORWARD -d TO -j REJECT",
    ),
    (
        "FORWARD, by protocol",
        "iptables -I FORWARD -p icmp -j DROP",
        "iptables -D FORWARD -p icmp -j DROP",
    ),
    ("raw", "iptables -t raw -A PREROUTING -s FROM -j DROP", "iptables -t raw -F PREROUTING"),
    (
        "nftables, established connections too",
        "nft 'table inet operator { chain forward { type filter hook forward priority 0; ct state established ip saddr FROM drop; }; }'",
        "nft delete table inet operator",
    ),
    (
        "a set that changes",
        "nft 'table ip operator { set bad { type ipv4_addr; }; chain forward { type filter hook forward priority 0; ip saddr @bad drop; }; }' && nft add element ip operator bad '{ FROM }'",
        "nft delete element ip operator bad '{ FROM }'",
    ),
    (
        "ingress of the uplink, where packets are encapsulated",
        "nft 'table netdev operator { chain in { type filter hook ingress device eth0 priority 0; udp dport 8472 drop; }; }'",
        "nft delete table netdev operator",
    ),
    (
        "INPUT, where packets are encapsulated",
        "iptables -I INPUT -p udp --dport 8472 -j DROP",
        "iptables -D INPUT -p udp --dport 8472 -j DROP",
    ),
];

/// A ping that goes on, one flow all the time.
struct Stream(Process);

impl Stream {
    fn start(overlay: &Overlay) -> Self {
        let [from, to] = overlay.pair();
        let command = from.command("ping").args(["-n", "-i", "0.02", &to.address().to_string()]);
        let log = overlay.lab.directory().join("stream.log");
        Self(Process::spawn(overlay.lab.ledger(), "ping", &command, &log).unwrap())
    }

    fn replies(&self) -> usize {
        self.0.log().unwrap().matches("bytes from").count()
    }

    /// Waits until it gets answers.
    fn runs(&self) {
        let before = self.replies();
        eventually(SOON, "the stream to go on", || {
            let more = self.replies() - before;
            ensure!(more > 10, "{more} more answers");
            Ok(())
        })
        .unwrap();
    }

    /// Whether it gets answers still.
    fn goes_on(&self) -> bool {
        let before = self.replies();
        thread::sleep(Duration::from_millis(500));
        self.replies() > before
    }
}

fn shell(overlay: &Overlay, host: &Host, script: &str) {
    let [from, to] = overlay.pair().map(|container| container.address().to_string());
    let script = script.replace("FROM", &from).replace("TO", &to);
    host.command("sh").args(["-ec", &script]).run().unwrap();
}

fn with_rules(mode: &str) -> Overlay {
    Overlay::with(Lab::builder(), |options| options.argument(&format!("--rules={mode}")))
}

fn honoured(overlay: &Overlay, expected: bool) {
    eventually(SOON, "the agent to have seen the rules", || {
        let rules = &overlay.agents[1].status()?["rules"];
        ensure!(rules["honoured"] == expected, "{rules}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_rule_stops_a_flow_that_runs_within_a_second() {
    let overlay = with_rules("honour");
    let receiver = overlay.lab.host(1);
    let stream = Stream::start(&overlay);
    for (name, forbid, allow) in FORBIDDEN {
        stream.runs();
        let fast = overlay.rise("from_uplink", "to_endpoint");
        thread::sleep(Duration::from_millis(500));
        let [answers, questions] = fast.of(&overlay);
        assert!(
            answers > 10 && questions > 10,
            "{name}: {answers}, {questions} take the fast path"
        );
        shell(&overlay, receiver, forbid);
        thread::sleep(STOPPED_WITHIN);
        assert!(!stream.goes_on(), "{name}: {forbid} does not hold");
        shell(&overlay, receiver, allow);
    }
    stream.runs();
}

#[test]
fn what_rules_allow_takes_the_fast_path_after_its_beginning() {
    let overlay = with_rules("honour");
    let fast = overlay.rise("from_container", "encapsulated");
    let waiting = overlay.rise("from_container", "awaits_rules");
    let report = overlay.iperf(&["-t", "3"]);
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
    assert!(bits > 1e8, "{bits} bits a second: {report}");
    let (fast, waiting) = (fast.of(&overlay), waiting.of(&overlay));
    for (fast, waiting) in fast.into_iter().zip(waiting) {
        assert!(waiting > 0 && fast > 20 * waiting, "{fast} fast, {waiting} wait");
    }
    // Connection tracking has seen little of it, and takes nothing for invalid.
    let host = overlay.lab.host(1);
    let liberal = host.command("sysctl").args(["-n", "net.netfilter.nf_conntrack_tcp_be_liberal"]);
    assert_eq!(liberal.read().unwrap(), "1");
}

/// A stateful firewall as many have it: what was begun from outside the container is let in only if it was asked for.
#[test]
fn a_stateful_firewall_is_one_for_the_overlay_too() {
    let overlay = with_rules("auto");
    let receiver = overlay.lab.host(1);
    overlay.ping();
    shell(
        &overlay,
        receiver,
        "nft 'table inet operator { chain forward { type filter hook forward priority 0; policy drop; \
           ct state established,related accept; iifname docker0 accept; }; }'",
    );
    honoured(&overlay, true);
    let [one, two] = overlay.pair();
    assert!(one.ping(two.address()).is_err(), "begun by the other host");
    for _ in 0..5 {
        two.ping(one.address()).unwrap();
    }
    // It is named, with the command that lets others in; which is for the operator to say.
    let mend = eventually(SOON, "the refusal to be named", || {
        let problems = overlay.agents[1].status()?["problems"].to_string();
        ensure!(problems.contains("operator forward: policy drop"), "{problems}");
        let findings = doctor(&overlay);
        let (_, mend) = findings.split_once("mend: nft").context(findings.clone())?;
        Ok(format!("nft{}", mend.lines().next().unwrap_or_default()))
    })
    .unwrap();
    shell(&overlay, receiver, &mend);
    eventually(SOON, "what was refused", || one.ping(two.address())).unwrap();
}

#[test]
fn rules_that_come_and_go_are_followed() {
    let overlay = with_rules("auto");
    let receiver = overlay.lab.host(1);
    let stream = Stream::start(&overlay);
    let (_, forbid, allow) = FORBIDDEN[1];
    for _ in 0..2 {
        honoured(&overlay, false);
        stream.runs();
        shell(&overlay, receiver, forbid);
        // The first rule that concerns has to be read before.
        honoured(&overlay, true);
        thread::sleep(STOPPED_WITHIN);
        assert!(!stream.goes_on(), "{forbid} does not hold");
        let status = overlay.agents[1].status().unwrap();
        let concern = status["rules"]["concerns"][0].as_str().unwrap().to_owned();
        assert!(concern.contains("-j REJECT"), "{concern}");
        shell(&overlay, receiver, allow);
    }
    honoured(&overlay, false);
    let waiting = overlay.rise("from_container", "awaits_rules");
    overlay.ping();
    assert_eq!(waiting.of(&overlay), [0, 0], "nobody asks any more");
}

/// As Docker makes it for `docker network create --internal`, in the version of Debian 12.
#[test]
fn what_docker_keeps_internal_is_not_reached_by_the_overlay() {
    let overlay = with_rules("auto");
    let [one, two] = overlay.pair();
    overlay.ping();
    let isolate = "iptables -N DOCKER-ISOLATION-STAGE-1; iptables -I FORWARD -j DOCKER-ISOLATION-STAGE-1; \
        iptables -A DOCKER-ISOLATION-STAGE-1 ! -s TO/24 -o docker0 -j DROP; \
        iptables -A DOCKER-ISOLATION-STAGE-1 ! -d TO/24 -i docker0 -j DROP";
    shell(&overlay, overlay.lab.host(1), isolate);
    honoured(&overlay, true);
    assert!(one.ping(two.address()).is_err(), "from outside");
    assert!(two.ping(one.address()).is_err(), "to the outside");
}

#[test]
fn bypassed_rules_are_named() {
    let overlay = with_rules("bypass");
    let receiver = overlay.lab.host(1);
    shell(&overlay, receiver, FORBIDDEN[1].1);
    eventually(SOON, "the rule to be named", || {
        let text = receiver_status(&overlay)?;
        ensure!(text.contains("bypassed (bypass)") && text.contains("-j REJECT"), "{text}");
        Ok(())
    })
    .unwrap();
    overlay.ping();
    let findings = doctor(&overlay);
    let named = findings.contains("-j REJECT") && findings.contains("--rules auto");
    assert!(named, "{findings}");
    assert!(findings.contains("there is no connection with another host now"), "{findings}");
}

/// Of a bypassed rule is told how many connections would meet it, by what containers have open.
#[test]
fn connections_that_meet_a_bypassed_rule_are_counted() {
    let overlay = with_rules("bypass");
    let [client, server] = overlay.pair();
    let mut connections = Vec::new();
    for port in [7300, 7301, 7302] {
        let address = std::net::SocketAddr::from((server.address(), port));
        let accept = move || Ok(std::net::TcpListener::bind(address)?);
        let listener = server.namespace().within(accept).unwrap();
        let connect = move || Ok(std::net::TcpStream::connect_timeout(&address, SOON)?);
        let stream = client.namespace().within(connect).unwrap();
        connections.push((stream, listener.accept().unwrap()));
    }
    // A socket shows itself by a process in its namespace.
    let wait = server.command("sleep").arg("60");
    let log = overlay.lab.directory().join("sleep.log");
    let _waits = Process::spawn(overlay.lab.ledger(), "sleep", &wait, &log).unwrap();
    let rules = "iptables -I FORWARD -p tcp --dport 7300:7301 -j DROP && iptables -I FORWARD -s 10.99.0.0/16 -j DROP \
        && iptables -I FORWARD -d TO -p udp -j DROP";
    shell(&overlay, overlay.lab.host(1), rules);
    eventually(SOON, "the connections to be counted", || {
        let findings = doctor(&overlay);
        for (rule, met) in [("--dport 7300:7301", 2), ("-p udp", 0)] {
            let line = findings.lines().find(|line| line.contains(rule)).unwrap_or_default();
            let words = format!("of 3 connections with other hosts now, {met} meet it");
            ensure!(line.contains(&words), "{rule}: {findings}");
        }
        ensure!(!findings.contains("10.99.0.0"), "a rule about others: {findings}");
        Ok(())
    })
    .unwrap();
}

/// What begins a connection, and what ends it, netfilter sees; nothing between: SYN, its answer, the first segment after these,
/// and the reset.
#[test]
fn of_a_short_connection_netfilter_sees_four_packets() {
    const CONNECTIONS: u64 = 20;
    let overlay = with_rules("honour");
    let [client, server] = overlay.pair();
    let address = std::net::SocketAddr::from((server.address(), 7310));
    let listener =
        server.namespace().within(move || Ok(std::net::TcpListener::bind(address)?)).unwrap();
    let fast = overlay.rise("from_container", "encapsulated");
    let shown = overlay.rise("from_container", "awaits_rules");
    for _ in 0..CONNECTIONS {
        let connect = move || Ok(std::net::TcpStream::connect_timeout(&address, SOON)?);
        let mut stream = client.namespace().within(connect).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        stream.write_all(&[7]).unwrap();
        accepted.read_exact(&mut [0]).unwrap();
        accepted.write_all(&[8]).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        // With something unread, it ends by a reset.
        accepted.write_all(&[9]).unwrap();
        stream.peek(&mut [0]).unwrap();
        drop(stream);
    }
    let (fast, shown) = (fast.of(&overlay), shown.of(&overlay));
    let most = 4 * CONNECTIONS + CONNECTIONS / 2;
    let seen = shown[0] + shown[1];
    assert!((4 * CONNECTIONS..=most).contains(&seen), "{seen} shown, {fast:?} fast");
    assert!(fast[0] + fast[1] >= 2 * CONNECTIONS, "{seen} shown, {fast:?} fast");
}

/// So much of short connections is netfilter's that it should look at one packet each time, not at the one around it, too.
/// The kernel's device has enough of them for rules about those to hold.
#[test]
fn what_netfilter_is_shown_has_no_packet_around_it() {
    let overlay = with_rules("honour");
    let [client, server] = overlay.pair();
    let address = std::net::SocketAddr::from((server.address(), 7311));
    let listener =
        server.namespace().within(move || Ok(std::net::TcpListener::bind(address)?)).unwrap();
    let paths = [
        ("from_container", "awaits_rules"),
        ("to_tunnel", "encapsulated"),
        ("to_tunnel", "tunnel_key_set"),
        ("from_uplink", "to_netfilter"),
        ("from_uplink", "awaits_rules"),
        ("from_tunnel", "to_stack"),
    ];
    let rises = paths.map(|(hook, reason)| overlay.rise(hook, reason));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        let connect = move || Ok(std::net::TcpStream::connect_timeout(&address, SOON)?);
        let stream = client.namespace().within(connect).unwrap();
        drop((stream, listener.accept().unwrap()));
    }
    let [shown, short_out, long_out, short_in, long_in, to_stack] = rises.map(|rise| {
        let [one, two] = rise.of(&overlay);
        one + two
    });
    let counts =
        format!("{shown} shown; out {short_out}, {long_out}; in {short_in}, {long_in}; {to_stack}");
    assert_eq!((short_out + long_out, short_in + long_in), (shown, to_stack), "{counts}");
    // Of each host, at most one in 150 ms each way, and one at the beginning.
    let most = 2 * (start.elapsed().as_millis() / 150 + 2);
    for long in [long_out, long_in] {
        assert!((4..=most).contains(&u128::from(long)) && 4 * long < shown, "{counts}");
    }
}

/// What `doctor` says on the receiving host.
fn doctor(overlay: &Overlay) -> String {
    let host = overlay.lab.host(1);
    let doctor = host.command(overlay.options.binary()).args(["doctor", "--socket"]);
    let doctor = doctor.arg(host.agent_socket()).arg("--pin-path").arg(host.pins());
    doctor.output().unwrap().stdout
}

fn receiver_status(overlay: &Overlay) -> anyhow::Result<String> {
    let socket = overlay.lab.host(1).agent_socket();
    overlay
        .lab
        .host(1)
        .command(overlay.options.binary())
        .args(["status", "--socket"])
        .arg(socket)
        .read()
}

#[test]
fn a_rule_about_single_packets_sees_all_of_them() {
    let overlay = with_rules("auto");
    let receiver = overlay.lab.host(1);
    let stream = Stream::start(&overlay);
    stream.runs();
    let long = "FORWARD -s FROM -m length --length 500:65535 -j DROP";
    shell(&overlay, receiver, &format!("iptables -I {long}"));
    eventually(SOON, "every packet to be shown to the rule", || {
        let rules = &overlay.agents[1].status()?["rules"];
        ensure!(rules["every_packet"] == true, "{rules}");
        Ok(())
    })
    .unwrap();
    let fast = overlay.rise("from_uplink", "to_endpoint");
    let shown = overlay.rise("from_uplink", "awaits_rules");
    stream.runs();
    assert_eq!(fast.of(&overlay)[1], 0, "past the rule");
    assert!(shown.of(&overlay)[1] > 10);
    shell(&overlay, receiver, &format!("iptables -D {long}"));
    honoured(&overlay, false);
}

#[test]
fn the_network_config_changes_the_mode_of_running_agents_that_have_no_flag() {
    let overlay = Overlay::new();
    let receiver = overlay.lab.host(1);
    let stream = Stream::start(&overlay);
    stream.runs();
    let put = |more: &str| {
        let config = format!(r#"{{"Network":"10.1.0.0/16","Backend":{{"Type":"vxlan"}}{more}}}"#);
        overlay.etcd().put(&format!("{ETCD_PREFIX}/config"), &config).unwrap();
    };
    let is_in = |mode: &str, set_by: &str| {
        eventually(SOON, &format!("{mode} by {set_by}"), || {
            let rules = &overlay.agents[1].status()?["rules"];
            ensure!(rules["mode"] == mode && rules["set_by"] == set_by, "{rules}");
            Ok(())
        })
        .unwrap();
    };
    is_in("auto", "default");
    put(r#","Rules":"bypass""#);
    is_in("bypass", "network config");
    shell(&overlay, receiver, "iptables -I FORWARD -d TO -j DROP");
    thread::sleep(STOPPED_WITHIN);
    assert!(stream.goes_on(), "the rule holds, although it is bypassed");
    // A mode that there is not is no config, and the one in force stays.
    put(r#","Rules":"sometimes""#);
    eventually(SOON, "the fault to be named", || {
        let status = overlay.agents[1].status()?;
        ensure!(status["problems"].to_string().contains("Rules must be"), "{status}");
        ensure!(status["rules"]["mode"] == "bypass", "{status}");
        Ok(())
    })
    .unwrap();
    put(r#","Rules":"honour""#);
    is_in("honour", "network config");
    eventually(SOON, "the rule to hold", || {
        ensure!(!stream.goes_on(), "packets pass");
        Ok(())
    })
    .unwrap();
    put("");
    is_in("auto", "default");
    assert!(!stream.goes_on(), "auto honours a rule that there is");
    shell(&overlay, receiver, "iptables -D FORWARD -d TO -j DROP");
    stream.runs();
}

/// What Docker 29 makes with `--firewall-backend=nftables` for its bridge and a container with a published port, as far
/// as it drops.
const DOCKERS_TABLE: &str = r#"table ip docker-bridges {
    map filter-forward-in-jumps {
        type ifname : verdict
        elements = { "docker0" : jump filter-forward-in__docker0 }
    }
    chain filter-FORWARD {
        type filter hook forward priority filter; policy accept;
        oifname vmap @filter-forward-in-jumps
    }
    chain raw-PREROUTING {
        type filter hook prerouting priority raw; policy accept;
        ip daddr TO iifname != "docker0" counter drop comment "DROP DIRECT ACCESS"
    }
    chain filter-forward-in__docker0 {
        ct state established,related counter accept
        iifname "docker0" counter accept comment "ICC"
        counter drop comment "UNPUBLISHED PORT DROP"
    }
}"#;

#[test]
fn dockers_nftables_backend_is_not_in_the_way_of_what_takes_the_stack() {
    let mut overlay = Overlay::with(Lab::builder(), |options| options.fast_path(false));
    let [_, to] = overlay.pair();
    let receiver = overlay.lab.host(1);
    let address = to.address().to_string();
    let nft = |words: &[&str]| receiver.command("nft").args(words).read();
    let start_docker = || nft(&[&DOCKERS_TABLE.replace("TO", &address)]).unwrap();
    let is_reached = || {
        eventually(SOON, "a ping in spite of Docker's table", || {
            let ping = overlay.containers[0].command("ping");
            ping.args(["-n", "-c1", "-W1", &address]).run()
        })
        .unwrap();
    };
    let ours = || {
        let listing = nft(&["list", "table", "ip", "docker-bridges"]).unwrap();
        listing.matches("comment \"overlay.1 to ").count()
    };
    start_docker();
    is_reached();
    assert_eq!(ours(), 2);
    // It starts once more.
    nft(&["delete", "table", "ip", "docker-bridges"]).unwrap();
    start_docker();
    is_reached();
    let status = overlay.agents[1].status().unwrap();
    assert_eq!(status["problems"], serde_json::json!([]), "{status}");
    overlay.agents[1].stop().unwrap();
    receiver.clean_up(overlay.options.binary()).unwrap();
    assert_eq!(ours(), 0, "after cleanup");
}
