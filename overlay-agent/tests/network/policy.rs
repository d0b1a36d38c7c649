//! The network's policy: what a rule denies does not arrive, by whatever path and from wherever; answers pass; and no packet
//! finds a gap while one policy follows another.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{ETCD_PREFIX, Host, Lab, NETWORK_CONFIG, Namespace, eventually};
use serde_json::{Value, json};

use crate::overlay::{Overlay, SOON};

/// What the policies of these tests are about.
const CLOSED: u16 = 4001;
const OPEN: u16 = 4002;

fn put_config(overlay: &Overlay, policy: &Value) {
    let mut config: Value = serde_json::from_str(NETWORK_CONFIG).unwrap();
    config["Policy"] = policy.clone();
    overlay.etcd().put(&format!("{ETCD_PREFIX}/config"), &config.to_string()).unwrap();
}

/// Writes a policy, and waits until every host has it in force.
fn govern(overlay: &Overlay, policy: &Value) {
    put_config(overlay, policy);
    let name = |rule: &Value| rule["Name"].as_str().or(rule["name"].as_str()).map(str::to_owned);
    let names = |rules: &Value| rules.as_array().unwrap().iter().map(name).collect::<Vec<_>>();
    for agent in &overlay.agents {
        eventually(SOON, "the policy to be in force", || {
            let status = agent.status()?;
            ensure!(names(&status["policy"]) == names(policy), "{}", status["policy"]);
            ensure!(status["problems"] == json!([]), "{}", status["problems"]);
            Ok(())
        })
        .unwrap();
    }
}

fn closed(to: Ipv4Addr) -> Value {
    json!({"Name": "closed", "To": to, "Protocol": "udp", "Port": CLOSED, "Action": "deny"})
}

fn socket(namespace: &Namespace, port: u16) -> UdpSocket {
    namespace
        .within(move || {
            let socket = UdpSocket::bind(("0.0.0.0", port))?;
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            Ok(socket)
        })
        .unwrap()
}

/// Whether what one socket sends arrives at another.
fn arrives(from: &UdpSocket, to: &UdpSocket, address: Ipv4Addr) -> bool {
    let port = to.local_addr().unwrap().port();
    from.send_to(b"question", (address, port)).unwrap();
    to.recv_from(&mut [0; 64]).is_ok()
}

fn denied(overlay: &Overlay) -> Result<u64> {
    let status = overlay.agents[1].status()?;
    status["policy"][0]["denied_packets"].as_u64().context("a count of what is denied")
}

fn holds(fast_path: bool) {
    let overlay = Overlay::with(Lab::builder(), |options| options.fast_path(fast_path));
    let [client, server] = overlay.pair();
    let host = overlay.lab.host(1);
    let neighbour = host.add_container("neighbour").unwrap();
    let [open, shut] = [OPEN, CLOSED].map(|port| socket(server.namespace(), port));
    let to = server.address();
    let strangers = [
        ("a remote container", socket(client.namespace(), 5000)),
        ("a neighbour", socket(neighbour.namespace(), 5000)),
        ("a remote host", socket(overlay.lab.host(0).namespace(), 5000)),
    ];
    for (who, from) in &strangers {
        assert!(arrives(from, &shut, to), "{who}: without a policy");
    }
    govern(&overlay, &json!([closed(to)]));
    let by = if fast_path { "from_uplink" } else { "from_tunnel" };
    let [refused, at_home] = [by, "from_container"].map(|hook| overlay.rise(hook, "policy_denied"));
    let fast = overlay.rise("from_uplink", "to_endpoint");
    for (count, (who, from)) in (1..).zip(&strangers) {
        assert!(!arrives(from, &shut, to), "{who} is denied");
        assert_eq!(denied(&overlay).unwrap(), count, "{who} is counted");
        assert!(arrives(from, &open, to), "{who}: another port");
    }
    // The remote container and host; the neighbour.
    assert_eq!((refused.of(&overlay)[1], at_home.of(&overlay)[1]), (2, 1));
    assert_eq!(fast.of(&overlay)[1] >= 2, fast_path, "what is allowed takes its usual way");
    let own = socket(host.namespace(), 5000);
    assert!(arrives(&own, &shut, to), "its own host is not asked");

    // What it has begun itself is answered.
    let (_, remote) = &strangers[0];
    shut.send_to(b"question", SocketAddr::from((client.address(), 5000))).unwrap();
    let (_, asker) = remote.recv_from(&mut [0; 64]).unwrap();
    assert_eq!(asker, SocketAddr::from((to, CLOSED)));
    assert!(arrives(remote, &shut, to), "an answer");

    // One that says nothing changes nothing.
    put_config(&overlay, &json!([{"Name": "closed", "Action": "maybe"}]));
    eventually(SOON, "the policy to be refused by name", || {
        let status = overlay.agents[1].status()?;
        let told = status["problems"].to_string();
        ensure!(told.contains("Policy[0].Action must be"), "{told}");
        Ok(())
    })
    .unwrap();
    assert!(!arrives(&strangers[1].1, &shut, to), "the last good one is in force");

    govern(&overlay, &json!([]));
    assert!(arrives(&strangers[1].1, &shut, to), "without a policy again");
}

#[test]
fn a_policy_holds_on_the_fast_path() {
    holds(true);
}

#[test]
fn a_policy_holds_on_the_slow_path() {
    holds(false);
}

/// Where netfilter leads a packet counts, not where it was sent to.
#[test]
fn a_policy_is_about_the_container_behind_a_published_port() {
    let overlay = Overlay::new();
    let [client, server] = overlay.pair();
    let host: &Host = overlay.lab.host(1);
    let (to, gateway) = (server.address(), host.subnet().unwrap().gateway);
    let publish = format!(
        "-t nat -A PREROUTING -d {gateway} -p udp --dport 80 -j DNAT --to-destination {to}:{CLOSED}"
    );
    host.command("iptables").args(publish.split(' ')).run().unwrap();
    let shut = socket(server.namespace(), CLOSED);
    let ask = |port| {
        let from = socket(client.namespace(), port);
        from.send_to(b"question", (gateway, 80)).unwrap();
        shut.recv_from(&mut [0; 64]).is_ok()
    };
    assert!(ask(5001), "without a policy");
    govern(&overlay, &json!([closed(to)]));
    let dropped = overlay.rise("to_bridge", "policy_denied");
    assert!(!ask(5002), "denied");
    assert_eq!(dropped.of(&overlay)[1], 1);
}

#[test]
fn no_packet_finds_a_gap_while_policies_follow_each_other() {
    const POLICIES: u32 = 20;
    const RULES: u32 = 150;
    let overlay = Overlay::new();
    let [client, server] = overlay.pair();
    let to = server.address();
    let policy = |number: u32| -> Value {
        let other = |rule: u32| {
            json!({"Name": format!("rule-{number}-{rule}"), "Protocol": "tcp", "Action": "deny",
                "Port": format!("{}-{}", 9000 + number * 7 + rule, 20_000 + rule * 3)})
        };
        let mut rules: Vec<_> = (0..RULES).map(other).collect();
        // Always there, and never at the same place.
        rules.insert((number * 41 % RULES) as usize, closed(to));
        rules.into()
    };
    govern(&overlay, &policy(0));
    let [open, shut] = [OPEN, CLOSED].map(|port| socket(server.namespace(), port));
    let sender = socket(client.namespace(), 5000);
    let stop = Arc::new(AtomicBool::new(false));
    let sending = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let mut sent = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                for port in [OPEN, CLOSED] {
                    sender.send_to(&sent.to_be_bytes(), (to, port)).unwrap();
                }
                sent += 1;
                thread::sleep(Duration::from_micros(300));
            }
            sent
        })
    };
    let receiving = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let mut received = 0_u32;
            loop {
                let is_last = stop.load(Ordering::Relaxed);
                match open.recv_from(&mut [0; 64]) {
                    Ok(_) => received += 1,
                    Err(_) if is_last => return received,
                    Err(_) => {}
                }
            }
        })
    };
    for number in 1..=POLICIES {
        govern(&overlay, &policy(number));
    }
    stop.store(true, Ordering::Relaxed);
    let (sent, received) = (sending.join().unwrap(), receiving.join().unwrap());
    assert!(sent > 1000, "{sent} sent");
    assert_eq!(received, sent, "what is allowed");
    shut.recv_from(&mut [0; 64]).expect_err("what is denied");
    assert_eq!(denied_by_name(&overlay, "closed"), u64::from(sent), "every one is counted");
}

fn denied_by_name(overlay: &Overlay, name: &str) -> u64 {
    let status = overlay.agents[1].status().unwrap();
    let rules = status["policy"].as_array().unwrap();
    let rule = rules.iter().find(|rule| rule["name"] == name).unwrap();
    rule["denied_packets"].as_u64().unwrap()
}
