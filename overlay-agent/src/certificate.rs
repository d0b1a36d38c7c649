//! What certificates say.

use std::{net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem, prelude::X509Certificate};

/// With less than this left, a certificate is to be made anew.
pub const RENEWAL: Duration = Duration::from_hours(30 * 24);

/// When the certificate in this file ends, as the end of a sentence, if it does so soon or has.
pub fn ends_soon(file: &Path) -> Result<Option<String>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(match left(&text).with_context(|| format!("{} cannot be used", file.display()))? {
        Some(left) if left > RENEWAL => None,
        Some(left) => Some(format!("expires in {} days", left.as_secs() / 86_400)),
        None => Some("has expired".to_owned()),
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

/// Whether an authority, in PEM, has signed a certificate, in PEM.
pub fn is_signed_by(certificate: &str, authority: &str) -> Result<bool> {
    with_parsed(authority, |authority| {
        with_parsed(certificate, |certificate| {
            certificate.verify_signature(Some(authority.public_key())).is_ok()
        })
    })?
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
