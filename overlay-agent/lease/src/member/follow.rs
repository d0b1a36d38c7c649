//! Everybody's leases, as they are and as they change.
//!
//! List at a revision, watch from the next one, follow. No event costs a request. A watch that ends (an error, an
//! election, the end of the stream) is taken up again behind the last change that was seen, which costs the store next to
//! nothing, however many follow. Where the store is not the one that it was, or has forgotten what came after that change,
//! there is a new listing, which replaces all that was said before, except for what [`grace`](super::grace) keeps.

use std::{
    fmt,
    time::{Duration, Instant},
};

use rand::Rng as _;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{
    claim::LeaseClaim,
    grace::{Known, Patience},
    keeper::KeeperHandle,
    network::{ConfigReporter, ConfigUpdate},
    reader::Reader,
    update::LeaseUpdate,
};
use crate::{
    outage::Outage,
    store::{Change, Listing, Revision, Store, StoreError, Watch as _, WatchEnded},
    wire::{key::SubnetKey, value::asker},
};

/// Follows the leases of one network, our own included.
#[derive(Debug)]
pub struct Follower<S> {
    store: S,
    listing: Option<Listing>,
    keeper: Option<KeeperHandle>,
    config: Option<ConfigReporter>,
    reader: Reader,
    known: Known,
    place: Option<Place>,
}

/// How far a store's changes are known.
#[derive(Clone, Copy, Debug)]
struct Place {
    cluster: u64,
    /// All changes up to this revision.
    revision: Revision,
}

/// How long every lease that there is puts off a listing that all who follow may want at once, and at most.
const LISTING_AFTER: Duration = Duration::from_millis(2);
const LISTING_WITHIN: Duration = Duration::from_secs(30);

/// Why following stopped for the moment.
enum FollowError {
    Store(StoreError),
    Watch(WatchEnded),
    /// Nobody wants updates any more.
    Unwanted,
}

impl fmt::Display for FollowError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(out),
            Self::Watch(ended) => ended.fmt(out),
            Self::Unwanted => out.write_str("nobody follows any more"),
        }
    }
}

impl<S: Store> Follower<S> {
    /// Follows the leases in `store`.
    pub fn new(store: S) -> Self {
        let reader = Reader::new(store.prefix().clone(), store.troubles().clone());
        let known = Known::default();
        Self { store, listing: None, keeper: None, config: None, reader, known, place: None }
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
    pub fn reporting_config(
        mut self,
        known: Revision,
        updates: mpsc::Sender<ConfigUpdate>,
    ) -> Self {
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
                FollowError::Unwanted => return,
                doubt => {
                    if matches!(doubt, FollowError::Watch(WatchEnded::Compacted(_))) {
                        self.place = None;
                    }
                    tokio::time::sleep(outage.failed(&doubt)).await;
                }
            }
        }
    }

    async fn follow(
        &mut self,
        updates: &mpsc::Sender<LeaseUpdate>,
        outage: &mut Outage,
    ) -> FollowError {
        match Box::pin(self.try_follow(updates, outage)).await {
            Ok(never) => match never {},
            Err(doubt) => doubt,
        }
    }

    async fn try_follow(
        &mut self,
        updates: &mpsc::Sender<LeaseUpdate>,
        outage: &mut Outage,
    ) -> Result<std::convert::Infallible, FollowError> {
        let (mut watch, missed) = match self.resume().await? {
            Some(resumed) => resumed,
            None => (self.begin(outage, updates).await?, Revision::NONE),
        };
        // What was lost meanwhile may be about to come back.
        let lasted = outage.lasted();
        loop {
            let grace = self.known.deadline();
            let news = tokio::select! {
                news = watch.next() => news.map_err(FollowError::Watch)?,
                () = sleep_until(grace), if grace.is_some() => {
                    self.end_grace(updates).await?;
                    continue;
                }
            };
            // Only now is it certain that the watch works.
            outage.over();
            let mut lost = Vec::new();
            for change in &news.changes {
                if let Some(config) = &mut self.config
                    && config.observe(change).await
                {
                    continue;
                }
                let written = match change {
                    Change::Put(entry) => Some(entry),
                    Change::Deleted { .. } => None,
                };
                if let (Some(keeper), Some(entry)) = (&self.keeper, written)
                    && keeper.observe_write(&entry.key, &entry.value)
                {
                    continue;
                }
                let Some(update) = self.reader.update(change) else { continue };
                match &update {
                    // A question is to its host alone. It makes nobody else believe that this lease was the last
                    // one to be written.
                    LeaseUpdate::Put(claim)
                        if self.known.knows(claim)
                            && written.is_some_and(|entry| asker(&entry.value).is_some()) =>
                    {
                        continue;
                    }
                    LeaseUpdate::Put(claim) => lost.retain(|key| *key != claim.key),
                    LeaseUpdate::Removed(key) if change.revision() <= missed => {
                        lost.push(*key);
                        continue;
                    }
                    LeaseUpdate::Removed(_) | LeaseUpdate::Snapshot(_) => {}
                }
                debug!("{update}");
                self.send(updates, update).await?;
            }
            self.lose(&lost, lasted, updates).await?;
            if let (Some(place), Some(revision)) = (&mut self.place, news.complete) {
                place.revision = place.revision.max(revision);
            }
        }
    }

    /// Begins with a listing.
    async fn begin(
        &mut self,
        outage: &mut Outage,
        updates: &mpsc::Sender<LeaseUpdate>,
    ) -> Result<S::Watch, FollowError> {
        let listing = if let Some(listing) = self.listing.take() {
            listing
        } else {
            tokio::time::sleep(self.put_off()).await;
            self.store.list().await.map_err(FollowError::Store)?
        };
        if let Some(config) = &mut self.config {
            config.look(&self.store).await.map_err(FollowError::Store)?;
        }
        let place = Place { cluster: listing.cluster, revision: listing.revision };
        let revision = place.revision;
        let listed = self.reader.snapshot(listing);
        info!("leases in all: {}, as of revision {revision}", listed.len());
        self.send_snapshot(listed, outage, updates).await?;
        self.place = Some(place);
        self.store.watch(revision, self.config.is_some()).await.map_err(FollowError::Store)
    }

    /// How long to wait before a listing, so that not all ask at once for everything.
    fn put_off(&self) -> Duration {
        let leases = u32::try_from(self.known.count()).unwrap_or(u32::MAX);
        let most = LISTING_AFTER.saturating_mul(leases).min(LISTING_WITHIN);
        most.mul_f64(rand::rng().random_range(0.0..=1.0))
    }

    /// Goes on where the last watch has ended, and says up to which revision changes were missed; nothing where that is
    /// not possible.
    async fn resume(&mut self) -> Result<Option<(S::Watch, Revision)>, FollowError> {
        // Another history has another latest change.
        let (Some(place), Some(latest)) = (self.place, self.known.latest()) else {
            self.place = None;
            return Ok(None);
        };
        let (key, written) = (self.store.prefix().key(&latest.key), latest.written);
        let past = match self.store.past(&key, place.revision).await {
            Ok(past) if past.cluster == place.cluster && past.written == Some(written) => past,
            Err(error) if !error.is_refusal() => return Err(FollowError::Store(error)),
            // It is another one, or does not go back so far, or has not come so far.
            Ok(_) | Err(_) => {
                warn!("etcd does not have the past that is known of it: reading all leases anew");
                self.place = None;
                return Ok(None);
            }
        };
        if let Some(config) = &mut self.config {
            config.look(&self.store).await.map_err(FollowError::Store)?;
        }
        debug!("following leases again after revision {}", place.revision);
        let watch = self.store.watch(place.revision, self.config.is_some()).await;
        Ok(Some((watch.map_err(FollowError::Store)?, past.latest)))
    }

    /// Keeps for a while, or gives up, what etcd has lost in an outage.
    async fn lose(
        &mut self,
        lost: &[SubnetKey],
        outage: Duration,
        updates: &mpsc::Sender<LeaseUpdate>,
    ) -> Result<(), FollowError> {
        if lost.is_empty() {
            return Ok(());
        }
        for (key, kept) in self.known.lost(lost, outage, Instant::now()) {
            let gone = LeaseUpdate::Removed(key);
            if let Some(keeper) = &self.keeper {
                keeper.observe(&gone);
            }
            let update = kept.map_or(gone, LeaseUpdate::Put);
            updates.send(update).await.or(Err(FollowError::Unwanted))?;
        }
        if self.known.missing() > 0 {
            let missing = self.known.missing();
            warn!("{missing} leases went during the outage: keeping them for a while");
        }
        Ok(())
    }

    async fn send_snapshot(
        &mut self,
        listed: Vec<LeaseClaim>,
        outage: &Outage,
        updates: &mpsc::Sender<LeaseUpdate>,
    ) -> Result<(), FollowError> {
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
        updates.send(LeaseUpdate::Snapshot(all)).await.or(Err(FollowError::Unwanted))
    }

    async fn end_grace(&mut self, updates: &mpsc::Sender<LeaseUpdate>) -> Result<(), FollowError> {
        for key in self.known.expired(Instant::now()) {
            warn!("no host has taken {key} again after the outage: it counts as gone");
            updates.send(LeaseUpdate::Removed(key)).await.or(Err(FollowError::Unwanted))?;
        }
        Ok(())
    }

    async fn send(
        &mut self,
        updates: &mpsc::Sender<LeaseUpdate>,
        update: LeaseUpdate,
    ) -> Result<(), FollowError> {
        if let Some(keeper) = &self.keeper {
            keeper.observe(&update);
        }
        match &update {
            LeaseUpdate::Put(claim) => {
                for key in self.known.put(*claim) {
                    updates.send(LeaseUpdate::Removed(key)).await.or(Err(FollowError::Unwanted))?;
                }
            }
            LeaseUpdate::Removed(key) => {
                self.known.removed(*key);
            }
            LeaseUpdate::Snapshot(_) => {}
        }
        updates.send(update).await.or(Err(FollowError::Unwanted))
    }
}

/// Sleeps until then; whoever has no such time does not ask.
async fn sleep_until(then: Option<Instant>) {
    if let Some(then) = then {
        tokio::time::sleep_until(then.into()).await;
    }
}
