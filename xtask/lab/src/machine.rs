//! A whole machine on a host of a lab: Debian with its own systemd, booted by `systemd-nspawn` in the
//! host's network namespace.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};

use crate::{
    command::Cmd,
    debian::{self, Distribution},
    docker::{self, IMAGE},
    eventually,
    host::Host,
    process::Process,
    process_id::ProcessId,
    wire::UPLINK,
};

/// How long a boot may take until systemd takes orders.
const BOOT_WITHIN: Duration = Duration::from_mins(1);

/// How long a machine may take to stop, its containers included.
const HALT_WITHIN: Duration = Duration::from_mins(1);

/// Where the next router would be: `overlay-agent` takes the way out for its uplink.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 33, 1);

/// Starts a command in this group of control groups, in the hierarchies that systemd uses.
const IN_ITS_GROUP: &str = r#"
set -e
group=$1; shift
for place in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    if [ -e "$place/cgroup.procs" ]; then
        mkdir -p "$place$group"
        echo $$ > "$place$group/cgroup.procs"
    fi
done
exec "$@"
"#;

/// A machine that runs, or is switched off.
#[derive(Debug)]
pub struct Machine<'host> {
    host: &'host Host,
    directory: PathBuf,
    process: Option<Process>,
    /// The first process inside, as we see it.
    init: Option<ProcessId>,
}

impl<'host> Machine<'host> {
    /// Lays out a disk of its own over Debian 12, and boots it.
    pub fn boot(host: &'host Host) -> Result<Self> {
        let mut machine = Self::lay_out(host, &debian::BOOKWORM)?;
        machine.switch_on()?;
        Ok(machine)
    }

    /// Lays out a disk of its own over a common one.
    pub fn lay_out(host: &'host Host, distribution: &Distribution) -> Result<Self> {
        let directory = host.directory().join("machine");
        let path = |name: &str| directory.join(name);
        for name in ["upper", "work", "root", "docker"] {
            fs::create_dir_all(path(name))
                .with_context(|| format!("cannot create {}", path(name).display()))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            debian::root(distribution)?.display(),
            path("upper").display(),
            path("work").display()
        );
        mount(
            Some("overlay"),
            &path("root"),
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .with_context(|| format!("cannot lay out a disk at {}", path("root").display()))?;
        let machine = Self { host, directory, process: None, init: None };
        // Every machine is somebody.
        machine.write("/etc/machine-id", b"")?;
        machine.write("/etc/hostname", format!("{}\n", host.name()).as_bytes())?;
        host.ip(["route", "replace", "default", "via", &ROUTER.to_string(), "dev", UPLINK])?;
        Ok(machine)
    }

    /// The host that it is on.
    pub fn host(&self) -> &Host {
        self.host
    }

    /// Its disk, as we see it.
    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    /// Writes a file on its disk.
    pub fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root().join(path.trim_start_matches('/'));
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Boots it, and waits until systemd takes orders.
    pub fn switch_on(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "{} runs already", self.host.name());
        fs::create_dir_all(self.host.pins())
            .with_context(|| format!("cannot create {}", self.host.pins().display()))?;
        let bind = |from: &Path, to: &str| format!("--bind={}:{to}", from.display());
        let command = Cmd::new("systemd-nspawn")
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "yes")
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .args(["--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"])
            .args(["--capability=all", "--system-call-filter=bpf perf_event_open @mount @keyring"])
            .arg(format!("--directory={}", self.root().display()))
            .arg(format!("--machine={}", self.host.name()))
            .arg(format!("--network-namespace-path={}", self.host.namespace().path().display()))
            .arg(bind(self.host.pins(), "/sys/fs/bpf"))
            // Docker's own layers do not go on top of an overlay.
            .arg(bind(&self.directory.join("docker"), "/var/lib/docker"))
            .behind("sh", ["-c", IN_ITS_GROUP, "sh", &self.group()]);
        let log = self.host.directory().join("machine.log");
        let what = format!("machine {}", self.host.name());
        let process = Process::spawn(self.host.ledger(), &what, &command, &log)?;
        let process = self.process.insert(process);
        let nspawn = process.pid();
        let init = eventually(BOOT_WITHIN, &format!("{what} has a first process"), || {
            process.check_running()?;
            first_process(nspawn)
        })?;
        self.init = Some(init);
        eventually(BOOT_WITHIN, &format!("{what} takes orders"), || {
            let state = self.command("systemctl")?.arg("is-system-running").output()?;
            // `starting`: a service waits for something, and so may whoever asked.
            match state.stdout.trim() {
                "running" | "degraded" | "starting" => Ok(()),
                other => bail!("systemd is {other:?} {}", state.stderr.trim()),
            }
        })
    }

    /// Shuts it down as `poweroff` does. What a kernel forgets is gone: devices, rules and pins.
    pub fn switch_off(&mut self) -> Result<()> {
        let what = format!("machine {} is off", self.host.name());
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::SIGTERM)?;
        let halted = eventually(HALT_WITHIN, &what, || {
            ensure!(process.exit_status()?.is_some(), "it still runs");
            Ok(())
        });
        process.kill()?;
        self.init = None;
        self.forget_kernel()?;
        halted
    }

    /// Pulls the plug.
    pub fn crash(&mut self) -> Result<()> {
        self.kill()?;
        self.forget_kernel()
    }

    fn kill(&mut self) -> Result<()> {
        // Everything inside ends with the first process, but that does not end with its parent.
        if let Some(init) = self.init.take() {
            init.signal(Signal::SIGKILL)?;
        }
        match self.process.take() {
            Some(mut process) => process.kill().map(drop),
            None => Ok(()),
        }
    }

    /// A group of its own: systemd takes the one it is started in for its root.
    fn group(&self) -> String {
        format!("{}/{}", self.host.ledger().record().cgroup, self.host.name())
    }

    fn forget_kernel(&self) -> Result<()> {
        if self.host.pins().exists() {
            fs::remove_dir_all(self.host.pins())
                .with_context(|| format!("cannot remove {}", self.host.pins().display()))?;
        }
        for device in self.host.ip(["-brief", "link", "show"])?.lines() {
            let name = device.split(['@', ' ']).next().unwrap_or_default();
            if !["lo", UPLINK].contains(&name) {
                // The other half of a pair may have gone with the first.
                drop(self.host.namespace().ip(["link", "delete", name]));
            }
        }
        self.host.command("nft").args(["flush", "ruleset"]).run().map(drop)
    }

    /// A command inside.
    pub fn command(&self, program: &str) -> Result<Cmd> {
        let init = self.init.with_context(|| format!("{} is off", self.host.name()))?;
        let place = [
            format!("--target={}", init.pid),
            "--mount".into(),
            "--uts".into(),
            "--ipc".into(),
            "--net".into(),
            "--pid".into(),
            "--".into(),
        ];
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let environment = ["-i", path, "HOME=/root", "LC_ALL=C.UTF-8"];
        Ok(Cmd::new(program).behind("env", environment).behind("nsenter", place))
    }

    /// Runs a command inside, and returns what it printed.
    pub fn run<I: IntoIterator<Item = S>, S: AsRef<str>>(
        &self,
        program: &str,
        args: I,
    ) -> Result<String> {
        self.command(program)?.args(args.into_iter().map(|arg| arg.as_ref().to_owned())).read()
    }

    /// Runs a line of shell inside, and returns what it printed.
    pub fn shell(&self, line: &str) -> Result<String> {
        self.run("sh", ["-c", line])
    }

    /// `docker` with these arguments.
    pub fn docker<I: IntoIterator<Item = S>, S: AsRef<str>>(&self, args: I) -> Result<String> {
        self.run("docker", args)
    }

    /// Gives its Docker the image that every daemon of a lab has.
    pub fn import_image(&self) -> Result<()> {
        let archive = docker::busybox_archive(self.host.ledger())?;
        let bytes =
            fs::read(&archive).with_context(|| format!("cannot read {}", archive.display()))?;
        self.write("/srv/image.tar", &bytes)?;
        self.docker(["import", "/srv/image.tar", IMAGE]).map(drop)
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        self.run("systemctl", ["show", "--value", "--property", name, unit])
    }

    /// The main process of a unit, as the machine numbers it.
    pub fn main_pid(&self, unit: &str) -> Result<u32> {
        let pid = self.property(unit, "MainPID")?;
        match pid.parse() {
            Ok(0) => bail!("{unit} does not run on {}", self.host.name()),
            Ok(pid) => Ok(pid),
            Err(error) => Err(error).with_context(|| format!("{pid} is no process number")),
        }
    }

    /// The addresses of one of its devices, as `ip` prints them.
    pub fn addresses(&self, device: &str) -> Result<String> {
        self.host.ip(["-brief", "-4", "address", "show", "dev", device])
    }

    /// What a unit has said, its last lines.
    pub fn journal(&self, unit: &str, lines: u32) -> Result<String> {
        self.run("journalctl", ["--no-pager", "--unit", unit, "--lines", &lines.to_string()])
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for unit in ["etcd.service", "overlay-agent.service", "docker.service"] {
                let said = self.journal(unit, 30).unwrap_or_else(|error| format!("{error:#}"));
                eprintln!("── {unit} on {}\n{said}", self.host.name());
            }
        }
        // Nobody waits for its services: the disk goes too.
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

/// The process that is number 1 inside.
fn first_process(nspawn: i32) -> Result<ProcessId> {
    let path = format!("/proc/{nspawn}/task/{nspawn}/children");
    let children = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    for pid in children.split_whitespace() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        if numbers.is_some_and(|numbers| numbers.split_whitespace().last() == Some("1")) {
            return ProcessId::of(pid.parse().context("a child's number is no number")?);
        }
    }
    bail!("none of {children:?} is number 1 inside")
}
