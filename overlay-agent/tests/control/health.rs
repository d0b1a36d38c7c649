//! Health that tells the truth, from the first moment on.

use std::{
    io::Write as _,
    net::{TcpListener, TcpStream},
    time::Duration,
};

use overlay_lab::{AgentOptions, ETCD_PREFIX, Etcd, Lab, NETWORK_CONFIG, UPLINK, eventually};

use crate::support::{
    Asking, PROBES, SOON, options, options_for, probe, wait_for_no_problem, wait_for_problem,
};

#[test]
fn an_agent_says_what_it_waits_for_until_it_is_ready() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let mut etcd = overlay_lab::Etcd::on_host(host).unwrap();
    etcd.stop().unwrap();
    let mut agent = host.spawn_agent(&options(&etcd)).unwrap();

    let status = wait_for_problem(&mut agent, &["cannot read the network config", "refused"]);
    assert_eq!(status["waiting_for"], "the network config");
    assert_eq!((&status["ready"], &status["lease"]), (&false.into(), &serde_json::Value::Null));
    assert_eq!(probe(host, "/healthz").unwrap().0, 200, "it is alive");
    let (code, body) = probe(host, "/readyz").unwrap();
    assert_eq!(code, 503);
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["ready"], false);
    assert_eq!(body["problems"][0], "The agent waits for the network config.");

    etcd.start_again().unwrap();
    wait_for_problem(&mut agent, &["there is no network config yet", "/config does not exist"]);
    etcd.put(&format!("{ETCD_PREFIX}/config"), NETWORK_CONFIG).unwrap();
    agent.wait_ready(SOON).unwrap();
    eventually(SOON, "the probe to say that it is ready", || {
        let (code, body) = probe(host, "/readyz")?;
        anyhow::ensure!(code == 200 && body.contains(r#""ready":true"#), "{code} {body}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_etcd_that_accepts_and_never_answers_is_told_within_three_seconds() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let silent = host.namespace().within(|| Ok(TcpListener::bind("127.0.0.1:0")?)).unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let options = AgentOptions::with_endpoints(env!("CARGO_BIN_EXE_overlay-agent"), &endpoint);
    let agent = host.spawn_agent(&options).unwrap();
    eventually(Duration::from_secs(4), "a line about the silence", || {
        let log = agent.log()?;
        anyhow::ensure!(log.contains("cannot read the network config: no answer for 2 s"), "{log}");
        Ok(())
    })
    .unwrap();
    drop(silent);
}

#[test]
fn an_outage_of_etcd_is_a_problem_and_leaves_the_agent_ready() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let mut etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let mut agent = host.start_agent(&options(&etcd)).unwrap();
    etcd.stop().unwrap();
    let status = wait_for_problem(&mut agent, &["lost sight of the leases", "refused"]);
    assert_eq!(status["ready"], true, "every lease that is known is programmed");
    assert_eq!(probe(host, "/readyz").unwrap().0, 200);
    etcd.start_again().unwrap();
    wait_for_no_problem(&mut agent, "lost sight");
}

#[test]
fn an_uplink_that_is_down_and_one_that_is_gone_are_told_apart() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let mut agent = host.start_agent(&options(&etcd)).unwrap();
    let set = |state: &str| host.ip(["link", "set", UPLINK, state]).unwrap();
    set("down");
    wait_for_problem(&mut agent, &["uplink", UPLINK, "is down"]);
    set("up");
    wait_for_no_problem(&mut agent, "is down");
    host.ip(["link", "delete", UPLINK]).unwrap();
    wait_for_problem(&mut agent, &["uplink", UPLINK, "is gone"]);
}

#[test]
fn the_exit_code_of_status_says_whether_something_is_wrong() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let status = || {
        let command = host.command(env!("CARGO_BIN_EXE_overlay-agent")).arg("status");
        command.arg("--socket").arg(host.agent_socket()).output().unwrap()
    };
    let output = status();
    assert_eq!(output.status.code(), Some(69), "nobody answers: {}", output.stderr);
    let _agent = host.start_agent(&options(&etcd)).unwrap();
    let output = status();
    assert_eq!(output.status.code(), Some(1), "there is no bridge: {}", output.stdout);
    assert!(output.stdout.contains("Problem: No bridge"), "{}", output.stdout);
    let _container = host.add_container("c").unwrap();
    eventually(SOON, "all to be well", || {
        let output = status();
        anyhow::ensure!(output.status.code() == Some(0), "{}", output.stdout);
        anyhow::ensure!(output.stdout.starts_with("Everything is as it should be."));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_port_for_probes_that_is_taken_is_said_at_once() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let taken = host.namespace().within(|| Ok(TcpListener::bind(("0.0.0.0", PROBES))?)).unwrap();
    let output = options(&etcd).command(host).deadline(SOON).output().unwrap();
    assert_eq!(output.status.code(), Some(69), "{}", output.stderr);
    assert!(output.stderr.contains("health probes on 127.0.0.1:8471"), "{}", output.stderr);
    drop(taken);
}

#[test]
fn half_open_requests_cost_the_agent_neither_descriptors_nor_its_work() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let mut agent = host.start_agent(&options(&etcd)).unwrap();
    let pid = agent.process().pid();
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let before = descriptors();
    let half_open = host
        .namespace()
        .within(|| {
            let open = |_| {
                let mut stream = TcpStream::connect(("127.0.0.1", PROBES))?;
                stream.write_all(b"GET /healthz HTTP/1.1\r\n")?;
                Ok(stream)
            };
            (0..500).map(open).collect::<anyhow::Result<Vec<_>>>()
        })
        .unwrap();
    eventually(SOON, "no more than 64 connections", || {
        let now = descriptors();
        anyhow::ensure!(now <= before + 64 + 1, "{before} before, {now} now");
        Ok(())
    })
    .unwrap();
    assert_eq!(probe(host, "/healthz").unwrap().0, 200);
    eventually(SOON, "half-open requests to end", || {
        let now = descriptors();
        anyhow::ensure!(now <= before, "{before} before, {now} now");
        Ok(())
    })
    .unwrap();
    drop(half_open);
}

#[test]
fn an_agent_without_a_free_descriptor_takes_nothing_for_detached() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let mut agent = host.start_agent(&options(&etcd)).unwrap();
    let _container = host.add_container("c").unwrap();
    wait_for_no_problem(&mut agent, "bridge");
    let verifications = |status: &serde_json::Value| status["verifications"].as_u64().unwrap();
    let first = verifications(&agent.status().unwrap());
    let before = agent
        .wait_status(SOON, "another look", |status| {
            anyhow::ensure!(verifications(status) > first + 1, "none yet");
            Ok(())
        })
        .unwrap();
    let pid = agent.process().pid();
    let limit = |soft: &str| {
        let command = host.command("prlimit").arg("--pid").arg(pid.to_string());
        command.arg(format!("--nofile={soft}:")).run().unwrap();
    };
    limit("3");
    eventually(SOON, "the agent to say what it cannot look at", || {
        let log = agent.log()?;
        anyhow::ensure!(log.contains("ERROR bringing the kernel in step: "), "{log}");
        Ok(())
    })
    .unwrap();
    limit("1024");
    wait_for_no_problem(&mut agent, "in step");
    let after = agent.status().unwrap();
    assert_eq!(after["programs"], before["programs"]);
    assert_eq!(after["repairs"], before["repairs"]);
    let log = agent.log().unwrap();
    assert!(!log.contains("detached") && !log.contains("unpinned"), "{log}");
}

/// The moment in which an agent's host has another address is the one in which no connection of its own is any good.
#[test]
fn four_endpoints_that_do_not_answer_keep_no_question_waiting_while_the_address_changes() {
    let lab = Lab::builder().start().unwrap();
    let [host, other] = [lab.host(0), lab.host(1)];
    let etcd = Etcd::on_host(other).unwrap();
    etcd.put(&format!("{ETCD_PREFIX}/config"), NETWORK_CONFIG).unwrap();
    let silent = ["-A", "INPUT", "-p", "tcp", "--dport", "9001:9004", "-j", "DROP"];
    other.command("iptables").args(silent).run().unwrap();
    let address = other.address();
    let silent = (9001..=9004).map(|port| format!("http://{address}:{port}"));
    let endpoints: Vec<_> = [etcd.endpoint()].into_iter().chain(silent).collect();
    let mut agent = host.start_agent(&options_for(&endpoints.join(",")).any_address()).unwrap();
    let idle = Asking::start(host);
    std::thread::sleep(Duration::from_secs(1));
    let (idle, _) = idle.stop();

    let asking = Asking::start(host);
    etcd.freeze().unwrap();
    let new = "192.168.33.77";
    host.ip(["address", "del", &format!("{}/24", host.address()), "dev", UPLINK]).unwrap();
    host.ip(["address", "add", &format!("{new}/24"), "dev", UPLINK]).unwrap();
    // A dial of each endpoint takes five seconds.
    std::thread::sleep(Duration::from_secs(8));
    etcd.thaw().unwrap();
    agent
        .wait_status(SOON * 4, "the lease to name the new address", |status| {
            anyhow::ensure!(status["lease"]["public_ip"] == new, "{}", status["lease"]);
            Ok(())
        })
        .unwrap();
    let (longest, count) = asking.stop();
    println!("{count} answers, the longest in {longest:?}, idle in {idle:?}");
    assert!(longest < idle * 2 + Duration::from_millis(500), "{longest:?}, but {idle:?} when idle");
}
