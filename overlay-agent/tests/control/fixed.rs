//! Two hosts without etcd.

use std::path::Path;

use overlay_lab::{AgentOptions, Lab, eventually};

use crate::support::{SOON, wait_for_no_problem, wait_for_problem};

fn write(file: &Path, lab: &Lab, subnets: &[&str], more: &str) {
    let hosts = lab.hosts().iter().zip(subnets);
    let text =
        hosts.fold(format!("network = \"10.5.0.0/16\"\n{more}\n"), |text, (host, subnet)| {
            text + &format!("[[host]]\npublic-ip = \"{}\"\nsubnet = \"{subnet}\"\n", host.address())
        });
    std::fs::write(file, text).unwrap();
}

fn options(file: &Path) -> AgentOptions {
    // Nobody listens there, and nobody must ask.
    AgentOptions::with_endpoints(env!("CARGO_BIN_EXE_overlay-agent"), "http://127.0.0.1:1")
        .argument(&format!("--peers={}", file.display()))
        .argument("--iptables-forward-rules=false")
}

#[test]
fn two_hosts_talk_by_a_file_and_follow_its_changes() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("peers.toml");
    write(&file, &lab, &["10.5.1.0/24", "10.5.2.0/24"], "");
    let mut agents: Vec<_> =
        lab.hosts().iter().map(|host| host.start_agent(&options(&file)).unwrap()).collect();
    let containers: Vec<_> =
        lab.hosts().iter().map(|host| host.add_container("c").unwrap()).collect();
    eventually(SOON, "a ping", || containers[0].ping(containers[1].address())).unwrap();

    // Half of an edit changes nothing.
    std::fs::write(&file, "network = \"10.5.0.0/16\"\n[[host]]\n").unwrap();
    for agent in &mut agents {
        let status = wait_for_problem(agent, &["the peers file cannot be used", "public-ip"]);
        assert_eq!(status["peers"].as_array().map(Vec::len), Some(1));
    }
    containers[0].ping(containers[1].address()).unwrap();

    write(&file, &lab, &["10.5.1.0/24", "10.5.2.0/24"], "mtu = 1400");
    for agent in &mut agents {
        wait_for_no_problem(agent, "peers file");
        agent
            .wait_status(SOON, "the MTU of the file", |status| {
                anyhow::ensure!(status["mtu"] == 1350, "{}", status["mtu"]);
                Ok(())
            })
            .unwrap();
    }

    // The second host gets another subnet.
    write(&file, &lab, &["10.5.1.0/24", "10.5.7.0/24"], "mtu = 1400");
    let moved = |field: &'static str, subnet: &'static str| {
        move |status: &serde_json::Value| {
            let found = status.pointer(field).cloned().unwrap_or_default();
            anyhow::ensure!(found == subnet, "{found}");
            anyhow::ensure!(status["ready"] == true, "not ready");
            Ok(())
        }
    };
    agents[0]
        .wait_status(SOON, "the peer's move", moved("/peers/0/subnet", "10.5.7.0/24"))
        .unwrap();
    agents[1].wait_status(SOON, "the own move", moved("/lease/subnet", "10.5.7.0/24")).unwrap();
    let env = std::fs::read_to_string(lab.host(1).subnet_file()).unwrap();
    assert!(env.contains("FLANNEL_SUBNET=10.5.7.1/24\n"), "{env}");

    // A host that is not listed any more keeps its subnet and says so.
    write(&file, &lab, &["10.5.1.0/24"], "mtu = 1400");
    wait_for_problem(&mut agents[1], &["does not list this host", "keeps its subnet"]);
}

#[test]
fn a_host_that_the_file_does_not_list_and_a_file_that_is_missing_are_errors_of_config() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("peers.toml");
    let ends = |words: &[&str]| {
        let output = options(&file).command(lab.host(0)).deadline(SOON).output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{}", output.stderr);
        assert!(words.iter().all(|word| output.stderr.contains(word)), "{}", output.stderr);
    };
    ends(&["cannot read the peers file", "No such file"]);
    std::fs::write(&file, "network = \"10.5.0.0/16\"\n").unwrap();
    ends(&["lists no host with public-ip", &lab.host(0).address().to_string()]);
    std::fs::write(&file, "network = 7\n").unwrap();
    ends(&["is malformed", "line 1"]);
}
