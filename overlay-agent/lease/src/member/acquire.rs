//! Taking a subnet: the one this host has, the one it had, or a free one, in this order.
//!
//! Which one this host has, `survey` says. Where that is said by a MAC alone, and the lease has another address
//! than we have now, either our address has changed or we are a copy of a host that lives: it is asked, by a
//! write to its key that changes nothing for others and that a living agent puts right at once.
//!
//! Every attempt reads all leases at one revision, decides, and writes under the condition that
//! what the decision rests on still holds. A refused write means that somebody was faster: read
//! again.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;
use rand::Rng;
use tracing::{debug, info, warn};

use super::{
    incident::Incident,
    network::StoredConfig,
    request::{LeaseOrigin, Request},
    survey::{Own, Survey, Tie},
};
use crate::{
    outage::{Outage, pause},
    store::{Created, Entry, Listing, Revision, Store, StoreError},
    wire::{
        Lease,
        allocate::{CANDIDATES, choose},
        value::{LeaseValue, ValueError, with_question},
    },
};

/// How long a living host may take to answer. It takes milliseconds, unless etcd elects a leader just then.
const ANSWER: Duration = Duration::from_secs(2);
/// How often to look for the answer.
const LOOK: Duration = Duration::from_millis(100);

/// A lease that is ours, and all others as of the moment it became so.
#[derive(Clone, Debug)]
pub struct Acquired {
    /// The lease.
    pub lease: Lease,
    /// What is to be kept alive; `None` for a reservation, which does not expire.
    pub etcd_lease: Option<i64>,
    /// Since when it is kept: before the request that made it so.
    pub kept: Instant,
    /// How we came by it.
    pub origin: LeaseOrigin,
    /// The address that the lease had before, if it was another.
    pub displaced: Option<Ipv4Addr>,
    /// What was put right on the way.
    pub incidents: Vec<Incident>,
    /// All leases, this one included: what to start following from.
    pub listing: Listing,
}

/// There is no lease to be had.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// Every subnet is taken.
    #[error(
        "out of subnets: all {} from {min} to {max} (/{len}) are taken; widen SubnetMin and SubnetMax \
         or Network, or delete leases of hosts that are gone",
        capacity
    )]
    OutOfSubnets {
        /// The first subnet of the config.
        min: Ipv4Addr,
        /// The last one.
        max: Ipv4Addr,
        /// Their prefix length.
        len: u8,
        /// How many there are.
        capacity: u64,
    },
    /// What no lease has is where hosts are otherwise.
    #[error(
        "out of subnets: {subnet}, and whatever else no lease has, is a network that this host is in otherwise, or has \
         another host's public address; use another Network"
    )]
    OnlyOverHosts {
        /// One of them.
        subnet: Ipv4Network,
    },
    /// Somebody has changed the network config meanwhile: read it again.
    #[error("the network config has changed while a subnet was being taken")]
    ConfigChanged,
}

/// Takes a lease for this host. Waits for etcd when it is away.
pub async fn acquire(
    store: &impl Store,
    config: &StoredConfig,
    request: &Request,
) -> Result<Acquired, AcquireError> {
    let mut attempt = Attempt {
        store,
        config,
        request: request.clone(),
        granted: None,
        limit: CANDIDATES,
        incidents: Vec::new(),
        others: Vec::new(),
        kept: Instant::now(),
    };
    let mut outage = Outage::on("cannot take a subnet yet", store.troubles());
    let mut races = 0;
    let result = loop {
        let wait = match attempt.make().await {
            Ok(Step::Done(mut acquired)) => {
                acquired.incidents = std::mem::take(&mut attempt.incidents);
                acquired.kept = attempt.kept;
                break Ok(*acquired);
            }
            Ok(Step::Again) => {
                outage.over();
                races += 1;
                // Whoever starts with us looks at the same candidates: look further than they do.
                attempt.limit = attempt.limit.saturating_mul(2);
                debug!("somebody was faster, for the {races}. time");
                pause(races - 1, &mut rand::rng())
            }
            Err(Stop::Store(error)) if attempt.has_learned_from(&error) => {
                warn!("{error}");
                races += 1;
                pause(races - 1, &mut rand::rng())
            }
            Err(Stop::Store(error)) => outage.failed(&error),
            Err(Stop::For(error)) => break Err(error),
        };
        tokio::time::sleep(wait).await;
    };
    attempt.give_back(result.as_ref().ok().and_then(|acquired| acquired.etcd_lease)).await;
    result
}

enum Step {
    Done(Box<Acquired>),
    Again,
}

/// What has become of a question whether a host lives.
enum Answer {
    /// Nobody has answered. The question is the key's state of this revision.
    None(Revision),
    /// The host has put its key right.
    Alive,
    /// The key has changed otherwise.
    Changed,
}

enum Stop {
    Store(StoreError),
    For(AcquireError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

struct Attempt<'a, S> {
    store: &'a S,
    config: &'a StoredConfig,
    request: Request,
    /// The etcd lease that we were granted for this, used or not.
    granted: Option<i64>,
    /// How many free subnets to choose from.
    limit: usize,
    /// What was put right so far.
    incidents: Vec<Incident>,
    /// Subnets that are not ours to write, whatever there is to be seen of them.
    others: Vec<Ipv4Network>,
    /// When what our key is to hang on was last asked for.
    kept: Instant,
}

impl<S: Store> Attempt<'_, S> {
    async fn make(&mut self) -> Result<Step, Stop> {
        let listing = self.store.list().await?;
        let mut survey =
            Survey::new(self.store.prefix(), &listing, &self.config.config, &self.request);
        // The subnet of the file is what our containers have; a lease that has nothing but our address need not
        // be ours.
        let wish = self.wish(&survey);
        let new_mac = self.new_mac(&survey);
        let is_ours = |own: &mut Own| {
            (own.tie != Tie::Address || wish.is_none()) && !self.others.contains(&own.subnet)
        };
        if let Some(own) = survey.own.take_if(is_ours) {
            return self.reuse(listing, own, new_mac).await;
        }
        if let Some(stale) = survey.stale {
            return self.discard(&stale).await;
        }
        let (subnet, origin) = match wish {
            Some(previous) => (previous, LeaseOrigin::SubnetFile),
            None => (self.pick(&survey)?, LeaseOrigin::Free),
        };
        self.create(listing, subnet, origin, new_mac).await
    }

    /// Our lease of earlier becomes our lease of now, with the same MAC: the peers need not change
    /// anything.
    async fn reuse(
        &mut self,
        mut listing: Listing,
        mut own: Own,
        new_mac: MacAddr,
    ) -> Result<Step, Stop> {
        let address = own.value.as_ref().map(|value| value.public_ip);
        let displaced = address.filter(|address| *address != self.request.public_ip);
        if let Some(of) = displaced
            && !self.request.is_running
        {
            match self.ask(&own).await? {
                Answer::None(mod_revision) => own.entry.mod_revision = mod_revision,
                Answer::Alive => {
                    warn!("the host at {of} lives, and this host is a copy of it");
                    self.incidents.push(Incident::IsCopy { of, subnet: own.subnet });
                    self.request.vtep_mac = None;
                    return Ok(Step::Again);
                }
                Answer::Changed => return Ok(Step::Again),
            }
        }
        let vtep_mac = own.value.as_ref().and_then(LeaseValue::vtep_mac).unwrap_or(new_mac);
        let lease = self.lease(own.subnet, vtep_mac);
        let value = lease.value().encode();
        let is_damaged = own.tie == Tie::Damaged;
        let old = own.entry.etcd_lease;
        let unchanged = own.entry.value == value;
        let etcd_lease = match old {
            // A reservation: it had no TTL, and gets none. Nobody has reserved anything by writing nonsense.
            None if !is_damaged => None,
            Some(id) if unchanged && self.is_good(id).await? => Some(id),
            _ => Some(self.grant().await?),
        };
        if !unchanged || etcd_lease != old {
            let (key, revision) = (&own.entry.key, own.entry.mod_revision);
            let written =
                self.store.replace_if_unchanged(key, revision, &value, etcd_lease).await?;
            let Some(mod_revision) = written else {
                return Ok(Step::Again);
            };
            if let Some(old) = old.filter(|old| etcd_lease != Some(*old)) {
                retire(self.store, old).await;
            }
            if is_damaged {
                self.note_repair(&own.entry);
            }
            upsert(&mut listing, Entry { value, mod_revision, etcd_lease, ..own.entry });
        }
        Ok(done(lease, etcd_lease, own.tie.origin(), displaced, listing))
    }

    fn note_repair(&mut self, entry: &Entry) {
        let found = describe(&LeaseValue::decode(&entry.value));
        let key = String::from_utf8_lossy(&entry.key).into_owned();
        warn!("put {key} right, which is ours: {found}");
        self.incidents.push(Incident::Repaired { key, found });
    }

    /// Asks whether the host that keeps a lease lives. Nothing of it changes for anybody else.
    async fn ask(&self, own: &Own) -> Result<Answer, StoreError> {
        let Entry { key, value, mod_revision, etcd_lease, .. } = &own.entry;
        let Some(question) = with_question(value, self.request.public_ip) else {
            return Ok(Answer::Changed);
        };
        let asked =
            self.store.replace_if_unchanged(key, *mod_revision, &question, *etcd_lease).await?;
        let Some(asked) = asked else { return Ok(Answer::Changed) };
        info!("asking whether another host has {}, which our address does not fit", own.subnet);
        let name = String::from_utf8_lossy(key);
        let end = Instant::now() + ANSWER;
        while Instant::now() < end {
            tokio::time::sleep(LOOK).await;
            match self.store.get(&name).await? {
                Some(entry) if entry.mod_revision == asked => {}
                Some(entry) if entry.value != question => return Ok(Answer::Alive),
                _ => return Ok(Answer::Changed),
            }
        }
        Ok(Answer::None(asked))
    }

    /// Whether an etcd lease of ours can be used on, which saves everybody an event.
    async fn is_good(&mut self, id: i64) -> Result<bool, StoreError> {
        let wanted = i64::try_from(self.request.ttl.as_secs()).unwrap_or(i64::MAX);
        match self.store.etcd_lease(id).await? {
            Some(lease) if lease.granted == wanted => {
                self.kept = Instant::now();
                self.store.keep(id).await
            }
            _ => Ok(false),
        }
    }

    /// Our lease of earlier does not fit the config of now.
    async fn discard(&self, stale: &Entry) -> Result<Step, Stop> {
        let key = String::from_utf8_lossy(&stale.key);
        warn!("deleting our own lease {key}: the network config does not allow it any more");
        if self.store.delete_if_unchanged(&stale.key, stale.mod_revision).await?.is_some()
            && let Some(id) = stale.etcd_lease
        {
            retire(self.store, id).await;
        }
        Ok(Step::Again)
    }

    /// Whether what was refused says which subnet is not ours.
    fn has_learned_from(&mut self, error: &StoreError) -> bool {
        let StoreError::NotPermitted { what, .. } = error else { return false };
        let key = self.store.prefix().parse_subnet_key(what.as_bytes());
        self.others.extend(key.as_ref().map(|key| key.subnet));
        key.is_ok()
    }

    /// The subnet that we had, if it can be ours again.
    fn wish(&self, survey: &Survey<'_>) -> Option<Ipv4Network> {
        let previous = self.request.previous.filter(|subnet| !self.others.contains(subnet))?;
        (self.config.config.admits(previous) && survey.is_free(previous)).then_some(previous)
    }

    fn pick(&self, survey: &Survey<'_>) -> Result<Ipv4Network, Stop> {
        let config = &self.config.config;
        if let Some(previous) = self.request.previous {
            let reason = if survey.is_free(previous) {
                "the network config does not allow it"
            } else {
                "it is taken"
            };
            info!("not taking {previous} of the subnet file again: {reason}");
        }
        // Where this host is otherwise, or another's public address: containers there could not be told from it.
        let mut avoided = self.request.occupied.clone();
        avoided.extend(survey.addresses.iter().copied().map(Ipv4Network::from));
        if let Some(subnet) = self.free(survey, avoided) {
            return Ok(subnet);
        }
        if let Some(subnet) = self.free(survey, Vec::new()) {
            return Err(Stop::For(AcquireError::OnlyOverHosts { subnet }));
        }
        Err(Stop::For(AcquireError::OutOfSubnets {
            min: config.subnet_min,
            max: config.subnet_max,
            len: config.subnet_len,
            capacity: config.capacity(),
        }))
    }

    /// A subnet that no lease has, and that is not over any of `avoided`.
    fn free(&self, survey: &Survey<'_>, avoided: Vec<Ipv4Network>) -> Option<Ipv4Network> {
        let mut taken = avoided;
        taken.extend(self.others.iter().chain(&survey.taken));
        loop {
            let taken_now = taken.iter().copied();
            let subnet = choose(&self.config.config, taken_now, self.limit, &mut rand::rng())?;
            if survey.is_free(subnet) {
                return Some(subnet);
            }
            // Somebody's malformed key is in the way.
            taken.push(subnet);
        }
    }

    async fn create(
        &mut self,
        mut listing: Listing,
        subnet: Ipv4Network,
        origin: LeaseOrigin,
        vtep_mac: MacAddr,
    ) -> Result<Step, Stop> {
        let lease = self.lease(subnet, vtep_mac);
        let value = lease.value().encode();
        let etcd_lease = Some(self.grant().await?);
        let condition = Some(self.config.mod_revision);
        match self.store.create_if_free(subnet, &value, etcd_lease, condition).await? {
            Created::At(mod_revision) => {
                let key = self.store.prefix().subnet_key(subnet).into_bytes();
                let create_revision = mod_revision;
                let entry = Entry { key, value, create_revision, mod_revision, etcd_lease };
                upsert(&mut listing, entry);
                Ok(done(lease, etcd_lease, origin, None, listing))
            }
            Created::Refused(obstacles) if obstacles.is_empty() => {
                Err(Stop::For(AcquireError::ConfigChanged))
            }
            Created::Refused(_) => Ok(Step::Again),
        }
    }

    const fn lease(&self, subnet: Ipv4Network, vtep_mac: MacAddr) -> Lease {
        Lease {
            subnet,
            public_ip: self.request.public_ip,
            vtep_mac,
            vni: Some(self.config.config.vni),
        }
    }

    /// A MAC for a lease that has none: the wanted one, unless another host has it, as clones of
    /// one machine do.
    fn new_mac(&self, survey: &Survey<'_>) -> MacAddr {
        self.request
            .vtep_mac
            .filter(|mac| mac.is_unicast() && !survey.macs.contains(mac))
            .unwrap_or_else(random_mac)
    }

    /// One etcd lease serves all attempts.
    async fn grant(&mut self) -> Result<i64, StoreError> {
        self.kept = Instant::now();
        // A wait between attempts may have outlasted it.
        if let Some(id) = self.granted
            && self.store.keep(id).await?
        {
            return Ok(id);
        }
        let id = self.store.grant(self.request.ttl).await?;
        self.granted = Some(id);
        Ok(id)
    }

    /// The etcd lease that was granted and not used must not linger for its TTL.
    async fn give_back(&self, used: Option<i64>) {
        if let Some(id) = self.granted.filter(|id| used != Some(*id)) {
            retire(self.store, id).await;
        }
    }
}

fn done(
    lease: Lease,
    etcd_lease: Option<i64>,
    origin: LeaseOrigin,
    displaced: Option<Ipv4Addr>,
    listing: Listing,
) -> Step {
    let (kept, incidents) = (Instant::now(), Vec::new());
    Step::Done(Box::new(Acquired {
        lease,
        etcd_lease,
        kept,
        origin,
        displaced,
        incidents,
        listing,
    }))
}

/// What a value that is not as it should be says.
pub(super) fn describe(value: &Result<LeaseValue, ValueError>) -> String {
    match value {
        Ok(value) => match value.vtep_mac() {
            Some(mac) => format!("it held the lease of {} ({mac})", value.public_ip),
            None => format!("it held another backend's lease of {}", value.public_ip),
        },
        Err(error) => error.to_string(),
    }
}

/// Puts what we wrote into the listing it rests on.
fn upsert(listing: &mut Listing, entry: Entry) {
    match listing.entries.binary_search_by(|other| other.key.cmp(&entry.key)) {
        Ok(index) => listing.entries[index] = entry,
        Err(index) => listing.entries.insert(index, entry),
    }
}

/// A failure leaves an etcd lease behind that expires by itself, so it is nobody's failure.
pub(super) async fn retire(store: &impl Store, id: i64) {
    if let Err(error) = store.retire(id).await {
        debug!("an unused lease remains in etcd until it expires: {error}");
    }
}

fn random_mac() -> MacAddr {
    MacAddr::local(rand::rng().random())
}
