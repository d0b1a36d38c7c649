//! How a host that has a token gets a certificate of its own.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, anyhow, ensure};
use overlay_lease::{
    config::NetworkConfig,
    store::{
        Store as _,
        etcd::{EtcdConfig, EtcdStore, Identity, OF_ANOTHER},
    },
    wire::identity::{About, Applicant, CertificateRequest, HostId, TokenId, encode},
};
use tempfile::TempDir;

use super::token::{Client, Tls, Token};
use crate::{
    authority::{
        self, Newcomer, ca_file, certificates, host_identity,
        pki::{self, Authority, CERTIFICATE_LIFETIME, Credential},
        pki_file,
    },
    exit::{Exit, WithExit as _},
    files::{self, Readers},
};

/// How long a question stays in etcd if nobody comes back for its answer.
const KEPT: std::time::Duration = std::time::Duration::from_mins(10);
/// The question of a host that has no answer to it yet, and the key that it is about.
const ASKED: [&str; 2] = ["asked.csr", "asked-key.pem"];
/// For how long a host is root that takes part in etcd and is no member yet.
const ROOT_FOR: std::time::Duration = std::time::Duration::from_hours(1);

/// Whoever has a token, before he is a host: etcd as the token lets him see it.
pub(super) struct Guest<'a> {
    token: &'a Token,
    config: EtcdConfig,
    store: EtcdStore,
    /// The library takes files; these are gone with this.
    _directory: TempDir,
}

impl<'a> Guest<'a> {
    /// With what is in the token; with the authority's key, as root.
    pub(super) fn new(token: &'a Token, mut config: EtcdConfig) -> Result<Self> {
        let directory =
            tempfile::tempdir().context("cannot make a folder for the token's certificate")?;
        let file = |name: &str| directory.path().join(name);
        config.identity = None;
        if let Some(Tls { ca, client }) = &token.tls {
            files::write(&file("ca.pem"), ca, Readers::Root)?;
            config.ca_file = Some(file("ca.pem"));
            let place =
                Identity { cert_file: file("client.pem"), key_file: file("client-key.pem") };
            let shown = match (token.authority()?, client) {
                (Some(authority), _) => Some(authority.root(ROOT_FOR)?),
                (None, Some(client)) => Some(client.credential()),
                (None, None) => None,
            };
            if let Some(shown) = shown {
                certificates::write(&place, &shown)?;
                config.identity = Some(place);
            }
        }
        let store = EtcdStore::new(&config)?;
        Ok(Self { token, config, store, _directory: directory })
    }

    /// What it asks.
    pub(super) const fn store(&self) -> &EtcdStore {
        &self.store
    }

    /// The overlay's network.
    pub(super) async fn network(&self) -> Result<NetworkConfig> {
        let key = self.store.prefix().config_key();
        let asked = self.store.get(&key).await;
        if let Err(error) = &asked
            && self.token.tls.is_some()
            && error.to_string().contains(OF_ANOTHER)
        {
            return Err(anyhow!(
                "the join token is of before the authority was made another, or of another overlay: `overlay-agent init` on a host \
                 with a share in etcd makes a new one"
            ))
            .exit(Exit::Unavailable);
        }
        let entry = asked.exit(Exit::Unavailable)?;
        let entry = entry
            .with_context(|| format!("there is no network config at {key} in etcd"))
            .exit(Exit::NotFound)?;
        Ok(NetworkConfig::parse(&entry.value)
            .with_context(|| format!("the network config at {key} is malformed"))
            .exit(Exit::Config)?
            .config)
    }

    /// Keeps what this host shows to etcd from now on. Returns whether it has that anew.
    pub(super) async fn enrol(&self, address: Ipv4Addr) -> Result<bool> {
        let Some(Tls { ca, client }) = &self.token.tls else { return Ok(false) };
        let own = host_identity();
        let changed = files::write(&ca_file(), ca, Readers::All)?;
        let made = match (self.token.authority()?, client) {
            _ if self.is_in(&own, ca).await? => return Ok(changed),
            (Some(authority), _) => self.admit(&authority, address).await?,
            (None, Some(client)) if client.temporary => self.ask(address).await?,
            // Others' etcd: what opens it is the operator's.
            (None, Some(client)) => client.credential(),
            (None, None) => return Ok(changed),
        };
        let written = certificates::write(&own, &made)?;
        for name in ASKED {
            files::remove(&pki_file(name))?;
        }
        Ok(written | changed)
    }

    /// Whether this host is in already, by a run before.
    async fn is_in(&self, own: &Identity, ca: &str) -> Result<bool> {
        let Some(text) = files::read(&own.cert_file)?.filter(|_| own.key_file.exists()) else {
            return Ok(false);
        };
        let Some(host) = own.host() else { return Ok(false) };
        if pki::left(&text)?.is_none() || !pki::is_signed_by(&text, ca)? {
            return Ok(false);
        }
        let config = EtcdConfig { identity: Some(own.clone()), ..self.config.clone() };
        let store = EtcdStore::new(&config)?;
        // One that was expelled is refused.
        Ok(store.list_below(&Applicant::Host(host).dir(store.prefix())).await.is_ok())
    }

    /// A host that has the authority's key needs nobody to let it in.
    async fn admit(&self, authority: &Authority, address: Ipv4Addr) -> Result<Credential> {
        let host = HostId::new(&authority::host_name());
        let made = authority.client(&host.user(), CERTIFICATE_LIFETIME)?;
        let newcomer =
            Newcomer { host, address: Some(address), certificate: made.certificate.clone() };
        let is_in = authority::admit(&self.store, &newcomer).await.exit(Exit::Unavailable)?;
        ensure!(is_in, "this host was forgotten while it was let in: run this again");
        Ok(made)
    }

    /// The others ask one that has.
    async fn ask(&self, address: Ipv4Addr) -> Result<Credential> {
        let user = self.config.identity.as_ref().and_then(Identity::user);
        let token = user
            .and_then(|user| TokenId::of_user(&user))
            .context("the join token is of an earlier version: `overlay-agent init` on the first host makes a new one")
            .exit(Exit::Data)?;
        let (host, key, csr) = asked_for()?;
        let question = CertificateRequest { csr, address: Some(address) };
        let guest = Applicant::Guest(token, host);
        let kept = self.store.grant(KEPT).await.exit(Exit::Unavailable)?;
        let asked =
            self.store.ask(&guest, About::Certificate, &encode(&question), Some(kept)).await;
        let answer = asked.context("this host gets no certificate").exit(Exit::Unavailable)?;
        let certificate = answer
            .certificate
            .ok_or_else(|| anyhow!("this host gets no certificate: the answer has none"))?;
        Ok(Credential { certificate, key })
    }
}

/// What this host has asked for before, if it was interrupted: the same question gets the same answer, also with a token that is
/// good for one host. Otherwise something new.
fn asked_for() -> Result<(HostId, String, String)> {
    let [csr_file, key_file] = ASKED.map(pki_file);
    let before = files::read(&csr_file)?.zip(files::read(&key_file)?);
    let host = |csr: &str| HostId::of_user(&pki::requested_name(csr)?);
    // Who had a certificate of this name and was expelled does not come back by it.
    let is_new = |host: &HostId| host_identity().host().as_ref() != Some(host);
    if let Some((csr, key)) = before
        && let Some(host) = host(&csr).filter(is_new)
    {
        return Ok((host, key, csr));
    }
    let (host, key) = (HostId::new(&authority::host_name()), pki::new_key()?);
    let csr = pki::request(&key, &host.user())?;
    files::write(&key_file, &key, Readers::Root)?;
    files::write(&csr_file, &csr, Readers::All)?;
    Ok((host, key, csr))
}

impl Token {
    /// etcd's authority, for a host that takes part in etcd.
    pub(super) fn authority(&self) -> Result<Option<Authority>> {
        let Some((tls, key)) = self.tls.as_ref().zip(self.authority.clone()) else {
            return Ok(None);
        };
        let certificate = tls.ca.clone();
        Authority::load(Credential { certificate, key }).map(Some).exit(Exit::Data)
    }
}

impl Client {
    fn credential(&self) -> Credential {
        Credential { certificate: self.certificate.clone(), key: self.key.clone() }
    }
}
