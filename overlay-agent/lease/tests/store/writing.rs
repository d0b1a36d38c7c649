//! Every write is conditional.

use std::time::Duration;

use overlay_lease::store::{Change, Created, Revision, Store as _, StoreError};

use crate::site::{CONFIG, Site, assert_refused, changes, config, subnet, value, within};

const TTL: Duration = Duration::from_secs(2);

pub(crate) async fn a_subnet_is_created_once_and_never_over_another<S: Site>() {
    let mut site = S::start().await;
    site.put("10.5.8.0/22", 8).await;
    let before = site.store().list().await.unwrap();
    let create = async |site: &S, name: &str| {
        site.store().create_if_free(subnet(name), &value(name, 1), None, None).await
    };
    if !S::IS_WRITABLE {
        assert_refused(create(&site, "10.5.1.0/24").await);
        assert_eq!(site.store().list().await.unwrap(), before);
        return;
    }
    let Created::At(revision) = create(&site, "10.5.1.0/24").await.unwrap() else {
        panic!("it was free")
    };
    let entry = site.lease("10.5.1.0/24").await;
    assert_eq!((entry.create_revision, entry.mod_revision), (revision, revision));
    assert_eq!((&entry.value, entry.etcd_lease), (&value("10.5.1.0/24", 1), None));
    let larger = site.lease("10.5.8.0/22").await;
    for (name, obstacle) in [
        ("10.5.1.0/24", &entry),
        ("10.5.1.128/25", &entry),
        ("10.5.0.0/23", &entry),
        ("10.5.10.0/24", &larger),
    ] {
        let refused = create(&site, name).await.unwrap();
        assert_eq!(refused, Created::Refused(vec![obstacle.clone()]), "{name}");
    }
    let beside = create(&site, "10.5.12.0/24").await.unwrap();
    assert!(matches!(beside, Created::At(_)), "{beside:?}");
}

pub(crate) async fn a_subnet_is_not_created_under_another_config<S: Site>() {
    let mut site = S::start().await;
    let key = site.store().prefix().config_key();
    let old = site.store().get(&key).await.unwrap().unwrap().mod_revision;
    site.set_mtu(1400).await;
    let new = site.store().get(&key).await.unwrap().unwrap().mod_revision;
    let name = "10.5.1.0/24";
    let create = async |config| {
        site.store().create_if_free(subnet(name), &value(name, 1), None, Some(config)).await
    };
    if !S::IS_WRITABLE {
        return assert_refused(create(new).await);
    }
    assert_eq!(create(old).await.unwrap(), Created::Refused(Vec::new()));
    assert!(matches!(create(new).await.unwrap(), Created::At(_)));
}

pub(crate) async fn what_has_changed_is_neither_replaced_nor_deleted<S: Site>() {
    let mut site = S::start().await;
    site.put("10.5.1.0/24", 1).await;
    let old = site.lease("10.5.1.0/24").await;
    site.put("10.5.1.0/24", 2).await;
    let new = site.lease("10.5.1.0/24").await;
    let (store, wanted) = (site.store(), value("10.5.1.0/24", 3));
    let replace =
        async |revision| store.replace_if_unchanged(&old.key, revision, &wanted, None).await;
    let delete = async |revision| store.delete_if_unchanged(&old.key, revision).await;
    if !S::IS_WRITABLE {
        assert_refused(replace(new.mod_revision).await);
        assert_refused(delete(new.mod_revision).await);
        assert_eq!(site.lease("10.5.1.0/24").await, new);
        return;
    }
    for revision in [Revision::NONE, old.mod_revision] {
        assert_eq!(replace(revision).await.unwrap(), None);
        assert_eq!(delete(revision).await.unwrap(), None);
    }
    assert_eq!(site.lease("10.5.1.0/24").await, new);
    let revision = replace(new.mod_revision).await.unwrap().unwrap();
    let replaced = site.lease("10.5.1.0/24").await;
    assert_eq!((replaced.mod_revision, &replaced.value), (revision, &wanted));
    assert_eq!(replaced.create_revision, old.create_revision);
    assert!(delete(revision).await.unwrap().unwrap() > revision);
    assert_eq!(store.get(&site.key("10.5.1.0/24")).await.unwrap(), None);
    // What is not there is unchanged as long as it is not there.
    let created = replace(Revision::NONE).await.unwrap().unwrap();
    assert_eq!(site.lease("10.5.1.0/24").await.create_revision, created);
}

pub(crate) async fn a_config_is_written_where_nothing_has_changed<S: Site>() {
    let mut site = S::start().await;
    let key = site.store().prefix().config_key();
    let old = site.store().get(&key).await.unwrap().unwrap().mod_revision;
    let leases = site.store().list().await.unwrap().revision;
    let text = config(1400);
    let put = async |site: &S, config, leases| {
        site.store().put_config(text.as_bytes(), config, leases).await
    };
    if !S::IS_WRITABLE {
        return assert_refused(put(&site, old, leases).await);
    }
    assert!(!put(&site, Revision::NONE, leases).await.unwrap());
    site.put("10.5.1.0/24", 1).await;
    assert!(!put(&site, old, leases).await.unwrap(), "a lease was written since");
    assert_eq!(site.store().get(&key).await.unwrap().unwrap().value, CONFIG.as_bytes());
    let leases = site.store().list().await.unwrap().revision;
    assert!(put(&site, old, leases).await.unwrap());
    assert_eq!(site.store().get(&key).await.unwrap().unwrap().value, text.as_bytes());
    assert!(!put(&site, old, leases).await.unwrap(), "the config was written since");
}

pub(crate) async fn a_key_goes_with_what_it_hangs_on_unless_that_is_kept<S: Site>() {
    let site = S::start().await;
    let store = site.store();
    if !S::IS_WRITABLE {
        assert_refused(store.grant(TTL).await);
        assert!(!store.keep(1).await.unwrap());
        return;
    }
    let [kept, left] = [store.grant(TTL).await.unwrap(), store.grant(TTL).await.unwrap()];
    for (name, id) in [("10.5.1.0/24", kept), ("10.5.2.0/24", left)] {
        let created = store.create_if_free(subnet(name), &value(name, 1), Some(id), None).await;
        assert!(matches!(created.unwrap(), Created::At(_)), "{name}");
        assert_eq!(site.lease(name).await.etcd_lease, Some(id));
    }
    let lease = store.etcd_lease(kept).await.unwrap().unwrap();
    assert_eq!((lease.granted, lease.keys), (2, 1));
    let revision = store.list().await.unwrap().revision;
    let mut watch = store.watch(revision, false).await.unwrap();
    let told = async { changes(&mut watch, 1).await };
    let keep = async {
        loop {
            assert!(store.keep(kept).await.unwrap());
            tokio::time::sleep(TTL / 4).await;
        }
    };
    let told = tokio::select! {
        told = told => told,
        never = keep => never,
    };
    assert!(matches!(&told[..], [Change::Deleted { key, .. }]
        if *key == site.key("10.5.2.0/24").into_bytes()));
    assert!(!store.keep(left).await.unwrap());
    assert_eq!(store.etcd_lease(left).await.unwrap(), None);
    assert_eq!(site.lease("10.5.1.0/24").await.etcd_lease, Some(kept));
}

pub(crate) async fn what_no_key_hangs_on_is_given_back<S: Site>() {
    let site = S::start().await;
    let store = site.store();
    if !S::IS_WRITABLE {
        store.retire(1).await.unwrap();
        assert_eq!(store.etcd_lease(1).await.unwrap(), None);
        return;
    }
    let id = within(store.grant(Duration::from_secs(1000))).await.unwrap();
    let name = "10.5.1.0/24";
    store.create_if_free(subnet(name), &value(name, 1), Some(id), None).await.unwrap();
    store.retire(id).await.unwrap();
    let lease = store.etcd_lease(id).await.unwrap().unwrap();
    assert_eq!((lease.granted, lease.keys), (1000, 1));
    let entry = site.lease(name).await;
    store.delete_if_unchanged(&entry.key, entry.mod_revision).await.unwrap().unwrap();
    store.retire(id).await.unwrap();
    assert_eq!(store.etcd_lease(id).await.unwrap(), None);
    let created = store.create_if_free(subnet(name), b"{}", Some(id), None).await;
    assert!(matches!(created, Err(StoreError::Refused { .. })), "{created:?}");
}
