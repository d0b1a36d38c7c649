//! `overlay-agent config` and `overlay-agent lease`, as an operator types them.

use std::{
    net::Ipv4Addr,
    process::{Output, Stdio},
};

use overlay_lease::{member::request::LeaseOrigin, store::Store as _, wire::value::LeaseValue};
use serde_json::Value;
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::{
    etcd::TestEtcd,
    support::{
        CONFIG, CONFIG_KEY, Followed, LeaseUpdate, World, key, lease, request, subnet, value,
        within,
    },
};

/// Types a command, with `input` on its standard input and the endpoint in its environment.
async fn overlay(etcd: &TestEtcd, input: &str, args: &[&str]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_overlay-agent"))
        .args(args)
        .env_clear()
        .env("OVERLAY_ETCD_ENDPOINTS", etcd.endpoint())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // A command that reads nothing may have ended by now.
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.ok();
    within(child.wait_with_output()).await.unwrap()
}

/// A command that must end with `code`; returns what it printed, to stdout if it did as asked.
async fn ends(etcd: &TestEtcd, code: i32, input: &str, args: &[&str]) -> String {
    let output = overlay(etcd, input, args).await;
    let (out, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{args:?}: {out}{errors}");
    if code == 0 {
        return out.into_owned();
    }
    assert!(out.is_empty(), "{out}");
    let lines: Vec<_> = errors.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{errors}");
    lines[0].to_owned()
}

#[tokio::test]
async fn a_config_is_checked_without_any_etcd() {
    let mut etcd = TestEtcd::start().await;
    etcd.kill();
    let out = ends(&etcd, 0, CONFIG, &["config", "check", "-"]).await;
    assert!(out.starts_with("Network 10.5.0.0/16, room for 255 hosts with a /24 each"), "{out}");
    let error = ends(&etcd, 78, r#"{"Network":"10.5.0.0"}"#, &["config", "check", "-"]).await;
    assert!(error.contains("in standard input is malformed: Network must be an IPv4"), "{error}");
    let udp = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}"#;
    let error = ends(&etcd, 78, udp, &["config", "check", "-"]).await;
    assert!(error.contains(r#"Backend.Type is "udp", which tunnels packets through"#), "{error}");
    let error = ends(&etcd, 66, "", &["config", "check", "/none/such"]).await;
    assert!(error.contains("cannot read /none/such: No such file"), "{error}");
}

#[tokio::test]
async fn a_config_is_set_and_read_back_and_nothing_malformed_is_ever_written() {
    let etcd = TestEtcd::start().await;
    let error = ends(&etcd, 66, "", &["config", "get"]).await;
    assert_eq!(error, format!("error: there is no network config at {CONFIG_KEY}"));
    ends(&etcd, 78, "{", &["config", "set", "-"]).await;
    ends(&etcd, 66, "", &["config", "get"]).await;

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    std::fs::write(&file, format!("{CONFIG}\n")).unwrap();
    let out = ends(&etcd, 0, "", &["config", "set", file.to_str().unwrap()]).await;
    assert!(out.starts_with("/coreos.com/network/config is set: Network 10.5.0.0/16"), "{out}");
    assert_eq!(ends(&etcd, 0, "", &["config", "get"]).await, format!("{CONFIG}\n"));
    let mut client = etcd.client().await;
    let kv = client.get(CONFIG_KEY, None).await.unwrap().take_kvs().pop().unwrap();
    assert_eq!(kv.value_str().unwrap(), CONFIG, "the file's last line break is not written");
}

#[tokio::test]
async fn a_config_that_would_strand_a_lease_or_part_hosts_needs_force() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.77.0-24", &value(1)).await;
    let narrow = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.0","Backend":{"Type":"vxlan"}}"#;
    let error = ends(&world.etcd, 73, narrow, &["config", "set", "-"]).await;
    assert!(error.contains("1 lease would not be allowed any more"), "{error}");
    assert!(error.ends_with("10.5.77.0/24; --force writes it"), "{error}");
    let other = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}"#;
    let error = ends(&world.etcd, 73, other, &["config", "set", "-"]).await;
    assert!(error.contains("Backend.VNI 1 becomes 7"), "{error}");
    assert_eq!(ends(&world.etcd, 0, "", &["config", "get"]).await, format!("{CONFIG}\n"));
    ends(&world.etcd, 0, narrow, &["config", "set", "--force", "-"]).await;
    assert_eq!(ends(&world.etcd, 0, "", &["config", "get"]).await, format!("{narrow}\n"));
}

#[tokio::test]
async fn without_an_etcd_a_command_ends_and_says_which_endpoint_does_not_answer() {
    let mut etcd = TestEtcd::start().await;
    etcd.kill();
    for args in [&["config", "get"][..], &["lease", "list"], &["lease", "show", "10.5.1.0/24"]] {
        let error = ends(&etcd, 69, "", args).await;
        assert!(error.contains(&etcd.endpoint()) && error.contains("refused"), "{error}");
    }
}

#[tokio::test]
async fn leases_are_listed_with_what_is_none_and_why() {
    let mut world = World::new(CONFIG).await;
    assert_eq!(ends(&world.etcd, 0, "", &["lease", "list"]).await, "There are no leases.\n");
    world.put_with_ttl("10.5.1.0-24", &value(1), 1000).await;
    world.put("10.5.2.0-24", &value(2)).await;
    world.put("10.5.3.0-24", "nonsense").await;
    let text = ends(&world.etcd, 0, "", &["lease", "list"]).await;
    assert!(text.contains("of 192.0.2.1") && text.ends_with("3 in all\n"), "{text}");

    let json = ends(&world.etcd, 0, "", &["lease", "list", "--output", "json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["subnet"], "10.5.1.0/24");
    assert_eq!(json[0]["public_ip"], "192.0.2.1");
    assert_eq!(json[0]["vtep_mac"], "02:00:00:00:00:01");
    assert_eq!(json[0]["reserved"], false);
    assert_eq!(json[1]["reserved"], true);
    assert!(json[2]["problem"].as_str().unwrap().contains("not valid JSON"), "{json}");

    let json =
        ends(&world.etcd, 0, "", &["lease", "show", "10.5.1.0/24", "--output", "json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["ttl"], 1000);
    assert_eq!(json["key"], key("10.5.1.0-24"));
    let error = ends(&world.etcd, 66, "", &["lease", "show", "10.5.9.0/24"]).await;
    assert!(error.contains("there is no lease of 10.5.9.0/24"), "{error}");
    ends(&world.etcd, 64, "", &["lease", "show", "10.5.1.7/24"]).await;
}

#[tokio::test]
async fn a_lease_becomes_a_reservation_byte_for_byte_and_survives_its_ttl() {
    let mut world = World::new(CONFIG).await;
    let foreign = value(1).replacen('{', r#"{"Extra":1,"#, 1);
    let id = world.put_with_ttl("10.5.1.0-24", &foreign, 1000).await;
    let out = ends(&world.etcd, 0, "", &["lease", "reserve", "10.5.1.0/24"]).await;
    assert!(out.contains("does not expire any more"), "{out}");
    world.client.lease_revoke(id).await.unwrap();
    let kv = world.get("10.5.1.0-24").await.unwrap();
    assert_eq!((kv.value_str().unwrap(), kv.lease()), (foreign.as_str(), 0));
    let out = ends(&world.etcd, 0, "", &["lease", "reserve", "10.5.1.0/24"]).await;
    assert!(out.contains("already"), "{out}");
}

#[tokio::test]
async fn a_free_subnet_is_reserved_for_a_host_that_then_takes_it() {
    let mut world = World::new(CONFIG).await;
    let reserve = ["lease", "reserve", "10.5.7.0/24", "--public-ip", "192.0.2.1"];
    ends(&world.etcd, 64, "", &reserve[..3]).await;
    ends(&world.etcd, 0, "", &reserve).await;
    let kv = world.get("10.5.7.0-24").await.unwrap();
    assert_eq!(kv.lease(), 0);
    let value = LeaseValue::decode(kv.value()).unwrap();
    assert_eq!(value.public_ip, Ipv4Addr::new(192, 0, 2, 1));
    assert_eq!(value.encode(), kv.value(), "as any host would have written it");

    let acquired = world.acquire(&request(1)).await;
    assert_eq!(acquired.lease.subnet, subnet("10.5.7.0/24"));
    assert_eq!((acquired.etcd_lease, acquired.origin), (None, LeaseOrigin::PublicIp));
}

#[tokio::test]
async fn a_reservation_that_cannot_be_is_refused_and_nothing_is_written() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.4.0-22", &value(4)).await;
    for (subnet, ip, reason) in [
        ("10.6.1.0/24", "192.0.2.1", "the network config does not allow 10.6.1.0/24"),
        ("10.5.6.0/24", "192.0.2.1", "overlaps /coreos.com/network/subnets/10.5.4.0-22"),
        ("10.5.9.0/24", "192.0.2.4", "192.0.2.4 has a lease already, 10.5.4.0/22"),
        ("10.5.4.0/22", "192.0.2.1", "10.5.4.0/22 is leased to 192.0.2.4"),
    ] {
        let args = ["lease", "reserve", subnet, "--public-ip", ip];
        let error = ends(&world.etcd, 73, "", &args).await;
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(world.store.list().await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_released_lease_is_gone_for_everybody_at_once() {
    use overlay_lease::member::follow::Follower;
    let mut world = World::new(CONFIG).await;
    let id = world.put_with_ttl("10.5.1.0-24", &value(1), 1000).await;
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    assert_eq!(followed.snapshot().await, [lease("10.5.1.0/24", 1)]);
    let out = ends(&world.etcd, 0, "", &["lease", "release", "10.5.1.0/24"]).await;
    assert!(out.starts_with("10.5.1.0/24 of 192.0.2.1 is released"), "{out}");
    assert_eq!(followed.next().await, LeaseUpdate::Removed(subnet("10.5.1.0/24")));
    assert!(!world.etcd_leases().await.contains(&id), "its etcd lease does not linger");
    ends(&world.etcd, 66, "", &["lease", "release", "10.5.1.0/24"]).await;
}
