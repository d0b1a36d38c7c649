//! Waiting for a condition, with a deadline: never a sleep for luck.

use std::{
    env, fmt,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use crate::interrupt;

/// An error after which waiting on is pointless: [`eventually`] returns it at once.
#[derive(Debug)]
pub struct GiveUp(pub String);

impl fmt::Display for GiveUp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for GiveUp {}

/// Asking costs, and a machine that is slow by nature is busy enough.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Tries until it succeeds, and returns what it returned.
///
/// Fails with `what` and the last reason once `within` is over, and at once on [`GiveUp`] or
/// Ctrl-C. It tries at least once.
pub fn eventually<T>(
    within: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let within = within * patience();
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        let reason = match attempt() {
            Ok(value) => return Ok(value),
            Err(reason) => reason,
        };
        if reason.is::<GiveUp>() || reason.is::<interrupt::Interrupted>() {
            return Err(reason.context(format!("waiting for {what}")));
        }
        interrupt::check()
            .map_err(|error| anyhow!(error).context(format!("waiting for {what}")))?;
        if start.elapsed() >= within {
            return Err(reason.context(format!("not within {within:?}: {what}")));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE * patience());
    }
}

/// How many times longer things may take here: a number in this variable, for machines that are slow by nature.
pub const PATIENCE_VARIABLE: &str = "OVERLAY_PATIENCE";

/// The number in [`PATIENCE_VARIABLE`], or 1.
pub(crate) fn patience() -> u32 {
    static PATIENCE: OnceLock<u32> = OnceLock::new();
    *PATIENCE.get_or_init(|| {
        env::var(PATIENCE_VARIABLE).ok().and_then(|text| text.parse().ok()).unwrap_or(1)
    })
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn returns_what_the_attempt_returned() {
        let mut left = 3;
        let value = eventually(Duration::from_secs(5), "three tries", || {
            left -= 1;
            if left > 0 {
                bail!("{left} left")
            }
            Ok("done")
        });
        assert_eq!(value.unwrap(), "done");
    }

    #[test]
    fn the_last_reason_is_in_the_error() {
        let result: Result<()> = eventually(Duration::ZERO, "the moon", || bail!("still there"));
        let text = format!("{:#}", result.unwrap_err());
        assert_eq!(text, "not within 0ns: the moon: still there");
    }

    #[test]
    fn giving_up_ends_it_at_once() {
        let result: Result<()> = eventually(Duration::from_mins(1), "a dead process", || {
            Err(GiveUp("it exited with 1".into()).into())
        });
        let text = format!("{:#}", result.unwrap_err());
        assert_eq!(text, "waiting for a dead process: it exited with 1");
    }
}
