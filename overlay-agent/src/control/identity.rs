//! This host's certificate is made anew long before it ends, by a host with a share in etcd. The key stays the same, so that
//! there is no moment at which the two do not fit; a key that was stolen is shut out with its host, by `overlay-agent expel`.
//!
//! While the authority is made another, this host is told whom to trust, and has its certificate made anew at once.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use overlay_lease::{
    store::{
        Revision, Store as _, StoreError, Watch as _,
        etcd::{EtcdStore, Identity},
    },
    wire::{
        identity::{About, Applicant, CertificateRequest, HostId, decode, encode},
        trust::{TrustDone, TrustOrder, done_key, order_key},
    },
};
use rand::Rng as _;

use crate::{
    authority::{
        certificates, host_name,
        pki::{self, Credential},
        shared_key,
    },
    certificate::{each, endorses, time_to_renewal},
    files::{self, Readers},
};

/// How often to look, at most: clocks are set, and certificates replaced by hand.
const LOOK: Duration = Duration::from_hours(1);
/// How soon to ask again where nobody has answered, half of it more or less.
const AGAIN: Duration = Duration::from_secs(30);
/// How soon to listen again where etcd was away.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);

/// Keeps the certificate good that this store shows, for good, and trusts whom this host is told to.
pub async fn keep(store: EtcdStore) {
    let Some(place) = store.config().identity.clone() else { return };
    // For one who has none yet: whom he asks for is one host, however often he has to.
    let mut first = None;
    loop {
        let told = match place.host() {
            Some(host) => Box::pin(order_for(&store, &host)).await.ok().and_then(|(_, told)| told),
            None => None,
        };
        let outcome = match &told {
            Some((at, Some(order))) => heed(&store, &place, *at, order, &mut first).await,
            _ => renew_in_time(&store, &place, None, &mut first).await,
        };
        let pause = match outcome {
            Ok(left) => left.min(LOOK),
            Err(error) => {
                tracing::warn!("this host's certificate is not made anew: {error:#}");
                // Of one that lives for minutes, the last of them are not to be slept away.
                AGAIN.min(left(&place).unwrap_or(AGAIN) / 8)
            }
        };
        let pause = pause.max(Duration::from_millis(200));
        let pause = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = next_order(&store, &place, told.map(|(at, _)| at)) => {}
        }
    }
}

fn left(place: &Identity) -> Option<Duration> {
    let own = certificates::read_identity(place).ok()?;
    pki::left(&own.certificate).ok()?
}

/// Whom a host is told to trust, with the revision at which it was; nothing where it is told nothing.
async fn order_for(
    store: &EtcdStore,
    host: &HostId,
) -> Result<(Revision, Option<(i64, Option<TrustOrder>)>), StoreError> {
    let listing = store.list_below(&order_key(store.prefix(), host)).await?;
    let entry = listing.entries.first();
    let order = entry.map(|entry| (entry.mod_revision.number(), decode(&entry.value)));
    Ok((listing.revision, order))
}

/// Waits until this host is told something else than at this revision.
async fn next_order(store: &EtcdStore, place: &Identity, heard: Option<i64>) {
    let Some(host) = place.host() else { return std::future::pending().await };
    let key = order_key(store.prefix(), &host);
    loop {
        let listen = async {
            let (revision, order) = order_for(store, &host).await.ok()?;
            if order.map(|(at, _)| at) != heard {
                return Some(());
            }
            let keys = std::slice::from_ref(&key);
            let mut watch = store.watch_below(keys, revision).await.ok()?;
            while watch.next().await.ok()?.changes.is_empty() {}
            Some(())
        };
        if Box::pin(listen).await.is_some() {
            return;
        }
        let pause = LISTEN_AGAIN.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::time::sleep(pause).await;
    }
}

/// Trusts those from the next connection on, has a certificate of the first, and says so, unless that was said before.
async fn heed(
    store: &EtcdStore,
    place: &Identity,
    at: i64,
    order: &TrustOrder,
    first: &mut Option<(HostId, String)>,
) -> Result<Duration> {
    let file = store.config().ca_file.as_ref().context("etcd asks for no certificate")?;
    if let Err(refused) = refuse_strangers(&files::read(file)?.unwrap_or_default(), order) {
        // By whomever it was told that, its certificate ends all the same.
        tracing::warn!("{refused:#}");
        return renew_in_time(store, place, None, first).await;
    }
    if files::write(file, &order.authorities.concat(), Readers::All)? {
        let count = order.authorities.len();
        tracing::info!("the authority is made another: this host trusts {count} of them");
    }
    let left = renew_in_time(store, place, order.authorities.first(), first).await?;
    let host = place.host().context("this host has no certificate of its own")?;
    let key = done_key(store.prefix(), &host);
    let done = encode(&TrustDone { to: at });
    if store.get(&key).await?.is_none_or(|said| said.value != done) {
        store.put(&key, &done, None).await?;
    }
    Ok(left)
}

/// Whoever gets around etcd's roles writes orders, too: without an authority that this host trusts already he does not choose
/// the next one.
fn refuse_strangers(trusted: &str, order: &TrustOrder) -> Result<()> {
    ensure!(!order.authorities.is_empty(), "this host is told to trust nobody");
    let trusted = each(trusted);
    for other in order.authorities.iter().filter(|other| !trusted.contains(other)) {
        let endorsed = trusted
            .iter()
            .any(|authority| endorses(&order.endorsement, authority, other).unwrap_or_default());
        ensure!(endorsed, "this host is told to trust an authority that no other has endorsed");
    }
    Ok(())
}

/// Makes it anew if it is time, or if another authority signs. Returns how long there is until it is.
async fn renew_in_time(
    store: &EtcdStore,
    place: &Identity,
    signs: Option<&String>,
    first: &mut Option<(HostId, String)>,
) -> Result<Duration> {
    let own = certificates::read_identity(place)?;
    let is_signed = |certificate: &str| match signs {
        Some(signs) => pki::is_signed_by(certificate, signs),
        None => Ok(true),
    };
    let (host, key) = match place.host() {
        Some(host) => match time_to_renewal(&own.certificate)? {
            left if !left.is_zero() && is_signed(&own.certificate)? => return Ok(left),
            _ => (host, own.key),
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
    ensure!(is_signed(&certificate)?, "the answer is of the authority of before");
    let left = time_to_renewal(&certificate)?;
    certificates::write(place, &Credential { certificate, key })?;
    tracing::info!(%host, "this host's certificate is made anew");
    if left.is_zero() {
        tracing::warn!(
            "by this host's clock, the certificate that was made just now is half over: is the clock right?"
        );
        return Ok(LOOK);
    }
    Ok(left)
}
