//! This host's certificate is made anew long before it ends, by a host with a share in etcd. The key stays the same, so that
//! there is no moment at which the two do not fit; a key that was stolen is shut out with its host, by `overlay-agent expel`.

use std::time::Duration;

use anyhow::{Context as _, Result};
use overlay_lease::{
    store::{Store as _, etcd::EtcdStore},
    wire::identity::{About, Applicant, CertificateRequest, HostId, encode},
};
use rand::Rng as _;

use crate::{
    authority::{
        certificates, host_identity, host_name,
        pki::{self, Credential},
        shared_key,
    },
    certificate::time_to_renewal,
};

/// How often to look, at most: clocks are set, and certificates replaced by hand.
const LOOK: Duration = Duration::from_hours(1);
/// How soon to ask again where nobody has answered, half of it more or less.
const AGAIN: Duration = Duration::from_secs(30);

/// Keeps it good, for good.
pub(super) async fn keep(store: EtcdStore) {
    // For one who has none yet: whom he asks for is one host, however often he has to.
    let mut first = None;
    loop {
        let pause = match renew_in_time(&store, &mut first).await {
            Ok(left) => left.min(LOOK),
            Err(error) => {
                tracing::warn!("this host's certificate is not made anew: {error:#}");
                // Of one that lives for minutes, the last of them are not to be slept away.
                AGAIN.min(left().unwrap_or(AGAIN) / 8)
            }
        };
        let pause = pause.max(Duration::from_millis(200));
        let pause = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::time::sleep(pause).await;
    }
}

fn left() -> Option<Duration> {
    let own = certificates::read_identity(&host_identity()).ok()?;
    pki::left(&own.certificate).ok()?
}

/// Makes it anew if it is time. Returns how long there is until it is.
async fn renew_in_time(
    store: &EtcdStore,
    first: &mut Option<(HostId, String)>,
) -> Result<Duration> {
    let place = host_identity();
    let own = certificates::read_identity(&place)?;
    let (host, key) = match place.host() {
        Some(host) => match time_to_renewal(&own.certificate)? {
            Duration::ZERO => (host, own.key),
            left => return Ok(left),
        },
        // That of all hosts of earlier versions: for as long as etcd itself does not tell them apart, nobody would answer.
        None if store.get(&shared_key(store.prefix())).await.is_ok() => return Ok(AGAIN),
        None => {
            let (host, key) = match first.take() {
                Some(before) => before,
                None => (HostId::new(&host_name()), pki::new_key()?),
            };
            first.insert((host, key)).clone()
        }
    };
    let question = CertificateRequest { csr: pki::request(&key, &host.user())?, address: None };
    let asker = Applicant::Host(host.clone());
    let answer = store.ask(&asker, About::Certificate, &encode(&question), None).await?;
    let certificate = answer.certificate.context("the answer has none in it")?;
    let left = time_to_renewal(&certificate)?;
    certificates::write(&place, &Credential { certificate, key })?;
    tracing::info!(%host, "this host's certificate is made anew");
    if left.is_zero() {
        tracing::warn!(
            "by this host's clock, the certificate that was made just now is half over: is the clock right?"
        );
        return Ok(LOOK);
    }
    Ok(left)
}
