//! What failed tests said, told once more at the end: between a failure and the end of a run are thousands of lines.

use crate::counts::without_colours;

/// Lines of one failure that are worth repeating.
const LINES: usize = 12;
/// Characters of a line.
const WIDTH: usize = 500;

/// Collects the failures from what a test program prints.
#[derive(Debug, Default)]
pub(super) struct Failures {
    told: Vec<String>,
    /// How many lines of the failure that is being told are still wanted.
    wanted: usize,
}

impl Failures {
    /// Looks at one more line.
    pub(super) fn read(&mut self, line: &str) {
        let line = without_colours(line);
        if let Some(name) =
            line.strip_prefix("---- ").and_then(|it| it.strip_suffix(" stdout ----"))
        {
            self.told.push(format!("✗ {name}"));
            self.wanted = LINES;
            return;
        }
        // What comes after the panic's own words: a trace, or what the lab tells of itself.
        let is_over =
            ["Stack backtrace:", "stack backtrace:", "note: run with", "────", "failures:"];
        if is_over.iter().any(|start| line.trim_start().starts_with(start)) {
            self.wanted = 0;
        }
        if self.wanted > 0 && !line.trim().is_empty() {
            self.wanted -= 1;
            self.told.push(format!("  {}", line.chars().take(WIDTH).collect::<String>()));
        }
    }

    /// The failures, each with what it said first.
    pub(super) fn told(&self) -> &[String] {
        &self.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_without_its_trace() {
        let printed = "\
test a::works ... ok
test a::fails ... FAILED

failures:

---- a::fails stdout ----

thread 'a::fails' (7) panicked at a.rs:1:2:
expected this
but got that

Stack backtrace:
   0: core::ops::function::FnOnce::call_once
   1: test::run_test

---- b::fails stdout ----
thread 'b::fails' (8) panicked at b.rs:1:2:
two
──── lab ovl8 ────
everything about it

failures:
    a::fails
";
        let mut failures = Failures::default();
        printed.lines().for_each(|line| failures.read(line));
        let expected = [
            "✗ a::fails",
            "  thread 'a::fails' (7) panicked at a.rs:1:2:",
            "  expected this",
            "  but got that",
            "✗ b::fails",
            "  thread 'b::fails' (8) panicked at b.rs:1:2:",
            "  two",
        ];
        assert_eq!(failures.told(), expected);
    }

    #[test]
    fn a_long_failure_is_cut() {
        let mut failures = Failures::default();
        failures.read("---- long stdout ----");
        (0..100).for_each(|_| failures.read(&"x".repeat(10_000)));
        assert_eq!(failures.told().len(), 1 + LINES);
        assert!(failures.told().iter().all(|line| line.chars().count() <= WIDTH + 2));
    }
}
