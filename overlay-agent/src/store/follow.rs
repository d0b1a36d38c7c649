//! Everybody's leases, as they are and as they change.
//!
//! List at a revision, watch from the next one, follow. Whatever casts doubt on the watch
//! (compaction, an error, the end of the stream) leads to a new listing, which replaces all that
//! was said before, except for what [`grace`](super::grace) keeps. No event costs a request.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Instant,
};

use etcd_client::{Event, EventType};
use ipnetwork::Ipv4Network;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{
    Entry, Etcd, Listing, StoreError,
    config::{ConfigReporter, ConfigUpdate},
    grace::{Known, Patience},
    outage::Outage,
    watch::WatchEnded,
};
use crate::lease::{
    Lease,
    keeper::KeeperHandle,
    key::Prefix,
    value::{Backend, LeaseValue},
};

/// A change to the set of leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseUpdate {
    /// All leases there are, in order of their subnets. Whatever is not among them is gone.
    Snapshot(Vec<Lease>),
    /// This lease is new or has changed.
    Put(Lease),
    /// Nobody has this subnet any more. It may be one that never was in an update.
    Removed(Ipv4Network),
}

impl fmt::Display for LeaseUpdate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(leases) => write!(out, "leases in all: {}", leases.len()),
            Self::Put(lease) => write!(out, "lease: {lease}"),
            Self::Removed(subnet) => write!(out, "no lease any more: {subnet}"),
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
        let reader = Reader::new(store.prefix().clone());
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
                if let Some(update) = self.reader.update(event) {
                    debug!("{update}");
                    self.send(updates, update).await?;
                }
            }
        }
    }

    async fn send_snapshot(
        &mut self,
        listed: Vec<Lease>,
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
        for subnet in self.known.expired(Instant::now()) {
            warn!("no host has taken {subnet} again after the outage: it counts as gone");
            updates.send(LeaseUpdate::Removed(subnet)).await.or(Err(Doubt::Unwanted))?;
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
            LeaseUpdate::Put(lease) => {
                for subnet in self.known.put(*lease) {
                    updates.send(LeaseUpdate::Removed(subnet)).await.or(Err(Doubt::Unwanted))?;
                }
            }
            LeaseUpdate::Removed(subnet) => self.known.removed(*subnet),
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

/// Makes leases of keys and values, and remembers which of them it has complained about.
#[derive(Debug)]
struct Reader {
    prefix: Prefix,
    /// The revision of each key that is no lease of ours, as of when that was said.
    reported: HashMap<Vec<u8>, i64>,
}

/// What a key and its value amount to.
enum Read {
    Lease(Lease),
    /// The subnet of a host that we cannot reach.
    Foreign(Ipv4Network),
    Malformed,
}

impl Reader {
    fn new(prefix: Prefix) -> Self {
        Self { prefix, reported: HashMap::new() }
    }

    fn snapshot(&mut self, listing: Listing) -> Vec<Lease> {
        let known: HashMap<_, _> = std::mem::take(&mut self.reported);
        let mut leases = BTreeMap::new();
        for entry in listing.entries {
            // Complaints about keys that are gone are forgotten with them.
            if let Some((key, revision)) = known.get_key_value(&entry.key) {
                self.reported.insert(key.clone(), *revision);
            }
            if let Read::Lease(lease) = self.read(&entry) {
                leases.insert(lease.subnet, lease);
            }
        }
        leases.into_values().collect()
    }

    fn update(&mut self, event: &Event) -> Option<LeaseUpdate> {
        let kv = event.kv()?;
        if event.event_type() == EventType::Delete {
            self.reported.remove(kv.key());
            let key = self.prefix.parse_subnet_key(kv.key()).ok()?;
            return Some(LeaseUpdate::Removed(key.subnet));
        }
        match self.read(&Entry::from(kv.clone())) {
            Read::Lease(lease) => Some(LeaseUpdate::Put(lease)),
            Read::Foreign(subnet) => Some(LeaseUpdate::Removed(subnet)),
            // It says nothing about where the subnet's host is, so what we knew stays.
            Read::Malformed => None,
        }
    }

    fn read(&mut self, entry: &Entry) -> Read {
        let subnet = match self.prefix.parse_subnet_key(&entry.key) {
            Ok(key) => key.subnet,
            Err(error) => {
                self.report(entry, &error);
                return Read::Malformed;
            }
        };
        let value = match LeaseValue::decode(&entry.value) {
            Ok(value) => value,
            Err(error) => {
                self.report(entry, &error);
                return Read::Malformed;
            }
        };
        if let Some(lease) = Lease::from_parts(subnet, &value) {
            return Read::Lease(lease);
        }
        if let Backend::Other(name) = &value.backend {
            self.report(entry, &format_args!("its backend is {name:?}, not \"vxlan\""));
        }
        Read::Foreign(subnet)
    }

    /// Once for each version of a key.
    fn report(&mut self, entry: &Entry, reason: &dyn fmt::Display) {
        let said = self.reported.insert(entry.key.clone(), entry.mod_revision);
        if said != Some(entry.mod_revision) {
            let key = String::from_utf8_lossy(&entry.key);
            warn!("ignoring {key}: {reason}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, value: &str, mod_revision: i64) -> Entry {
        Entry {
            key: format!("/n/subnets/{name}").into_bytes(),
            value: value.as_bytes().to_vec(),
            mod_revision,
            etcd_lease: None,
        }
    }

    fn vxlan(ip: &str) -> String {
        format!(
            r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{{"VtepMAC":"02:00:00:00:00:01"}}}}"#
        )
    }

    #[test]
    fn a_snapshot_holds_the_leases_and_nothing_else() {
        let mut reader = Reader::new(Prefix::new("/n"));
        let entries = vec![
            entry("10.5.2.0-24", &vxlan("192.0.2.2"), 1),
            entry("10.5.1.0-24&fd00::-64", &vxlan("192.0.2.1"), 2),
            entry("nonsense", &vxlan("192.0.2.3"), 3),
            entry("10.5.3.0-24", "nonsense", 4),
            entry("10.5.4.0-24", r#"{"PublicIP":"192.0.2.4","BackendType":"host-gw"}"#, 5),
        ];
        let snapshot = reader.snapshot(Listing { revision: 5, entries });
        let subnets: Vec<_> = snapshot.iter().map(|lease| lease.subnet.to_string()).collect();
        assert_eq!(subnets, ["10.5.1.0/24", "10.5.2.0/24"]);
        assert_eq!(reader.reported.len(), 3);
    }

    #[test]
    fn complaints_are_kept_for_as_long_as_their_keys() {
        let mut reader = Reader::new(Prefix::new("/n"));
        let bad = |name: &str| entry(name, "nonsense", 7);
        let listing = |entries| Listing { revision: 9, entries };
        reader.snapshot(listing(vec![bad("10.5.1.0-24"), bad("10.5.2.0-24")]));
        assert_eq!(reader.reported.len(), 2);
        reader.snapshot(listing(vec![bad("10.5.2.0-24")]));
        let keys: Vec<_> = reader.reported.keys().cloned().collect();
        assert_eq!(keys, [bad("10.5.2.0-24").key]);
    }
}
