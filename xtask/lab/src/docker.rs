//! A real Docker daemon per host, with its own containerd, storage and control groups.

use std::{
    fs,
    io::Write as _,
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cgroups, command::Cmd, host::Host, ledger::Ledger, process::Process, wait::eventually,
};

/// The image in every daemon: Debian's static busybox, because nothing can be pulled here.
pub const IMAGE: &str = "busybox";

/// Named in full: a machine may carry another client earlier in `PATH`.
pub const CLIENT: &str = "/usr/bin/docker";

/// The daemon of the same package: Debian's `docker.io`, otherwise `docker-ce`.
const DAEMONS: [&str; 2] = ["/usr/sbin/dockerd", "/usr/bin/dockerd"];

/// The static busybox, where packages put it.
const BUSYBOXES: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// How long a daemon may take to start, its containerd included.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// Hides the machine's own Docker from the daemon, and the daemon from the machine: its mounts, the
/// sockets of its shims, the key and the plugins' folder it would otherwise create go to a folder of
/// the lab. `slave`: what is unmounted outside must not be kept alive inside.
const PRIVATE: &str = r#"
set -e
private=$1; shift
for directory in /etc/docker /run/containerd /run/docker; do
    mkdir -p "$directory" "$private$directory"
    mount --bind "$private$directory" "$directory"
done
exec "$@"
"#;

/// A running Docker daemon: stopped when dropped, with all its containers.
#[derive(Debug)]
pub struct Docker {
    process: Process,
    socket: PathBuf,
    directory: PathBuf,
    cgroup: String,
    host: String,
    ledger: Ledger,
}

impl Docker {
    /// Starts a daemon on a host with these options, without waiting for it.
    pub(crate) fn spawn(ledger: &Ledger, host: &Host, options: &[String]) -> Result<Self> {
        let directory = host.directory().join("docker");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let socket = directory.join("docker.sock");
        let cgroup = format!("{}/{}", ledger.record().cgroup, host.name());
        let config = directory.join("daemon.json");
        fs::write(&config, "{}\n").with_context(|| format!("cannot write {}", config.display()))?;

        let command = Cmd::new(installed(DAEMONS, "docker.io")?)
            .arg("--config-file")
            .arg(&config)
            .arg("--data-root")
            .arg(directory.join("data"))
            .arg("--exec-root")
            .arg(directory.join("run"))
            .arg("--pidfile")
            .arg(directory.join("docker.pid"))
            .arg("--host")
            .arg(format!("unix://{}", socket.display()))
            // Our own groups must be ours to find and remove, whatever manages the machine's.
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(["--cgroup-parent", &cgroup])
            .args(options)
            .behind(
                "sh",
                ["-c", PRIVATE, "sh"]
                    .map(Path::new)
                    .into_iter()
                    .chain([directory.join("private").as_path()]),
            )
            .behind("unshare", ["--mount", "--propagation", "slave", "--"]);
        let process = Process::spawn(
            ledger,
            &format!("dockerd on {}", host.name()),
            &host.namespace().wrap(command),
            &host.directory().join("dockerd.log"),
        )?;
        Ok(Self {
            process,
            socket,
            directory,
            cgroup,
            host: host.name().to_owned(),
            ledger: ledger.clone(),
        })
    }

    /// Waits until it answers, and gives it [`IMAGE`].
    pub fn wait_ready(&mut self) -> Result<()> {
        let what = format!("dockerd on {} answers", self.host);
        eventually(READY_WITHIN, &what, || {
            self.process.check_running()?;
            self.command(["version"]).run().map(drop)
        })
        .with_context(|| format!("the end of its log:\n{}", self.process.log_tail(20)))?;
        let images = self.command(["images", "--quiet", IMAGE]).read()?;
        if images.is_empty() {
            let archive = busybox_archive(&self.ledger)?;
            self.command(["import"]).arg(&archive).arg(IMAGE).run()?;
        }
        Ok(())
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The socket it listens on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `docker` with these arguments, talking to it.
    pub fn command<I: IntoIterator<Item = S>, S: AsRef<str>>(&self, args: I) -> Cmd {
        client(&self.socket).args(args.into_iter().map(|arg| arg.as_ref().to_owned()))
    }

    /// Starts a container from [`IMAGE`] in the background.
    pub fn run(&self, name: &str, command: &[&str]) -> Result<()> {
        self.run_with(name, &[], command)
    }

    /// The same with more options of `docker run`.
    pub fn run_with(&self, name: &str, options: &[&str], command: &[&str]) -> Result<()> {
        self.command(["run", "--detach", "--name", name])
            .args(options)
            .arg(IMAGE)
            .args(command)
            .run()
            .map(drop)
    }

    /// Runs a command in a container, and returns what it printed.
    pub fn exec(&self, name: &str, command: &[&str]) -> Result<String> {
        self.command(["exec", name]).args(command).read()
    }

    /// The same with something on its standard input.
    pub fn exec_with_input(&self, name: &str, input: &[u8], command: &[&str]) -> Result<String> {
        self.command(["exec", "--interactive", name]).args(command).input(input).read()
    }

    /// What a container has printed.
    pub fn logs(&self, name: &str) -> Result<String> {
        self.command(["logs", name]).read()
    }

    /// The address of a container on the default bridge.
    pub fn address(&self, name: &str) -> Result<Ipv4Addr> {
        let address = self.inspect(name, "{{.NetworkSettings.IPAddress}}")?;
        address.parse().with_context(|| format!("container {name} has no address, but «{address}»"))
    }

    /// The first process of a container, as the machine numbers it.
    pub fn pid(&self, name: &str) -> Result<i32> {
        let pid = self.inspect(name, "{{.State.Pid}}")?;
        match pid.parse() {
            Ok(0) => bail!("container {name} does not run"),
            Ok(pid) => Ok(pid),
            Err(error) => Err(error).with_context(|| format!("{pid} is no process number")),
        }
    }

    /// A command of the machine, not of the image, in a container's network.
    pub fn in_network_of(&self, name: &str, command: Cmd) -> Result<Cmd> {
        let namespace = format!("/proc/{}/ns/net", self.pid(name)?);
        Ok(crate::namespace::enter(Path::new(&namespace), command))
    }

    /// Removes a container, running or not.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.command(["rm", "--force", "--volumes", name]).run().map(drop)
    }

    /// Ends it as `systemctl stop docker` would, containers included, keeping what it stored.
    pub fn stop(&mut self) -> Result<()> {
        // First the containers: busybox as first process ignores SIGTERM, and Docker would wait.
        cgroups::kill(&self.cgroup)?;
        self.process.stop().map(drop)
    }

    /// The folder that holds all that it stores.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn inspect(&self, name: &str, format: &str) -> Result<String> {
        self.command(["inspect", "--format", format, name]).read()
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.ledger.explain_if_panicking();
        if self.ledger.record().owner.is_none() {
            return;
        }
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

/// The first of these programs that exists.
fn installed(programs: [&'static str; 2], package: &str) -> Result<&'static str> {
    programs.into_iter().find(|program| Path::new(program).is_file()).with_context(|| {
        format!("there is no {}: `cargo xtask setup` installs {package}", programs[0])
    })
}

/// `docker` talking to the daemon behind this socket.
pub fn client(socket: &Path) -> Cmd {
    Cmd::new(CLIENT)
        .env_remove("DOCKER_CONTEXT")
        .env_remove("DOCKER_TLS_VERIFY")
        .arg("--host")
        .arg(format!("unix://{}", socket.display()))
}

/// A file system with nothing but busybox and its names, made once per lab.
pub(crate) fn busybox_archive(ledger: &Ledger) -> Result<PathBuf> {
    let archive = ledger.directory().join("busybox.tar");
    if archive.exists() {
        return Ok(archive);
    }
    let root = tempfile::tempdir_in(ledger.directory()).context("cannot make room for an image")?;
    let failed = || format!("cannot lay out the image in {}", root.path().display());
    for directory in ["bin", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir(root.path().join(directory)).with_context(failed)?;
    }
    let busybox = installed(BUSYBOXES, "busybox-static")?;
    fs::copy(busybox, root.path().join("bin/busybox"))
        .with_context(|| format!("cannot copy {busybox}"))?;
    for name in Cmd::new(busybox).arg("--list").read()?.lines() {
        if name != "busybox" {
            symlink("busybox", root.path().join("bin").join(name)).with_context(failed)?;
        }
    }
    let mut passwd = fs::File::create(root.path().join("etc/passwd")).with_context(failed)?;
    passwd.write_all(b"root:x:0:0:root:/root:/bin/sh\n").with_context(failed)?;
    // Two hosts may ask at the same time: whole, or not there.
    let partial = root.path().join("image.tar");
    Cmd::new("tar")
        .arg("--create")
        .arg("--file")
        .arg(&partial)
        .arg("--directory")
        .arg(root.path())
        .args(["bin", "etc", "proc", "root", "sys", "tmp"])
        .run()?;
    fs::rename(&partial, &archive).with_context(failed)?;
    Ok(archive)
}
