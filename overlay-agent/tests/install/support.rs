//! Machines with the package installed, and what every test asks of them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{Container, IMAGE, Lab, Machine, UPLINK, eventually, workspace};
use serde_json::Value;

/// For whatever takes seconds at most.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Where `init` keeps the line for other hosts.
pub(crate) const TOKEN: &str = "/etc/overlay/join.token";

/// The services, in the order in which they start.
pub(crate) const SERVICES: [&str; 3] = ["etcd.service", "overlay-agent.service", "docker.service"];

const HELLO: &str = "Hello, it works !!";

/// What is released, built once and quickly.
fn released() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let printed = workspace::cargo()
            .args(["run", "--quiet", "--locked", "--package", "xtask", "--"])
            .args(["dist", "--quick"])
            .read()
            .unwrap();
        Path::new(printed.lines().last().unwrap()).to_owned()
    })
}

/// Puts what is released on a machine's disk, as `/srv/overlay-agent` with this at its end: `.deb`, `.rpm`, `.tar.gz`.
pub(crate) fn copy_release(machine: &Machine<'_>, kind: &str) {
    let entries = fs::read_dir(released()).unwrap().map(|entry| entry.unwrap().path());
    let found = entries.filter(|path| path.to_str().unwrap().ends_with(kind)).collect::<Vec<_>>();
    let [file] = &found[..] else { panic!("{kind} is not the end of one file: {found:?}") };
    machine.write(&format!("/srv/overlay-agent{kind}"), &fs::read(file).unwrap()).unwrap();
}

/// A machine that has booted, with Docker and etcd as Debian starts them, and the package on its disk.
pub(crate) fn boot(lab: &Lab, host: usize) -> Machine<'_> {
    let machine = Machine::boot(lab.host(host)).unwrap();
    copy_release(&machine, ".deb");
    for unit in ["etcd.service", "docker.service"] {
        wait_for_unit(&machine, unit);
    }
    machine
}

/// Has `apt` install the package.
pub(crate) fn install(machine: &Machine<'_>) {
    machine
        .shell("DEBIAN_FRONTEND=noninteractive apt-get install --yes /srv/overlay-agent.deb")
        .unwrap();
}

/// The first machine, ready.
pub(crate) fn first(lab: &Lab) -> Machine<'_> {
    let machine = boot(lab, 0);
    install(&machine);
    machine.run("overlay-agent", ["init"]).unwrap();
    machine
}

/// Another machine, a member of the first one's overlay.
pub(crate) fn member<'lab>(lab: &'lab Lab, host: usize, first: &Machine<'_>) -> Machine<'lab> {
    let machine = boot(lab, host);
    install(&machine);
    copy_token(first, &machine);
    machine.run("overlay-agent", ["join", "/srv/join.token"]).unwrap();
    machine
}

/// What is in the file that `init` made.
pub(crate) fn token(first: &Machine<'_>) -> String {
    first.run("cat", [TOKEN]).unwrap()
}

/// As `scp` does, its mode included.
pub(crate) fn copy_token(first: &Machine<'_>, to: &Machine<'_>) {
    to.write("/srv/join.token", token(first).as_bytes()).unwrap();
    to.run("chmod", ["600", "/srv/join.token"]).unwrap();
}

pub(crate) fn wait_for_unit(machine: &Machine<'_>, unit: &str) {
    eventually(SOON, &format!("{unit} runs on {}", machine.host().name()), || {
        let state = machine.property(unit, "ActiveState")?;
        ensure!(state == "active", "it is {state}");
        Ok(())
    })
    .unwrap();
}

/// What `overlay-agent status` says.
pub(crate) fn status(machine: &Machine<'_>) -> Result<Value> {
    let command = machine.command("overlay-agent")?.args(["status", "--output", "json"]);
    let output = command.output()?;
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

/// Waits until nothing is wrong and Docker has the leased subnet, and returns the bridge's address.
pub(crate) fn wait_until_fine(machine: &Machine<'_>) -> String {
    let what = format!("all is well on {}", machine.host().name());
    eventually(SOON, &what, || {
        let status = status(machine)?;
        ensure!(status["ready"] == true, "not ready: {}", status["problems"]);
        ensure!(status["problems"] == Value::Array(Vec::new()), "{}", status["problems"]);
        Ok(())
    })
    .unwrap();
    check_order(machine).unwrap()
}

/// Docker has to have started after the agent was ready, and its bridge to have the leased address. Returns
/// that address.
pub(crate) fn check_order(machine: &Machine<'_>) -> Result<String> {
    let options = machine.run("cat", ["/run/overlay/docker_opts.env"])?;
    let subnet = machine.run("cat", ["/run/flannel/subnet.env"])?;
    let gateway = subnet
        .lines()
        .find_map(|line| line.strip_prefix("FLANNEL_SUBNET="))
        .context("subnet.env has no subnet")?
        .to_owned();
    ensure!(options.contains(&format!("--bip={gateway}")), "{options} without {gateway}");
    let bridge = machine.addresses("docker0")?;
    ensure!(bridge.contains(&gateway), "{bridge} without {gateway}");
    let pid = machine.main_pid("docker.service")?.to_string();
    let command = machine.run("cat", [format!("/proc/{pid}/cmdline")])?.replace('\0', " ");
    ensure!(command.contains(&format!("--bip={gateway}")), "Docker was started as {command}");
    let started = machine.property("docker.service", "ExecMainStartTimestampMonotonic")?;
    let started: f64 = started.parse().with_context(|| format!("{started:?} is no time"))?;
    let ready = first_ready(machine)?;
    ensure!(
        ready <= started / 1e6,
        "Docker started at {started} µs, the agent was ready at {ready} s"
    );
    Ok(gateway)
}

/// When the agent was ready for the first time since this boot, in seconds: later restarts do not count.
fn first_ready(machine: &Machine<'_>) -> Result<f64> {
    let log = machine.run(
        "journalctl",
        ["--boot", "--unit=overlay-agent.service", "--output=short-monotonic", "--no-pager"],
    )?;
    let line = log.lines().find(|line| line.contains("systemd[1]: Started overlay-agent.service"));
    line.and_then(|line| line.trim_start_matches('[').split(']').next()?.trim().parse().ok())
        .with_context(|| format!("the agent has never been ready: {log}"))
}

/// A container that listens and comes back with its daemon; its address.
pub(crate) fn listen(machine: &Machine<'_>, name: &str) -> String {
    machine.import_image().unwrap();
    let serve = "while true; do nc -l -p 5555; done";
    // The shell does not end for being asked to.
    let run = ["run", "--detach", "--restart=always", "--stop-timeout=1", "--name", name, IMAGE];
    machine.docker(run.into_iter().chain(["sh", "-c", serve])).unwrap();
    address(machine, name).unwrap()
}

pub(crate) fn address(machine: &Machine<'_>, name: &str) -> Result<String> {
    let format = "{{.NetworkSettings.IPAddress}}";
    let address = machine.docker(["inspect", "--format", format, name])?;
    ensure!(!address.is_empty(), "{name} has no address");
    Ok(address)
}

/// A container of one machine says hello to the listener of another, whose log has it then.
pub(crate) fn say_hello(from: &Machine<'_>, listener: &Machine<'_>, name: &str) {
    eventually(SOON, &format!("{name} hears {}", from.host().name()), || {
        let heard =
            || -> Result<usize> { Ok(listener.docker(["logs", name])?.matches(HELLO).count()) };
        let before = heard()?;
        let address = address(listener, name)?;
        let line = format!("echo '{HELLO}' | nc -w 2 {address} 5555");
        from.docker(["run", "--rm", IMAGE, "sh", "-c", &line])?;
        ensure!(heard()? > before, "the listener has not heard it");
        Ok(())
    })
    .unwrap();
}

/// Every file of this machine's configuration, and every service's state: what must not change.
pub(crate) fn configuration(machine: &Machine<'_>) -> String {
    machine
        .shell(
            "find /etc /usr/lib/systemd -type f -o -type l | sort | xargs sha256sum 2>/dev/null; \
             systemctl show --property=MainPID etcd overlay-agent docker",
        )
        .unwrap()
}

/// Runs something that has to fail with one line, and returns its exit code and that line.
pub(crate) fn refusal(machine: &Machine<'_>, args: &[&str], input: &str) -> (i32, String) {
    let command = machine.command("overlay-agent").unwrap().args(args).input(input);
    let output = command.output().unwrap();
    let line = output.stderr.trim().to_owned();
    assert!(!output.status.success(), "{args:?} succeeded: {}", output.stdout);
    assert_eq!(line.lines().count(), 1, "{line}");
    (output.status.code().unwrap(), line)
}

/// How long something takes.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    (work(), start.elapsed())
}

/// Gives a machine another address on its uplink; its routes stay.
pub(crate) fn move_to(machine: &Machine<'_>, address: &str) {
    let host = machine.host();
    let default = host.ip(["route", "show", "default"]).unwrap();
    host.ip(["address", "flush", "dev", UPLINK, "scope", "global"]).unwrap();
    host.ip(["address", "add", address, "dev", UPLINK]).unwrap();
    host.ip(["route", "replace"].into_iter().chain(default.split_whitespace())).unwrap();
}

/// A plain container behind Docker's bridge.
pub(crate) fn container(machine: &Machine<'_>) -> Container {
    let subnet = machine.run("cat", ["/run/flannel/subnet.env"]).unwrap();
    std::fs::write(machine.host().subnet_file(), subnet).unwrap();
    machine.host().add_container("stream").unwrap()
}
