//! Several endpoints, of which some do not answer.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use overlay_lease::{
    member::network::wait_for_config,
    store::{
        Store as _,
        etcd::{EtcdStore, Identity},
    },
};

use crate::{
    etcd::TestEtcd,
    support::{CONFIG, CONFIG_KEY, within},
};

#[tokio::test]
async fn an_endpoint_that_is_down_is_passed_over() {
    let etcd = TestEtcd::start().await;
    etcd.client().await.put(CONFIG_KEY, CONFIG, None).await.unwrap();
    for position in [0, 1] {
        let mut config = etcd.config();
        config.endpoints.insert(position, "http://127.0.0.1:1".to_owned());
        let store = EtcdStore::new(&config).unwrap();
        within(wait_for_config(&store)).await.unwrap();
    }
}

/// As of members whose machines are gone: three of them would take 15 s one after the other.
#[tokio::test]
async fn endpoints_that_say_nothing_do_not_keep_us_from_the_one_that_answers() {
    let etcd = TestEtcd::start().await;
    etcd.client().await.put(CONFIG_KEY, CONFIG, None).await.unwrap();
    let silent: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let silent = silent.iter().map(|socket| format!("http://{}", socket.local_addr().unwrap()));
    let silent: Vec<_> = silent.collect();
    // Which of them is the first is by chance.
    for position in [0, 1, 2, 3, 0, 1, 2, 3] {
        let mut config = etcd.config();
        config.endpoints.extend(silent.clone());
        config.endpoints.swap(0, position);
        let store = EtcdStore::new(&config).unwrap();
        let start = Instant::now();
        within(wait_for_config(&store)).await.unwrap();
        assert!(start.elapsed() < Duration::from_millis(4500), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn when_no_endpoint_answers_each_is_named_with_its_reason() {
    let etcd = TestEtcd::start().await;
    let mut config = etcd.config();
    config.endpoints = vec!["http://127.0.0.1:1".to_owned()];
    let error = EtcdStore::new(&config).unwrap().get(CONFIG_KEY).await.unwrap_err();
    let text = error.to_string();
    assert_eq!(
        text,
        "cannot read /coreos.com/network/config: no etcd endpoint answers (http://127.0.0.1:1: \
         Connection refused (os error 111))"
    );
}

#[tokio::test]
async fn files_for_tls_are_read_only_where_an_endpoint_wants_tls() {
    let etcd = TestEtcd::start().await;
    etcd.client().await.put(CONFIG_KEY, CONFIG, None).await.unwrap();
    let mut config = etcd.config();
    config.ca_file = Some("/nope/ca.pem".into());
    let cert_file = "/nope/cert.pem".into();
    config.identity = Some(Identity { cert_file, key_file: "/nope/key.pem".into() });
    within(wait_for_config(&EtcdStore::new(&config).unwrap())).await.unwrap();

    // Without a scheme, files mean TLS; and without files, it is not.
    let bare = etcd.endpoint().replace("http://", "");
    for endpoint in ["https://127.0.0.1:1", &bare] {
        config.endpoints = vec![etcd.endpoint(), endpoint.to_owned()];
        let error = EtcdStore::new(&config).unwrap_err();
        assert!(format!("{error:#}").contains("/nope/ca.pem: No such file"), "{error:#}");
    }
    let mut config = etcd.config();
    config.endpoints = vec![bare];
    within(wait_for_config(&EtcdStore::new(&config).unwrap())).await.unwrap();
}
