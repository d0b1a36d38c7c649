//! The authority that signs for etcd and for those who may use it.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use time::OffsetDateTime;
use x509_parser::{
    certification_request::X509CertificationRequest, pem::parse_x509_pem, prelude::FromDer as _,
};

use crate::certificate::{AUTHORITY, BACKDATED, with_parsed};
pub use crate::certificate::{addresses, is_signed_by, left};

/// How long the authority is good: the machines' lifetime.
pub const LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// How long what it signs for hosts and for etcd is good, if nothing else is said.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_hours(365 * 24);

/// The user of etcd's that may do everything.
pub(super) const ROOT: &str = "root";

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
        let mut params = params(AUTHORITY, lifetime);
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

    /// That this authority takes the place of ours: a certificate to its key, good for nothing else.
    pub fn endorse(&self, next: &Credential) -> Result<String> {
        self.sign(params("overlay's next authority", LIFETIME), &next.key)
    }

    /// A certificate for etcd at these addresses, with a new key; it also speaks with other members.
    pub fn server(&self, addresses: &[IpAddr], lifetime: Duration) -> Result<Credential> {
        with_new_key(|key| self.server_with(key, addresses, lifetime))
    }

    /// The same for a key that is there.
    pub(super) fn server_with(
        &self,
        key: &str,
        addresses: &[IpAddr],
        lifetime: Duration,
    ) -> Result<String> {
        let mut params = params("overlay etcd", lifetime);
        params.subject_alt_names = addresses.iter().copied().map(SanType::IpAddress).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params, key)
    }

    /// A certificate for whoever may do everything in etcd.
    pub fn root(&self, lifetime: Duration) -> Result<Credential> {
        self.client(ROOT, lifetime)
    }

    /// A certificate for a client, with a new key.
    pub fn client(&self, name: &str, lifetime: Duration) -> Result<Credential> {
        with_new_key(|key| self.client_with(key, name, lifetime))
    }

    /// The same for a key that is there.
    pub(super) fn client_with(&self, key: &str, name: &str, lifetime: Duration) -> Result<String> {
        self.sign(client_params(name, lifetime), key)
    }

    /// The same for whoever has the other half of the key in this request, in PEM. What else is asked for in it is passed over.
    ///
    /// # Errors
    /// Where it is no request, or whoever made it has not that half.
    pub fn client_of_request(&self, csr: &str, name: &str, lifetime: Duration) -> Result<String> {
        let mut request = CertificateSigningRequestParams::from_pem(csr)
            .context("a request for a certificate is malformed, or not signed with its own key")?;
        request.params = signed(client_params(name, lifetime));
        let certificate = request.signed_by(&self.issuer).context("cannot sign a certificate")?;
        Ok(certificate.pem())
    }

    fn sign(&self, params: CertificateParams, key: &str) -> Result<String> {
        let key = KeyPair::from_pem(key).context("a key is malformed")?;
        let certificate =
            signed(params).signed_by(&key, &self.issuer).context("cannot sign a certificate")?;
        Ok(certificate.pem())
    }
}

fn with_new_key(certify: impl FnOnce(&str) -> Result<String>) -> Result<Credential> {
    let key = new_key()?;
    Ok(Credential { certificate: certify(&key)?, key })
}

/// A new private key, in PEM.
pub fn new_key() -> Result<String> {
    Ok(KeyPair::generate().context("cannot make a key")?.serialize_pem())
}

/// Whether a certificate is to this key, both in PEM.
pub(super) fn fit(certificate: &str, key: &str) -> Result<bool> {
    let key = KeyPair::from_pem(key).context("a key is malformed")?.subject_public_key_info();
    with_parsed(certificate, |certificate| certificate.public_key().raw == key)
}

/// A request for a certificate of this name to this private key, both in PEM (PKCS #10, RFC 2986).
pub fn request(key: &str, name: &str) -> Result<String> {
    let key = KeyPair::from_pem(key).context("this host's key is malformed")?;
    let request = params(name, Duration::ZERO).serialize_request(&key);
    request.and_then(|request| request.pem()).context("cannot make a request for a certificate")
}

/// The name in a request, in PEM; nothing where it is none.
pub fn requested_name(csr: &str) -> Option<String> {
    let (_, pem) = parse_x509_pem(csr.as_bytes()).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).ok()?;
    let name = request.certification_request_info.subject.iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

fn client_params(name: &str, lifetime: Duration) -> CertificateParams {
    let mut params = params(name, lifetime);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn signed(mut params: CertificateParams) -> CertificateParams {
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
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
    fn a_request_gets_the_name_that_the_authority_gives_it_and_no_other() {
        let authority = Authority::new(LIFETIME).unwrap();
        let key = new_key().unwrap();
        let csr = request(&key, "overlay-host/another").unwrap();
        assert_eq!(requested_name(&csr).as_deref(), Some("overlay-host/another"));
        assert_eq!(requested_name(&key), None);
        let certificate = authority.client_of_request(&csr, "overlay-host/web1-1", DAY).unwrap();
        assert!(is_signed_by(&certificate, &authority.own().certificate).unwrap());
        let name = with_parsed(&certificate, |certificate| certificate.subject().to_string());
        assert_eq!(name.unwrap(), "CN=overlay-host/web1-1");
        let (_, pem) = parse_x509_pem(certificate.as_bytes()).unwrap();
        let parsed = pem.parse_x509().unwrap();
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        // Somebody else's key, without its other half.
        let mut forged = csr.clone();
        let middle = csr.len() / 2;
        let other = if &csr[middle..=middle] == "A" { "B" } else { "A" };
        forged.replace_range(middle..=middle, other);
        assert!(authority.client_of_request(&forged, "x", DAY).is_err());
        assert!(authority.client_of_request("", "x", DAY).is_err());
    }

    #[test]
    fn no_log_can_show_a_key() {
        let authority = Authority::new(LIFETIME).unwrap();
        assert!(!format!("{:?}", authority.own()).contains("PRIVATE"));
    }
}
