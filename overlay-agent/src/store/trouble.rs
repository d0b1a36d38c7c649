//! What is failing right now, for `status` and health probes to tell.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// A board on which every task writes what it fails at, and from which it wipes what it no longer fails
/// at. Clones are the same board.
#[derive(Clone, Debug, Default)]
pub struct Troubles(Arc<Mutex<BTreeMap<&'static str, Trouble>>>);

#[derive(Debug)]
struct Trouble {
    since: Instant,
    error: String,
}

impl Troubles {
    /// Says that `what` fails, since when, and why at the latest attempt.
    pub fn post(&self, what: &'static str, since: Instant, error: impl fmt::Display) {
        let error = error.to_string();
        self.board().insert(what, Trouble { since, error });
    }

    /// `what` does not fail any more.
    pub fn clear(&self, what: &'static str) {
        self.board().remove(what);
    }

    /// Everything that fails, a sentence each.
    pub fn sentences(&self) -> Vec<String> {
        self.board()
            .iter()
            .map(|(what, Trouble { since, error })| match since.elapsed().as_secs() {
                0 => format!("{what}: {error}"),
                seconds => format!("{what}, for {seconds} s now: {error}"),
            })
            .collect()
    }

    fn board(&self) -> MutexGuard<'_, BTreeMap<&'static str, Trouble>> {
        // Nobody can leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
