//! The authority that signs for etcd and for those who may use it.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use crate::certificate::with_parsed;
pub use crate::certificate::{RENEWAL, addresses, is_signed_by, left};

/// Hosts whose clocks are behind must not take a new certificate for one of the future.
pub(super) const BACKDATED: Duration = Duration::from_hours(24);
/// How long the authority and what it signs for hosts and etcd is good: the machines' lifetime.
pub const LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Credential {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Credential(…)")
    }
}

/// An authority of our own.
pub struct Authority {
    own: Credential,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one.
    pub fn new(lifetime: Duration) -> Result<Self> {
        let key = KeyPair::generate().context("cannot make a key for the authority")?;
        let mut params = params("overlay authority", lifetime);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).context("cannot make the authority")?;
        let own = Credential { certificate: certificate.pem(), key: key.serialize_pem() };
        Ok(Self { own, issuer: Issuer::new(params, key) })
    }

    /// The one that was made before.
    pub fn load(own: Credential) -> Result<Self> {
        let key = KeyPair::from_pem(&own.key).context("the authority's key is malformed")?;
        let issuer = Issuer::from_ca_cert_pem(&own.certificate, key)
            .context("the authority's certificate is malformed")?;
        Ok(Self { own, issuer })
    }

    /// Its certificate and key.
    pub const fn own(&self) -> &Credential {
        &self.own
    }

    /// A certificate for etcd at these addresses; it also speaks with other members.
    pub fn server(&self, addresses: &[IpAddr], lifetime: Duration) -> Result<Credential> {
        let mut params = params("overlay etcd", lifetime);
        params.subject_alt_names = addresses.iter().copied().map(SanType::IpAddress).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    /// A certificate for a client.
    pub fn client(&self, name: &str, lifetime: Duration) -> Result<Credential> {
        let mut params = params(name, lifetime);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Credential> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate =
            params.signed_by(&key, &self.issuer).context("cannot sign a certificate")?;
        Ok(Credential { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn params(name: &str, lifetime: Duration) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATED;
    params.not_after = now + lifetime;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// When an authority, in PEM, was made, by the clock of whoever made it.
pub fn made_at(certificate: &str) -> Result<SystemTime> {
    let from =
        with_parsed(certificate, |certificate| certificate.validity().not_before.timestamp())?;
    let from = u64::try_from(from).context("a certificate is of before 1970")?;
    Ok(UNIX_EPOCH + Duration::from_secs(from) + BACKDATED)
}

#[cfg(test)]
mod tests {
    use x509_parser::pem::parse_x509_pem;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn an_authority_signs_the_same_after_it_was_stored() {
        let made = Authority::new(LIFETIME).unwrap();
        let loaded = Authority::load(made.own().clone()).unwrap();
        for authority in [made, loaded] {
            let client = authority.client("host", DAY).unwrap();
            let (_, own) = parse_x509_pem(authority.own().certificate.as_bytes()).unwrap();
            let (_, pem) = parse_x509_pem(client.certificate.as_bytes()).unwrap();
            let (own, client) = (own.parse_x509().unwrap(), pem.parse_x509().unwrap());
            assert_eq!(client.issuer(), own.subject());
            assert!(own.is_ca() && !client.is_ca());
        }
    }

    #[test]
    fn how_much_is_left_is_read_from_the_certificate() {
        let authority = Authority::new(LIFETIME).unwrap();
        let left = |lifetime| left(&authority.client("host", lifetime).unwrap().certificate);
        let day = left(DAY).unwrap().unwrap();
        assert!(day <= DAY && day + Duration::from_mins(1) > DAY, "{day:?}");
        assert_eq!(left(Duration::ZERO).unwrap(), None);
        assert!(super::left("no certificate").is_err());
    }

    #[test]
    fn a_servers_certificate_names_its_addresses() {
        let addresses: Vec<IpAddr> = ["192.0.2.1", "127.0.0.1"].map(|a| a.parse().unwrap()).into();
        let server = Authority::new(LIFETIME).unwrap().server(&addresses, DAY).unwrap();
        assert_eq!(super::addresses(&server.certificate).unwrap(), addresses);
    }

    #[test]
    fn no_log_can_show_a_key() {
        let authority = Authority::new(LIFETIME).unwrap();
        assert!(!format!("{:?}", authority.own()).contains("PRIVATE"));
    }
}
