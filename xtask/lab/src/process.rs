//! Long-lived processes: their output in a file, ended by their id, within a deadline.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{
    command::Cmd,
    ledger::{Ledger, ProcessRecord},
    wait::GiveUp,
};

/// How long a process may take to end after SIGTERM before it gets SIGKILL.
pub const STOP_WITHIN: Duration = Duration::from_secs(15);

/// A process, safe against its number being used again: it started at that moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now.
    pub fn of(pid: i32) -> Result<Self> {
        let (_, started) = state(pid).with_context(|| format!("there is no process {pid}"))?;
        Ok(Self { pid, started })
    }

    /// The calling process.
    pub fn own() -> Result<Self> {
        Self::of(Pid::this().as_raw())
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_running(self) -> bool {
        state(self.pid)
            .is_some_and(|(state, started)| started == self.started && state != 'Z' && state != 'X')
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        let pid = Pid::from_raw(self.pid);
        let sent = kill(pid, signal).and_then(|()| match signal {
            // A stopped process would not hear it.
            Signal::SIGTERM => kill(pid, Signal::SIGCONT),
            _ => Ok(()),
        });
        match sent {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot send {signal} to {}", self.pid))
            }
        }
    }
}

/// State letter and start time from `/proc/<pid>/stat`.
fn state(pid: i32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold spaces and parentheses: the fields start after the last.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    Some((state, started))
}

/// Waits until none of them runs, and says whether that came true.
pub(crate) fn gone(processes: &[ProcessId], within: Duration) -> bool {
    let start = Instant::now();
    loop {
        if processes.iter().all(|process| !process.is_running()) {
            return true;
        }
        if start.elapsed() >= within {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

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
        self.ledger.dump_if_panicking();
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

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn we_are_running() {
        assert!(ProcessId::own().unwrap().is_running());
    }

    #[test]
    fn a_number_used_again_is_another_process() {
        let own = ProcessId::own().unwrap();
        let other = ProcessId { started: own.started + 1, ..own };
        assert!(!other.is_running());
        // It must not hit us.
        other.signal(Signal::SIGKILL).unwrap();
    }

    #[test]
    fn the_tail_is_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
