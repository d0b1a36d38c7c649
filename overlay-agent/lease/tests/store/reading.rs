//! Listing, looking back and watching.

use overlay_lease::{
    config::NetworkConfig,
    store::{Change, Entry, Revision, Store as _, StoreError, Watch as _, WatchEnded},
};

use crate::site::{CONFIG, Site, WritableSite, changes, config, lease, value, within};

pub(crate) async fn a_network_without_leases_has_a_config<S: Site>() {
    let mut site = S::start().await;
    let key = site.store().prefix().config_key();
    let read = async |site: &S| {
        let entry = site.store().get(&key).await.unwrap().unwrap();
        (NetworkConfig::parse(&entry.value).unwrap().config, entry.mod_revision)
    };
    let (before, written) = read(&site).await;
    assert_eq!(before, NetworkConfig::parse(CONFIG.as_bytes()).unwrap().config);
    assert_eq!(site.store().list().await.unwrap().entries, []);
    assert_eq!(site.store().get(&site.key("10.5.1.0/24")).await.unwrap(), None);
    site.set_mtu(1400).await;
    let (after, rewritten) = read(&site).await;
    assert_eq!(after, NetworkConfig::parse(config(1400).as_bytes()).unwrap().config);
    assert!(rewritten > written, "{rewritten} after {written}");
}

pub(crate) async fn leases_are_listed_in_order_and_know_their_revisions<S: Site>() {
    let mut site = S::start().await;
    let empty = site.store().list().await.unwrap();
    site.put("10.5.2.0/24", 2).await;
    site.put("10.5.1.0/24", 1).await;
    let listing = site.store().list().await.unwrap();
    let keys: Vec<_> = listing.entries.iter().map(Entry::name).collect();
    assert_eq!(keys, [site.key("10.5.1.0/24"), site.key("10.5.2.0/24")]);
    let [first, second] = &listing.entries[..] else { panic!("{listing:?}") };
    assert_eq!((&first.value, first.etcd_lease), (&lease("10.5.1.0/24", 1).value().encode(), None));
    assert_eq!(first.create_revision, first.mod_revision);
    assert!(second.mod_revision < first.mod_revision, "{listing:?}");
    assert!(empty.revision < second.mod_revision && first.mod_revision <= listing.revision);
    assert_eq!(empty.cluster, listing.cluster);

    site.put("10.5.2.0/24", 9).await;
    let rewritten = site.lease("10.5.2.0/24").await;
    assert_eq!(rewritten.create_revision, second.create_revision);
    assert!(rewritten.mod_revision > listing.revision, "{rewritten:?}");
    site.delete("10.5.2.0/24").await;
    site.put("10.5.2.0/24", 2).await;
    let created = site.lease("10.5.2.0/24").await;
    assert!(created.create_revision > rewritten.mod_revision, "it is another one: {created:?}");
}

pub(crate) async fn a_watch_tells_of_every_change_in_order<S: Site>() {
    let mut site = S::start().await;
    site.put("10.5.9.0/24", 9).await;
    let listing = site.store().list().await.unwrap();
    let mut watch = site.store().watch(listing.revision, false).await.unwrap();
    site.put("10.5.1.0/24", 1).await;
    let first = site.lease("10.5.1.0/24").await;
    site.put("10.5.1.0/24", 2).await;
    let second = site.lease("10.5.1.0/24").await;
    site.delete("10.5.1.0/24").await;
    let told = changes(&mut watch, 3).await;
    assert_eq!(told[..2], [Change::Put(first), Change::Put(second)]);
    let Change::Deleted { key, revision } = &told[2] else { panic!("{told:?}") };
    assert_eq!(*key, site.key("10.5.1.0/24").into_bytes());
    assert!(listing.revision < told[0].revision());
    assert!(told[0].revision() < told[1].revision() && told[1].revision() < *revision);
}

pub(crate) async fn a_watch_tells_what_was_missed<S: Site>() {
    let mut site = S::start().await;
    site.put("10.5.9.0/24", 9).await;
    let listing = site.store().list().await.unwrap();
    site.put("10.5.1.0/24", 1).await;
    site.delete("10.5.9.0/24").await;
    let mut watch = site.store().watch(listing.revision, false).await.unwrap();
    let told = changes(&mut watch, 2).await;
    assert_eq!(told[0], Change::Put(site.lease("10.5.1.0/24").await));
    assert_eq!(told[1].key(), site.key("10.5.9.0/24").as_bytes());
    // And nothing twice.
    let mut watch = site.store().watch(told[0].revision(), false).await.unwrap();
    assert_eq!(changes(&mut watch, 1).await, told[1..]);
    drop(watch);
    let mut watch = site.store().watch(told[1].revision(), false).await.unwrap();
    site.put("10.5.2.0/24", 2).await;
    let next = changes(&mut watch, 1).await;
    assert_eq!(next, [Change::Put(site.lease("10.5.2.0/24").await)]);
}

pub(crate) async fn a_watch_tells_of_the_config_whoever_wants_that<S: Site>() {
    let mut site = S::start().await;
    let key = site.store().prefix().config_key();
    let revision = site.store().list().await.unwrap().revision;
    let mut of_both = site.store().watch(revision, true).await.unwrap();
    let mut of_leases = site.store().watch(revision, false).await.unwrap();
    site.set_mtu(1400).await;
    let told = changes(&mut of_both, 1).await;
    assert_eq!(told, [Change::Put(site.store().get(&key).await.unwrap().unwrap())]);
    site.put("10.5.1.0/24", 1).await;
    let lease = [Change::Put(site.lease("10.5.1.0/24").await)];
    assert_eq!(changes(&mut of_both, 1).await, lease);
    assert_eq!(changes(&mut of_leases, 1).await, lease);
}

pub(crate) async fn the_past_of_a_key_is_what_it_was<S: Site>() {
    let mut site = S::start().await;
    let before = site.store().list().await.unwrap();
    site.put("10.5.1.0/24", 1).await;
    let first = site.lease("10.5.1.0/24").await.mod_revision;
    site.put("10.5.1.0/24", 2).await;
    let second = site.lease("10.5.1.0/24").await.mod_revision;
    site.delete("10.5.1.0/24").await;
    let end = site.store().list().await.unwrap().revision;
    let key = site.key("10.5.1.0/24");
    for (revision, written) in
        [(before.revision, None), (first, Some(first)), (second, Some(second)), (end, None)]
    {
        let past = site.store().past(&key, revision).await.unwrap();
        assert_eq!((past.written, past.latest), (written, end), "as of {revision}");
        assert_eq!(past.cluster, before.cluster);
    }
    let error = site.store().past(&key, Revision::new(end.number() + 1000)).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
    assert!(error.is_refusal());
}

pub(crate) async fn what_is_forgotten_is_not_watched<S: WritableSite>() {
    let mut site = S::start().await;
    site.put("10.5.1.0/24", 1).await;
    let old = site.store().list().await.unwrap();
    site.put("10.5.1.0/24", 2).await;
    site.put("10.5.2.0/24", 3).await;
    site.forget().await;
    let ended = match site.store().watch(old.revision, false).await {
        Ok(mut watch) => loop {
            match within(watch.next()).await {
                Ok(news) => assert_eq!(news.changes, []),
                Err(ended) => break ended,
            }
        },
        Err(error) => panic!("{error}"),
    };
    assert!(matches!(ended, WatchEnded::Compacted(_)), "{ended:?}");
    let error = site.store().past(&site.key("10.5.1.0/24"), old.revision).await.unwrap_err();
    assert!(error.is_refusal(), "{error}");
    let listing = site.store().list().await.unwrap();
    let values: Vec<_> = listing.entries.into_iter().map(|entry| entry.value).collect();
    assert_eq!(values, [value("10.5.1.0/24", 2), value("10.5.2.0/24", 3)]);
}
