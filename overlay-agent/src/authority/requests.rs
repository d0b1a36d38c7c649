//! A host with a share in etcd answers what others ask: one of all such hosts, and another one when it is gone.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_lease::{
    store::{
        Change, Entry, Revision, Store as _, Watch as _,
        etcd::{EtcdConfig, EtcdStore},
    },
    wire::identity::{
        About, Answer, Applicant, CertificateRequest, HostId, SubnetRequest, TokenId, decode,
        encode,
    },
};
use tokio::{
    sync::Notify,
    time::{interval, sleep},
};

use super::{
    access::{
        Newcomer, admit, certificate_lifetime, fingerprint, forget, lets_sharers_in, readmit,
        tidy_hosts, tidy_tokens,
    },
    certificates,
    pki::Authority,
    places::{as_root, ca_key_file},
    records::{TokenRecord, chair_key, expelled_dir, known, token},
    seat::Seat,
    seconds_at, sessions,
    subnets::{self, Refusal},
};
use crate::systemd::{self, ETCD_UNIT};

/// How long a host that answers may be silent until another one does: the least that etcd takes.
const CHAIR: Duration = Duration::from_secs(3);
/// How long to wait after what went wrong, and how often to say that we are there.
const PAUSE: Duration = Duration::from_secs(1);
/// How often to look after tokens and certificates, which end by themselves, and, more seldom, after hosts, which may be many.
const TIDY: Duration = Duration::from_secs(30);
const TIDY_HOSTS: Duration = Duration::from_hours(6);

/// Why a token opens nothing.
const VOID: &str = "the token is good no more";

fn stranger(host: &HostId) -> Refusal {
    format!("{host} is no host of this overlay")
}

/// Answers for good, while this host can, and does what is to be done when the authority is made another.
pub async fn serve(etcd: EtcdConfig) {
    let signs_anew = Notify::new();
    tokio::join!(answer_for_good(&etcd, &signs_anew), sit_for_good(&etcd, &signs_anew));
}

async fn answer_for_good(etcd: &EtcdConfig, signs_anew: &Notify) {
    let mut said = String::new();
    loop {
        if ca_key_file().exists() {
            let ended = tokio::select! {
                ended = Box::pin(serve_while_it_lasts(etcd)) => ended,
                () = signs_anew.notified() => continue,
            };
            warn_once("questions of hosts wait for an answer", ended, &mut said);
        }
        sleep(PAUSE).await;
    }
}

/// Apart from the answers, which end with this host's etcd.
async fn sit_for_good(etcd: &EtcdConfig, signs_anew: &Notify) {
    let mut said = String::new();
    loop {
        if ca_key_file().exists() {
            let ended = Box::pin(sit_while_it_lasts(etcd)).await;
            if ended.is_ok() {
                signs_anew.notify_waiters();
            }
            let trouble = "this host does not hear whether the authority is made another";
            warn_once(trouble, ended, &mut said);
        }
        sleep(PAUSE).await;
    }
}

fn warn_once(trouble: &str, ended: Result<()>, said: &mut String) {
    if let Err(error) = ended {
        let error = format!("{error:#}");
        if *said != error {
            tracing::warn!("{trouble}: {error}");
            *said = error;
        }
    }
}

async fn sit_while_it_lasts(etcd: &EtcdConfig) -> Result<()> {
    let store = EtcdStore::new(&as_root(etcd.clone()))?;
    let restart = || systemd::restart(ETCD_UNIT);
    Seat::own(etcd).follow(&store, restart, certificates::renew).await
}

async fn serve_while_it_lasts(etcd: &EtcdConfig) -> Result<()> {
    let own = certificates::read_authority()?.context("the authority's key is gone")?;
    // What the store shows may not be there yet.
    certificates::renew(&Authority::load(own.clone())?)?;
    let office = Office::new(EtcdStore::new(&as_root(etcd.clone()))?, Authority::load(own)?);
    Box::pin(office.answer_all(sessions::end_all, certificates::renew)).await
}

/// Where questions are answered. The store is asked as root.
pub struct Office {
    store: EtcdStore,
    authority: Authority,
}

impl Office {
    /// One that nobody has asked yet.
    pub const fn new(store: EtcdStore, authority: Authority) -> Self {
        Self { store, authority }
    }

    /// Answers what was asked, and what is, until something fails. `upkeep` is done now and then, `expelled` when a host was.
    pub async fn answer_all<F: Future<Output = Result<()>> + Send>(
        &self,
        expelled: impl Fn() -> F + Send + Sync,
        upkeep: impl Fn(&Authority) -> Result<()> + Send + Sync,
    ) -> Result<()> {
        tokio::select! {
            ended = self.look_after_this_host(expelled, upkeep) => ended,
            ended = self.preside() => ended,
        }
    }

    /// What every host with a share in etcd does for its own.
    async fn look_after_this_host<F: Future<Output = Result<()>> + Send>(
        &self,
        expelled: impl Fn() -> F + Send + Sync,
        upkeep: impl Fn(&Authority) -> Result<()> + Send + Sync,
    ) -> Result<()> {
        let dir = expelled_dir(self.store.prefix());
        let from = self.store.list_below(&dir).await?.revision;
        let mut watch = self.store.watch_below(std::slice::from_ref(&dir), from).await?;
        let mut timer = interval(TIDY);
        loop {
            tokio::select! {
                news = watch.next() => {
                    let changes = news?.changes;
                    if changes.iter().any(|change| matches!(change, Change::Put(_))) {
                        expelled().await?;
                    }
                }
                _ = timer.tick() => upkeep(&self.authority)?,
            }
        }
    }

    /// What one of them does for all, while it can: of two that answer, each would undo what the other is about to do.
    async fn preside(&self) -> Result<()> {
        let chair = self.store.grant(CHAIR).await?;
        let key = chair_key(self.store.prefix());
        while self
            .store
            .replace_if_unchanged(key.as_bytes(), Revision::NONE, b"", Some(chair))
            .await?
            .is_none()
        {
            sleep(PAUSE).await;
            ensure!(self.store.keep(chair).await?, "etcd was away for too long");
        }
        let prefix = self.store.prefix();
        let dirs = [prefix.hosts_dir(), prefix.join_dir()];
        let mut from = Revision::LAST;
        for dir in &dirs {
            let listing = self.store.list_below(dir).await?;
            from = from.min(listing.revision);
            for entry in self.unanswered(&listing.entries) {
                self.answer_or_say_why_not(entry).await;
            }
        }
        let mut watch = self.store.watch_below(&dirs, from).await?;
        let (mut keep, mut tidy, mut seldom) =
            (interval(PAUSE), interval(TIDY), interval(TIDY_HOSTS));
        loop {
            tokio::select! {
                news = watch.next() => for change in news?.changes {
                    if let Change::Put(entry) = change {
                        self.answer_or_say_why_not(&entry).await;
                    }
                },
                _ = keep.tick() => ensure!(self.store.keep(chair).await?, "another host answers"),
                _ = tidy.tick() => tidy_tokens(&self.store).await?,
                _ = seldom.tick() => tidy_hosts(&self.store).await?,
            }
        }
    }

    /// Those questions that nobody has answered.
    fn unanswered<'a>(&self, entries: &'a [Entry]) -> Vec<&'a Entry> {
        let prefix = self.store.prefix();
        let answers: BTreeMap<_, _> =
            entries.iter().map(|entry| (entry.key.as_slice(), entry.value.as_slice())).collect();
        let is_answered = |question: &Entry| {
            let Some((asker, about)) = Applicant::of_request(prefix, &question.key) else {
                return true;
            };
            let key = asker.answer_key(prefix, about);
            let answer = answers.get(key.as_bytes()).and_then(|value| decode::<Answer>(value));
            answer.is_some_and(|answer| answer.is_to(question.mod_revision.number()))
        };
        entries.iter().filter(|entry| !is_answered(entry)).collect()
    }

    /// One that cannot be answered keeps no other waiting: whoever asks can take away what the answer hangs on. Where it is etcd
    /// that does not answer, the watch ends, too.
    async fn answer_or_say_why_not(&self, question: &Entry) {
        if let Err(error) = self.answer(question).await {
            tracing::warn!("{} is not answered: {error:#}", question.name());
        }
    }

    /// Answers a question, if it is one.
    async fn answer(&self, question: &Entry) -> Result<()> {
        let prefix = self.store.prefix();
        let Some((asker, about)) = Applicant::of_request(prefix, &question.key) else {
            return Ok(());
        };
        // Of who asks all the time only the last question is worth the work: others wait meanwhile.
        let latest = self.store.get(&question.name()).await?;
        if latest.is_none_or(|latest| latest.mod_revision != question.mod_revision) {
            return Ok(());
        }
        let decided = match about {
            About::Certificate => self.certify(&asker, question).await?,
            About::Subnet => self.give(&asker, question).await?.map(|()| None),
            About::Leaving => Ok(None),
        };
        let answer = Answer {
            to: question.mod_revision.number(),
            certificate: decided.as_ref().ok().cloned().flatten(),
            refused: decided.err(),
        };
        let refused = answer.refused.as_deref();
        tracing::info!(host = %asker.host(), ?about, refused, "answered");
        let key = asker.answer_key(prefix, about);
        self.store.put(&key, &encode(&answer), question.etcd_lease).await?;
        if about == About::Leaving
            && let Applicant::Host(host) = &asker
        {
            forget(&self.store, host).await?;
        }
        Ok(())
    }

    async fn give(&self, asker: &Applicant, question: &Entry) -> Result<Result<(), Refusal>> {
        let (Applicant::Host(host), Some(SubnetRequest { subnet })) =
            (asker, decode(&question.value))
        else {
            return Ok(Err("the question is malformed".to_owned()));
        };
        Ok(subnets::give(&self.store, host, subnet).await?)
    }

    /// A certificate for a host that is known, or that has a token.
    async fn certify(
        &self,
        asker: &Applicant,
        question: &Entry,
    ) -> Result<Result<Option<String>, Refusal>> {
        let Some(CertificateRequest { csr, address }) = decode(&question.value) else {
            return Ok(Err("the question is malformed".to_owned()));
        };
        let host = asker.host().clone();
        let lifetime = certificate_lifetime(&self.store).await?;
        let certificate = match self.authority.client_of_request(&csr, &host.user(), lifetime) {
            Ok(certificate) => certificate,
            Err(error) => return Ok(Err(format!("{error:#}"))),
        };
        let known = known(&self.store, &host).await?.map(|(_, record)| record);
        let has_another_key =
            known.as_ref().is_some_and(|known| known.key != fingerprint(&certificate));
        let is_renewal = known.is_some() && matches!(asker, Applicant::Host(_));
        let refusal = match asker {
            // Neither does who has a token become a host that is there, nor any other who is let write here.
            _ if has_another_key => Some(format!("there is a host {host} already")),
            Applicant::Host(_) if is_renewal => None,
            // etcd has let it write here: it has the certificate that all hosts of earlier versions shared.
            Applicant::Host(_) if lets_sharers_in(&self.store).await? => None,
            Applicant::Host(_) => Some(stranger(&host)),
            Applicant::Guest(token, _) => self.spend(token, &host).await?,
        };
        if let Some(refusal) = refusal {
            return Ok(Err(refusal));
        }
        let newcomer = Newcomer { host: host.clone(), address, certificate: certificate.clone() };
        let is_in = if is_renewal {
            readmit(&self.store, &newcomer).await?
        } else {
            admit(&self.store, &newcomer).await?
        };
        if !is_in {
            return Ok(Err(stranger(&host)));
        }
        // Whoever expels a host makes all tokens void first.
        if let Applicant::Guest(id, _) = asker
            && token(&self.store, id).await?.is_none()
        {
            forget(&self.store, &host).await?;
            return Ok(Err(VOID.to_owned()));
        }
        Ok(Ok(Some(certificate)))
    }

    /// Uses a token for a host. Returns why it cannot be.
    async fn spend(&self, id: &TokenId, host: &HostId) -> Result<Option<Refusal>> {
        loop {
            let Some((entry, record)) = token(&self.store, id).await? else {
                return Ok(Some(VOID.to_owned()));
            };
            if record.ends < seconds_at(Duration::ZERO) {
                return Ok(Some("the token has expired".to_owned()));
            }
            match &record.used_by {
                Some(other) if record.once && other != host => {
                    return Ok(Some(format!(
                        "the token was good for one host, and {other} has it"
                    )));
                }
                Some(other) if other == host => return Ok(None),
                _ => {}
            }
            let used = TokenRecord { used_by: Some(host.clone()), ..record };
            let value = encode(&used);
            let written =
                self.store.replace_if_unchanged(&entry.key, entry.mod_revision, &value, None);
            if written.await?.is_some() {
                return Ok(None);
            }
        }
    }
}
