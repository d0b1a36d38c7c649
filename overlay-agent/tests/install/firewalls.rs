//! Real firewalls that refuse what the overlay needs: what is said of them, and the command that is said to mend it,
//! run literally.

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{Lab, Machine, eventually};
use serde_json::{Value, json};

use crate::support::{
    SOON, address, boot, configuration, copy_token, install, listen, refusal, status,
    wait_until_fine,
};

/// A firewall that refuses something, in a way that its administrators know.
struct Refusal {
    /// How it came to that, in lines of shell.
    made: &'static str,
    /// What `doctor` finds, by what it looked at, and a part of the rule that it has to name.
    found: &'static [(&'static str, &'static str)],
}

/// As Debian has it, all is dropped that comes in; and then some more.
const UFW: &[Refusal] = &[
    Refusal {
        made: "ufw delete allow 8472/udp",
        found: &[("udp_port", "INPUT policy DROP (ufw)")],
    },
    Refusal {
        made: "ufw prepend deny in on eth0",
        found: &[("udp_port", "-A ufw-user-input -i eth0 -j DROP")],
    },
    Refusal {
        made: "ufw route reject from any to any",
        found: &[("rules", "-A ufw-user-forward -j REJECT")],
    },
];

/// Docker ran first and knows nothing of firewalld, in whose default zone everything is then.
const FIREWALLD: &[Refusal] = &[
    Refusal {
        made: "systemctl enable --now firewalld.service",
        found: &[
            ("rules", "firewalld filter_FWD_public: reject"),
            ("udp_port", "firewalld filter_IN_public: reject"),
            ("tcp_port", "firewalld filter_IN_public: reject"),
        ],
    },
    // Only for now: what is set so is not to be lost.
    Refusal {
        made: "firewall-cmd --zone=drop --add-port=2379/tcp && firewall-cmd --zone=drop --change-interface=eth0",
        found: &[("udp_port", "firewalld filter_IN_drop: drop")],
    },
    Refusal {
        made: "for ever in '' --permanent; do firewall-cmd $ever --zone=drop --add-port=2379/tcp && \
               firewall-cmd $ever --zone=drop --add-rich-rule='rule port port=8472 protocol=udp drop' && \
               firewall-cmd $ever --zone=drop --change-interface=eth0 || exit 1; done",
        found: &[("udp_port", "firewalld filter_IN_drop_deny: udp dport 8472 drop")],
    },
];

/// One host has ufw, and the other, with etcd, firewalld.
#[test]
fn what_doctor_prints_mends_what_ufw_and_firewalld_refuse() {
    let lab = Lab::builder().start().unwrap();
    let [one, two] = [0, 1].map(|host| boot(&lab, host));
    for machine in [&one, &two] {
        install(machine);
        machine.shell("ufw --force enable").unwrap();
    }
    is_opened(&one, &["init"], &["ufw allow 2379/tcp", "ufw allow 8472/udp"]);
    one.shell("ufw --force disable").unwrap();
    copy_token(&one, &two);
    is_opened(&two, &["join", "/srv/join.token"], &["ufw allow 8472/udp"]);
    for machine in [&one, &two] {
        listen(machine, "listener");
    }
    are_mended(&two, &one, UFW, "ufw reload");
    are_mended(&one, &two, FIREWALLD, "firewall-cmd --reload");
}

/// A closed door is told of before anything is changed, with what opens it, which is done.
fn is_opened(machine: &Machine<'_>, command: &[&str], ways: &[&str]) {
    let before = configuration(machine);
    let (code, said) = refusal(machine, command, "");
    assert_eq!(code, 69, "{said}");
    assert!(configuration(machine) == before, "{command:?} has changed something: {said}");
    let printed: Vec<_> = said.split('`').skip(1).step_by(2).collect();
    assert_eq!(printed, ways, "{said}");
    for way in printed {
        machine.shell(way).unwrap();
    }
    machine.run("overlay-agent", command.iter().copied()).unwrap();
}

/// Each is named, and mended by what is printed, which holds when rules are made anew.
fn are_mended(ill: &Machine<'_>, other: &Machine<'_>, refusals: &[Refusal], reload: &str) {
    for Refusal { made, found } in refusals {
        ill.shell(made).unwrap();
        let mends = mends(ill, found);
        assert!(talk([ill, other]).is_err(), "{made} keeps nobody from anything");
        for mend in mends {
            println!("{}: {mend}", ill.host().name());
            ill.shell(&mend).unwrap();
        }
        is_well(ill, other);
        ill.shell(reload).unwrap();
        is_well(ill, other);
    }
    ill.run("systemctl", ["restart", "docker.service"]).unwrap();
    is_well(ill, other);
    wait_until_fine(ill);
}

/// The commands that `doctor` prints once it finds this and nothing else, which `status` tells of as well.
fn mends(ill: &Machine<'_>, expected: &[(&str, &str)]) -> Vec<String> {
    eventually(SOON, &format!("{expected:?} is found"), || {
        let diagnosis = doctor(ill)?;
        let findings = diagnosis["findings"].as_array().context("no findings")?;
        ensure!(findings.len() == expected.len(), "{diagnosis}");
        let problems = status(ill)?["problems"].to_string();
        let mut mends = Vec::new();
        for (finding, (check, rule)) in findings.iter().zip(expected) {
            ensure!(finding["check"] == *check, "{diagnosis}");
            let problem = finding["problem"].as_str().context("no problem")?;
            ensure!(problem.contains(rule), "{diagnosis} does not say {rule}");
            ensure!(problems.contains(rule), "status does not say {rule}: {problems}");
            mends.push(finding["mend"].as_str().context("no mend")?.to_owned());
        }
        Ok(mends)
    })
    .unwrap()
}

/// Nothing is found, and everything goes: containers' flows, and what hosts send themselves, to which answers do not
/// take the fast path.
fn is_well(ill: &Machine<'_>, other: &Machine<'_>) {
    eventually(SOON, &format!("all is well on {}", ill.host().name()), || {
        let diagnosis = doctor(ill)?;
        ensure!(diagnosis["healthy"] == true, "{diagnosis}");
        let problems = status(ill)?["problems"].clone();
        ensure!(problems == json!([]), "{problems}");
        let problems = status(other)?["problems"].clone();
        ensure!(problems == json!([]), "{problems} on {}", other.host().name());
        talk([ill, other])
    })
    .unwrap();
}

/// Each of them, and a container there, has an answer of a container on the other.
fn talk([one, two]: [&Machine<'_>; 2]) -> Result<()> {
    for (from, to) in [(one, two), (two, one)] {
        let address = address(to, "listener")?;
        let hello = format!("echo hello | nc -w 2 {address} 5555");
        from.docker(["exec", "listener", "sh", "-c", &hello])?;
        from.command("busybox")?.args(["ping", "-c", "1", "-W", "1", &address]).run()?;
    }
    Ok(())
}

fn doctor(machine: &Machine<'_>) -> Result<Value> {
    let output = machine.command("overlay-agent")?.args(["doctor", "--output", "json"]).output()?;
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}
