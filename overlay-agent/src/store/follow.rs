//! Everybody's leases, as they are and as they change.
//!
//! List at a revision, watch from the next one, follow. Whatever casts doubt on the watch
//! (compaction, an error, the end of the stream) leads to a new listing, which replaces all that
//! was said before, except for what [`grace`](super::grace) keeps. No event costs a request.

use std::{fmt, time::Instant};

use etcd_client::EventType;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{
    Etcd, Listing, StoreError,
    config::{ConfigReporter, ConfigUpdate},
    grace::{Known, Patience},
    outage::Outage,
    reader::Reader,
    watch::WatchEnded,
};
use crate::lease::{claim::Claim, keeper::KeeperHandle, key::SubnetKey, value::asker};

/// A change to the set of leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseUpdate {
    /// All leases there are, in order of their keys. Whatever is not among them is gone.
    Snapshot(Vec<Claim>),
    /// This lease is new or has changed.
    Put(Claim),
    /// There is no such lease any more. It may be one that never was in an update.
    Removed(SubnetKey),
}

impl fmt::Display for LeaseUpdate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(leases) => write!(out, "leases in all: {}", leases.len()),
            Self::Put(claim) => write!(out, "lease: {claim}"),
            Self::Removed(key) => write!(out, "no lease any more: {key}"),
        }
    }
}

/// Follows the leases of one network, our own included.
#[derive(Debug)]
pub struct Follower {
    store: Etcd,
    listing: Option<Listing>,
    keeper: Option<KeeperHandle>,
    config: Option<ConfigReporter>,
    reader: Reader,
    known: Known,
}

/// Why following stopped for the moment.
enum Doubt {
    Store(StoreError),
    Watch(WatchEnded),
    /// Nobody wants updates any more.
    Unwanted,
}

impl fmt::Display for Doubt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(out),
            Self::Watch(ended) => ended.fmt(out),
            Self::Unwanted => out.write_str("nobody follows any more"),
        }
    }
}

impl Follower {
    /// Follows the leases in `store`.
    pub fn new(store: Etcd) -> Self {
        let reader = Reader::new(store.prefix().clone(), store.troubles().clone());
        let known = Known::default();
        Self { store, listing: None, keeper: None, config: None, reader, known }
    }

    /// Starts from a listing that is already there, for example from acquiring our own lease,
    /// instead of asking etcd for all leases once more.
    #[must_use]
    pub fn starting_from(mut self, listing: Listing) -> Self {
        self.listing = Some(listing);
        self
    }

    /// Tells `keeper` what becomes of our own lease, so that it needs no watch of its own.
    #[must_use]
    pub fn informing(mut self, keeper: KeeperHandle) -> Self {
        self.keeper = Some(keeper);
        self
    }

    /// Tells `updates` whenever the network config is another one than that of revision `known`.
    #[must_use]
    pub fn reporting_config(mut self, known: i64, updates: mpsc::Sender<ConfigUpdate>) -> Self {
        let key = self.store.prefix().config_key();
        self.config = Some(ConfigReporter::new(key, known, updates));
        self
    }

    /// Has other patience with hosts that are absent after an outage than the usual.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.known = Known::new(patience);
        self
    }

    /// Follows until `updates` is closed. Losing etcd is no end.
    pub async fn run(mut self, updates: mpsc::Sender<LeaseUpdate>) {
        let mut outage = Outage::on("lost sight of the leases", self.store.troubles());
        loop {
            let doubt = tokio::select! {
                doubt = self.follow(&updates, &mut outage) => doubt,
                () = updates.closed() => return,
            };
            match doubt {
                Doubt::Unwanted => return,
                doubt => tokio::time::sleep(outage.failed(&doubt)).await,
            }
        }
    }

    async fn follow(&mut self, updates: &mpsc::Sender<LeaseUpdate>, outage: &mut Outage) -> Doubt {
        match self.try_follow(updates, outage).await {
            Ok(never) => match never {},
            Err(doubt) => doubt,
        }
    }

    async fn try_follow(
        &mut self,
        updates: &mpsc::Sender<LeaseUpdate>,
        outage: &mut Outage,
    ) -> Result<std::convert::Infallible, Doubt> {
        let listing = match self.listing.take() {
            Some(listing) => listing,
            None => self.store.list().await.map_err(Doubt::Store)?,
        };
        if let Some(config) = &mut self.config {
            config.look(&self.store).await.map_err(Doubt::Store)?;
        }
        let revision = listing.revision;
        let listed = self.reader.snapshot(listing);
        info!("leases in all: {}, as of revision {revision}", listed.len());
        self.send_snapshot(listed, outage, updates).await?;

        let watch = self.store.watch(revision + 1, self.config.is_some()).await;
        let mut watch = watch.map_err(Doubt::Store)?;
        loop {
            let grace = self.known.deadline();
            let events = tokio::select! {
                events = watch.next() => events.map_err(Doubt::Watch)?,
                () = sleep_until(grace), if grace.is_some() => {
                    self.end_grace(updates).await?;
                    continue;
                }
            };
            // Only now is it certain that the watch works.
            outage.over();
            for event in &events {
                if let Some(config) = &mut self.config
                    && config.observe(event).await
                {
                    continue;
                }
                let written = event.kv().filter(|_| event.event_type() == EventType::Put);
                if let (Some(keeper), Some(kv)) = (&self.keeper, written)
                    && keeper.observe_write(kv.key(), kv.value())
                {
                    continue;
                }
                if let Some(update) = self.reader.update(event) {
                    // A question is to its host alone. It makes nobody else believe that this lease was the last
                    // one to be written.
                    if let LeaseUpdate::Put(claim) = &update
                        && self.known.knows(claim)
                        && written.is_some_and(|kv| asker(kv.value()).is_some())
                    {
                        continue;
                    }
                    debug!("{update}");
                    self.send(updates, update).await?;
                }
            }
        }
    }

    async fn send_snapshot(
        &mut self,
        listed: Vec<Claim>,
        outage: &Outage,
        updates: &mpsc::Sender<LeaseUpdate>,
    ) -> Result<(), Doubt> {
        let listed = LeaseUpdate::Snapshot(listed);
        // Our own lease is not for us to have patience with.
        if let Some(keeper) = &self.keeper {
            keeper.observe(&listed);
        }
        let LeaseUpdate::Snapshot(listed) = listed else { return Ok(()) };
        let all = self.known.listed(listed, outage.lasted(), Instant::now());
        let missing = self.known.missing();
        if missing > 0 {
            warn!(
                "{missing} leases are not there any more after the outage: keeping them for a while"
            );
        }
        updates.send(LeaseUpdate::Snapshot(all)).await.or(Err(Doubt::Unwanted))
    }

    async fn end_grace(&mut self, updates: &mpsc::Sender<LeaseUpdate>) -> Result<(), Doubt> {
        for key in self.known.expired(Instant::now()) {
            warn!("no host has taken {key} again after the outage: it counts as gone");
            updates.send(LeaseUpdate::Removed(key)).await.or(Err(Doubt::Unwanted))?;
        }
        Ok(())
    }

    async fn send(
        &mut self,
        updates: &mpsc::Sender<LeaseUpdate>,
        update: LeaseUpdate,
    ) -> Result<(), Doubt> {
        if let Some(keeper) = &self.keeper {
            keeper.observe(&update);
        }
        match &update {
            LeaseUpdate::Put(claim) => {
                for key in self.known.put(*claim) {
                    updates.send(LeaseUpdate::Removed(key)).await.or(Err(Doubt::Unwanted))?;
                }
            }
            LeaseUpdate::Removed(key) => {
                self.known.removed(*key);
            }
            LeaseUpdate::Snapshot(_) => {}
        }
        updates.send(update).await.or(Err(Doubt::Unwanted))
    }
}

/// Sleeps until then; whoever has no such time does not ask.
async fn sleep_until(then: Option<Instant>) {
    if let Some(then) = then {
        tokio::time::sleep_until(then.into()).await;
    }
}
