//! An etcd that lets each host write its own lease and nothing else, and the hosts that say which is whose.

use std::{sync::Arc, time::Duration};

use etcd_client::{Txn, TxnOp};
use overlay_agent::authority::{self, Newcomer, pki};
use overlay_lease::{
    member::{acquire::acquire, network::wait_for_config},
    store::{Store as _, StoreError, Watch as _, etcd::EtcdStore},
    wire::identity::{About, Applicant, CertificateRequest, HostId, encode},
};

use crate::{
    realm::{HOUR, Realm, place, serve, token_of},
    support::{CONFIG, CONFIG_KEY, request, until, within},
};

/// What etcd says to who may not.
fn assert_denied<T: std::fmt::Debug>(outcome: Result<T, impl std::fmt::Display>, what: &str) {
    let error = match outcome {
        Ok(done) => panic!("{what} was done: {done:?}"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains("permission denied"), "{what}: {error}");
}

#[tokio::test]
async fn a_stolen_certificate_writes_no_other_hosts_lease_and_reads_no_secret() {
    let realm = Realm::new().await;
    let (one, two) = (realm.host("web1").await, realm.host("web2").await);
    let mut leases = Vec::new();
    for ((_, store), number) in [(&one, 1), (&two, 2)] {
        let stored = within(wait_for_config(store)).await.unwrap();
        leases.push(within(acquire(store, &stored, &request(number))).await.unwrap().lease);
        assert!(store.list().await.unwrap().entries.len() >= leases.len());
    }
    let prefix = realm.root.prefix();
    let (own, other) = (prefix.subnet_key(leases[0].subnet), prefix.subnet_key(leases[1].subnet));

    let mut thief = realm.client("web1").await;
    thief.put(own.as_str(), leases[0].value().encode(), None).await.unwrap();
    assert_denied(thief.put(other.as_str(), "mine", None).await, "writing another's lease");
    assert_denied(thief.delete(other.as_str(), None).await, "deleting another's lease");
    assert_denied(
        thief.put(prefix.subnet_key("10.5.250.0/24".parse().unwrap()), "x", None).await,
        "a lease that was not asked for",
    );
    assert_denied(thief.put(CONFIG_KEY, "{}", None).await, "writing the network config");
    assert_denied(thief.put("/elsewhere", "x", None).await, "writing elsewhere");
    let in_txn = Txn::new().and_then([TxnOp::put(other.as_str(), "mine", None)]);
    assert_denied(thief.txn(in_txn).await, "writing in a transaction");
    let dirs =
        [prefix.join_dir(), prefix.authority_dir(), format!("{}{}/", prefix.hosts_dir(), two.0)];
    for dir in &dirs {
        let all = etcd_client::GetOptions::new().with_prefix();
        assert_denied(thief.get(dir.as_str(), Some(all)).await, dir);
        assert_denied(thief.put(format!("{dir}x"), "x", None).await, dir);
    }
    let everything = etcd_client::GetOptions::new().with_all_keys();
    assert_denied(thief.get("", Some(everything)).await, "reading everything");
    assert_denied(thief.user_list().await, "the list of users");
    assert_denied(thief.user_delete(two.0.user()).await, "deleting a user");
    assert_denied(thief.member_remove(1).await, "removing a member");
    assert_denied(
        thief.role_grant_permission(one.0.user(), etcd_client::Permission::read_write("/")).await,
        "more rights",
    );
    let lease = realm.root.get(&other).await.unwrap().unwrap().etcd_lease.unwrap();
    assert_denied(thief.lease_revoke(lease).await, "ending what another's lease hangs on");

    // Asking does not help: the subnet is its owner's.
    let written = one.1.replace_if_unchanged(
        other.as_bytes(),
        realm.root.get(&other).await.unwrap().unwrap().mod_revision,
        b"mine",
        None,
    );
    let error = within(written).await.unwrap_err().to_string();
    assert!(error.contains("10.5.") && error.contains("is another host's"), "{error}");
    // Nor does asking in another's name.
    let asker = Applicant::Host(two.0.clone());
    assert_denied(one.1.ask(&asker, About::Subnet, b"{}", None).await, "asking as another host");
}

#[tokio::test]
async fn a_host_that_was_expelled_hears_and_writes_nothing_within_a_second() {
    let realm = Realm::new().await;
    let (host, store) = realm.host("web1").await;
    let token = realm.token("token", false).await;
    let stored = within(wait_for_config(&store)).await.unwrap();
    let lease = within(acquire(&store, &stored, &request(1))).await.unwrap().lease;
    let key = store.prefix().subnet_key(lease.subnet);
    let listing = store.list().await.unwrap();
    let mut watch = store.watch(listing.revision, true).await.unwrap();
    // It hears what others do.
    realm.root.put(CONFIG_KEY, CONFIG.as_bytes(), None).await.unwrap();
    within(async { while watch.next().await.unwrap().changes.is_empty() {} }).await;

    let begun = std::time::Instant::now();
    authority::expel(&realm.root, &host).await.unwrap();
    let ended = async {
        loop {
            // Its own lease's end it may still hear.
            if let Err(ended) = watch.next().await {
                return ended.to_string();
            }
        }
    };
    let ended = within(ended).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}: {ended}");
    // Connections that are made while all end may end, too.
    until("reading is refused", async || {
        let read = realm.store(place(&realm.files, "web1")).get(CONFIG_KEY).await;
        read.unwrap_err().to_string().contains("permission denied")
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(realm.root.get(&key).await.unwrap(), None);
    assert_denied(store.watch(listing.revision, true).await.map(drop), "watching");
    let mut thief = realm.client("web1").await;
    assert_denied(thief.put(key.as_str(), "mine", None).await, "writing its lease");
    let denied = realm.certify(&token, "again", &HostId::new("web1")).await;
    assert_denied(denied, "coming again with a token of before");

    // The others have noticed nothing but that.
    let (_, other) = realm.host("web2").await;
    assert!(other.list().await.unwrap().entries.is_empty());
    assert!(realm.first().get(CONFIG_KEY).await.unwrap().is_some());
}

#[tokio::test]
async fn a_token_is_good_for_one_host_or_for_its_time_and_for_nothing_but_a_certificate() {
    let realm = Realm::new().await;
    let single = realm.token("single", true).await;
    let (one, two) = (HostId::new("web1"), HostId::new("web2"));
    realm.certify(&single, "web1", &one).await.unwrap();
    let refused = realm.certify(&single, "web2", &two).await.unwrap_err().to_string();
    assert!(refused.contains(&format!("good for one host, and {one} has it")), "{refused}");

    let many = realm.token("many", false).await;
    // Nobody becomes a host that is there, with whatever token.
    let refused = realm.certify(&many, "thief", &one).await.unwrap_err().to_string();
    assert!(refused.contains("there is a host web1-"), "{refused}");
    for name in ["web3", "web4"] {
        realm.certify(&many, name, &HostId::new(name)).await.unwrap();
    }
    let mut guest = realm.client("many").await;
    let subnet = realm.root.prefix().subnet_key("10.5.7.0/24".parse().unwrap());
    assert_denied(guest.put(subnet.as_str(), "x", None).await, "a lease with a token");
    assert_denied(guest.get(subnet.as_str(), None).await, "reading leases with a token");
    let dir = format!("{}{}/", realm.root.prefix().join_dir(), token_of(&single));
    assert_denied(guest.get(dir.as_str(), None).await, "reading what another token's hosts ask");

    // What is no request, or signed with another key, is refused with its reason.
    let asker = Applicant::Guest(token_of(&many), HostId::new("web5"));
    let question = encode(&CertificateRequest { csr: "nonsense".to_owned(), address: None });
    let refused = many.ask(&asker, About::Certificate, &question, None).await.unwrap_err();
    assert!(refused.to_string().contains("request for a certificate is malformed"), "{refused}");
    let refused = many.ask(&asker, About::Certificate, b"{", None).await.unwrap_err();
    assert!(refused.to_string().contains("the question is malformed"), "{refused}");
    let names: Vec<_> = authority::hosts(&realm.root)
        .await
        .unwrap()
        .into_iter()
        .map(|(host, _)| host.host_name().to_owned())
        .collect();
    assert_eq!(names, ["first", "web1", "web3", "web4"]);
}

#[tokio::test]
async fn a_subnet_passes_from_who_has_lost_it_to_who_takes_it_and_back_it_is_refused() {
    let realm = Realm::new().await;
    let (one, two) = (realm.host("web1").await, realm.host("web2").await);
    let subnet = "10.5.7.0/24".parse().unwrap();
    let key = realm.root.prefix().subnet_key(subnet);
    let take =
        async |store: &EtcdStore| within(store.create_if_free(subnet, b"{}", None, None)).await;
    take(&one.1).await.unwrap();
    assert!(matches!(take(&two.1).await, Err(StoreError::NotPermitted { .. })));
    let entry = realm.root.get(&key).await.unwrap().unwrap();
    realm.root.delete_if_unchanged(&entry.key, entry.mod_revision).await.unwrap().unwrap();
    // For a minute it waits for the one that was given it.
    assert!(matches!(take(&two.1).await, Err(StoreError::NotPermitted { .. })));
    let owner = format!("{}subnets/10.5.7.0-24", realm.root.prefix().authority_dir());
    let said = realm.root.get(&owner).await.unwrap().unwrap().value;
    let mut said: serde_json::Value = serde_json::from_slice(&said).unwrap();
    said["since"] = (said["since"].as_u64().unwrap() - 120).into();
    realm.root.put(&owner, said.to_string().as_bytes(), None).await.unwrap();
    take(&two.1).await.unwrap();
    let entry = realm.root.get(&key).await.unwrap().unwrap();
    let written = one.1.replace_if_unchanged(&entry.key, entry.mod_revision, b"mine", None);
    let refused = within(written).await.unwrap_err();
    assert!(refused.to_string().contains("is another host's"), "{refused}");

    // No host has more than two.
    for number in 10..12 {
        let subnet = format!("10.5.{number}.0/24").parse().unwrap();
        let taken = within(one.1.create_if_free(subnet, b"{}", None, None)).await;
        taken.unwrap();
    }
    let third = within(one.1.create_if_free("10.5.12.0/24".parse().unwrap(), b"{}", None, None));
    let refused = third.await.unwrap_err();
    assert!(refused.to_string().contains("has 2 leases already"), "{refused}");
}

#[tokio::test]
async fn many_hosts_that_come_at_once_are_all_let_in_and_each_has_a_lease() {
    let realm = Arc::new(Realm::new().await);
    // A second one that would answer, as with a second member.
    let second = serve(&realm.root, &realm.authority, &realm.etcd);
    let begun = std::time::Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 1..=20_u8 {
        let realm = Arc::clone(&realm);
        tasks.spawn(async move {
            let (_, store) = realm.host(&format!("web{number}")).await;
            let stored = within(wait_for_config(&store)).await.unwrap();
            within(acquire(&store, &stored, &request(number))).await.unwrap().lease.subnet
        });
    }
    let subnets: std::collections::BTreeSet<_> = tasks.join_all().await.into_iter().collect();
    println!("20 hosts have come in {:?}", begun.elapsed());
    assert_eq!(subnets.len(), 20);
    // Each may write its own and no other.
    let first = realm.client("web1").await;
    let mut refused = 0;
    for subnet in &subnets {
        let key = realm.root.prefix().subnet_key(*subnet);
        refused += usize::from(first.kv_client().put(key, "x", None).await.is_err());
    }
    assert_eq!(refused, 19);

    // The first one dies, and the second answers.
    realm.office.abort();
    Box::pin(within(realm.host("later"))).await;
    second.abort();
}

#[tokio::test]
async fn without_anybody_who_decides_a_host_says_so_and_goes_on_once_there_is_one() {
    let mut realm = Realm::new().await;
    let (_, store) = realm.host("web1").await;
    realm.office.abort();
    let subnet = "10.5.7.0/24".parse().unwrap();
    let error = within(store.create_if_free(subnet, b"{}", None, None)).await.unwrap_err();
    assert!(error.to_string().contains("no host with a share in etcd has answered"), "{error}");
    realm.office = serve(&realm.root, &realm.authority, &realm.etcd);
    until("the lease is there", async || {
        store.create_if_free(subnet, b"{}", None, None).await.is_ok()
    })
    .await;
}

/// It depends on etcd's release, and nobody but etcd can say it.
#[tokio::test]
async fn whether_etcd_keeps_to_its_roles_is_told_as_it_is() {
    let realm = Realm::new().await;
    let (_, store) = realm.host("web1").await;
    let secret = format!("{}chair", realm.root.prefix().authority_dir());
    let said = store.is_confined(&secret).await.unwrap();

    let mut thief = realm.client("web1").await;
    let inside = Txn::new().and_then([TxnOp::put("/elsewhere", "mine", None)]);
    let done = thief.txn(Txn::new().and_then([TxnOp::txn(inside)])).await.is_ok();
    assert_eq!(said, !done);
    assert!(!realm.root.is_confined(&secret).await.unwrap(), "root is confined by nothing");
}

/// Renewals have the key of before; whoever may write where a host asks, as all did by the certificate that they shared, gets no
/// certificate in its name.
#[tokio::test]
async fn nobody_gets_a_hosts_certificate_for_another_key() {
    let realm = Realm::new().await;
    let (host, store) = realm.host("web1").await;
    let ask = async |store: &EtcdStore, key: &str| {
        let csr = pki::request(key, &host.user()).unwrap();
        let question = encode(&CertificateRequest { csr, address: None });
        let asker = Applicant::Host(host.clone());
        within(store.ask(&asker, About::Certificate, &question, None)).await
    };
    let own = std::fs::read_to_string(place(&realm.files, "web1").key_file).unwrap();
    assert!(ask(&store, &own).await.unwrap().certificate.is_some());
    let refused = ask(&realm.root, &pki::new_key().unwrap()).await.unwrap_err().to_string();
    assert!(refused.contains("there is a host web1-"), "{refused}");
}

/// It is let in by nothing that was on its way when it was expelled.
#[tokio::test]
async fn a_host_that_asks_all_the_time_is_expelled_all_the_same() {
    let realm = Realm::new().await;
    for round in 0..5 {
        let (host, store) = realm.host(&format!("web{round}")).await;
        let key = place(&realm.files, &format!("web{round}")).key_file;
        let csr = pki::request(&std::fs::read_to_string(key).unwrap(), &host.user()).unwrap();
        let question = encode(&CertificateRequest { csr, address: None });
        let asker = Applicant::Host(host.clone());
        let request = asker.request_key(realm.root.prefix(), About::Certificate);
        let asking =
            tokio::spawn(
                async move { while store.put(&request, &question, None).await.is_ok() {} },
            );
        let answered = asker.answer_key(realm.root.prefix(), About::Certificate);
        until("it is answered", async || realm.root.get(&answered).await.unwrap().is_some()).await;
        let from = realm.root.list().await.unwrap().revision;
        let mut watch = realm.root.watch(from, false).await.unwrap();
        authority::expel(&realm.root, &host).await.unwrap();
        within(asking).await.unwrap();
        within(async { while watch.next().await.is_ok() {} }).await;
        until("etcd is reached again", async || realm.root.users().await.is_ok()).await;
        // Whatever it asked last has been seen, once somebody who asks later is answered.
        Box::pin(within(realm.host(&format!("other{round}")))).await;
        assert!(!realm.root.users().await.unwrap().contains(&host.user()), "in round {round}");
        let known = authority::hosts(&realm.root).await.unwrap();
        assert!(known.iter().all(|(other, _)| *other != host), "in round {round}");
    }
}

/// As above, step by step: whatever is done for a host while it is forgotten is undone.
#[tokio::test]
async fn who_is_let_in_while_he_is_forgotten_is_not_in_afterwards() {
    let realm = Realm::new().await;
    let made = realm.authority.client("overlay-host/web1-1", HOUR).unwrap();
    let newcomer = Newcomer {
        host: HostId::parse("web1-1").unwrap(),
        address: None,
        certificate: made.certificate,
    };
    let mut let_in = 0;
    for round in 0..60 {
        assert!(authority::admit(&realm.root, &newcomer).await.unwrap());
        // Another one of those who decide: through one connection things come one after the other.
        let (other, newcomer) = (realm.store(place(&realm.files, "root")), newcomer.clone());
        let host = newcomer.host.clone();
        let again = tokio::spawn(async move {
            let mut times = 0;
            while authority::readmit(&other, &newcomer).await.unwrap() {
                times += 1;
            }
            times
        });
        tokio::time::sleep(Duration::from_millis(round % 20)).await;
        authority::forget(&realm.root, &host).await.unwrap();
        let_in += within(again).await.unwrap();
        assert!(!realm.root.users().await.unwrap().contains(&host.user()), "in round {round}");
    }
    assert!(let_in > 0, "it was never let in meanwhile");
}

#[tokio::test]
async fn a_host_whose_leaving_was_interrupted_is_let_in_again_by_init() {
    let realm = Realm::new().await;
    let key = format!("{}hosts/first-1", realm.root.prefix().authority_dir());
    let record = realm.root.get(&key).await.unwrap().unwrap().value;
    let mut record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    record["leaving"] = true.into();
    realm.root.put(&key, record.to_string().as_bytes(), None).await.unwrap();
    realm.root.remove_user("overlay-host/first-1").await.unwrap();
    let made = std::fs::read_to_string(place(&realm.files, "first").cert_file).unwrap();
    let host = HostId::parse("first-1").unwrap();
    let own = Newcomer { host, address: None, certificate: made };
    assert!(!authority::admit(&realm.root, &own).await.unwrap());
    authority::establish(&realm.root, &own, None).await.unwrap();
    assert!(realm.first().get(CONFIG_KEY).await.unwrap().is_some());
}
