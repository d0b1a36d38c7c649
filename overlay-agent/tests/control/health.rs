//! Health that tells the truth, from the first moment on.

use std::{net::TcpListener, time::Duration};

use xtask::lab::{AgentOptions, ETCD_PREFIX, Lab, NETWORK_CONFIG, UPLINK, eventually};

use crate::support::{PROBES, SOON, options, probe, wait_for_no_problem, wait_for_problem};

#[test]
fn an_agent_says_what_it_waits_for_until_it_is_ready() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let mut etcd = xtask::lab::Etcd::on_host(host).unwrap();
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
