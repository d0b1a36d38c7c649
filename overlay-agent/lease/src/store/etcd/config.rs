use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr};

use x509_parser::pem::parse_x509_pem;

use crate::wire::{identity::HostId, key::KeyPrefix};

/// How to reach etcd.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// The members' URLs.
    pub endpoints: Vec<String>,
    /// The place of this network.
    pub prefix: KeyPrefix,
    /// The PEM file of the authority that signed the members' certificates.
    pub ca_file: Option<PathBuf>,
    /// The PEM files of our certificate and its key.
    pub identity: Option<Identity>,
    /// Name and password.
    pub user: Option<(String, Secret)>,
}

impl EtcdConfig {
    /// Whether any endpoint is to be talked to by TLS. One without a scheme is where there are files for it, as
    /// for Go's client.
    pub fn wants_tls(&self) -> bool {
        let has_files = self.ca_file.is_some() || self.identity.is_some();
        self.endpoints.iter().any(|endpoint| {
            endpoint.starts_with("https://") || (has_files && !endpoint.starts_with("http://"))
        })
    }
}

/// A text that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for the one who must know it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("…")
    }
}

/// Who we are in TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The PEM file of the certificate.
    pub cert_file: PathBuf,
    /// The PEM file of its key.
    pub key_file: PathBuf,
}

impl Identity {
    /// The user of etcd's that the certificate makes us, where etcd lets everybody do only what is his: its common name.
    pub fn user(&self) -> Option<String> {
        let text = std::fs::read(&self.cert_file).ok()?;
        let (_, pem) = parse_x509_pem(&text).ok()?;
        let certificate = pem.parse_x509().ok()?;
        let name = certificate.subject().iter_common_name().next()?;
        name.as_str().ok().map(str::to_owned)
    }

    /// The host that it makes us.
    pub fn host(&self) -> Option<HostId> {
        HostId::of_user(&self.user()?)
    }
}
