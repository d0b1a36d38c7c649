//! What operators do with a store.

use overlay_lease::{
    config::NetworkConfig,
    store::{
        Store as _, StoreError,
        operate::{OperateError, Reserved, find, give_back, release, reserve, set_config},
    },
    wire::value::LeaseValue,
};

use crate::site::{Site, address, mac, subnet};

/// Hosts may not write, and neither may whoever uses their command line.
fn is_refused<T>(outcome: &Result<T, OperateError>) -> bool {
    matches!(outcome, Err(OperateError::Store(StoreError::ReadOnly { .. })))
}

pub(crate) async fn a_subnet_is_reserved_and_released<S: Site>() {
    let mut site = S::start().await;
    site.put("10.5.1.0/24", 1).await;
    let store = site.store();
    let there = subnet("10.5.1.0/24");
    assert_eq!(reserve(store, there, None).await.unwrap(), Reserved::Already(address(1)));
    let error = reserve(store, there, Some(address(2))).await.unwrap_err();
    assert!(matches!(error, OperateError::Leased { .. }), "{error:?}");
    let error = give_back(store, there, mac(2)).await.unwrap_err();
    assert!(matches!(error, OperateError::AnothersLease(_)), "{error:?}");

    let free = subnet("10.5.2.0/24");
    assert!(matches!(find(store, free).await, Err(OperateError::NoLease { .. })));
    assert!(matches!(reserve(store, free, None).await, Err(OperateError::Nobody)));
    let reserved = reserve(store, free, Some(address(2))).await;
    if !S::IS_WRITABLE {
        assert!(is_refused(&reserved));
        assert!(is_refused(&release(store, there).await));
        assert!(is_refused(&give_back(store, there, mac(1)).await));
        return;
    }
    assert_eq!(reserved.unwrap(), Reserved::Free(address(2)));
    let value = LeaseValue::decode(&site.lease("10.5.2.0/24").await.value).unwrap();
    assert_eq!(value.public_ip, address(2));
    let released = release(store, free).await.unwrap();
    assert_eq!((released.key, released.owner), (site.key("10.5.2.0/24"), Some(address(2))));
    give_back(store, there, mac(1)).await.unwrap();
    assert_eq!(store.list().await.unwrap().entries, []);
}

pub(crate) async fn a_config_that_does_harm_is_not_written<S: Site>() {
    let mut site = S::start().await;
    site.put("10.5.77.0/24", 1).await;
    let store = site.store();
    let key = store.prefix().config_key();
    let before = store.get(&key).await.unwrap();
    let narrow = br#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.0","Backend":{"Type":"vxlan"}}"#;
    let config = NetworkConfig::parse(narrow).unwrap().config;
    let error = set_config(store, narrow, &config, false).await.unwrap_err();
    assert!(matches!(error, OperateError::Harmful { .. }), "{error:?}");
    assert_eq!(store.get(&key).await.unwrap(), before);
    let forced = set_config(store, narrow, &config, true).await;
    if !S::IS_WRITABLE {
        assert!(is_refused(&forced));
        return;
    }
    forced.unwrap();
    assert_eq!(store.get(&key).await.unwrap().unwrap().value, narrow);
}
