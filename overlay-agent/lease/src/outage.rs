//! Patience: how long to wait before the next try, and how often to say that we do.

use std::{
    fmt,
    future::Future,
    time::{Duration, Instant},
};

use rand::Rng;
use tracing::{info, warn};

use super::trouble::Troubles;

/// The first pause. Doubles with every failure.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest pause: soon enough for a host that waits, rarely enough for a store with thousands
/// of them.
const LONGEST: Duration = Duration::from_secs(5);
/// How long a first try may go on in silence. An endpoint that swallows packets fails late, and whoever
/// looks at the log meanwhile should find out what is going on.
const SILENCE: Duration = Duration::from_secs(2);
/// How often a lasting failure is logged.
const REMINDER: Duration = Duration::from_mins(1);

/// A pause for the `attempt`-th failure in a row, counted from zero: exponential, with jitter, so
/// that hosts that failed together do not try again together.
pub fn pause(attempt: u32, rng: &mut impl Rng) -> Duration {
    let full = SHORTEST.saturating_mul(1 << attempt.min(16)).min(LONGEST);
    full.mul_f64(rng.random_range(0.5..=1.0))
}

/// One thing that fails, and whether that has been said.
#[derive(Debug)]
pub struct Outage {
    what: &'static str,
    troubles: Troubles,
    attempts: u32,
    since: Option<Instant>,
    said: Option<Instant>,
}

impl Outage {
    /// Nothing has failed yet. `what` completes the sentence «… : *error*; trying again».
    pub fn new(what: &'static str) -> Self {
        Self::on(what, &Troubles::default())
    }

    /// As [`new`](Self::new), for all who look at `troubles` to see.
    pub fn on(what: &'static str, troubles: &Troubles) -> Self {
        Self { what, troubles: troubles.clone(), attempts: 0, since: None, said: None }
    }

    /// For how long it has been failing; zero if it is not.
    pub fn lasted(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Makes one try, and says so if the first one takes long. Its failure is for
    /// [`failed`](Self::failed) to say, with the reason.
    pub async fn attempt<T>(&self, attempt: impl Future<Output = T>) -> T {
        // The library's futures are large.
        let mut attempt = Box::pin(attempt);
        if self.since.is_none() {
            let start = Instant::now();
            if let Ok(outcome) = tokio::time::timeout(SILENCE, &mut attempt).await {
                return outcome;
            }
            self.troubles.post(self.what, start, "no answer yet");
            info!("{}: no answer for {} s, still waiting", self.what, SILENCE.as_secs());
        }
        attempt.await
    }

    /// Notes a failure, logs it if it is the first or the last line is a minute old, and returns
    /// how long to wait before the next try.
    pub fn failed(&mut self, error: &dyn fmt::Display) -> Duration {
        let now = Instant::now();
        if self.is_worth_a_line(now) {
            let what = self.what;
            match self.since.map(|since| now.duration_since(since).as_secs()) {
                None | Some(0) => warn!("{what}: {error}; trying again"),
                Some(seconds) => warn!("{what}, for {seconds} s now: {error}; trying again"),
            }
        }
        let since = *self.since.get_or_insert(now);
        self.troubles.post(self.what, since, error);
        let pause = pause(self.attempts, &mut rand::rng());
        self.attempts = self.attempts.saturating_add(1);
        pause
    }

    /// Notes a success; after a failure, says so.
    pub fn over(&mut self) {
        if let Some(since) = self.since {
            let seconds = since.elapsed().as_secs_f32();
            info!("{}: over, after {seconds:.1} s", self.what);
        }
        self.troubles.clear(self.what);
        (self.attempts, self.since, self.said) = (0, None, None);
    }

    fn is_worth_a_line(&mut self, now: Instant) -> bool {
        let due = self.said.is_none_or(|said| now.duration_since(said) >= REMINDER);
        if due {
            self.said = Some(now);
        }
        due
    }
}

impl Drop for Outage {
    /// Whoever stops trying has no trouble any more.
    fn drop(&mut self) {
        self.troubles.clear(self.what);
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_are_never_all_alike() {
        let mut rng = StdRng::seed_from_u64(7);
        for attempt in [0, 1, 5, 6, 40, u32::MAX] {
            let full = SHORTEST.saturating_mul(1 << attempt.min(16)).min(LONGEST);
            let pauses: Vec<_> = (0..100).map(|_| pause(attempt, &mut rng)).collect();
            assert!(pauses.iter().all(|pause| *pause <= full && *pause >= full / 2));
            assert!(pauses.windows(2).any(|pair| pair[0] != pair[1]));
        }
    }

    #[test]
    fn a_failure_is_said_once_and_then_every_minute() {
        let mut outage = Outage::new("etcd does not answer");
        let start = Instant::now();
        let said: Vec<_> = [0, 1, 59, 60, 61, 119, 120]
            .into_iter()
            .filter(|second| outage.is_worth_a_line(start + Duration::from_secs(*second)))
            .collect();
        assert_eq!(said, [0, 60, 120]);
    }

    #[test]
    fn after_a_success_the_next_failure_is_news_again() {
        let mut outage = Outage::new("etcd does not answer");
        outage.failed(&"refused");
        outage.failed(&"refused");
        outage.over();
        assert_eq!(outage.lasted(), Duration::ZERO);
        assert!(outage.is_worth_a_line(Instant::now()));
        assert!(outage.failed(&"refused") <= SHORTEST);
    }

    #[test]
    fn what_fails_is_trouble_until_it_is_over_or_given_up() {
        let troubles = Troubles::default();
        let mut outage = Outage::on("cannot renew", &troubles);
        outage.failed(&"refused");
        assert_eq!(troubles.sentences(), ["cannot renew: refused"]);
        outage.over();
        assert!(troubles.sentences().is_empty());
        outage.failed(&"refused");
        drop(outage);
        assert!(troubles.sentences().is_empty());
    }
}
