//! Keeping a lease: renewed in time, taken again when it was lost, never taken from somebody else.
//!
//! The keeper has no watch of its own. Whoever follows the leases tells it about ours through a
//! [`KeeperHandle`], and only then does it look.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use rand::Rng;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tracing::{debug, error, warn};

use super::{
    acquire::{Acquired, describe, retire},
    claim::LeaseClaim,
    incident::Incident,
    survey::is_copy,
    update::LeaseUpdate,
};
use crate::{
    figures::LeaseTime,
    outage::Outage,
    store::{Created, Entry, Store, StoreError},
    wire::{
        Lease,
        allocate::overlap,
        value::{LeaseValue, asker},
    },
};

/// The least time between two looks at our key, so that no quarrel with another writer becomes a
/// storm.
const LOOK: Duration = Duration::from_secs(1);
/// The same after our key was put right, which is to take less than a second, every time.
const REPAIR: Duration = Duration::from_millis(200);

/// Who takes our key back within this time does so on purpose.
const QUARREL: Duration = Duration::from_secs(10);

/// Something that happened to our lease and that the rest of the agent must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// It was lost, and is ours again: same subnet, same MAC.
    Retaken(Lease),
    /// Its key was put right, or somebody else has what makes this host known.
    Incident(Incident),
    /// It was lost and is somebody else's. The keeper has stopped: another subnet must be acquired.
    TakenByOther {
        /// The lease that was ours.
        lease: Lease,
        /// The key that is in the way: the same subnet, or one that overlaps it.
        key: String,
        /// Whose it is, if its value says so.
        owner: Option<Ipv4Addr>,
    },
    /// An operator has given this host another subnet or MAC. Whoever followed has stopped.
    Reassigned {
        /// What it had.
        old: Lease,
        /// What it gets.
        new: Lease,
    },
}

/// Keeps one lease.
#[derive(Debug)]
pub struct Keeper<S> {
    store: S,
    lease: Lease,
    etcd_lease: Option<i64>,
    ttl: Duration,
    /// Whether it hangs on no etcd lease, and is to stay so.
    is_reservation: bool,
    /// When it was last granted or renewed, or before that.
    kept: Instant,
    /// The address that the lease had before it got ours, if it was another.
    displaced: Option<Ipv4Addr>,
    /// When our key was last found to have that one again.
    displaced_again: Option<Instant>,
    nudge: Arc<Notify>,
}

/// Tells a [`Keeper`] that it should look after its lease.
#[derive(Clone, Debug)]
pub struct KeeperHandle {
    lease: Lease,
    key: String,
    value: Vec<u8>,
    nudge: Arc<Notify>,
}

impl KeeperHandle {
    /// Takes note of a write to a key. Cheap, and does nothing unless the key is ours. Returns whether it is, and
    /// holds what is no lease: that is for the keeper to mend, and tells nobody anything.
    pub fn observe_write(&self, key: &[u8], value: &[u8]) -> bool {
        if key != self.key.as_bytes() || value == self.value {
            return false;
        }
        self.nudge.notify_one();
        LeaseValue::decode(value).is_err()
    }

    /// Takes note of an update about leases. Cheap, and does nothing unless it is about ours.
    pub fn observe(&self, update: &LeaseUpdate) {
        let ours = self.lease;
        let doubtful = match update {
            LeaseUpdate::Snapshot(claims) => claims
                .binary_search_by_key(&LeaseClaim::listed(ours).key, |claim| claim.key)
                .map_or(true, |index| claims[index].lease != ours),
            LeaseUpdate::Put(LeaseClaim { lease, .. }) => {
                *lease != ours && overlap(lease.subnet, ours.subnet)
            }
            LeaseUpdate::Removed(key) => key.subnet == ours.subnet,
        };
        if doubtful {
            self.nudge.notify_one();
        }
    }
}

/// What a look at our key has shown.
enum Look {
    Ours,
    Retaken,
    /// It is ours again, or still.
    Repaired(Incident),
    /// Somebody wrote at the same time: look again.
    Again,
    Taken(Entry),
}

impl<S: Store> Keeper<S> {
    /// Keeps what was acquired, with the TTL that was asked for.
    pub fn new(store: S, acquired: &Acquired, ttl: Duration) -> Self {
        let keeper = Self {
            store,
            lease: acquired.lease,
            etcd_lease: acquired.etcd_lease,
            ttl,
            is_reservation: acquired.etcd_lease.is_none(),
            kept: acquired.kept.into(),
            displaced: acquired.displaced,
            displaced_again: None,
            nudge: Arc::new(Notify::new()),
        };
        keeper.tell();
        keeper
    }

    /// Says until when our key stays where it is.
    fn tell(&self) {
        let ends = self.etcd_lease.is_some() && !self.is_reservation;
        let since = self.kept.into_std();
        self.store.figures().set_lease(ends.then_some(LeaseTime { since, ttl: self.ttl }));
    }

    /// The end to give to whoever follows the leases.
    pub fn handle(&self) -> KeeperHandle {
        KeeperHandle {
            lease: self.lease,
            key: self.key(),
            value: self.lease.value().encode(),
            nudge: Arc::clone(&self.nudge),
        }
    }

    fn key(&self) -> String {
        self.store.prefix().subnet_key(self.lease.subnet)
    }

    /// Keeps the lease until somebody else has it, or `events` is closed. The lease itself outlives
    /// this: a stopped agent finds it again.
    pub async fn run(mut self, events: mpsc::Sender<LeaseEvent>) {
        tokio::select! {
            () = self.keep(&events) => {}
            () = events.closed() => {}
        }
    }

    async fn keep(&mut self, events: &mpsc::Sender<LeaseEvent>) {
        let mut outage = Outage::on("cannot renew our lease", self.store.troubles());
        let mut renewal = Instant::now() + self.until_renewal();
        loop {
            let due = tokio::select! {
                () = tokio::time::sleep_until(renewal), if self.etcd_lease.is_some() => true,
                () = self.nudge.notified() => false,
            };
            let taken = if due {
                self.renew(events, &mut outage).await
            } else {
                self.look_until_clear(events, &mut outage).await
            };
            if let Some(entry) = taken {
                return self.report_loss(events, &entry).await;
            }
            self.tell();
            outage.over();
            if due {
                renewal = Instant::now() + self.until_renewal();
            }
        }
    }

    /// Renews the etcd lease, however long etcd is away. Returns the key of the subnet's new owner,
    /// if there is one by then.
    async fn renew(
        &mut self,
        events: &mpsc::Sender<LeaseEvent>,
        outage: &mut Outage,
    ) -> Option<Entry> {
        loop {
            let id = self.etcd_lease?;
            let asked = Instant::now();
            match self.store.keep(id).await {
                Ok(true) => {
                    self.kept = asked;
                    debug!("renewed the lease of {}", self.lease.subnet);
                    return None;
                }
                Ok(false) => {
                    warn!("our lease of {} has expired in etcd", self.lease.subnet);
                    self.etcd_lease = None;
                    self.tell();
                    return self.look_until_clear(events, outage).await;
                }
                Err(error) => tokio::time::sleep(outage.failed(&error)).await,
            }
        }
    }

    async fn look_until_clear(
        &mut self,
        events: &mpsc::Sender<LeaseEvent>,
        outage: &mut Outage,
    ) -> Option<Entry> {
        loop {
            match self.look().await {
                Ok(Look::Ours) => return None,
                Ok(Look::Taken(entry)) => return Some(entry),
                Ok(Look::Retaken) => {
                    debug!("the lease of {} was lost, and is ours again", self.lease.subnet);
                    // Closed means that the agent is stopping.
                    drop(events.send(LeaseEvent::Retaken(self.lease)).await);
                    tokio::time::sleep(LOOK).await;
                    return None;
                }
                Ok(Look::Repaired(incident)) => {
                    // Full means that nobody listens at the moment, and renewing does not wait for that.
                    events.try_send(LeaseEvent::Incident(incident)).ok();
                    tokio::time::sleep(REPAIR).await;
                    return None;
                }
                Ok(Look::Again) => tokio::time::sleep(REPAIR).await,
                Err(error) => tokio::time::sleep(outage.failed(&error)).await,
            }
        }
    }

    /// Reads our key and, if it is not as it should be and nobody else's, puts it right.
    async fn look(&mut self) -> Result<Look, StoreError> {
        let key = self.key();
        let value = self.lease.value().encode();
        let Some(entry) = self.store.get(&key).await? else {
            return self.retake(&value).await;
        };
        let found = LeaseValue::decode(&entry.value);
        let is_ours = found.as_ref().is_ok_and(|found| found.public_ip == self.lease.public_ip);
        // Whoever names us may have made it a reservation; nonsense reserves nothing.
        self.is_reservation = entry.etcd_lease.is_none() && (is_ours || self.is_reservation);
        if entry.value == value && (self.is_reservation || entry.etcd_lease == self.etcd_lease) {
            return Ok(Look::Ours);
        }
        let incident = if let Ok(found) = &found
            && !is_ours
        {
            match self.incident(&entry, found).await? {
                Some(incident) => Some(incident),
                None => return Ok(Look::Taken(entry)),
            }
        } else if let Some(by) = asker(&entry.value) {
            Some(Incident::Copied { by })
        } else if entry.value == value {
            None
        } else {
            // A value that names no owner takes nothing from us.
            Some(Incident::Repaired { key: key.clone(), found: describe(&found) })
        };
        debug!("putting {key} right");
        let etcd_lease = if self.is_reservation { None } else { Some(self.etcd_lease().await?) };
        let written = self
            .store
            .replace_if_unchanged(&entry.key, entry.mod_revision, &value, etcd_lease)
            .await?;
        Ok(match (written, incident) {
            (None, _) => Look::Again,
            (Some(_), Some(incident)) => Look::Repaired(incident),
            (Some(_), None) => Look::Ours,
        })
    }

    /// What a value with another address in our key is, unless it is that of the subnet's new owner.
    async fn incident(
        &mut self,
        entry: &Entry,
        found: &LeaseValue,
    ) -> Result<Option<Incident>, StoreError> {
        if found.vtep_mac() == Some(self.lease.vtep_mac) {
            let by = found.public_ip;
            if Some(by) == self.displaced {
                // It may be what a backup brought back. But if it comes at once again, whoever had that address
                // lives, and we are the copy.
                let before = self.displaced_again.replace(Instant::now());
                if before.is_some_and(|before| before.elapsed() < QUARREL) {
                    return Ok(None);
                }
            }
            return Ok(Some(Incident::Copied { by }));
        }
        let listing = self.store.list().await?;
        let is_copy = listing.entries.iter().any(|other| {
            let theirs = LeaseValue::decode(&other.value);
            theirs.is_ok_and(|theirs| is_copy((entry, found), (other, &theirs)))
        });
        Ok(is_copy
            .then(|| Incident::Repaired { key: self.key(), found: describe(&Ok(found.clone())) }))
    }

    /// Our key is gone: creates it again, under the conditions that any host has to meet.
    async fn retake(&mut self, value: &[u8]) -> Result<Look, StoreError> {
        let subnet = self.lease.subnet;
        let etcd_lease = self.etcd_lease().await?;
        let is_others = |entry: &Entry| {
            LeaseValue::decode(&entry.value)
                .map_or(true, |value| value.public_ip != self.lease.public_ip)
        };
        match self.store.create_if_free(subnet, value, Some(etcd_lease), None).await {
            Ok(Created::At(_)) => Ok(Look::Retaken),
            Ok(Created::Refused(obstacles)) => {
                let prefix = self.store.prefix();
                let own = self.key();
                let mut others = obstacles.into_iter().filter(|entry| entry.key != own.as_bytes());
                let other = others
                    .find(|entry| is_others(entry) && prefix.parse_subnet_key(&entry.key).is_ok());
                Ok(other.map_or(Look::Again, Look::Taken))
            }
            // Those who decide have given it to somebody else meanwhile.
            Err(error @ StoreError::NotPermitted { .. }) => {
                let other = self.store.get(&self.key()).await?.filter(is_others);
                other.map(Look::Taken).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// The etcd lease to hang our key on: the one we have, if it still exists, else a new one.
    async fn etcd_lease(&mut self) -> Result<i64, StoreError> {
        let asked = Instant::now();
        if let Some(id) = self.etcd_lease
            && self.store.keep(id).await?
        {
            self.kept = asked;
            return Ok(id);
        }
        let asked = Instant::now();
        let id = self.store.grant(self.ttl).await?;
        self.kept = asked;
        self.etcd_lease = Some(id);
        Ok(id)
    }

    async fn report_loss(&self, events: &mpsc::Sender<LeaseEvent>, entry: &Entry) {
        self.store.figures().set_lease(None);
        let key = String::from_utf8_lossy(&entry.key).into_owned();
        let owner = LeaseValue::decode(&entry.value).ok().map(|value| value.public_ip);
        let whose = owner.map_or_else(|| "another host".to_owned(), |ip| ip.to_string());
        error!(
            "our subnet {} now belongs to {whose} ({key}) and must be given up",
            self.lease.subnet
        );
        if let Some(id) = self.etcd_lease {
            retire(&self.store, id).await;
        }
        let event = LeaseEvent::TakenByOther { lease: self.lease, key, owner };
        // Closed means that the agent is stopping.
        drop(events.send(event).await);
    }

    /// A third of the TTL, less up to a tenth, so that hosts which started together drift apart.
    fn until_renewal(&self) -> Duration {
        (self.ttl / 3).mul_f64(rand::rng().random_range(0.9..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(subnet: &str, host: u8) -> Lease {
        Lease {
            subnet: subnet.parse().unwrap(),
            public_ip: Ipv4Addr::new(192, 0, 2, host),
            vtep_mac: overlay_common::MacAddr([2, 0, 0, 0, 0, host]),
            vni: None,
        }
    }

    /// Whether the keeper of `ours` would look after `update`.
    async fn looks(ours: Lease, update: LeaseUpdate) -> bool {
        let nudge = Arc::new(Notify::new());
        let handle = KeeperHandle {
            lease: ours,
            key: String::new(),
            value: Vec::new(),
            nudge: Arc::clone(&nudge),
        };
        handle.observe(&update);
        tokio::select! {
            biased;
            () = nudge.notified() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn only_what_casts_doubt_on_our_lease_makes_the_keeper_look() {
        let ours = lease("10.5.2.0/24", 2);
        let other = lease("10.5.3.0/24", 3);
        let stolen = lease("10.5.2.0/24", 3);
        let overlapping = lease("10.5.2.128/25", 3);
        let claim = LeaseClaim::listed;
        for (update, expected) in [
            (LeaseUpdate::Snapshot(vec![claim(ours), claim(other)]), false),
            (LeaseUpdate::Snapshot(vec![claim(other)]), true),
            (LeaseUpdate::Snapshot(vec![claim(stolen), claim(other)]), true),
            (LeaseUpdate::Put(claim(ours)), false),
            (LeaseUpdate::Put(claim(other)), false),
            (LeaseUpdate::Put(claim(stolen)), true),
            (LeaseUpdate::Put(claim(overlapping)), true),
            (LeaseUpdate::Removed(claim(ours).key), true),
            (LeaseUpdate::Removed(claim(other).key), false),
        ] {
            let text = format!("{update:?}");
            assert_eq!(looks(ours, update).await, expected, "{text}");
        }
    }
}
