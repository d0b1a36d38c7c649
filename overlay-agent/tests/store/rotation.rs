//! The authority is made another while hosts go on, and the old one is worth nothing then.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::anyhow;
use overlay_agent::{
    authority::{
        self, Seat, certificates,
        pki::{self, Authority, Credential},
    },
    control::identity,
};
use overlay_lease::{
    member::{acquire::acquire, network::wait_for_config},
    store::{
        Store as _,
        etcd::{EtcdConfig, EtcdStore, Identity},
    },
    wire::{
        identity::{HostId, encode},
        trust::{TrustOrder, order_key},
    },
};
use tempfile::TempDir;
use tokio::{sync::Mutex, task::JoinSet, time::timeout};

use crate::{
    etcd::{TestEtcd, Tls},
    realm::{HOUR, Realm, config, keep, place, serve_at},
    support::{CONFIG_KEY, request, within},
};

/// How long nothing happens where nothing is to.
const REFUSED_WITHIN: Duration = Duration::from_secs(1);

/// A host with a lease, and whom it trusts.
struct Tenant {
    id: HostId,
    store: EtcdStore,
    ca: PathBuf,
    shows: Identity,
}

impl Tenant {
    async fn new(realm: &Realm, name: &str, number: u8) -> Self {
        let (id, _) = realm.host(name).await;
        let ca = realm.files.path().join(format!("{name}-ca.pem"));
        std::fs::copy(realm.files.path().join("ca.pem"), &ca).unwrap();
        let shows = place(&realm.files, name);
        let store = EtcdStore::new(&config(&realm.etcd, ca.clone(), shows.clone())).unwrap();
        let stored = within(wait_for_config(&store)).await.unwrap();
        within(acquire(&store, &stored, &request(number))).await.unwrap();
        Self { id, store, ca, shows }
    }

    /// Whether it is one of this authority alone.
    fn is_of(&self, authority: &str) -> bool {
        let shown = std::fs::read_to_string(&self.shows.cert_file).unwrap();
        std::fs::read_to_string(&self.ca).unwrap() == authority
            && pki::is_signed_by(&shown, authority).unwrap()
    }
}

fn seat(realm: &Realm) -> Seat {
    let file = |name: &str| realm.files.path().join(name);
    std::fs::write(file("ca-key.pem"), &realm.authority.own().key).unwrap();
    Seat {
        ca: file("ca.pem"),
        ca_key: file("ca-key.pem"),
        next: file("next.pem"),
        at_home: config(&realm.etcd, file("ca.pem"), place(&realm.files, "root")),
    }
}

/// What a host with a share in etcd shows, of this authority.
fn shown_by(files: &TempDir, authority: &Authority) -> anyhow::Result<()> {
    let server = authority.server(&[Ipv4Addr::LOCALHOST.into()], HOUR)?;
    certificates::write(&place(files, "server"), &server)?;
    certificates::write(&place(files, "root"), &authority.root(HOUR)?).map(drop)
}

/// Fails as a host of the new authority does, with an etcd of the old one.
async fn assert_refuses_old_server(realm: &Realm, old: &Authority, tenant: &Tenant) {
    let folder = tempfile::tempdir().unwrap();
    let server = old.server(&[Ipv4Addr::LOCALHOST.into()], HOUR).unwrap();
    let server = keep(&folder, "server", &server);
    let root = keep(&folder, "root", &old.root(HOUR).unwrap());
    std::fs::write(folder.path().join("ca.pem"), &old.own().certificate).unwrap();
    let tls = Tls {
        ca: folder.path().join("ca.pem"),
        cert: server.cert_file,
        key: server.key_file,
        client: Some((root.cert_file, root.key_file)),
    };
    let forged = TestEtcd::start_with(folder, Some(tls)).await;
    let asks = EtcdConfig { endpoints: vec![forged.endpoint()], ..tenant.store.config().clone() };
    let error = EtcdStore::new(&asks).unwrap().get(CONFIG_KEY).await.unwrap_err().to_string();
    assert!(error.contains("another authority"), "{error}");
    assert!(realm.root.get(CONFIG_KEY).await.unwrap().is_some());
}

/// As somebody could who gets around etcd's roles, and has no authority's key.
async fn nobody_else_says_whom_to_trust(root: &EtcdStore, tenant: &Tenant, his: &Credential) {
    let before = std::fs::read_to_string(&tenant.ca).unwrap();
    let own = Authority::load(his.clone()).unwrap();
    let key = order_key(root.prefix(), &tenant.id);
    let theirs = before.clone();
    for (authorities, endorsement) in [
        (vec![his.certificate.clone()], own.endorse(his).unwrap()),
        (vec![theirs, his.certificate.clone()], "-".to_owned()),
        (vec![], String::new()),
    ] {
        let order = encode(&TrustOrder { authorities, endorsement });
        let listening = tokio::spawn(identity::keep(tenant.store.clone()));
        root.put(&key, &order, None).await.unwrap();
        let refused = timeout(REFUSED_WITHIN, async {
            while std::fs::read_to_string(&tenant.ca).unwrap() == before {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(refused.await.is_err(), "{}", std::fs::read_to_string(&tenant.ca).unwrap());
        listening.abort();
    }
    root.delete_below(&key).await.unwrap();
}

#[tokio::test]
async fn the_authority_is_made_another_and_the_old_key_is_worth_nothing() {
    Box::pin(rotate()).await;
}

async fn rotate() {
    let mut realm = Realm::new().await;
    let token = realm.token("token", false).await;
    let one = Tenant::new(&realm, "web1", 1).await;
    let two = Tenant::new(&realm, "web2", 2).await;
    let off = Tenant::new(&realm, "web3", 3).await;
    let mut agents = JoinSet::new();
    for tenant in [&one, &two] {
        agents.spawn(identity::keep(tenant.store.clone()));
    }
    let seat = seat(&realm);
    let (root, next_file) = (realm.root.clone(), seat.next.clone());
    let old = Authority::load(realm.authority.own().clone()).unwrap();
    let new = Authority::new(HOUR).unwrap();
    let port = realm.etcd.endpoint().rsplit_once(':').unwrap().1.parse().unwrap();
    nobody_else_says_whom_to_trust(&root, &one, new.own()).await;
    authority::begin(&root, &old, new.own()).await.unwrap();
    assert!(token.get(CONFIG_KEY).await.is_err(), "tokens are void");
    assert!(authority::begin(&root, &old, new.own()).await.is_err(), "it was begun twice");

    let mut heard = Vec::new();
    {
        let etcd = Mutex::new(&mut realm.etcd);
        let restart = async || {
            let mut etcd = etcd.lock().await;
            etcd.kill();
            etcd.restart().await;
            Ok(())
        };
        let office = Mutex::new(&mut realm.office);
        let sits = async {
            loop {
                let renew = |authority: &Authority| shown_by(&realm.files, authority);
                if seat.follow(&root, restart, renew).await.is_ok() {
                    let mut office = office.lock().await;
                    office.abort();
                    **office = serve_at(&root, &new, port);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let commands = async {
            // Everywhere where it can be interrupted, it is, and goes on when the command is given again.
            let stops = [
                "it has not the new authority's key",
                &format!("waits for {} to trust both", off.id),
                "all trust both authorities",
                "waits for etcd's member test-0",
                "to have a certificate of the new authority",
                "all have a certificate of the new authority",
                "to trust the new authority alone",
                "all trust the new authority alone",
            ];
            for (count, stop) in stops.into_iter().enumerate() {
                let without = if count < 2 { vec![] } else { vec![off.id.clone()] };
                let stopped = authority::drive(&root, &without, |text: &str| {
                    heard.push(text.to_owned());
                    if text.contains(stop) { Err(anyhow!("interrupted")) } else { Ok(()) }
                });
                let error = within(stopped).await.expect_err(stop).to_string();
                assert_eq!(error, "interrupted", "{heard:?}");
                if count == 0 {
                    let both = [new.own().certificate.as_str(), &new.own().key].concat();
                    std::fs::write(&next_file, both).unwrap();
                }
            }
            within(authority::drive(&root, &[], |_: &str| Ok(()))).await.unwrap();
        };
        tokio::select! {
            () = sits => unreachable!("it sits for good"),
            () = commands => {}
        }
    }
    assert_eq!(authority::rotation(&root).await.unwrap(), None);
    let certificate = new.own().certificate.clone();
    for tenant in [&one, &two] {
        assert!(tenant.is_of(&certificate), "{}", tenant.id);
        assert_eq!(tenant.store.list().await.unwrap().entries.len(), 3);
    }
    assert_eq!(std::fs::read_to_string(&seat.ca).unwrap(), certificate);
    assert_eq!(std::fs::read_to_string(&seat.ca_key).unwrap(), new.own().key);
    assert!(!next_file.exists(), "a key that nobody looks after");
    // Who was off trusts nobody that there is, and is told so.
    let error = off.store.get(CONFIG_KEY).await.unwrap_err().to_string();
    assert!(error.contains("another authority"), "{error}");
    // With whatever the old key makes, nobody is let in.
    for user in ["root", &one.id.user()] {
        let forged = keep(&realm.files, "forged", &old.client(user, HOUR).unwrap());
        let error = realm.store(forged).get(CONFIG_KEY).await.unwrap_err().to_string();
        assert!(error.contains("certificate"), "{user}: {error}");
    }
    assert_refuses_old_server(&realm, &old, &one).await;
}
