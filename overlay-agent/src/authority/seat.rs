//! A host with a share in etcd, while the authority is made another: it does what is to be done with its etcd when it is its
//! turn.
//!
//! The new authority's key does not come by etcd, where whoever has the old one reads everything: somebody brings it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use overlay_lease::{
    store::{
        Store as _, Watch as _,
        etcd::{EtcdConfig, EtcdStore},
    },
    wire::identity::{decode, encode},
};

use super::{
    pki::{self, Authority, Credential},
    places::{as_root, ca_file, ca_key_file, next_authority_file},
    records::{MemberDone, Rotation, Step, read, rotation_key, turn_key},
};
use crate::{
    certificate::each,
    files::{self, Readers},
};

/// How long our etcd may take until it answers, after it was started anew.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);
/// How soon to look again.
const PAUSE: Duration = Duration::from_millis(500);

/// Where on such a host is what.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Whom etcd and this host trust: one authority after the other, in PEM.
    pub ca: PathBuf,
    /// The key of the one that signs.
    pub ca_key: PathBuf,
    /// The one that is to take its place, certificate and key.
    pub next: PathBuf,
    /// This host's own etcd, asked as root.
    pub at_home: EtcdConfig,
}

/// What became of a turn.
enum Turn {
    /// It is not ours, or it is done.
    Nothing,
    /// We cannot take it yet.
    Stuck,
    /// Another authority signs from now on.
    SignsAnew,
}

impl Seat {
    /// A host's own.
    pub(super) fn own(etcd: &EtcdConfig) -> Self {
        let endpoints = vec!["https://127.0.0.1:2379".to_owned()];
        let at_home = as_root(EtcdConfig { endpoints, ..etcd.clone() });
        Self { ca: ca_file(), ca_key: ca_key_file(), next: next_authority_file(), at_home }
    }

    /// Does what is to be done, until another authority signs. `restart` starts this host's etcd anew, `renew` makes its
    /// certificates of this authority. The store is asked as root.
    pub async fn follow<F: Future<Output = Result<()>>>(
        &self,
        store: &EtcdStore,
        restart: impl Fn() -> F,
        renew: impl Fn(&Authority) -> Result<()>,
    ) -> Result<()> {
        let key = rotation_key(store.prefix());
        loop {
            let listing = store.list_below(&key).await?;
            let rotation: Option<Rotation> =
                listing.entries.first().and_then(|entry| decode(&entry.value));
            let turn = match &rotation {
                Some(rotation) => self.take_turn(store, rotation, &restart, &renew).await?,
                None => Turn::Nothing,
            };
            match turn {
                Turn::SignsAnew => return Ok(()),
                Turn::Stuck => tokio::time::sleep(PAUSE).await,
                Turn::Nothing => {
                    let keys = std::slice::from_ref(&key);
                    let mut watch = store.watch_below(keys, listing.revision).await?;
                    while watch.next().await?.changes.is_empty() {}
                }
            }
        }
    }

    async fn take_turn<F: Future<Output = Result<()>>>(
        &self,
        store: &EtcdStore,
        rotation: &Rotation,
        restart: &impl Fn() -> F,
        renew: &impl Fn(&Authority) -> Result<()>,
    ) -> Result<Turn> {
        let home = EtcdStore::new(&self.at_home)?;
        let endpoint = self.at_home.endpoints.first().context("this host's etcd is nowhere")?;
        let member = home.condition(endpoint).await?.id;
        if rotation.turn != Some(member) {
            return Ok(Turn::Nothing);
        }
        let key = turn_key(store.prefix(), member);
        let said = read::<MemberDone>(store, &key).await?.map(|(_, said)| said);
        let Rotation { step, old, new, .. } = rotation;
        if said.as_ref().is_some_and(|said| said.step >= *step && said.trouble.is_none()) {
            return Ok(Turn::Nothing);
        }
        // Without the key it would sign for nobody at the next step.
        let next = next_authority(&self.next)?.filter(|next| next.certificate == *new);
        let has_it = *step == Step::Only || next.is_some();
        if !has_it {
            let trouble = Some("it has not the new authority's key".to_owned());
            let done = MemberDone { step: *step, trouble };
            if said.as_ref() != Some(&done) {
                store.put(&key, &encode(&done), None).await?;
            }
            return Ok(Turn::Stuck);
        }
        tracing::info!(?step, "the authority is made another: this host's turn");
        let trusted = match step {
            Step::Both => [old.as_str(), new].concat(),
            Step::Sign => [new.as_str(), old].concat(),
            Step::Only => new.clone(),
        };
        files::write(&self.ca, &trusted, Readers::All)?;
        match (step, next) {
            (Step::Sign, Some(next)) => {
                files::write(&self.ca_key, &next.key, Readers::Root)?;
                renew(&Authority::load(next)?)?;
            }
            // etcd reads whom it trusts when it starts, and never again.
            _ => restart().await.context("etcd is to trust another authority")?,
        }
        let done = encode(&MemberDone { step: *step, trouble: None });
        let begun = Instant::now();
        // By way of this host's own etcd: then it is one of those that agree.
        while let Err(error) = home.put(&key, &done, None).await {
            if begun.elapsed() > ANSWERS_WITHIN {
                return Err(anyhow!(error).context("this host's etcd was started anew"));
            }
            tokio::time::sleep(PAUSE).await;
        }
        if *step == Step::Only {
            files::remove(&self.next)?;
        }
        Ok(if *step == Step::Sign { Turn::SignsAnew } else { Turn::Nothing })
    }
}

/// An authority in one file, certificate and key; nothing if there is none.
///
/// # Errors
/// Where the file has not both, or they do not fit.
pub fn next_authority(file: &Path) -> Result<Option<Credential>> {
    let Some(text) = files::read(file)? else { return Ok(None) };
    let unfit = || format!("{} is no new authority, certificate and key", file.display());
    let certificate = each(&text).into_iter().next().with_context(unfit)?;
    let (certificate, rest) = match certificate.split_once("-----BEGIN PRIVATE") {
        Some((certificate, rest)) => {
            (format!("{}\n", certificate.trim_end()), format!("-----BEGIN PRIVATE{rest}"))
        }
        None => return Err(anyhow!(unfit())),
    };
    anyhow::ensure!(pki::fit(&certificate, &rest).with_context(unfit)?, unfit());
    Ok(Some(Credential { certificate, key: rest }))
}
