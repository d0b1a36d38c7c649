//! `reference/flannel.md`, 2: the network config.

use overlay_lab::corpus;
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

/// The rows of the section's table are in the corpus: what a config means that is as short as can be, and for each violated
/// rule a line of its own.
#[tokio::test]
async fn every_config_that_ever_was_trouble_is_waited_for_or_named_with_its_fault() {
    let etcd = TestEtcd::start().await;
    for case in corpus::read("configs").unwrap() {
        etcd.client().await.put(CONFIG_KEY, case.body.as_str(), None).await.unwrap();
        let found = within(wait_for_config(&etcd.store())).await;
        match (case.verdict().unwrap(), found) {
            (("means", means), Ok(stored)) => {
                let network = stored.config.network.to_string();
                assert_eq!(means.split(',').next(), Some(network.as_str()), "{}", case.name);
            }
            (("refused", reason), Err(error)) => {
                let said = error.to_string();
                assert!(said.ends_with(reason) && !said.contains('\n'), "{}: {said}", case.name);
            }
            (_, found) => panic!("{}: {found:?}", case.name),
        }
    }
}
