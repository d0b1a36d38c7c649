//! Docker 28.5, whose rules drop what comes to a container otherwise than over its bridge: in the raw table for
//! those with a published port, in its own chains for all others. That is what breaks flannel (moby#49792).

use std::time::Duration;

use anyhow::ensure;
use overlay_lab::{AgentOptions, Host, IMAGE, Lab, Machine, NETWORK_CONFIG, debian, eventually};

use crate::{AGENT, start_agents};

/// A machine that boots, and a Docker that starts for the first time.
pub(crate) const SOON: Duration = Duration::from_mins(1);

/// A machine whose Docker was told the host's subnet before it first started.
fn boot(host: &Host) -> Machine<'_> {
    let subnet = host.subnet().unwrap();
    boot_with(host, &serde_json::json!({ "bip": subnet.gateway_cidr(), "mtu": subnet.mtu }))
}

/// A machine whose Docker has this for its settings.
pub(crate) fn boot_with<'host>(host: &'host Host, told: &serde_json::Value) -> Machine<'host> {
    let mut machine = Machine::lay_out(host, &debian::FORKY).unwrap();
    machine.write("/etc/docker/daemon.json", told.to_string().as_bytes()).unwrap();
    machine.switch_on().unwrap();
    eventually(SOON, "Docker to answer", || machine.docker(["version"])).unwrap();
    machine.import_image().unwrap();
    machine
}

/// A container that greets whoever connects to its port 80, and its address.
pub(crate) fn greeter(machine: &Machine<'_>, name: &str, options: &[&str]) -> String {
    let greet = "while true; do echo hello | nc -l -p 80; done";
    let mut run = vec!["run", "--detach", "--name", name];
    run.extend(options);
    run.extend([IMAGE, "sh", "-c", greet]);
    machine.docker(run).unwrap();
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    machine.docker(["inspect", "--format", format, name]).unwrap()
}

#[test]
fn containers_reach_each_other_in_spite_of_dockers_rules_of_today() {
    let lab = Lab::builder().start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let options = AgentOptions::new(AGENT, &etcd);
    let mut agents = start_agents(&lab, &options);
    let machines: Vec<_> = lab.hosts().iter().map(boot).collect();
    let version = machines[0].docker(["version", "--format", "{{.Server.Version}}"]).unwrap();
    assert!(version.starts_with("28."), "{version}");

    let published = greeter(&machines[0], "published", &["--publish", "8080:80"]);
    let plain = greeter(&machines[0], "plain", &[]);
    machines[1].docker(["run", "--detach", "--name", "client", IMAGE, "sleep", "600"]).unwrap();
    // What would be in the way.
    let rules = lab.host(0).command("nft").args(["list", "ruleset"]).read().unwrap();
    let raw = format!("ip daddr {published}");
    assert!(
        rules.lines().any(|rule| rule.contains(&raw) && rule.contains("drop")),
        "no rule of Docker's drops what comes to {published}:\n{rules}"
    );
    // As Docker sets it where it is who switches forwarding on.
    for host in lab.hosts() {
        host.command("iptables").args(["-P", "FORWARD", "DROP"]).run().unwrap();
    }

    let gateway = lab.host(0).subnet().unwrap().gateway.to_string();
    let outside = lab.host(0).address().to_string();
    let places = [
        (published.as_str(), "80"),
        (plain.as_str(), "80"),
        // By the port of the host, at its address in the overlay and at the one outside.
        (gateway.as_str(), "8080"),
        (outside.as_str(), "8080"),
    ];
    let peer = lab.host(1).address().to_string();
    let hear = || {
        // A peer itself may speak from its public address, and the stack takes that.
        for address in [&published, &plain] {
            eventually(SOON, &format!("an answer from {address} to {peer}"), || {
                let ping = lab.host(1).command("ping").args(["-n", "-c1", "-W2"]);
                ping.args(["-I", peer.as_str(), address.as_str()]).run()
            })
            .unwrap();
        }
        for (address, port) in places {
            eventually(SOON, &format!("a greeting from {address}:{port}"), || {
                let heard =
                    machines[1].docker(["exec", "client", "nc", "-w", "2", address, port])?;
                ensure!(heard.contains("hello"), "{heard:?}");
                Ok(())
            })
            .unwrap();
        }
    };
    hear();
    // A greeting is over before the host knows where its containers are; a ping is not.
    for address in [&published, &plain] {
        let before = agents[0].packets("from_uplink", "to_endpoint").unwrap();
        machines[1].docker(["exec", "client", "ping", "-c", "3", "-W", "2", address]).unwrap();
        let after = agents[0].packets("from_uplink", "to_endpoint").unwrap();
        assert!(after > before, "to {address} by the fast path");
    }
    let status = agents[0].status().unwrap();
    assert_eq!(status["problems"], serde_json::json!([]), "{status}");
    assert_eq!(status["rules"]["honoured"], false, "Docker's own rules ask for nothing: {status}");

    // What takes the stack is not in Docker's way either, also of a container that was published a moment ago.
    for options in [options.clone().fast_path(false), options.argument("--rules=honour")] {
        for agent in &mut agents {
            agent.stop().unwrap();
        }
        agents = start_agents(&lab, &options);
        hear();
        let later = greeter(&machines[0], "later", &["--publish", "8081:80"]);
        eventually(SOON, "a greeting from a container that came later", || {
            let heard = machines[1].docker(["exec", "client", "nc", "-w", "2", &later, "80"])?;
            ensure!(heard.contains("hello"), "{heard:?}");
            Ok(())
        })
        .unwrap();
        machines[0].docker(["rm", "--force", "later"]).unwrap();
        // Docker puts its rules in front of all others when it starts.
        machines[0].shell("systemctl restart docker").unwrap();
        machines[0].docker(["start", "published", "plain"]).unwrap();
        hear();
    }
}
