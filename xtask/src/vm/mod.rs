//! The kernels that people run, in virtual machines: no hardware support is needed, so they work everywhere and are
//! slow. What runs in them must not measure time.

mod archive;
mod initramfs;
mod kernel;
pub(crate) mod layer;
mod userland;

use std::{
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{command::Cmd, workspace};
use serde::Deserialize;

use crate::{arch::Arch, build::portable};

pub(crate) use self::{
    initramfs::Step,
    kernel::{ARM64, KERNELS, Kernel, Unpacked},
};

/// For all that a machine does, from power on to power off.
const MACHINE_WITHIN: Duration = Duration::from_mins(20);

/// For a hunt, or another processor, which somebody has asked for.
const HUNT_WITHIN: Duration = Duration::from_hours(3);

/// Machines at a time; each has two processors.
const AT_A_TIME: usize = 2;

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Its name.
    pub(crate) name: String,
    /// What it printed.
    pub(crate) output: String,
    /// Its exit code; none where the machine stopped first.
    pub(crate) code: Option<i32>,
}

/// What came of a machine.
#[derive(Debug)]
pub(crate) struct Run {
    /// What it ran.
    pub(crate) kernel: Kernel,
    /// What that kernel calls itself.
    pub(crate) release: String,
    /// What it did, in order.
    pub(crate) steps: Vec<Ended>,
    /// From power on to power off.
    pub(crate) time: Duration,
}

/// Boots every kernel, two at a time, has each run the steps that are for it, and returns what came of them in
/// the order of `kernels`.
pub(crate) fn run_all(
    kernels: &[Kernel],
    steps: impl Fn(Kernel) -> Vec<Step>,
) -> Vec<(Kernel, Result<Run>)> {
    // All before the first boots: what it runs may be built anew meanwhile.
    let machines: Vec<_> =
        kernels.iter().map(|&kernel| (kernel, Machine::new(kernel, &steps(kernel)))).collect();
    let next = Mutex::new(machines.into_iter().enumerate());
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let taken = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((index, (kernel, machine))) = taken else { break };
                    let result = machine.and_then(Machine::run);
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    results.push((index, kernel, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, ..)| *index);
    results.into_iter().map(|(_, kernel, result)| (kernel, result)).collect()
}

/// A machine that is ready to boot.
struct Machine {
    kernel: Kernel,
    unpacked: Unpacked,
    /// Its first file system.
    archive: PathBuf,
    /// Where its serial console goes.
    console: PathBuf,
}

impl Machine {
    fn new(kernel: Kernel, steps: &[Step]) -> Result<Self> {
        let unpacked = kernel.fetch()?;
        let directory = workspace::target_dir()?.join("vm").join(kernel.name());
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        let archive = directory.join("initramfs.cpio");
        fs::write(&archive, initramfs::build(kernel, &unpacked, steps)?)
            .with_context(|| format!("writing {}", archive.display()))?;
        Ok(Self { kernel, unpacked, archive, console: directory.join("console.log") })
    }

    fn run(self) -> Result<Run> {
        let start = Instant::now();
        let (machine, processor, threads, console) = match self.kernel.arch {
            // One thread for both processors: with two, one of them may run into a breakpoint by which
            // the other has just patched the kernel's code, after it is gone («Oops: int3»).
            Arch::Amd64 => ("pc", "max", "single", "ttyS0"),
            // What clouds have. Two threads: nothing that a processor does while it waits for the other lets that one run.
            Arch::Arm64 => ("virt", "neoverse-n1", "multi", "ttyAMA0"),
        };
        let by_hand = self.kernel == ARM64 || layer::hunted().is_some();
        let ended = Cmd::new(format!("qemu-system-{}", self.kernel.arch.kernel_name()))
            .args(["-accel", &format!("tcg,thread={threads}"), "-machine", machine])
            .args(["-cpu", processor])
            .args(["-smp", "2", "-m", "2048"])
            .args(["-nodefaults", "-display", "none", "-no-reboot", "-append"])
            .arg(format!("console={console} loglevel=4 panic=-1 random.trust_cpu=on"))
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .arg("-kernel")
            .arg(&self.unpacked.image)
            .arg("-initrd")
            .arg(&self.archive)
            .deadline(if by_hand { HUNT_WITHIN } else { MACHINE_WITHIN })
            .run();
        let time = start.elapsed();
        let text = fs::read(&self.console)
            .with_context(|| format!("reading {}", self.console.display()))?;
        let text = String::from_utf8_lossy(&text);
        ended.with_context(|| format!("the end of its console:\n{}", tail(&text)))?;
        let steps = parse(&text);
        ensure!(!steps.is_empty(), "it ran nothing; the end of its console:\n{}", tail(&text));
        Ok(Run { kernel: self.kernel, release: self.unpacked.release, steps, time })
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Takes the console apart at the lines that the first process writes between steps.
fn parse(console: &str) -> Vec<Ended> {
    let mut steps: Vec<Ended> = Vec::new();
    let mut running = false;
    for line in console.lines() {
        let line = line.trim_end_matches('\r');
        if let Some(name) = line.strip_prefix("vm: begin ") {
            steps.push(Ended { name: name.to_owned(), output: String::new(), code: None });
            running = true;
        } else if let Some((_, code)) =
            line.strip_prefix("vm: end ").and_then(|rest| rest.rsplit_once(' '))
        {
            if let Some(step) = steps.last_mut() {
                step.code = code.parse().ok();
            }
            running = false;
        } else if let (true, Some(step)) = (running, steps.last_mut()) {
            step.output.push_str(line);
            step.output.push('\n');
        }
    }
    steps
}

/// Builds test programs of the agent for a processor, and returns where they are, in the order of `names`.
pub(crate) fn test_programs<const N: usize>(arch: Arch, names: [&str; N]) -> Result<[PathBuf; N]> {
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    #[derive(Deserialize)]
    struct Message {
        target: Option<Target>,
        executable: Option<PathBuf>,
    }
    let mut command = if arch == Arch::of_this_machine()? {
        workspace::cargo().args(["test", "--locked", "--package", "overlay-agent"])
    } else {
        portable::cargo(arch, "test")?
    };
    command = command.args(["--no-run", "--message-format=json-render-diagnostics"]);
    for name in names {
        command = command.args(["--test", name]);
    }
    let printed = command.read()?;
    let built: Vec<Message> =
        printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut programs = Vec::new();
    for name in names {
        let program = built
            .iter()
            .filter(|message| message.target.as_ref().is_some_and(|target| target.name == name))
            .find_map(|message| message.executable.clone())
            .with_context(|| format!("cargo built no test program {name}"))?;
        programs.push(program);
    }
    programs.try_into().ok().context("cargo built other test programs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_taken_apart_at_its_steps() {
        let console = "[    0.1] Linux\r\nvm: begin datapath\r\ntest a ... ok\r\nvm: end datapath 0\r\n\
                       noise\r\nvm: begin network\r\ntest b\r\n";
        let steps = parse(console);
        assert_eq!(steps.len(), 2);
        assert_eq!((steps[0].code, steps[0].output.as_str()), (Some(0), "test a ... ok\n"));
        assert_eq!((steps[1].code, steps[1].output.as_str()), (None, "test b\n"));
    }
}
