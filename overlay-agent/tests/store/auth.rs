//! etcd that asks who we are, and proves who it is.

use std::{path::Path, process::Command};

use etcd_client::{Client, Permission, PermissionType};
use overlay_agent::{
    lease::acquire::acquire,
    store::{Etcd, Follower, LeaseUpdate, config::wait_for_config},
};

use crate::{
    etcd::{TestEtcd, Tls},
    support::{CONFIG, CONFIG_KEY, Followed, World, request, within},
};

/// Makes an authority and a certificate for 127.0.0.1 that it has signed.
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
    std::fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {new_key} -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca"));
    openssl(&format!("req {new_key} -keyout server.key -out server.csr -subj /CN=test-etcd"));
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 \
         -extfile san",
    );
    Tls { ca: dir.join("ca.pem"), cert: dir.join("server.pem"), key: dir.join("server.key") }
}

#[tokio::test]
async fn the_authoritys_certificate_alone_is_enough_for_tls() {
    let dir = tempfile::tempdir().unwrap();
    let tls = make_certificates(dir.path());
    let etcd = TestEtcd::start_with(dir, Some(tls.clone())).await;

    let mut config = etcd.config();
    config.ca_file = Some(tls.ca);
    let store = Etcd::new(&config).unwrap();
    assert_eq!(store.get(CONFIG_KEY).await.unwrap(), None);
    let created = store.create("10.5.1.0/24".parse().unwrap(), b"{}", None, None).await;
    created.unwrap();

    // Without it, etcd's certificate is nobody's that this host trusts.
    let error = Etcd::new(&etcd.config()).unwrap().get(CONFIG_KEY).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_user_who_may_only_touch_the_prefix_can_do_everything() {
    let mut world = World::new(CONFIG).await;
    enable_auth(&mut world.client).await;
    let mut config = world.etcd.config();
    config.user = Some(("overlay".to_owned(), "secret".parse().unwrap()));
    let store = Etcd::new(&config).unwrap();

    let stored = within(wait_for_config(&store)).await.unwrap();
    let acquired = within(acquire(&store, &stored, &request(1))).await.unwrap();
    let mut followed = Followed::new(Follower::new(store.clone()));
    assert_eq!(followed.snapshot().await, [acquired.lease]);
    assert!(store.keep_alive(acquired.etcd_lease.unwrap()).await.unwrap());
    let key = store.prefix().subnet_key(acquired.lease.subnet);
    let entry = store.get(&key).await.unwrap().unwrap();
    store.delete(&entry.key, entry.mod_revision).await.unwrap().unwrap();
    assert_eq!(followed.next().await, LeaseUpdate::Removed(acquired.lease.subnet));

    let error = world.store.get(CONFIG_KEY).await.unwrap_err().to_string();
    assert!(error.contains("user name is empty"), "{error}");
}

async fn enable_auth(client: &mut Client) {
    client.role_add("overlay").await.unwrap();
    let all = Permission::new(PermissionType::Readwrite, "/coreos.com/network/").with_prefix();
    client.role_grant_permission("overlay", all).await.unwrap();
    client.user_add("overlay", "secret", None).await.unwrap();
    client.user_grant_role("overlay", "overlay").await.unwrap();
    client.user_add("root", "root", None).await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.auth_enable().await.unwrap();
}
