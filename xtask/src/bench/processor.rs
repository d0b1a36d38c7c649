//! Whose time it was: a core's time from `/proc/stat`, a process's from `/proc/<pid>/stat`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use nix::{
    sys::resource::{UsageWho, getrusage},
    unistd::{SysconfVar, sysconf},
};

/// A core's time since boot, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Core {
    /// Somebody or something ran: user, nice, system, interrupts.
    pub(super) busy: f64,
    /// The machine underneath gave it to another.
    pub(super) stolen: f64,
}

impl Core {
    /// The sum over these cores.
    pub(super) fn read(cores: &[usize]) -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        cores.iter().try_fold(Self::default(), |sum, &core| {
            let one = Self::parse(&text, core)
                .with_context(|| format!("/proc/stat has no line of core {core}"))?;
            Ok(Self { busy: sum.busy + one.busy, stolen: sum.stolen + one.stolen })
        })
    }

    fn parse(text: &str, core: usize) -> Option<Self> {
        let name = format!("cpu{core}");
        let line = text.lines().find(|line| line.split(' ').next() == Some(&name))?;
        let ticks: Vec<f64> =
            line.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal
        let [user, nice, system, _, _, irq, softirq, steal] = *ticks.get(..8)? else {
            return None;
        };
        let second = ticks_per_second();
        Some(Self { busy: (user + nice + system + irq + softirq) / second, stolen: steal / second })
    }
}

/// What all children that have ended have used, in seconds.
pub(super) fn ended_children() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("cannot ask for used time")?;
    let seconds = |time: nix::sys::time::TimeVal| {
        // Both are far below the point where a float would round them.
        #[expect(clippy::cast_precision_loss, reason = "seconds of processor time")]
        let parts = (time.tv_sec() as f64, time.tv_usec() as f64);
        parts.0 + parts.1 / 1e6
    };
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// What a running process has used, with all its threads, in seconds.
pub(super) fn of_process(pid: i32) -> Result<f64> {
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    parse_process(&text).with_context(|| format!("{} is not as expected: {text}", path.display()))
}

fn parse_process(text: &str) -> Option<f64> {
    // The name, in parentheses, may hold spaces: the fields start after the last parenthesis.
    let mut fields = text.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / ticks_per_second())
}

/// The kernel thread that takes over a core's network work when there is much of it.
pub(super) fn softirq_thread(core: usize) -> Option<i32> {
    let name = format!("ksoftirqd/{core}\n");
    fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (fs::read_to_string(entry.path().join("comm")).ok()? == name).then_some(pid)
    })
}

fn ticks_per_second() -> f64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|ticks| u32::try_from(ticks).ok()).map_or(100.0, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_is_busy_when_it_is_neither_idle_nor_stolen() {
        let text =
            "cpu  1 1 1 1 1 1 1 1 0 0\ncpu0 10 20 30 1000 50 1 2 7 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\n";
        let second = ticks_per_second();
        let core = Core::parse(text, 0).unwrap();
        assert!((core.busy - 63.0 / second).abs() < 1e-9, "{core:?}");
        assert!((core.stolen - 7.0 / second).abs() < 1e-9, "{core:?}");
        assert_eq!(Core::parse(text, 2), None);
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b) S 1 7 7 0 -1 4194560 0 0 0 0 300 100 0 0 20 0 1 0 9 0 0";
        let used = parse_process(text).unwrap();
        assert!((used - 400.0 / ticks_per_second()).abs() < 1e-9, "{used}");
    }
}
