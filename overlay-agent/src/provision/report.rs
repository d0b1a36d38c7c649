//! What was done, as it is done.

use crate::output::print;

/// Prints a line for every step, and remembers whether any of them changed something.
#[derive(Debug, Default)]
pub(super) struct Report {
    changed: bool,
}

impl Report {
    /// This step has changed something.
    pub(super) fn done(&mut self, what: &str, how: &str) -> anyhow::Result<()> {
        self.changed = true;
        print(format_args!("{what:<9} {how}\n"))
    }

    /// What was looked at, and is nothing that we could change.
    pub(super) fn found(what: &str, how: &str) -> anyhow::Result<()> {
        print(format_args!("{what:<9} {how}\n"))
    }

    /// This step has found everything as it should be.
    pub(super) fn kept(what: &str, how: &str) -> anyhow::Result<()> {
        print(format_args!("{what:<9} {how}, as it was\n"))
    }

    /// One or the other.
    pub(super) fn step(&mut self, changed: bool, what: &str, how: &str) -> anyhow::Result<()> {
        if changed { self.done(what, how) } else { Self::kept(what, how) }
    }

    /// Says at the end that nothing had to be done, if that is so.
    pub(super) fn finish(&self) -> anyhow::Result<()> {
        if self.changed {
            return Ok(());
        }
        print("Nothing had to be changed.\n")
    }
}
