//! Steps shown as they go: a spinner while one runs, a line with its time when it is done.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// Shows steps, one after the other.
#[derive(Debug)]
pub(super) struct Steps {
    started: Instant,
    count: Cell<u32>,
}

impl Steps {
    /// Starts the clock.
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), count: Cell::new(0) }
    }

    /// Runs one step. Where there is no terminal, only the line at its end is shown.
    pub(super) fn run<T>(&self, title: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        self.count.set(self.count.get() + 1);
        let title = &format!("{:>2}. {title}", self.count.get());
        let spinner = ProgressBar::new_spinner().with_message(title.clone());
        if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}") {
            spinner.set_style(style);
        }
        spinner.enable_steady_tick(Duration::from_millis(80));
        let result = step();
        spinner.finish_and_clear();
        let mark = if result.is_ok() { "✓" } else { "✗" };
        println!("{mark} {title:<66} {:>6.1} s", start.elapsed().as_secs_f64());
        result
    }

    /// A few lines that belong to the step before.
    pub(super) fn show<'text>(lines: impl IntoIterator<Item = &'text str>) {
        for line in lines {
            println!("    {line}");
        }
    }

    /// The time since the first step.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}
