//! The agent itself, as far as it gets with bad input.

use std::process::{Output, Stdio};

use tokio::process::Command;

use crate::{
    etcd::TestEtcd,
    support::{CONFIG, CONFIG_KEY, within},
};

/// Runs the agent to its end, with nothing in its environment.
async fn agent(etcd: &TestEtcd, args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let endpoint = etcd.endpoint();
    // No two agents share a pin path or a socket, not even for as long as it takes to fail.
    let port = endpoint.rsplit(':').next().unwrap();
    let agent = Command::new(env!("CARGO_BIN_EXE_overlay-agent"))
        .args(["run", "--etcd-endpoints", &endpoint])
        .args(["--pin-path", &format!("/sys/fs/bpf/overlay-store-{port}")])
        .arg("--socket")
        .arg(dir.path().join("agent.sock"))
        .arg("--subnet-file")
        .arg(dir.path().join("subnet.env"))
        .args(args)
        .env_clear()
        .env("RUST_LOG", "off")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = within(agent).await.unwrap();
    let left: Vec<_> = dir.path().read_dir().unwrap().collect();
    assert!(left.is_empty(), "the agent has left {left:?}");
    output
}

#[tokio::test]
async fn a_config_beyond_the_agent_ends_it_with_one_line_and_its_own_code() {
    let etcd = TestEtcd::start().await;
    let text = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;
    etcd.client().await.put(CONFIG_KEY, text, None).await.unwrap();
    let output = agent(&etcd, &["--iface", "lo"]).await;
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "error: the network config at /coreos.com/network/config is malformed: Backend.Type is \"udp\", \
         which tunnels packets through a user-space process: it must be \"vxlan\"\n"
    );
}

#[tokio::test]
async fn a_loopback_interface_is_refused_by_name_address_and_expression() {
    let etcd = TestEtcd::start().await;
    etcd.client().await.put(CONFIG_KEY, CONFIG, None).await.unwrap();
    for flag in ["--iface=lo", "-iface=127.0.0.1", "--iface-regex=^lo$"] {
        let output = agent(&etcd, &[flag]).await;
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(line.contains("other hosts cannot reach lo at a loopback address"), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}

#[tokio::test]
async fn an_interface_that_does_not_exist_is_an_error_of_usage() {
    let etcd = TestEtcd::start().await;
    etcd.client().await.put(CONFIG_KEY, CONFIG, None).await.unwrap();
    let output = agent(&etcd, &["--iface", "none-such"]).await;
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        line.contains("no interface is usable for --iface none-such; there are lo ("),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1, "{line}");
}
