//! What a member counts and measures, for whoever watches it from outside.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// What is known of the store that a member uses, and of the lease that it keeps there. Clones are the same; looking at
/// it waits for nobody.
#[derive(Clone, Debug, Default)]
pub struct Figures(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    connected: AtomicBool,
    connections: AtomicU64,
    listings: AtomicU64,
    watches: AtomicU64,
    lease: Mutex<Option<LeaseTime>>,
}

/// For how long the store keeps what hangs on a lease if nobody renews it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTime {
    /// Since when; before the request that made it so.
    pub since: Instant,
    /// For how long from then on.
    pub ttl: Duration,
}

impl LeaseTime {
    /// What is left of it; zero once it is over.
    pub fn left(&self, now: Instant) -> Duration {
        self.ttl.saturating_sub(now.saturating_duration_since(self.since))
    }
}

impl Figures {
    /// There is a connection that has answered a request.
    pub(crate) fn connected(&self) {
        self.0.connections.fetch_add(1, Ordering::Relaxed);
        self.0.connected.store(true, Ordering::Relaxed);
    }

    /// There is none any more.
    pub(crate) fn disconnected(&self) {
        self.0.connected.store(false, Ordering::Relaxed);
    }

    /// All leases were read.
    pub(crate) fn listed(&self) {
        self.0.listings.fetch_add(1, Ordering::Relaxed);
    }

    /// A watch was begun.
    pub(crate) fn watched(&self) {
        self.0.watches.fetch_add(1, Ordering::Relaxed);
    }

    /// How long the lease lasts; none where it lasts until somebody deletes it, or where there is none.
    pub(crate) fn set_lease(&self, lease: Option<LeaseTime>) {
        *self.0.lease.lock().unwrap_or_else(PoisonError::into_inner) = lease;
    }

    /// Whether there is a connection that has answered and not failed since.
    pub fn is_connected(&self) -> bool {
        self.0.connected.load(Ordering::Relaxed)
    }

    /// How many connections were made.
    pub fn connections(&self) -> u64 {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// How often all leases were read.
    pub fn listings(&self) -> u64 {
        self.0.listings.load(Ordering::Relaxed)
    }

    /// How many watches were begun. After the first, each takes the place of one that has ended.
    pub fn watches(&self) -> u64 {
        self.0.watches.load(Ordering::Relaxed)
    }

    /// How long the lease lasts; none for a reservation, which does not end, and without a lease.
    pub fn lease(&self) -> Option<LeaseTime> {
        *self.0.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_has_less_left_as_time_goes_by_and_never_less_than_nothing() {
        let since = Instant::now();
        let lease = LeaseTime { since, ttl: Duration::from_mins(1) };
        let left = |seconds| lease.left(since + Duration::from_secs(seconds)).as_secs();
        assert_eq!([0, 20, 60, 61].map(left), [60, 40, 0, 0]);
    }

    #[test]
    fn clones_tell_the_same() {
        let figures = Figures::default();
        let seen = figures.clone();
        figures.connected();
        figures.connected();
        figures.disconnected();
        assert_eq!((seen.is_connected(), seen.connections()), (false, 2));
    }
}
