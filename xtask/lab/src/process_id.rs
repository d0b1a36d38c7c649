//! Which process, on this machine.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

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
}
