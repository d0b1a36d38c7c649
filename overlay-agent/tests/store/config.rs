//! Waiting for the network config.

use overlay_agent::store::{Etcd, config::wait_for_config};

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

#[tokio::test]
async fn an_endpoint_that_is_down_is_passed_over() {
    let etcd = TestEtcd::start().await;
    etcd.client().await.put(CONFIG_KEY, CONFIG, None).await.unwrap();
    for position in [0, 1] {
        let mut config = etcd.config();
        config.endpoints.insert(position, "http://127.0.0.1:1".to_owned());
        let store = Etcd::new(&config).unwrap();
        within(wait_for_config(&store)).await.unwrap();
    }
}

#[tokio::test]
async fn when_no_endpoint_answers_each_is_named_with_its_reason() {
    let etcd = TestEtcd::start().await;
    let mut config = etcd.config();
    config.endpoints = vec!["http://127.0.0.1:1".to_owned()];
    let error = Etcd::new(&config).unwrap().get(CONFIG_KEY).await.unwrap_err();
    let text = error.to_string();
    assert_eq!(
        text,
        "cannot read /coreos.com/network/config: no etcd endpoint answers (http://127.0.0.1:1: \
         Connection refused (os error 111))"
    );
}
