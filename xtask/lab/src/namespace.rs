//! Named network namespaces, gone when dropped together with whatever runs in them.

use std::{
    fs::File,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::Signal,
};

use crate::{
    command::Cmd,
    ledger::Ledger,
    process_id::{self, ProcessId},
};

/// A network namespace that people can find with `ip netns list`.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    ledger: Ledger,
}

impl Namespace {
    /// Creates `<lab>-<short>`, with its loopback up.
    pub fn create(ledger: &Ledger, short: &str) -> Result<Self> {
        let name = format!("{}-{short}", ledger.name());
        // Before it is on record: what is on record is deleted in the end, and this one is not ours.
        ensure!(
            !path(&name).exists(),
            "there is a network namespace {name} already, which is not this lab's: `ip netns delete \
             {name}` if nobody uses it, `cargo xtask lab down` where it was made"
        );
        ledger.change(|record| record.namespaces.push(name.clone()))?;
        let namespace = Self { name, ledger: ledger.clone() };
        Cmd::new("ip").args(["netns", "add", &namespace.name]).run()?;
        namespace.ip(["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name in `ip netns list`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        path(&self.name)
    }

    /// A command that runs in it.
    ///
    /// Only the network changes: `ip netns exec` would put a new `/sys` in front of the BPF file
    /// system and the control groups.
    pub fn command(&self, program: impl AsRef<Path>) -> Cmd {
        self.wrap(Cmd::new(program.as_ref()))
    }

    /// The same command, in this namespace.
    pub fn wrap(&self, command: Cmd) -> Cmd {
        enter(&self.path(), command)
    }

    /// `ip` in it: `ip(["link", "show"])`; returns what it printed.
    pub fn ip<I: IntoIterator<Item = S>, S: AsRef<str>>(&self, args: I) -> Result<String> {
        Cmd::new("ip")
            .args(["-n", &self.name])
            .args(args.into_iter().map(|arg| arg.as_ref().to_owned()))
            .read()
    }

    /// Sets a kernel parameter of the network, named as `sysctl` names it.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.command("sysctl").args(["-q", "-w", &format!("{name}={value}")]).run()?;
        Ok(())
    }

    /// Runs a closure in it, on a thread of its own: for sockets that a test itself opens.
    pub fn within<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = self.path();
        let worker = thread::spawn(move || {
            let file =
                File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            setns(file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter {}", path.display()))?;
            task()
        });
        worker.join().map_err(|_panic| anyhow!("the task in namespace {} panicked", self.name))?
    }

    /// The MAC address of one of its devices.
    pub fn mac(&self, device: &str) -> Result<String> {
        let shown = self.ip(["-o", "link", "show", "dev", device])?;
        shown
            .split_once("link/ether ")
            .and_then(|(_, rest)| rest.split(' ').next())
            .map(str::to_owned)
            .with_context(|| format!("{device} in {} has no MAC address: {shown}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.ledger.explain_if_panicking();
        if self.ledger.record().owner.is_none() {
            return;
        }
        if let Err(error) = delete(&self.name) {
            eprintln!("{error:#}");
        }
        self.ledger.forget(|record| record.namespaces.retain(|name| *name != self.name));
    }
}

/// The file that stands for the namespace of this name.
pub fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// A command that runs in the network namespace behind this file.
pub fn enter(namespace: &Path, command: Cmd) -> Cmd {
    command.behind("nsenter", [format!("--net={}", namespace.display()), "--".into()])
}

/// Ends what runs in a namespace, and deletes it; does nothing when there is none.
pub(crate) fn delete(name: &str) -> Result<()> {
    if !path(name).exists() {
        return Ok(());
    }
    kill_inside(name)?;
    Cmd::new("ip").args(["netns", "delete", name]).even_if_interrupted().run()?;
    Ok(())
}

/// Kills everything that runs in a namespace.
pub(crate) fn kill_inside(name: &str) -> Result<()> {
    // A process may have forked while we were killing: twice is enough, the second finds orphans.
    for _ in 0..2 {
        let inside = Cmd::new("ip").args(["netns", "pids", name]).even_if_interrupted().read()?;
        let processes: Vec<ProcessId> = inside
            .lines()
            .filter_map(|line| ProcessId::of(line.trim().parse().ok()?).ok())
            .collect();
        for process in &processes {
            process.signal(Signal::SIGKILL)?;
        }
        process_id::gone(&processes, Duration::from_secs(5));
        if processes.is_empty() {
            break;
        }
    }
    Ok(())
}
