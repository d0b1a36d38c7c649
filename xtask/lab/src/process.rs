//! Long-lived processes: their output in a file, ended by their id, within a deadline.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::sys::signal::Signal;

use crate::{
    command::{Cmd, tail},
    ledger::{Ledger, ProcessRecord},
    process_id::ProcessId,
    wait::GiveUp,
};

/// How long a process may take to end after SIGTERM before it gets SIGKILL.
pub const STOP_WITHIN: Duration = Duration::from_secs(15);

/// A process of a lab: stopped when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    id: ProcessId,
    what: String,
    log: PathBuf,
    ledger: Ledger,
}

impl Process {
    /// Starts a command whose output goes to `log` in the lab's folder, or in `directory`.
    ///
    /// Starting it again appends to the same file, so that a story can be read in one place.
    pub fn spawn(ledger: &Ledger, what: &str, command: &Cmd, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {} for {what}", log.display()))?;
        let child = command.spawn_to(&file).with_context(|| format!("cannot start {what}"))?;
        let pid = i32::try_from(child.id()).context("a process number beyond i32")?;
        let id = ProcessId::of(pid)?;
        let process =
            Self { child, id, what: what.to_owned(), log: log.to_owned(), ledger: ledger.clone() };
        ledger.change(|record| {
            record.processes.push(ProcessRecord {
                id,
                what: process.what.clone(),
                log: process.log.clone(),
            });
        })?;
        Ok(process)
    }

    /// Which process it is.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.id.pid
    }

    /// The file that holds its output.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Its output so far.
    pub fn log(&self) -> Result<String> {
        let bytes =
            fs::read(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last lines of its output.
    pub fn log_tail(&self, lines: usize) -> String {
        self.log().map_or_else(|error| format!("{error:#}"), |log| tail(&log, lines))
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot wait for {}", self.what))
    }

    /// Fails with [`GiveUp`] and the end of its output when it has ended by itself.
    pub fn check_running(&mut self) -> Result<()> {
        match self.exit_status()? {
            None => Ok(()),
            Some(status) => Err(GiveUp(format!(
                "{} ended ({status}); the last lines of its output:\n{}",
                self.what,
                self.log_tail(20)
            ))
            .into()),
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.id.signal(signal)
    }

    /// Asks it to end, waits, and kills it when it does not; returns how it ended.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    /// Kills it, as a crash would; returns once it is gone.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGKILL)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        for signal in [signal, Signal::SIGKILL] {
            if let Some(status) = self.exit_status()? {
                return Ok(status);
            }
            self.signal(signal)?;
            let start = Instant::now();
            while start.elapsed() < STOP_WITHIN {
                if let Some(status) = self.exit_status()? {
                    return Ok(status);
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        Err(anyhow!("{} ({}) does not end, not even by SIGKILL", self.what, self.id.pid))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.ledger.explain_if_panicking();
        if self.ledger.record().owner.is_none() {
            // The lab is left standing.
            return;
        }
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
        let id = self.id;
        self.ledger.forget(|record| record.processes.retain(|process| process.id != id));
    }
}
