//! Everybody's leases in the maps.

use anyhow::{Error, Result};
use overlay_lease::{member::claim::LeaseClaim, wire::key::SubnetKey};

use super::{Dataplane, routes::Unrouted};
use crate::{
    dataplane::peers::{Stale, Surroundings, peer_key, vtep_key},
    fail,
    kernel::{datapath::MapChanges, repairs},
};

/// Up to so many leases, every verification looks at each of them.
const OFTEN_VERIFIED: usize = 4096;

/// Beyond that, one in so many does.
const SELDOM: u32 = 120;

impl Dataplane {
    /// Makes the maps hold exactly these leases, as far as they are believed. Routes follow with the next pass.
    pub fn replace_leases(&mut self, claims: Vec<LeaseClaim>) -> Result<()> {
        self.peers.replace_all(claims);
        // Whoever is new has not been asked about.
        self.ways_are_stale |= self.knows_only_ways_to_peers();
        self.program_all_leases()
    }

    /// Whether the way to a new peer has to be looked for.
    const fn knows_only_ways_to_peers(&self) -> bool {
        self.ways.routes.are_answers() || self.routes_were_passed_over
    }

    fn program_all_leases(&mut self) -> Result<()> {
        // All of it is written, whatever has changed.
        self.peers.take_stale();
        // Who may speak first, whom we send to last: a peer that gets our packets must find its answers
        // accepted.
        self.tables.vteps.converge(&self.peers.all_vteps())?;
        fail::point("vteps");
        self.tables.peers.converge(&self.peers.all_peers(&self.ways))?;
        fail::point("peers");
        self.synced = true;
        self.unrouted = Unrouted::All;
        self.write_config()
    }

    /// Takes note of a lease that is new or has changed; [`program_leases`](Self::program_leases) makes the
    /// maps follow.
    pub fn put_lease(&mut self, claim: LeaseClaim) {
        self.peers.put(claim);
    }

    /// Takes note that a lease is gone, likewise.
    pub fn remove_lease(&mut self, key: SubnetKey) {
        self.peers.remove(key);
    }

    /// Takes note of where this host is now, which no lease may contradict.
    pub async fn set_surroundings(&mut self, surroundings: Surroundings) -> Result<()> {
        self.peers.set_surroundings(surroundings);
        self.program_leases().await
    }

    /// Brings maps and routes up to date with the leases that were put and removed. What fails is tried again the next
    /// time.
    pub async fn program_leases(&mut self) -> Result<()> {
        // As above.
        self.ways_are_stale |= self.knows_only_ways_to_peers() && self.peers.have_changed();
        let programmed = self.fill_maps();
        let routed = match self.follow_ways().await {
            Ok(()) => self.route_leases().await,
            failed => failed,
        };
        programmed.and(routed)
    }

    fn fill_maps(&mut self) -> Result<()> {
        if !self.synced {
            // Until they are listed, an earlier agent's entries stay.
            return if self.peers.are_listed() { self.program_all_leases() } else { Ok(()) };
        }
        let stale = self.peers.take_stale();
        if stale.is_empty() {
            return Ok(());
        }
        self.unrouted.add(&stale.subnets);
        let mut failed = Stale::default();
        let mut error = None;
        self.program_stale(&stale, &mut failed, &mut error);
        let count = failed.subnets.len() + failed.addresses.len();
        self.peers.put_stale_back(failed);
        self.write_config()?;
        let Some(error) = error else { return Ok(()) };
        Err(error.context(format!("{count} entries cannot be written")))
    }

    /// What makes room comes first; who may speak comes before whom we send to.
    fn program_stale(&mut self, stale: &Stale, failed: &mut Stale, error: &mut Option<Error>) {
        let Self { peers, tables, ways, .. } = self;
        let mut note =
            |outcome: Result<()>| outcome.map_err(|found| error.get_or_insert(found)).is_err();
        for &subnet in stale.subnets.iter().filter(|subnet| peers.lease(**subnet).is_none()) {
            if note(tables.peers.remove(&peer_key(subnet))) {
                failed.subnets.insert(subnet);
            }
        }
        for &address in &stale.addresses {
            let outcome = match peers.vtep(address) {
                Some(vtep) => tables.vteps.insert(&vtep_key(address), &vtep),
                None => tables.vteps.remove(&vtep_key(address)),
            };
            if note(outcome) {
                failed.addresses.insert(address);
            }
        }
        for &subnet in &stale.subnets {
            let Some(peer) = peers.peer(subnet, ways) else { continue };
            if note(tables.peers.insert(&peer_key(subnet), &peer)) {
                failed.subnets.insert(subnet);
            }
        }
    }

    /// Looks for entries that somebody else changed.
    pub(super) fn verify_leases(&mut self) -> Result<()> {
        let everything = self.peers.count();
        if everything > OFTEN_VERIFIED && !self.verifications.is_multiple_of(SELDOM) {
            return Ok(());
        }
        let vteps = self.tables.vteps.converge(&self.peers.all_vteps())?;
        let peers = self.tables.peers.converge(&self.peers.all_peers(&self.ways))?;
        for (map, changes) in [("vteps", vteps), ("peers", peers)] {
            if changes != MapChanges::default() {
                tracing::warn!(map, ?changes, "entries were changed by somebody else");
                repairs::made(map);
            }
        }
        Ok(())
    }
}
