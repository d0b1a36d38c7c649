//! One clear line, the documented exit code, and nothing half-made left behind.

use std::{
    fs,
    net::UdpSocket,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use overlay_lab::{
    AgentOptions, ETCD_PREFIX, Host, Lab, NETWORK_CONFIG, Process, UPLINK, command::Cmd, eventually,
};
use tempfile::TempDir;

use crate::overlay::{Overlay, SOON};

fn options(etcd: &overlay_lab::Etcd) -> AgentOptions {
    AgentOptions::new(env!("CARGO_BIN_EXE_overlay-agent"), etcd)
}

/// Runs the agent, which must end with `code` and one line of error that has every one of `words`, and
/// leave no device, pin or subnet file.
fn ends(host: &Host, options: &AgentOptions, code: i32, words: &[&str]) {
    let output = options.command(host).deadline(Duration::from_secs(20)).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", output.stderr);
    let errors: Vec<_> = output.stderr.lines().filter(|line| line.starts_with("error:")).collect();
    let [error] = errors[..] else { panic!("not one line of error: {}", output.stderr) };
    for word in words {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
    nothing_is_left(host);
}

fn nothing_is_left(host: &Host) {
    assert!(!host.ip(["-brief", "link"]).unwrap().contains("overlay."), "a device is left");
    assert!(!host.subnet_file().exists(), "a subnet file is left");
    assert!(!host.pins().exists(), "{} is left", host.pins().display());
}

#[test]
fn a_malformed_config_is_named_by_field_and_rule() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(r#"{"Network":"10.1.0.0/16","EnableIPv6":true}"#).unwrap();
    ends(lab.host(0), &options(&etcd), 78, &["config", "EnableIPv6"]);
    let udp = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"udp"}}"#;
    etcd.put(&format!("{ETCD_PREFIX}/config"), udp).unwrap();
    ends(lab.host(0), &options(&etcd), 78, &["Backend.Type", "udp"]);
}

#[test]
fn a_broken_config_is_waited_for_and_said_by_field_and_rule_until_it_is_mended() {
    const SAID: &str = "WARN cannot join the network";
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(r#"{"Network":"10.1.0.0/16","SubnetLen":31}"#).unwrap();
    let mut agent = lab.host(0).spawn_agent(&options(&etcd)).unwrap();
    let mut says = |words: &[&str]| {
        agent
            .wait_status(SOON, &format!("a problem with {words:?}"), |status| {
                let problems = status["problems"].to_string();
                let has = words.iter().all(|word| problems.contains(word));
                anyhow::ensure!(has && status["waiting_for"] == "the network config", "{status}");
                Ok(())
            })
            .unwrap();
    };
    says(&["/config is malformed", "SubnetLen", "31"]);
    let key = format!("{ETCD_PREFIX}/config");
    etcd.put(&key, "{").unwrap();
    says(&["not valid JSON"]);
    etcd.delete(&key).unwrap();
    says(&["there is no network config yet"]);
    assert!(!lab.host(0).subnet_file().exists());
    etcd.put(&key, r#"{"Network":"10.1.0.0/16"}"#).unwrap();
    agent.wait_ready(SOON).unwrap();
    let log = agent.log().unwrap();
    for said in [SAID, "a flanneld in the same network would use udp"] {
        assert_eq!(log.matches(said).count(), 1, "{said}: {log}");
    }
}

#[test]
fn an_interface_that_does_not_exist_is_named_with_those_that_do() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let host = lab.host(0);
    let output = host
        .command(env!("CARGO_BIN_EXE_overlay-agent"))
        .args(["run", "--iface=nowhere7", "--etcd-endpoints", &etcd.endpoint(), "--pin-path"])
        .arg(host.pins())
        .arg("--subnet-file")
        .arg(host.subnet_file())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64), "{}", output.stderr);
    assert!(output.stderr.contains("nowhere7") && output.stderr.contains(UPLINK));
    nothing_is_left(host);
}

#[test]
fn a_port_that_another_vxlan_device_has_is_refused_by_its_name() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let host = lab.host(0);
    let add = "link add foreign7 type vxlan id 7 dstport 8472 dev";
    host.ip(add.split(' ').chain([UPLINK])).unwrap();
    ends(host, &options(&etcd), 69, &["8472", "foreign7"]);
    let links = host.ip(["-brief", "link"]).unwrap();
    assert!(links.contains("foreign7"), "somebody else's device is left alone");
}

#[test]
fn a_second_agent_on_a_pin_path_names_the_first() {
    let overlay = Overlay::new();
    let host = overlay.lab.host(0);
    let output = overlay.options.command(host).deadline(Duration::from_secs(20)).output().unwrap();
    assert_eq!(output.status.code(), Some(75), "{}", output.stderr);
    let holder = overlay.agents[0].status().unwrap();
    assert_eq!(holder["ready"], true, "the first agent runs on");
    assert!(output.stderr.contains("process "), "{}", output.stderr);
    overlay.ping();
}

/// Runs a program as the user `nobody`, from a folder where that may.
///
/// Copied by another process: what this one has open for writing, a child that another test's thread starts meanwhile has,
/// too, and nobody can run it then.
pub(crate) fn as_nobody(host: &Host, program: &Path) -> (TempDir, Cmd) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("program");
    host.command("install").args(["-m", "755"]).arg(program).arg(&copy).run().unwrap();
    let setpriv = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    let command = host.command("setpriv").args(setpriv).arg(&copy);
    (directory, command)
}

#[test]
fn without_root_it_says_so() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let (_directory, command) = as_nobody(host, Path::new(env!("CARGO_BIN_EXE_overlay-agent")));
    let output = command.arg("run").output().unwrap();
    assert_eq!(output.status.code(), Some(77), "{}", output.stderr);
    assert!(output.stderr.contains("root"), "{}", output.stderr);
    nothing_is_left(host);
}

#[test]
fn a_missing_etcd_and_a_missing_config_are_waited_for_and_said_once() {
    const SAID: &str = "WARN cannot read the network config";
    let lab = Lab::builder().hosts(1).start().unwrap();
    let mut etcd = overlay_lab::Etcd::on_host(lab.host(0)).unwrap();
    etcd.stop().unwrap();
    let mut agent = lab.host(0).spawn_agent(&options(&etcd)).unwrap();
    eventually(SOON, "the agent to say that etcd does not answer", || {
        let log = agent.log()?;
        anyhow::ensure!(log.matches(SAID).count() == 1, "{log}");
        Ok(())
    })
    .unwrap();
    etcd.start_again().unwrap();
    eventually(SOON, "the agent to say that there is no config", || {
        let log = agent.log()?;
        anyhow::ensure!(log.contains("there is no network config yet"), "{log}");
        Ok(())
    })
    .unwrap();
    etcd.put(&format!("{ETCD_PREFIX}/config"), NETWORK_CONFIG).unwrap();
    agent.wait_ready(SOON).unwrap();
    assert_eq!(agent.log().unwrap().matches(SAID).count(), 1);
    assert!(lab.host(0).subnet_file().exists());
}

/// The C library asks such a server for ten seconds, which is as long as Docker and systemd may wait before they kill.
#[test]
fn an_agent_ends_at_once_while_a_name_server_does_not_answer() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let silent = host
        .namespace()
        .within(|| {
            let socket = UdpSocket::bind(("127.0.0.1", 53))?;
            socket.set_read_timeout(Some(SOON))?;
            Ok(socket)
        })
        .unwrap();
    let directory = lab.directory();
    let resolver = directory.join("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.1\n").unwrap();
    let script = format!(
        "mount --bind {} /etc/resolv.conf; exec {} run --etcd-endpoints http://nowhere.invalid:2379 \
         --pin-path {} --socket {} --subnet-file {} --state-file {}",
        resolver.display(),
        env!("CARGO_BIN_EXE_overlay-agent"),
        host.pins().display(),
        directory.join("dns.sock").display(),
        host.subnet_file().display(),
        directory.join("dns.env").display(),
    );
    let command = host.command("unshare").args(["--mount", "sh", "-ec", &script]);
    let log = directory.join("dns.log");
    let mut agent = Process::spawn(lab.ledger(), "agent", &command, &log).unwrap();
    silent.recv_from(&mut [0; 512]).expect("a question");
    let asked = Instant::now();
    agent.stop().unwrap();
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}: {}", agent.log().unwrap());
}
