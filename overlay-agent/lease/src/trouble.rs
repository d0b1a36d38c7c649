//! What is failing right now, for `status` and health probes to tell.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// A board on which every task writes what it fails at, and from which it wipes what it no longer fails
/// at; and which keys of the store are no leases. Clones are the same board.
#[derive(Clone, Debug, Default)]
pub struct Troubles(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    troubles: BTreeMap<&'static str, Trouble>,
    ignored: BTreeMap<String, String>,
}

/// A key that is longer than any lease's is not shown whole.
const LONGEST_KEY: usize = 200;

#[derive(Debug)]
struct Trouble {
    since: Instant,
    error: String,
}

impl Troubles {
    /// Says that `what` fails, since when, and why at the latest attempt.
    pub fn post(&self, what: &'static str, since: Instant, error: impl fmt::Display) {
        let error = error.to_string();
        self.board().troubles.insert(what, Trouble { since, error });
    }

    /// `what` does not fail any more.
    pub fn clear(&self, what: &'static str) {
        self.board().troubles.remove(what);
    }

    /// Whether `what` fails.
    pub fn has(&self, what: &'static str) -> bool {
        self.board().troubles.contains_key(what)
    }

    /// Everything that fails, a sentence each.
    pub fn sentences(&self) -> Vec<String> {
        self.board()
            .troubles
            .iter()
            .map(|(what, Trouble { since, error })| match since.elapsed().as_secs() {
                0 => format!("{what}: {error}"),
                seconds => format!("{what}, for {seconds} s now: {error}"),
            })
            .collect()
    }

    /// Says that a key of the store is no lease, and why.
    pub fn ignore(&self, key: &str, reason: impl fmt::Display) {
        let reason = reason.to_string();
        self.board().ignored.insert(shortened(key), reason);
    }

    /// The key is gone, or is a lease now.
    pub fn heed(&self, key: &str) {
        self.board().ignored.remove(&shortened(key));
    }

    /// The store is read anew.
    pub fn ignore_none(&self) {
        self.board().ignored.clear();
    }

    /// The first so many keys that are no leases, a sentence each, and how many there are in all.
    pub fn ignored(&self, most: usize) -> (Vec<String>, usize) {
        let board = self.board();
        let sentence = |(key, reason): (&String, &String)| format!("{key} is ignored: {reason}");
        (board.ignored.iter().take(most).map(sentence).collect(), board.ignored.len())
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // Nobody can leave the map half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shortened(key: &str) -> String {
    key.chars().take(LONGEST_KEY).collect()
}
