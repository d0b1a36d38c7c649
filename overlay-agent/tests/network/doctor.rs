//! `overlay-agent doctor`: every fault that it knows is really made, one at a time. It has to name that one
//! and no other, and nothing once it is mended.

use std::{collections::BTreeSet, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_agent::authority::pki::Authority;
use overlay_lab::{
    Agent, AgentOptions, BRIDGE, Container, Etcd, Host, Lab, NETWORK_CONFIG, UPLINK, command::Cmd,
    eventually,
};
use serde_json::Value;

const AGENT: &str = env!("CARGO_BIN_EXE_overlay-agent");
const SOON: Duration = Duration::from_secs(20);
const DAY: Duration = Duration::from_hours(24);

/// A host that is made ill and well again, with another one to talk to and one that may go.
struct Ward {
    agents: Vec<Agent>,
    containers: Vec<Container>,
    etcd: Etcd,
    options: AgentOptions,
    lab: Lab,
}

/// Which of the hosts: etcd is on the first one.
const PATIENT: usize = 1;
const OTHER: usize = 2;

impl Ward {
    fn new() -> Self {
        let lab = Lab::builder().hosts(3).imitate_wire(true).start().unwrap();
        let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
        let options = AgentOptions::new(AGENT, &etcd);
        let agents: Vec<_> =
            lab.hosts().iter().map(|host| host.start_agent(&options).unwrap()).collect();
        let containers = lab.hosts().iter().map(|host| host.add_container("c").unwrap()).collect();
        Self { agents, containers, etcd, options, lab }
    }

    fn patient(&self) -> &Host {
        self.lab.host(PATIENT)
    }

    /// `doctor` on the patient, with more arguments, behind another program.
    fn command(&self, arguments: &[&str]) -> Cmd {
        self.patient().doctor(AGENT, &self.etcd.endpoint()).args(arguments)
    }

    fn examine(&self, command: Cmd) -> Result<Value> {
        let output = self.patient().namespace().wrap(command).output()?;
        let diagnosis: Value =
            serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {output:?}"))?;
        let healthy = diagnosis["healthy"] == true;
        ensure!(output.status.code() == Some(i32::from(!healthy)), "{diagnosis} with {output:?}");
        ensure!(diagnosis["unknown"] == serde_json::json!([]), "{diagnosis}");
        Ok(diagnosis)
    }

    /// This and nothing else is found, in these words, with a way out.
    fn finds(&self, command: Cmd, check: &str, words: &[&str]) {
        let diagnosis = self.examine(command).unwrap();
        let findings = diagnosis["findings"].as_array().unwrap();
        let checks: BTreeSet<_> =
            findings.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
        assert_eq!(checks, BTreeSet::from([check]), "{diagnosis}");
        let problem = findings[0]["problem"].as_str().unwrap();
        for word in words {
            assert!(problem.contains(word), "{problem:?} does not say {word:?}");
        }
        assert!(!findings[0]["mend"].as_str().unwrap().is_empty());
    }

    fn is_healthy(&self) {
        eventually(SOON, "nothing is found", || {
            let diagnosis = self.examine(self.command(&[]))?;
            ensure!(diagnosis["healthy"] == true, "{diagnosis}");
            Ok(())
        })
        .unwrap();
    }

    /// One fault: made, found alone, mended, gone.
    fn fault(
        &self,
        check: &str,
        words: &[&str],
        make: impl FnOnce(&Host),
        mend: impl FnOnce(&Host),
    ) {
        make(self.patient());
        self.finds(self.command(&[]), check, words);
        mend(self.patient());
        self.is_healthy();
    }

    /// The same while no agent puts it right at once.
    fn fault_without_agent(
        &mut self,
        check: &str,
        words: &[&str],
        make: impl FnOnce(&Host),
        mend: impl FnOnce(&Host),
    ) {
        self.agents[PATIENT].kill().unwrap();
        make(self.patient());
        self.finds(self.command(&[]), check, words);
        mend(self.patient());
        self.restart_with(&self.options.clone());
        self.is_healthy();
    }

    fn restart_with(&mut self, options: &AgentOptions) {
        self.agents[PATIENT].stop().unwrap();
        self.agents[PATIENT] = self.patient().start_agent(options).unwrap();
    }
}

fn ip(host: &Host, arguments: &str) {
    host.ip(arguments.split(' ')).unwrap();
}

fn run(host: &Host, program: &str, arguments: &str) {
    host.command(program).args(arguments.split(' ')).run().unwrap();
}

/// W13: what compose makes is not in the overlay, which is said and no fault.
#[test]
fn a_docker_network_outside_the_overlay_is_a_note() {
    let ward = Ward::new();
    let host = ward.patient();
    ip(host, "link add br-0123456789ab type bridge");
    ip(host, "address add 172.18.0.1/16 dev br-0123456789ab");
    ward.is_healthy();
    let diagnosis = ward.examine(ward.command(&[])).unwrap();
    let note = diagnosis["notes"][0].as_str().unwrap();
    assert!(
        note.starts_with("br-0123456789ab (172.18.0.1/16) is not in the overlay 10.1.0.0/16"),
        "{note}"
    );
}

#[test]
fn every_fault_of_the_host_is_named_alone() {
    let mut ward = Ward::new();
    ward.is_healthy();

    // As where BPF is locked down: a root without the capabilities for it.
    let locked = ward.command(&[]).behind(
        "setpriv",
        ["--bounding-set=-all,+net_admin,+net_raw,+dac_override", "--inh-caps=-all"],
    );
    ward.finds(locked, "kernel", &["does not take the programs"]);

    ward.fault(
        "offloads",
        &["GRO", UPLINK],
        |host| run(host, "ethtool", "-K eth0 gro off"),
        |host| run(host, "ethtool", "-K eth0 gro on"),
    );
    let gateway = ward.patient().subnet().unwrap().gateway_cidr();
    ward.fault(
        "docker",
        &["172.17.0.1/16"],
        |host| {
            ip(host, &format!("address del {gateway} dev {BRIDGE}"));
            ip(host, &format!("address add 172.17.0.1/16 dev {BRIDGE}"));
            eventually(SOON, "the agent has lost its bridge", || {
                let status = ward.agents[PATIENT].status()?;
                ensure!(status["bridges"] == serde_json::json!([]), "{status}");
                Ok(())
            })
            .unwrap();
        },
        |host| {
            ip(host, &format!("address del 172.17.0.1/16 dev {BRIDGE}"));
            ip(host, &format!("address add {gateway} dev {BRIDGE}"));
        },
    );

    // Started before the overlay's MTU was what it is.
    let port = ward.containers[PATIENT].veth().to_owned();
    ward.fault(
        "docker",
        &[BRIDGE, "an MTU of up to 1500", "the overlay carries 1450"],
        |host| ip(host, &format!("link set {port} mtu 1500")),
        |host| ip(host, &format!("link set {port} mtu 1450")),
    );

    ward.fault_without_agent("agent", &["no agent answers"], |_| {}, |_| {});
    ward.fault_without_agent(
        "ip_forward",
        &["does not forward"],
        |host| host.namespace().sysctl("net.ipv4.ip_forward", "0").unwrap(),
        |host| host.namespace().sysctl("net.ipv4.ip_forward", "1").unwrap(),
    );
    ward.fault_without_agent(
        "device",
        &["8472", "theirs"],
        |host| {
            ip(host, "link delete overlay.1");
            ip(host, "link add theirs type vxlan id 7 dstport 8472 dev eth0");
        },
        |host| ip(host, "link delete theirs"),
    );
    ward.fault_without_agent(
        "maps",
        &["of version 99"],
        |host| set_abi_version(&host.pins().join("config"), 99),
        |_| {},
    );

    let options = ward.options.clone().argument("--iptables-forward-rules=false");
    let options = options.argument("--rules=bypass");
    ward.restart_with(&options);
    ward.fault(
        "forward_policy",
        &["overlay.1", "DROP"],
        |host| {
            for direction in ["-i", "-o"] {
                let rule = format!("-D FORWARD {direction} overlay.1 -m comment --comment");
                let rule = host.command("iptables").args(rule.split(' ')).args([
                    "overlay forward",
                    "-j",
                    "ACCEPT",
                ]);
                rule.run().unwrap();
            }
            run(host, "iptables", "-P FORWARD DROP");
        },
        |host| run(host, "iptables", "-P FORWARD ACCEPT"),
    );
}

/// As an agent of another version would have left it.
fn set_abi_version(map: &Path, version: u8) {
    let dump =
        Cmd::new("bpftool").args(["--json", "map", "dump", "pinned"]).arg(map).read().unwrap();
    let dump: Value = serde_json::from_str(&dump).unwrap();
    let mut value: Vec<String> = dump[0]["value"]
        .as_array()
        .unwrap()
        .iter()
        .map(|byte| byte.as_str().unwrap().trim_start_matches("0x").to_owned())
        .collect();
    value[..4].clone_from_slice(&[format!("{version:02x}"), "00".into(), "00".into(), "00".into()]);
    Cmd::new("bpftool")
        .args(["map", "update", "pinned"])
        .arg(map)
        .args(["key", "hex", "00", "00", "00", "00", "value", "hex"])
        .args(value)
        .run()
        .unwrap();
}

#[test]
fn every_fault_of_the_way_to_others_is_named_alone() {
    let ward = Ward::new();
    ward.is_healthy();
    let switch = ward.lab.wire().switch();
    let other = ward.lab.host(OTHER).address().to_string();

    ward.fault(
        "mtu",
        &[&other, "1400 bytes", "1500"],
        |_| drop(switch.ip(["link", "set", "p-three", "mtu", "1400"]).unwrap()),
        |_| drop(switch.ip(["link", "set", "p-three", "mtu", "1500"]).unwrap()),
    );
    ward.fault(
        "udp_port",
        &[&other, "8472"],
        |_| {
            let rules = format!(
                "add table bridge faults; add chain bridge faults forward {{ type filter hook forward priority 0; }}; \
                 add rule bridge faults forward ip daddr {other} udp dport 8472 drop"
            );
            switch.command("nft").arg(rules).run().unwrap();
        },
        |_| drop(switch.command("nft").args(["delete", "table", "bridge", "faults"]).run().unwrap()),
    );
    let away = ward.lab.host(OTHER).namespace();
    ward.fault(
        "peer",
        &[&other, "does not answer at all"],
        |_| ward.lab.wire().set_connected(away, false).unwrap(),
        |_| ward.lab.wire().set_connected(away, true).unwrap(),
    );
    ward.fault(
        "peer",
        &[&other, "cannot be reached from here"],
        |host| ip(host, &format!("route add unreachable {other}")),
        |host| ip(host, &format!("route del unreachable {other}")),
    );
    // A second cable, by which the other host is reached; what it sends still comes by the first.
    ward.fault(
        "rp_filter",
        &[&other, "eth1", "strictly"],
        |host| {
            let patient = host.namespace().name();
            switch
                .ip([
                    "link", "add", "second", "type", "veth", "peer", "name", "eth1", "netns",
                    patient,
                ])
                .unwrap();
            switch.ip(["link", "set", "second", "master", "switch", "up"]).unwrap();
            ip(host, "address add 192.168.33.111/24 dev eth1 noprefixroute");
            ip(host, "link set eth1 up");
            ip(host, &format!("route add {other}/32 dev eth1"));
            host.namespace().sysctl("net.ipv4.conf.eth0.rp_filter", "1").unwrap();
        },
        |host| {
            host.namespace().sysctl("net.ipv4.conf.eth0.rp_filter", "0").unwrap();
            ip(host, "link delete eth1");
        },
    );
}

#[test]
fn every_fault_of_etcd_and_of_time_is_named_alone() {
    let mut ward = Ward::new();
    ward.is_healthy();

    ward.finds(
        ward.command(&[]).behind("faketime", ["-f", "+1h"]),
        "clock",
        &["s ahead of", &ward.etcd.endpoint()],
    );
    ward.finds(ward.command(&[]).behind("faketime", ["-f", "-1h"]), "clock", &["s behind that of"]);

    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let authority = Authority::new(365 * DAY).unwrap();
    std::fs::write(file("ca.pem"), &authority.own().certificate).unwrap();
    let [certificate, key] = ["client.pem", "client-key.pem"].map(file);
    for words in ["expires in 9 days", "has expired"] {
        // One that is somebody else's to make anew, and one of ours that nobody did.
        if words.contains("expires") {
            let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
            Cmd::new("openssl")
                .args(["req", "-x509", "-subj", "/CN=host", "-days", "10"])
                .args(new_key)
                .args(["-out", &certificate, "-keyout", &key])
                .run()
                .unwrap();
        } else {
            let client = authority.client("host", Duration::ZERO).unwrap();
            std::fs::write(&certificate, &client.certificate).unwrap();
            std::fs::write(&key, &client.key).unwrap();
        }
        let arguments = [
            ("--etcd-cafile", file("ca.pem")),
            ("--etcd-certfile", file("client.pem")),
            ("--etcd-keyfile", file("client-key.pem")),
        ];
        let arguments: Vec<_> =
            arguments.iter().flat_map(|(flag, file)| [*flag, file.as_str()]).collect();
        ward.finds(ward.command(&arguments), "certificate", &["client.pem", words]);
    }

    ward.etcd.freeze().unwrap();
    thread::scope(|scope| {
        let etcd = &ward.etcd;
        let examined = scope.spawn(|| ward.finds(ward.command(&[]), "etcd", &["to answer"]));
        // How slow it is, is the fault itself: nothing is waited for.
        thread::sleep(Duration::from_secs(3));
        etcd.thaw().unwrap();
        examined.join().unwrap();
    });
    ward.is_healthy();

    ward.etcd.stop().unwrap();
    ward.finds(ward.command(&[]), "etcd", &["refused"]);
    ward.etcd.start_again().unwrap();
    ward.is_healthy();
}
