//! An etcd that tells its users apart, its authority, and hosts that come with tokens.

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use etcd_client::{Certificate, Client, ConnectOptions, TlsOptions};
use overlay_agent::authority::{
    self, Newcomer, Office, TokenRecord, certificates, end_sessions_at,
    pki::{self, Authority, Credential},
};
use overlay_lease::{
    store::{
        StoreError,
        etcd::{EtcdConfig, EtcdStore, Identity},
    },
    wire::identity::{About, Applicant, CertificateRequest, HostId, TokenId, encode},
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::{
    etcd::{TestEtcd, Tls},
    support::{CONFIG, CONFIG_KEY, within},
};

pub(crate) const HOUR: Duration = Duration::from_hours(1);

/// An etcd of ours, its authority, and a host that answers what others ask.
pub(crate) struct Realm {
    pub(crate) etcd: TestEtcd,
    pub(crate) authority: Arc<Authority>,
    pub(crate) files: TempDir,
    pub(crate) root: EtcdStore,
    pub(crate) office: JoinHandle<()>,
}

impl Drop for Realm {
    fn drop(&mut self) {
        self.office.abort();
    }
}

impl Realm {
    pub(crate) async fn new() -> Self {
        Box::pin(async {
            let authority = Authority::new(HOUR).unwrap();
            let files = tempfile::tempdir().unwrap();
            let place = |name: &str| files.path().join(name);
            std::fs::write(place("ca.pem"), &authority.own().certificate).unwrap();
            let server = authority.server(&[Ipv4Addr::LOCALHOST.into()], HOUR).unwrap();
            let server = keep(&files, "server", &server);
            let root = keep(&files, "root", &authority.root(HOUR).unwrap());
            let etcd = TestEtcd::start_with(
                tempfile::tempdir().unwrap(),
                Some(Tls {
                    ca: place("ca.pem"),
                    cert: server.cert_file,
                    key: server.key_file,
                    client: Some((root.cert_file.clone(), root.key_file.clone())),
                }),
            )
            .await;
            let config = config(&etcd, place("ca.pem"), root);
            let root = EtcdStore::new(&config).unwrap();
            let own = authority.client("overlay-host/first-1", HOUR).unwrap();
            let first = Newcomer {
                host: HostId::parse("first-1").unwrap(),
                address: Some(Ipv4Addr::new(192, 0, 2, 1)),
                certificate: own.certificate.clone(),
            };
            keep(&files, "first", &own);
            authority::establish(&root, &first, None).await.unwrap();
            root.put(CONFIG_KEY, CONFIG.as_bytes(), None).await.unwrap();
            let authority = Arc::new(authority);
            let office = serve(&root, &authority, &etcd);
            Self { etcd, authority, files, root, office }
        })
        .await
    }

    pub(crate) fn store(&self, identity: Identity) -> EtcdStore {
        let config = config(&self.etcd, self.files.path().join("ca.pem"), identity);
        EtcdStore::new(&config).unwrap()
    }

    pub(crate) fn first(&self) -> EtcdStore {
        self.store(place(&self.files, "first"))
    }

    /// A client that is not ours, with what a host has.
    pub(crate) async fn client(&self, name: &str) -> Client {
        let identity = place(&self.files, name);
        let read = |path: &PathBuf| std::fs::read(path).unwrap();
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(&self.authority.own().certificate))
            .identity(etcd_client::Identity::from_pem(
                read(&identity.cert_file),
                read(&identity.key_file),
            ));
        let options = ConnectOptions::new().with_tls(tls);
        Box::pin(Client::connect([self.etcd.endpoint()], Some(options))).await.unwrap()
    }

    pub(crate) async fn token(&self, name: &str, once: bool) -> EtcdStore {
        let id = TokenId::new();
        let record = TokenRecord { ends: authority::seconds_at(HOUR), once, used_by: None };
        authority::open_token(&self.root, &id, &record).await.unwrap();
        let made = self.authority.client(&id.user(), HOUR).unwrap();
        self.store(keep(&self.files, name, &made))
    }

    /// Asks for a certificate with a token.
    pub(crate) async fn certify(
        &self,
        token: &EtcdStore,
        name: &str,
        host: &HostId,
    ) -> Result<(), StoreError> {
        let key = pki::new_key().unwrap();
        let csr = pki::request(&key, &host.user()).unwrap();
        let question = encode(&CertificateRequest { csr, address: None });
        let id = token_of(token);
        let asker = Applicant::Guest(id, host.clone());
        let answer = within(token.ask(&asker, About::Certificate, &question, None)).await?;
        let certificate = answer.certificate.unwrap();
        keep(&self.files, name, &Credential { certificate, key });
        Ok(())
    }

    /// A host that has come with a token.
    pub(crate) async fn host(&self, name: &str) -> (HostId, EtcdStore) {
        let token = self.token(&format!("token-of-{name}"), false).await;
        let host = HostId::new(name);
        self.certify(&token, name, &host).await.unwrap();
        (host, self.store(place(&self.files, name)))
    }
}

pub(crate) fn token_of(store: &EtcdStore) -> TokenId {
    let user = store.config().identity.as_ref().and_then(Identity::user).unwrap();
    TokenId::of_user(&user).unwrap()
}

pub(crate) fn serve(
    root: &EtcdStore,
    authority: &Arc<Authority>,
    etcd: &TestEtcd,
) -> JoinHandle<()> {
    serve_at(root, authority, etcd.endpoint().rsplit_once(':').unwrap().1.parse().unwrap())
}

/// The same for an etcd that answers at this port.
pub(crate) fn serve_at(root: &EtcdStore, authority: &Authority, port: u16) -> JoinHandle<()> {
    let (root, own) = (root.clone(), authority.own().clone());
    tokio::spawn(async move {
        let office = Office::new(root, Authority::load(own).unwrap());
        loop {
            // Its own connection ends with the others, when a host is expelled.
            let ended = Box::pin(office.answer_all(|| end_sessions_at(port), |_| Ok(()))).await;
            eprintln!("the office begins anew: {:#}", ended.unwrap_err());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
}

pub(crate) fn place(files: &TempDir, name: &str) -> Identity {
    let [cert_file, key_file] =
        ["pem", "key"].map(|end| files.path().join(format!("{name}.{end}")));
    Identity { cert_file, key_file }
}

pub(crate) fn keep(files: &TempDir, name: &str, made: &Credential) -> Identity {
    let place = place(files, name);
    certificates::write(&place, made).unwrap();
    place
}

pub(crate) fn config(etcd: &TestEtcd, ca: PathBuf, identity: Identity) -> EtcdConfig {
    EtcdConfig { ca_file: Some(ca), identity: Some(identity), ..etcd.config() }
}
