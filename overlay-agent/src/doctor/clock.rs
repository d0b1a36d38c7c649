//! This host's clock beside that of etcd's host: certificates and leases are about time.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use overlay_lease::store::etcd::EtcdConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

use super::{Check, Findings};

/// More than an answer takes, less than matters to a certificate.
const ALLOWED: Duration = Duration::from_secs(30);

/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(5);

/// What an answer's head may be long.
const HEAD: usize = 8192;

/// Whether both clocks are the same.
pub(super) async fn skew(etcd: &EtcdConfig, found: &mut Findings) {
    let Some(endpoint) = etcd.endpoints.first() else { return };
    let theirs = match timeout(WITHIN, ask(endpoint, etcd)).await {
        Ok(Ok(theirs)) => theirs,
        Ok(Err(error)) => return found.unknown(format!("clock: {error:#}")),
        Err(_) => return found.unknown(format!("clock: {endpoint} does not tell the time")),
    };
    let ours = SystemTime::now();
    let (skew, word) = match ours.duration_since(theirs) {
        Ok(skew) => (skew, "ahead of"),
        Err(error) => (error.duration(), "behind"),
    };
    if skew > ALLOWED {
        found.add(
            Check::Clock,
            format!("this host's clock is {} s {word} that of {endpoint}", skew.as_secs()),
            "timedatectl set-ntp true, on both",
        );
    }
}

/// The time that an HTTP answer bears.
async fn ask(endpoint: &str, etcd: &EtcdConfig) -> Result<SystemTime> {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("http", endpoint));
    let authority = rest.trim_end_matches('/');
    let failed = || format!("cannot ask {endpoint} for the time");
    let stream = TcpStream::connect(authority).await.with_context(failed)?;
    let head = if scheme == "https" {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let name = ServerName::try_from(host.to_owned()).with_context(failed)?;
        let tls = TlsConnector::from(Arc::new(tls(etcd)?));
        head(tls.connect(name, stream).await.with_context(failed)?, authority).await
    } else {
        head(stream, authority).await
    };
    let head = head.with_context(failed)?;
    let date = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("date").then(|| value.trim())
    });
    let date = date.with_context(|| format!("{endpoint} answers without a date"))?;
    http_date(date).with_context(|| format!("{endpoint} answers with the date {date:?}"))
}

async fn head(mut stream: impl AsyncRead + AsyncWrite + Unpin, host: &str) -> Result<String> {
    let request = format!("HEAD /version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    while answer.len() < HEAD && !answer.ends_with(b"\r\n\r\n") {
        match stream.read(&mut part).await {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&part[..length]),
            Err(error) if answer.is_empty() => return Err(error.into()),
            Err(_) => break,
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn tls(etcd: &EtcdConfig) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let ca = etcd.ca_file.as_deref().context("no certificate of etcd's authority is given")?;
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let builder = ClientConfig::builder().with_root_certificates(roots);
    Ok(match &etcd.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain = CertificateDer::pem_file_iter(&identity.cert_file)?;
            let chain = chain.collect::<Result<Vec<_>, _>>()?;
            builder
                .with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&identity.key_file)?)?
        }
    })
}

/// A date as HTTP writes it: `Tue, 24 Nov 2026 16:15:42 GMT`.
fn http_date(text: &str) -> Result<SystemTime> {
    let format = time::format_description::well_known::Rfc2822;
    let text = text.replace("GMT", "+0000");
    let date = time::OffsetDateTime::parse(&text, &format).context("it is no date")?;
    let seconds = u64::try_from(date.unix_timestamp()).context("it is before 1970")?;
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_an_answer_is_understood() {
        let date = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(date, UNIX_EPOCH + Duration::from_secs(784_111_777));
        assert!(http_date("yesterday").is_err());
    }
}
