//! How many changes to the kernel it took to bring it in step. Once that is done, the number stands still.

use std::sync::atomic::{AtomicU64, Ordering};

static MADE: AtomicU64 = AtomicU64::new(0);

/// Counts one change: `what` was not as it should be, and is now.
pub fn made(what: &str) {
    MADE.fetch_add(1, Ordering::Relaxed);
    tracing::debug!(what, "brought in step");
}

/// How many there were since the process started, those of its start included.
pub fn count() -> u64 {
    MADE.load(Ordering::Relaxed)
}
