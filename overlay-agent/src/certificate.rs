//! What certificates say.

use std::{net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem, prelude::X509Certificate};

/// How long before it is made a certificate of ours begins: hosts whose clocks are behind must not take it for one of the
/// future.
pub(crate) const BACKDATED: Duration = Duration::from_hours(24);

/// With this part of its life left, a certificate is made anew.
const RENEWED_AT: f64 = 0.5;
/// With this part left, that should have happened, and has not.
const LATE_AT: f64 = 0.25;
/// What our authority is called.
pub(crate) const AUTHORITY: &str = "overlay authority";
/// With this left, it is time to look after any that is somebody else's to make anew.
const SOON: Duration = Duration::from_hours(30 * 24);

/// When the certificate in this file ends, as the end of a sentence, if it does so soon or has.
pub fn ends_soon(file: &Path) -> Result<Option<String>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let unusable = || format!("{} cannot be used", file.display());
    let soon = soon(&text).with_context(unusable)?;
    Ok(match left(&text).with_context(unusable)? {
        Some(left) if left > soon => None,
        Some(left) if left < DAY => Some(format!("expires in {} minutes", left.as_secs() / 60)),
        Some(left) => Some(format!("expires in {} days", left.as_secs() / DAY.as_secs())),
        None => Some("has expired".to_owned()),
    })
}

/// With how much left of a certificate, in PEM, somebody is told of it.
pub fn soon(certificate: &str) -> Result<Duration> {
    let is_ours = issuer(certificate)?.as_deref() == Some(AUTHORITY);
    let late = lifetime(certificate)?.mul_f64(LATE_AT);
    Ok(if is_ours { SOON.min(late) } else { SOON })
}

const DAY: Duration = Duration::from_hours(24);

/// How long until a certificate, in PEM, is to be made anew, if it is one that can be; zero from then on.
pub fn time_to_renewal(certificate: &str) -> Result<Duration> {
    let at = lifetime(certificate)?.mul_f64(RENEWED_AT);
    Ok(left(certificate)?.unwrap_or_default().saturating_sub(at))
}

/// For how long a certificate, in PEM, was made. Ours begin a day before they are made.
fn lifetime(certificate: &str) -> Result<Duration> {
    with_parsed(certificate, |certificate| {
        let validity = certificate.validity();
        let whole = validity.not_after.timestamp() - validity.not_before.timestamp();
        Duration::from_secs(u64::try_from(whole).unwrap_or_default()).saturating_sub(BACKDATED)
    })
}

/// How much is left of a certificate, in PEM; nothing if it has expired.
pub fn left(certificate: &str) -> Result<Option<Duration>> {
    with_parsed(certificate, |certificate| {
        certificate.validity().time_to_expiration().and_then(|left| left.try_into().ok())
    })
}

/// The addresses that a certificate, in PEM, is for.
pub fn addresses(certificate: &str) -> Result<Vec<IpAddr>> {
    with_parsed(certificate, |certificate| {
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        names
            .iter()
            .filter_map(|name| match name {
                GeneralName::IPAddress(bytes) => match bytes.len() {
                    4 => <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from),
                    _ => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
                },
                _ => None,
            })
            .collect()
    })
}

/// Whom a certificate, in PEM, is of: its common name.
pub fn common_name(certificate: &str) -> Result<Option<String>> {
    with_parsed(certificate, |certificate| {
        let name = certificate.subject().iter_common_name().next();
        name.and_then(|name| name.as_str().ok()).map(str::to_owned)
    })
}

/// Who has signed a certificate, in PEM: the common name.
fn issuer(certificate: &str) -> Result<Option<String>> {
    with_parsed(certificate, |certificate| {
        let name = certificate.issuer().iter_common_name().next();
        name.and_then(|name| name.as_str().ok()).map(str::to_owned)
    })
}

/// Whether an authority, in PEM, has signed a certificate, in PEM.
pub fn is_signed_by(certificate: &str, authority: &str) -> Result<bool> {
    with_parsed(authority, |authority| {
        with_parsed(certificate, |certificate| {
            certificate.verify_signature(Some(authority.public_key())).is_ok()
        })
    })?
}

/// The certificates in a file of several, in PEM, each by itself.
pub fn each(text: &str) -> Vec<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    text.split(BEGIN).skip(1).map(|rest| format!("{BEGIN}{}\n", rest.trim_end())).collect()
}

/// Whether an authority has endorsed another one by this, all in PEM.
pub fn endorses(endorsement: &str, authority: &str, other: &str) -> Result<bool> {
    let key = with_parsed(other, |other| other.public_key().raw.to_vec())?;
    let is_its = with_parsed(endorsement, |endorsement| endorsement.public_key().raw == key)?;
    Ok(is_its && is_signed_by(endorsement, authority)?)
}

/// Reads something of a certificate in PEM.
pub(crate) fn with_parsed<T>(
    text: &str,
    read: impl FnOnce(&X509Certificate<'_>) -> T,
) -> Result<T> {
    let (_, pem) = parse_x509_pem(text.as_bytes()).context("a certificate is no PEM")?;
    let certificate = pem.parse_x509().context("a certificate is malformed")?;
    Ok(read(&certificate))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use time::OffsetDateTime;

    use super::*;

    /// With an authority's name: whether ours made it.
    fn said_of(issuer: &str, lifetime: Duration, left: Duration) -> Option<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, issuer);
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now + left - lifetime - BACKDATED, now + left);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, certificate.pem()).unwrap();
        ends_soon(file.path()).unwrap()
    }

    #[test]
    fn what_agents_make_anew_is_named_when_that_is_overdue_and_others_thirty_days_before() {
        let days = |days: u64| Duration::from_hours(24 * days);
        for (issuer, lifetime, left, named) in [
            (AUTHORITY, days(365), days(31), false),
            (AUTHORITY, days(365), days(29), true),
            (AUTHORITY, days(8), days(3), false),
            (AUTHORITY, days(8), days(1), true),
            ("somebody", days(8), days(8), true),
            ("somebody", days(365), days(31), false),
        ] {
            let said = said_of(issuer, lifetime, left);
            assert_eq!(said.is_some(), named, "{issuer}, {lifetime:?}, {left:?}: {said:?}");
        }
        let minutes = said_of(AUTHORITY, days(365), Duration::from_mins(90)).unwrap();
        assert!(
            minutes.starts_with("expires in 89 minutes") || minutes.contains("90 minutes"),
            "{minutes}"
        );
        assert_eq!(said_of(AUTHORITY, days(1), Duration::ZERO).as_deref(), Some("has expired"));
    }
}
