//! etcd that asks who we are, and proves who it is.

use std::{path::Path, process::Command};

use etcd_client::{Client, Permission, PermissionType};
use overlay_lease::{
    member::{acquire::acquire, follow::Follower, network::wait_for_config},
    store::{
        Store as _,
        etcd::{EtcdConfig, EtcdStore, Identity},
    },
};

use crate::{
    etcd::{TestEtcd, Tls},
    support::{CONFIG, CONFIG_KEY, Followed, LeaseUpdate, World, request, until, within},
};

/// Makes an authority, a certificate for 127.0.0.1 and one for a client that it has signed, and a client's
/// that it has not.
fn make_certificates(dir: &Path) -> Tls {
    let openssl = |args: &str| {
        let output = Command::new("openssl")
            .args(args.split(' '))
            .current_dir(dir)
            .output()
            .unwrap_or_else(|error| panic!("cannot run openssl, is it installed? {error}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {args}: {errors}");
    };
    std::fs::write(dir.join("server.ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    std::fs::write(dir.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {new_key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca"));
    for name in ["server", "client"] {
        openssl(&format!("req {new_key} -keyout {name}.key -out {name}.csr -subj /CN=test-{name}"));
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 \
             -extfile {name}.ext"
        ));
    }
    openssl(&format!("req -x509 {new_key} -keyout bad.key -out bad.pem -days 2 -subj /CN=nobody"));
    let file = |name: &str| dir.join(name);
    Tls { ca: file("ca.pem"), cert: file("server.pem"), key: file("server.key"), client: None }
}

#[tokio::test]
async fn the_authoritys_certificate_alone_is_enough_for_tls() {
    let dir = tempfile::tempdir().unwrap();
    let tls = make_certificates(dir.path());
    let etcd = TestEtcd::start_with(dir, Some(tls.clone())).await;

    let mut config = etcd.config();
    config.ca_file = Some(tls.ca);
    let store = EtcdStore::new(&config).unwrap();
    assert_eq!(store.get(CONFIG_KEY).await.unwrap(), None);
    let created = store.create_if_free("10.5.1.0/24".parse().unwrap(), b"{}", None, None).await;
    created.unwrap();

    // Without it, etcd's certificate is nobody's that this host trusts.
    let error = EtcdStore::new(&etcd.config()).unwrap().get(CONFIG_KEY).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_user_who_may_only_touch_the_prefix_can_do_everything() {
    let mut world = World::new(CONFIG).await;
    enable_auth(&mut world.client).await;
    let mut config = world.etcd.config();
    config.user = Some(("overlay".to_owned(), "secret".parse().unwrap()));
    let store = EtcdStore::new(&config).unwrap();

    let stored = within(wait_for_config(&store)).await.unwrap();
    let acquired = within(acquire(&store, &stored, &request(1))).await.unwrap();
    let mut followed = Followed::new(Follower::new(store.clone()));
    assert_eq!(followed.snapshot().await, [acquired.lease]);
    assert!(store.keep(acquired.etcd_lease.unwrap()).await.unwrap());
    let key = store.prefix().subnet_key(acquired.lease.subnet);
    let entry = store.get(&key).await.unwrap().unwrap();
    store.delete_if_unchanged(&entry.key, entry.mod_revision).await.unwrap().unwrap();
    assert_eq!(followed.next().await, LeaseUpdate::Removed(acquired.lease.subnet));

    let error = world.store.get(CONFIG_KEY).await.unwrap_err().to_string();
    assert!(error.contains("user name is empty"), "{error}");
}

/// The one line that somebody sees whose connection is refused. Boxed, because the library's futures are
/// large.
async fn refusal(config: &EtcdConfig) -> String {
    let asked =
        Box::pin(async { EtcdStore::new(config).unwrap().get(CONFIG_KEY).await.unwrap_err() });
    let line = within(asked).await.to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[tokio::test]
async fn a_client_is_known_by_its_certificate_and_refused_in_one_line_without_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut tls = make_certificates(dir.path());
    let file = |name: &str| dir.path().join(name);
    let identity = |name: &str| {
        let [cert_file, key_file] = ["pem", "key"].map(|end| file(&format!("{name}.{end}")));
        Some(Identity { cert_file, key_file })
    };
    let (good, bad) = (identity("client"), identity("bad"));
    tls.client = Some((file("client.pem"), file("client.key")));
    let ca_file = Some(tls.ca.clone());
    // The files must outlive what follows, and etcd takes the directory.
    let etcd = TestEtcd::start_with(dir, Some(tls)).await;

    let with = |identity| EtcdConfig { ca_file: ca_file.clone(), identity, ..etcd.config() };
    let store = EtcdStore::new(&with(good)).unwrap();
    assert_eq!(store.get(CONFIG_KEY).await.unwrap(), None);
    for (identity, who) in [(bad, "a stranger's certificate"), (None, "no certificate")] {
        let line = refusal(&with(identity)).await;
        assert!(
            line.contains("want a client certificate") || line.contains("etcd wants a client"),
            "with {who}: {line}"
        );
        assert!(line.contains(&etcd.endpoint()), "with {who}: {line}");
    }
    let error = EtcdStore::new(&with(Some(Identity {
        cert_file: "/none/such.pem".into(),
        key_file: "/none/such.key".into(),
    })))
    .unwrap_err();
    let line = format!("{error:#}");
    assert!(line.starts_with("cannot read our certificate /none/such.pem: No such file"), "{line}");
}

#[tokio::test]
async fn a_wrong_password_and_a_user_without_rights_are_told_apart_in_one_line() {
    let mut world = World::new(CONFIG).await;
    enable_auth(&mut world.client).await;
    let with = |name: &str, password: &str| EtcdConfig {
        user: Some((name.to_owned(), password.parse().unwrap())),
        ..world.etcd.config()
    };
    for (name, password) in [("overlay", "wrong"), ("nobody", "secret")] {
        let line = refusal(&with(name, password)).await;
        assert!(line.contains("authentication failed, invalid user ID or password"), "{line}");
        assert!(!line.contains(password), "{line}");
    }
    let line = refusal(&with("guest", "guest")).await;
    assert!(line.contains("permission denied"), "{line}");
    assert!(!line.contains("answers"), "it did answer: {line}");
}

#[tokio::test]
async fn a_user_goes_without_a_password_where_authentication_is_off_and_logs_in_once_it_is_on() {
    let mut world = World::new(CONFIG).await;
    let config = EtcdConfig {
        user: Some(("overlay".to_owned(), "secret".parse().unwrap())),
        ..world.etcd.config()
    };
    let store = EtcdStore::new(&config).unwrap();
    let stored = within(wait_for_config(&store)).await.unwrap();
    let acquired = within(acquire(&store, &stored, &request(1))).await.unwrap();

    enable_auth(&mut world.client).await;
    until("the store has logged in", async || store.get(CONFIG_KEY).await.is_ok()).await;
    assert!(store.keep(acquired.etcd_lease.unwrap()).await.unwrap());
    let line = refusal(&world.etcd.config()).await;
    assert!(line.contains("etcd refuses us") && line.contains("user name is empty"), "{line}");
}

async fn enable_auth(client: &mut Client) {
    client.role_add("overlay").await.unwrap();
    let all = Permission::new(PermissionType::Readwrite, "/coreos.com/network/").with_prefix();
    client.role_grant_permission("overlay", all).await.unwrap();
    client.user_add("overlay", "secret", None).await.unwrap();
    client.user_grant_role("overlay", "overlay").await.unwrap();
    client.user_add("guest", "guest", None).await.unwrap();
    client.user_add("root", "root", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
}
