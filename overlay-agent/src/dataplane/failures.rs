//! What failed of a pass.

use anyhow::Result;

/// What failed of a pass, in the order of its steps.
#[derive(Debug, Default)]
pub(super) struct Failures(Vec<anyhow::Error>);

impl Failures {
    /// What a step has found or made; none where it failed, which is kept.
    pub(super) fn keep<T>(&mut self, outcome: Result<T>) -> Option<T> {
        outcome.map_err(|error| self.0.push(error)).ok()
    }

    /// An error that tells of all of them.
    pub(super) fn into_result(self) -> Result<()> {
        let mut failures = self.0.into_iter();
        let Some(first) = failures.next() else { return Ok(()) };
        let others: Vec<_> = failures.map(|error| format!("{error:#}")).collect();
        if others.is_empty() {
            return Err(first);
        }
        // The first is the one that others follow from.
        Err(first.context(format!("of several things ({})", others.join("; "))))
    }
}
