//! `reference/flannel.md`, 2: the network config.

use overlay_lease::member::network::wait_for_config;

use crate::{
    etcd::TestEtcd,
    support::{CONFIG, CONFIG_KEY, within},
};

#[tokio::test]
async fn a_config_that_comes_late_is_waited_for() {
    let etcd = TestEtcd::start().await;
    let store = etcd.store();
    let waiting = tokio::spawn(async move { wait_for_config(&store).await });
    let mut client = etcd.client().await;
    client.put("/coreos.com/network/other", "{}", None).await.unwrap();
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    client.put(CONFIG_KEY, CONFIG, None).await.unwrap();
    let stored = within(waiting).await.unwrap().unwrap();
    assert_eq!(stored.config.network.to_string(), "10.5.0.0/16");
}

#[tokio::test]
async fn a_malformed_config_is_an_error_that_names_key_field_and_rule() {
    let etcd = TestEtcd::start().await;
    let text = r#"{"Network":"10.5.0.0/16","SubnetLen":31}"#;
    etcd.client().await.put(CONFIG_KEY, text, None).await.unwrap();
    let error = within(wait_for_config(&etcd.store())).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the network config at /coreos.com/network/config is malformed: SubnetLen must be at most 30, \
         so that a host has room for containers, but is 31"
    );
}

/// The rows of the section's table: what a config that is as short as can be means.
#[tokio::test]
async fn what_is_left_out_has_flannels_default() {
    let etcd = TestEtcd::start().await;
    for (text, expected) in [
        (r#"{"Network":"10.3.0.0/16"}"#, "10.3.0.0/16 24 10.3.1.0 10.3.255.0 1 8472"),
        (r#"{"network":"10.3.0.7/16"}"#, "10.3.0.0/16 24 10.3.1.0 10.3.255.0 1 8472"),
        (r#"{"Network":"10.3.0.0/23"}"#, "10.3.0.0/23 25 10.3.0.128 10.3.1.128 1 8472"),
        (r#"{"Network":"10.3.0.0/28"}"#, "10.3.0.0/28 30 10.3.0.4 10.3.0.12 1 8472"),
        (
            r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0",
                "Backend":{"Type":"vxlan","VNI":7,"Port":4789}}"#,
            "10.0.0.0/8 20 10.10.0.0 10.99.0.0 7 4789",
        ),
    ] {
        etcd.client().await.put(CONFIG_KEY, text, None).await.unwrap();
        let config = within(wait_for_config(&etcd.store())).await.unwrap().config;
        let (min, max) = (config.subnet_min, config.subnet_max);
        let found = format!(
            "{} {} {min} {max} {} {}",
            config.network,
            config.subnet_len,
            config.vni.get(),
            config.port
        );
        assert_eq!(found, expected, "{text}");
    }
}

/// Each violated rule has a line of its own, which names the field.
#[tokio::test]
async fn every_violated_rule_is_named() {
    let etcd = TestEtcd::start().await;
    for (text, field) in [
        ("{", "JSON"),
        ("{}", "Network"),
        (r#"{"Network":"10.3.0.0/29"}"#, "Network"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":17}"#, "SubnetLen"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":31}"#, "SubnetLen"),
        (r#"{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0"}"#, "SubnetMin"),
        (r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.0.1"}"#, "SubnetMin"),
        (r#"{"Network":"10.3.0.0/16","SubnetMax":"10.4.0.0"}"#, "SubnetMax"),
        (r#"{"Network":"10.3.0.0/16","EnableIPv4":false}"#, "EnableIPv4"),
        (r#"{"Network":"10.3.0.0/16","EnableIPv6":true}"#, "EnableIPv6"),
        (r#"{"Network":"10.3.0.0/16","Backend":{}}"#, "Backend.Type"),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"host-gw"}}"#, "Backend.Type"),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#, "Backend.VNI"),
        (r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan","Port":65536}}"#, "Backend.Port"),
    ] {
        etcd.client().await.put(CONFIG_KEY, text, None).await.unwrap();
        let error = within(wait_for_config(&etcd.store())).await.unwrap_err().to_string();
        assert!(error.contains(field) && !error.contains('\n'), "{text}: {error}");
    }
}
