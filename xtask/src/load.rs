//! `load`: the programs on this very host, followed by their counters until Ctrl-C, and nothing left of them.

mod moved;

use std::{
    ffi::OsString,
    fmt,
    fs::File,
    io::{ErrorKind, Read as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use nix::unistd::Uid;
use overlay_lab::{
    STOP_WITHIN, agent_status,
    command::{Cmd, end_group},
    counters, interrupt,
    subnet::LeasedSubnet,
};
use serde_json::Value;

use self::moved::Moved;
use crate::{build, lab, setup};

/// How often the counters are read.
const EVERY: Duration = Duration::from_secs(1);

/// Flags of the agent's that are not for `--`: whoever removes things has to know where they are.
const OURS: [&str; 5] = ["pin-path", "subnet-file", "state-file", "socket", "on-exit"];

/// The command line cannot be followed. The numbers are the agent's own, for what the agent would say, too.
const USAGE: u8 = 64;
/// What was handed over is something else.
const DATA: u8 = 65;
/// What was named is not there.
const NOT_FOUND: u8 = 66;
/// There is an overlay on this host already.
const BUSY: u8 = 75;
/// Not root.
const NOT_PERMITTED: u8 = 77;

/// The command line of `load`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Options {
    /// The interface that reaches the other hosts; the first that exists counts
    #[arg(long, value_name = "NAME|IP")]
    pub(crate) iface: Vec<String>,
    /// Do without etcd: a file says who has which subnet
    #[arg(long, value_name = "FILE", conflicts_with_all = ["etcd_endpoints", "etcd_prefix"])]
    pub(crate) peers: Option<PathBuf>,
    /// Where etcd is. The lease is given back at the end; what else etcd asks for is in variables, `OVERLAY_ETCD_CAFILE`, …
    #[arg(long, value_name = "URLS")]
    pub(crate) etcd_endpoints: Option<String>,
    /// Below which key of etcd leases are
    #[arg(long, value_name = "KEY")]
    pub(crate) etcd_prefix: Option<String>,
    /// Load these programs instead of those that are built now; the agent is built with them, under a name of its own
    #[arg(long, value_name = "FILE", conflicts_with = "agent")]
    pub(crate) object: Option<PathBuf>,
    /// Run this agent, with the programs in it, instead of building one
    #[arg(long, value_name = "FILE")]
    pub(crate) agent: Option<PathBuf>,
    /// Where programs and maps are pinned meanwhile
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/overlay")]
    pub(crate) pin_path: PathBuf,
    /// Where to write the subnet for Docker; otherwise nobody is told of it
    #[arg(long, value_name = "FILE")]
    pub(crate) subnet_file: Option<PathBuf>,
    /// What else `overlay-agent run` gets: `--bridge`, `--fast-path`, …
    #[arg(last = true, value_name = "ARGUMENT")]
    pub(crate) more: Vec<OsString>,
}

const EXIT_CODES: &str = "\
Exit codes:
   0  followed until Ctrl-C or SIGTERM, and everything is removed
   1  unexpected failure
   2  bad flag of this command
  64  bad flag behind `--`
  65  --object is something else than BPF programs
  66  a file that was named is not there
  75  there is an overlay on this host already, which is left alone
  77  not root
Where the agent ends by itself, its number is ours: `overlay-agent run --help` has them.";

/// Why it ended, with the number that it ends with.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: u8,
    /// None where the agent has said it.
    why: Option<String>,
}

impl Ended {
    fn because(code: u8, why: impl Into<String>) -> anyhow::Error {
        Self { code, why: Some(why.into()) }.into()
    }

    /// What another program that has explained itself ended with.
    fn with(status: ExitStatus) -> Result<()> {
        match status.code() {
            Some(0) => Ok(()),
            Some(code) => Err(Self { code: u8::try_from(code).unwrap_or(1), why: None }.into()),
            None => Err(anyhow!("the agent was killed ({status})")),
        }
    }

    /// Whether there is nothing to add to what was printed.
    pub(crate) fn is_said(&self) -> bool {
        self.why.is_none()
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.why.as_deref().unwrap_or("the agent has ended"))
    }
}

impl std::error::Error for Ended {}

/// Loads, follows, removes.
pub(crate) fn run(options: &Options) -> Result<()> {
    refuse(options)?;
    // What makes no sense on this host is said before anything is built for minutes.
    nothing_is_here(options)?;
    let directory = tempfile::Builder::new()
        .prefix("overlay-load-")
        .tempdir()
        .context("cannot create a folder for the agent")?;
    let agent = agent(options, directory.path())?;
    let session = Session { options, agent: &agent, directory: directory.path() };
    let leased_before = session.leases()?;
    nothing_is_here(options)?;
    session.run(&leased_before)
}

/// Everything that is known to be wrong without looking at the host.
fn refuse(options: &Options) -> Result<()> {
    if !Uid::effective().is_root() {
        return Err(Ended::because(
            NOT_PERMITTED,
            "loading programs takes root: `sudo -E env \"PATH=$PATH\" cargo xtask load …`",
        ));
    }
    for (flag, file) in [("--peers", &options.peers), ("--agent", &options.agent)] {
        if let Some(file) = file.as_ref().filter(|file| !file.is_file()) {
            return Err(Ended::because(
                NOT_FOUND,
                format!("{flag}: there is no file {}", file.display()),
            ));
        }
    }
    for argument in &options.more {
        let text = argument.to_string_lossy();
        let flag = text.trim_start_matches('-').split('=').next().unwrap_or_default();
        if text.starts_with('-') && OURS.contains(&flag) {
            return Err(Ended::because(
                USAGE,
                format!("--{flag} is not for the agent: `load` says where things are"),
            ));
        }
    }
    options.object.as_deref().map_or(Ok(()), is_bpf)
}

/// Whether a file begins as an object for BPF does.
fn is_bpf(file: &Path) -> Result<()> {
    /// `EM_BPF`, behind the 16 bytes of identification and the 2 of the type.
    const MACHINE: [u8; 2] = 247_u16.to_le_bytes();
    let mut start = Vec::new();
    let read = File::open(file).and_then(|opened| opened.take(20).read_to_end(&mut start));
    match read {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(Ended::because(NOT_FOUND, format!("--object: there is no file {}", file.display())))
        }
        Err(error) => {
            Err(error).with_context(|| format!("--object: cannot read {}", file.display()))
        }
        Ok(_) if start.starts_with(b"\x7fELF") && start.get(18..) == Some(&MACHINE) => Ok(()),
        Ok(_) => Err(Ended::because(
            DATA,
            format!("--object: {} is no object of BPF programs", file.display()),
        )),
    }
}

/// What an agent has made is not ours to share, and cleaning up afterwards would remove it.
fn nothing_is_here(options: &Options) -> Result<()> {
    let mut found = Vec::new();
    let devices = Cmd::new("ip").args(["-json", "link", "show", "type", "vxlan"]).read()?;
    // Where there is none, `ip` prints nothing, or an empty list.
    let devices: Value = serde_json::from_str(if devices.is_empty() { "[]" } else { &devices })
        .context("`ip` printed no JSON")?;
    let names = devices.as_array().into_iter().flatten();
    let names = names.filter_map(|device| device["ifname"].as_str());
    found.extend(
        names.filter(|name| name.starts_with("overlay.")).map(|name| format!("device {name}")),
    );
    for file in [Some(&options.pin_path), options.subnet_file.as_ref()].into_iter().flatten() {
        if file.exists() {
            found.push(file.display().to_string());
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    Err(Ended::because(
        BUSY,
        format!(
            "there is an overlay on this host already ({}): once its agent is stopped, `overlay-agent cleanup` removes it",
            found.join(", ")
        ),
    ))
}

/// The agent to run: the one that was asked for, or one that carries the programs that were.
fn agent(options: &Options, directory: &Path) -> Result<PathBuf> {
    let Some(object) = &options.object else {
        return lab::agent_binary(options.agent.as_deref());
    };
    setup::ensure()?;
    let agent = directory.join("overlay-agent");
    build::agent_with(object, &agent)?;
    Ok(agent)
}

/// An agent between its start and its last trace.
struct Session<'a> {
    options: &'a Options,
    agent: &'a Path,
    /// What it keeps in files is here, and goes with us.
    directory: &'a Path,
}

impl Session<'_> {
    fn run(&self, leased_before: &[String]) -> Result<()> {
        interrupt::check()?;
        let mut command = Cmd::new(self.agent).arg("run").args(self.etcd());
        if let Some(peers) = &self.options.peers {
            command = command.arg("--peers").arg(peers);
        }
        for iface in &self.options.iface {
            command = command.args(["--iface", iface]);
        }
        let command = self.places(command).args(&self.options.more);
        // A group of its own, as all our children have: Ctrl-C reaches us, and we end it.
        let mut child = command
            .to_std()
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start `{command}`"))?;
        let followed = self.follow(&mut child);
        end_group(&mut child, STOP_WITHIN);
        let removed = self.remove(leased_before);
        followed.and(removed)
    }

    /// Until somebody has had enough, or the agent has.
    fn follow(&self, child: &mut Child) -> Result<()> {
        let mut moved = Moved::default();
        let start = Instant::now();
        let mut due = start;
        let mut is_told = false;
        while !interrupt::received() {
            if let Some(status) = child.try_wait().context("cannot wait for the agent")? {
                return Ended::with(status);
            }
            if due <= Instant::now() {
                due = Instant::now() + EVERY;
                // Before it has a lease, it answers without counters, or not at all: its log says why.
                let answer = agent_status(self.agent, &self.socket());
                if let Ok(now) = answer.and_then(|status| counters(&status)) {
                    if !is_told {
                        is_told = true;
                        self.tell();
                    }
                    for line in moved.since(now) {
                        println!("{:>5} s  {line}", start.elapsed().as_secs());
                    }
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn tell(&self) {
        println!(
            "pins      {}\nsubnet    {}\nmore      {} status --socket {}\nCtrl-C removes everything.",
            self.options.pin_path.display(),
            self.subnet_file().display(),
            self.agent.display(),
            self.socket().display()
        );
    }

    /// Removes what the agent made, and gives the lease back unless it was there before us.
    fn remove(&self, leased_before: &[String]) -> Result<()> {
        let subnet = LeasedSubnet::read(&self.subnet_file()).map(|env| env.subnet()).ok();
        let leased = self.options.peers.is_none()
            && subnet.is_some_and(|subnet| !leased_before.contains(&subnet));
        let cleanup = || self.places(Cmd::new(self.agent).arg("cleanup")).even_if_interrupted();
        if leased {
            let output = cleanup().arg("--lease").args(self.etcd()).output()?;
            print!("{}", output.stdout);
            eprint!("{}", output.stderr);
            // Without a device there is no lease that could be shown to be ours.
            if output.status.code() != Some(NOT_FOUND.into()) {
                return Ended::with(output.status);
            }
        }
        cleanup().stream()
    }

    /// The subnets that are leased, for nothing is given back that was not taken here.
    fn leases(&self) -> Result<Vec<String>> {
        if self.options.peers.is_some() {
            return Ok(Vec::new());
        }
        let command =
            Cmd::new(self.agent).args(["lease", "list", "--output", "json"]).args(self.etcd());
        let output = command.output()?;
        if !output.status.success() {
            eprint!("{}", output.stderr);
            Ended::with(output.status)?;
        }
        let leases: Value = serde_json::from_str(&output.stdout)
            .with_context(|| format!("`{command}` printed no JSON"))?;
        let leases = leases.as_array().into_iter().flatten();
        Ok(leases.filter_map(|lease| lease["subnet"].as_str().map(str::to_owned)).collect())
    }

    fn etcd(&self) -> Vec<&str> {
        let flags = [
            ("--etcd-endpoints", &self.options.etcd_endpoints),
            ("--etcd-prefix", &self.options.etcd_prefix),
        ];
        let given = flags.iter().filter_map(|(flag, value)| Some([*flag, value.as_deref()?]));
        given.flatten().collect()
    }

    fn places(&self, command: Cmd) -> Cmd {
        command
            .arg("--pin-path")
            .arg(&self.options.pin_path)
            .arg("--subnet-file")
            .arg(self.subnet_file())
            .arg("--state-file")
            .arg(self.directory.join("state.env"))
            .arg("--socket")
            .arg(self.socket())
    }

    fn subnet_file(&self) -> PathBuf {
        let own = || self.directory.join("subnet.env");
        self.options.subnet_file.clone().unwrap_or_else(own)
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("agent.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_of_programs_is_told_from_anything_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("object");
        let code = || is_bpf(&file).map_err(|error| error.downcast::<Ended>().unwrap().code);
        assert_eq!(code(), Err(NOT_FOUND));
        let elf =
            |machine: u8| [&b"\x7fELF\x02\x01\x01"[..], &[0; 9], &[1, 0, machine, 0]].concat();
        for (bytes, expected) in
            [(b"text".to_vec(), Err(DATA)), (elf(62), Err(DATA)), (elf(247), Ok(()))]
        {
            std::fs::write(&file, bytes).unwrap();
            assert_eq!(code(), expected);
        }
    }
}
