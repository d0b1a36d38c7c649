//! Everybody's leases, as the loop takes them in.

use std::time::{Duration, Instant};

use anyhow::Result;
use overlay_lease::member::update::LeaseUpdate;

use super::ControlLoop;
use crate::dataplane::peers::Surroundings;

/// For how long leases are taken in before the loop looks at something else.
const TURN: Duration = Duration::from_millis(10);

/// So many at a time are judged, and then programmed.
const BATCH: usize = 128;

/// The name of the attempt, in `status` and in the log.
pub(super) const PROGRAMMING: &str = "programming leases";

impl ControlLoop {
    /// Takes in this update, if there is one, and what has come meanwhile, for as long as a turn may take.
    pub(super) async fn lease_updates(&mut self, first: Option<LeaseUpdate>) {
        let Some(first) = first.or_else(|| self.following.updates.try_recv().ok()) else { return };
        let end = Instant::now() + TURN;
        let mut next = Some(first);
        while next.is_some() {
            let outcome = self.lease_batch(&mut next).await;
            self.note(PROGRAMMING, outcome);
            if Instant::now() >= end {
                break;
            }
            next = next.or_else(|| self.following.updates.try_recv().ok());
        }
    }

    /// Takes in so many updates; all of them are in the maps then.
    async fn lease_batch(&mut self, next: &mut Option<LeaseUpdate>) -> Result<()> {
        for _ in 0..BATCH {
            let update = next.take().or_else(|| self.following.updates.try_recv().ok());
            match update {
                None => break,
                Some(LeaseUpdate::Put(claim)) => self.dataplane.put_lease(claim),
                Some(LeaseUpdate::Removed(key)) => self.dataplane.remove_lease(key),
                Some(LeaseUpdate::Snapshot(claims)) => {
                    self.look_around().await;
                    self.dataplane.replace_leases(claims)?;
                    // Programs over new maps are attached as soon as these are filled.
                    return self.dataplane.reconcile().await;
                }
            }
        }
        self.dataplane.program_leases().await
    }

    /// Looks which addresses are special here, if that may have changed.
    pub(super) async fn look_around(&mut self) {
        if !self.surroundings_are_stale {
            return;
        }
        let outcome = match Surroundings::observe(&self.netlink).await {
            Ok(found) => {
                self.surroundings_are_stale = false;
                self.dataplane.set_surroundings(found).await
            }
            Err(error) => Err(error),
        };
        self.note("looking at this host's addresses and gateways", outcome);
    }

    /// Tells the log what has changed about leases that are not believed or not programmed.
    pub(super) fn log_leases(&mut self) {
        let peers = self.dataplane.peers();
        self.said = peers.log_changes(self.said, |key| self.store.name_of(key));
    }
}
