//! `setup`: what building, running and testing need, installed once, each with its reason.

mod tools;

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::unistd::Uid;
use overlay_lab::{command::Cmd, workspace};

pub(crate) use self::tools::{BOOK, MACHETE, PACKAGER};
use self::tools::{LINKER, Tool};
use crate::{
    arch::Arch,
    toolchain::{in_path, nightly_is_complete},
};

/// Users have it in clouds, and in small boxes.
pub(crate) const OTHER_PROCESSOR: &str = "aarch64-unknown-linux-gnu";

/// Asked by Debian's packages before they start a service.
const SERVICE_POLICY: &str = "/usr/sbin/policy-rc.d";

/// The command line of `setup`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Options {
    /// Only report what is missing, with the commands that install it
    #[arg(long)]
    pub(crate) check: bool,
}

/// A package of Debian and Ubuntu.
struct Package {
    /// Its name, and the names it has elsewhere.
    names: &'static [&'static str],
    /// What we need it for.
    why: &'static str,
    needed: Needed,
}

/// When a package is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needed {
    Always,
    /// Not where rustup's nightly builds the BPF programs.
    Prebuilt,
    /// By who makes releases, or tests them.
    Releases,
}

/// What a machine is set up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    /// Building, running, testing.
    Everybody,
    /// That, and what is built for other machines than this one.
    Releases,
}

const fn package(names: &'static [&'static str], why: &'static str) -> Package {
    Package { names, why, needed: Needed::Always }
}

const fn prebuilt(names: &'static [&'static str], why: &'static str) -> Package {
    Package { names, why, needed: Needed::Prebuilt }
}

const fn releases(names: &'static [&'static str], why: &'static str) -> Package {
    Package { names, why, needed: Needed::Releases }
}

/// Everything, in the order people meet it. The BPF toolchain comes from the security archive of
/// Debian 12, which builds browsers with it.
const PACKAGES: &[Package] = &[
    package(&["gcc"], "links Rust programs, compiles the C parts of TLS"),
    package(&["g++"], "links bpf-linker with LLVM, which is C++"),
    package(&["libc6-dev"], "headers and start-up code for every program"),
    package(&["protobuf-compiler"], "etcd's client is generated from its protocol"),
    package(&["libprotobuf-dev"], "the well-known types that protocol includes"),
    prebuilt(&["cargo-web"], "builds the BPF programs, with the compiler below"),
    prebuilt(&["rustc-web"], "the compiler that goes with the prebuilt core for BPF"),
    prebuilt(&["libstd-rust-web-dev-bpf"], "a prebuilt core for BPF: no nightly, no rust-src"),
    prebuilt(&["llvm-22-dev"], "bpf-linker is built on it"),
    prebuilt(&["libpolly-22-dev"], "the part of LLVM that its own libraries ask for"),
    prebuilt(&["zlib1g-dev"], "LLVM links with it"),
    prebuilt(&["libzstd-dev"], "LLVM links with it"),
    package(&["etcd-server", "etcd"], "the store where hosts take their leases"),
    package(&["etcd-client", "etcd"], "etcdctl, to look into the store from outside"),
    package(&["docker.io", "docker-ce"], "real containers for the demo and the docker tests"),
    package(&["busybox-static"], "their image: nothing has to be pulled"),
    package(&["iproute2"], "network namespaces, links, routes"),
    package(&["iptables"], "Docker's rules, which our packets must pass"),
    package(&["nftables"], "what these rules are underneath"),
    package(&["ethtool"], "switches offloads, to imitate a wire"),
    package(&["bpftool", "linux-tools-common"], "looks into maps and programs from outside"),
    package(&["wireguard-tools"], "gives keys to an uplink of that kind, in layer vm"),
    package(&["tcpdump"], "captures the wire"),
    package(&["tshark"], "reads captures as an independent judge of our frames"),
    package(&["iperf3"], "measures throughput"),
    package(&["iputils-ping"], "ping with every size"),
    package(&["qemu-system-x86"], "boots the kernels that people run, for the tests in layer vm"),
    package(&["kmod"], "modinfo says which modules those kernels need loaded, in which order"),
    package(&["xz-utils"], "their modules are compressed"),
    package(&["binutils"], "strip makes what goes into their memory small"),
    package(&["debian-archive-keyring"], "proves that they are Debian's"),
    package(&["procps"], "sysctl and pgrep"),
    package(
        &["prometheus"],
        "promtool judges our metrics and tries our alerts; the server is not started",
    ),
    package(&["faketime"], "gives a program another clock than the machine's"),
    package(&["dpkg-dev"], "reads our version's date in Debian's changelog"),
    package(&["lintian"], "checks our package as Debian checks its own"),
    package(&["rpm"], "installs our other package where it can be looked at"),
    package(&["debootstrap"], "unpacks whole Debian machines, where the package is tested"),
    package(&["systemd-container"], "boots them: systemd-nspawn"),
    package(&["util-linux"], "nsenter and unshare"),
    releases(&["musl-tools"], "compiles the C parts of TLS for a program without libraries"),
    releases(&["gcc-aarch64-linux-gnu"], "does that for arm64"),
    releases(&["libc6-dev-arm64-cross"], "the headers that it includes"),
    releases(&["binutils-aarch64-linux-gnu"], "makes what goes into an arm64 machine small"),
    releases(&["qemu-system-arm"], "boots Debian's kernel for arm64, for layer arm64"),
];

/// What is missing on this machine.
#[derive(Default)]
struct Missing {
    packages: Vec<&'static Package>,
    tools: Vec<&'static Tool>,
    components: Vec<&'static str>,
    targets: Vec<&'static str>,
    /// What we cannot install here, as sentences.
    by_hand: Vec<String>,
}

impl Missing {
    fn find(purpose: For) -> Result<Self> {
        let mut missing = Self::default();
        let nightly = nightly_is_complete();
        if is_debian_like() {
            let installed = installed_packages()?;
            missing.packages = PACKAGES
                .iter()
                .filter(|package| match package.needed {
                    Needed::Always => true,
                    Needed::Prebuilt => !nightly,
                    Needed::Releases => purpose == For::Releases,
                })
                .filter(|package| !package.names.iter().any(|name| installed.contains(*name)))
                .collect();
        } else {
            missing.by_hand = programs_missing(nightly);
        }
        for (tool, needed) in [(&LINKER, !nightly), (&PACKAGER, is_debian_like())] {
            if needed && !tool.is_there()? {
                missing.tools.push(tool);
            }
        }
        for (component, command) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
            let there = workspace::cargo().args([command, "--version"]).output()?.status.success();
            if !there {
                missing.components.push(component);
            }
        }
        if purpose == For::Releases {
            let targets = Arch::ALL.map(Arch::static_target).into_iter();
            missing.targets = targets.filter(|target| !target_is_there(target)).collect();
        }
        Ok(missing)
    }

    fn is_nothing(&self) -> bool {
        self.packages.is_empty()
            && self.tools.is_empty()
            && self.components.is_empty()
            && self.targets.is_empty()
            && self.by_hand.is_empty()
    }

    fn report(&self) -> Result<()> {
        for package in &self.packages {
            println!("missing  {:<24} {}", package.names[0], package.why);
        }
        for tool in &self.tools {
            println!("missing  {tool:<24} {}", tool.why);
        }
        for component in &self.components {
            println!("missing  {component:<24} formatting and lints of `cargo xtask check`");
        }
        for target in &self.targets {
            println!(
                "missing  {target:<24} a standard library that needs no library of the system"
            );
        }
        for sentence in &self.by_hand {
            println!("missing  {sentence}");
        }
        println!("\nwhat installs it:");
        for command in self.commands()? {
            println!("  {command}");
        }
        Ok(())
    }

    /// The commands that install it, to be run by people, as root where they begin with `apt-get`.
    fn commands(&self) -> Result<Vec<String>> {
        let mut commands = Vec::new();
        if !self.packages.is_empty() {
            let names: Vec<&str> = self.packages.iter().map(|package| package.names[0]).collect();
            commands.push("apt-get update".to_owned());
            commands.push(apt_install(&names).to_string());
        }
        for tool in &self.tools {
            commands.push(tool.command_line()?);
        }
        if !self.components.is_empty() {
            commands.push(install_components(&self.components).to_string());
        }
        if !self.targets.is_empty() {
            commands.push(add_targets(&self.targets).to_string());
        }
        Ok(commands)
    }
}

/// Installs what is missing, or only reports it.
pub(crate) fn run(options: Options) -> Result<()> {
    let missing = Missing::find(For::Everybody)?;
    if !missing.is_nothing() {
        missing.report()?;
        if options.check {
            bail!("this machine is not set up");
        }
        install(&missing)?;
    }
    if !options.check {
        add_other_processor();
        add_machete()?;
    }
    println!("everything is there");
    Ok(())
}

/// The standard library of the processor that `check` type-checks for. Without rustup or its server, that check says
/// that it was not made: nothing else needs it.
fn add_other_processor() {
    if in_path("rustup").is_none() || target_is_there(OTHER_PROCESSOR) {
        return;
    }
    println!("adding {OTHER_PROCESSOR}: `cargo xtask check` type-checks for it");
    if let Err(error) = add_targets(&[OTHER_PROCESSOR]).stream() {
        println!("{error:#}");
    }
}

/// For `check` alone, too: nobody waits for it before the demo.
fn add_machete() -> Result<()> {
    if MACHETE.is_there()? {
        return Ok(());
    }
    println!(
        "building {MACHETE} (half a minute): `cargo xtask check` asks it for dependencies that nobody uses"
    );
    if let Err(error) = MACHETE.install()?.stream() {
        println!("{error:#}");
    }
    Ok(())
}

/// Whether rustup's toolchain compiles for a target.
pub(crate) fn target_is_there(target: &str) -> bool {
    Cmd::new("rustup")
        .args(["target", "list", "--installed"])
        .output()
        .is_ok_and(|output| output.stdout.lines().any(|line| line == target))
}

/// Whether nothing is missing.
pub(crate) fn is_complete() -> Result<bool> {
    Ok(Missing::find(For::Everybody)?.is_nothing())
}

/// The same for verbs that need a machine that is set up; says nothing when it is.
pub(crate) fn ensure() -> Result<()> {
    ensure_for(For::Everybody)
}

/// The same for verbs that may need more.
pub(crate) fn ensure_for(purpose: For) -> Result<()> {
    let missing = Missing::find(purpose)?;
    if missing.is_nothing() {
        return Ok(());
    }
    missing.report()?;
    install(&missing)
}

fn install(missing: &Missing) -> Result<()> {
    if !missing.by_hand.is_empty() {
        bail!("this system has no apt-get: install by hand what is listed above");
    }
    if !missing.packages.is_empty() {
        if !Uid::effective().is_root() {
            bail!(
                "packages are installed by root: run the lines above that begin with apt-get, then this again"
            );
        }
        install_packages(&missing.packages)?;
    }
    for tool in &missing.tools {
        println!("\nbuilding {tool} (one to three minutes): it {}", tool.why);
        tool.install()?.stream()?;
    }
    if !missing.components.is_empty() {
        install_components(&missing.components).stream()?;
    }
    if !missing.targets.is_empty() {
        add_targets(&missing.targets).stream()?;
    }
    Ok(())
}

fn install_packages(packages: &[&Package]) -> Result<()> {
    apt("update").stream()?;
    let mut names = BTreeSet::new();
    let mut unknown = Vec::new();
    for package in packages {
        match package.names.iter().find(|name| is_known(name)) {
            Some(name) => {
                names.insert(*name);
            }
            None => unknown.push(package.names[0]),
        }
    }
    if !unknown.is_empty() {
        bail!(
            "this system has no package {}.\n\
             Debian 12 with its security archive has all of them. Elsewhere the BPF programs are \
             built by rustup: `rustup toolchain install nightly --component rust-src`, and \
             {LINKER} from its releases in PATH; then this again",
            unknown.join(", ")
        );
    }
    let names: Vec<&str> = names.into_iter().collect();
    let _quiet = QuietServices::new()?;
    apt_install(&names).stream()
}

fn apt(verb: &str) -> Cmd {
    Cmd::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Packages that ask for the run level start nothing in this one.
        .env("RUNLEVEL", "1")
        .args(["-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"])
        .arg(verb)
        .no_deadline()
}

fn apt_install(names: &[&str]) -> Cmd {
    apt("install").args(["--yes", "--no-install-recommends"]).args(names)
}

/// Whether apt could install a package of this name.
fn is_known(name: &str) -> bool {
    Cmd::new("apt-cache")
        .args(["show", "--no-all-versions", name])
        .output()
        .is_ok_and(|output| output.status.success() && !output.stdout.trim().is_empty())
}

/// Keeps packages from starting their services while it lives: a build machine needs etcd and Docker
/// as programs, not as daemons.
struct QuietServices {
    /// Whether the policy is ours to remove: a machine's own stays.
    ours: bool,
}

impl QuietServices {
    fn new() -> Result<Self> {
        let failed = || format!("cannot write {SERVICE_POLICY}");
        if Path::new(SERVICE_POLICY).exists() {
            return Ok(Self { ours: false });
        }
        fs::write(SERVICE_POLICY, "#!/bin/sh\nexit 101\n").with_context(failed)?;
        let policy = Self { ours: true };
        fs::set_permissions(SERVICE_POLICY, fs::Permissions::from_mode(0o755))
            .with_context(failed)?;
        Ok(policy)
    }
}

impl Drop for QuietServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(SERVICE_POLICY)
        {
            eprintln!(
                "cannot remove {SERVICE_POLICY}, which keeps services from starting: {error}"
            );
        }
    }
}

fn install_components(components: &[&str]) -> Cmd {
    Cmd::new("rustup").args(["component", "add"]).args(components).no_deadline()
}

fn add_targets(targets: &[&str]) -> Cmd {
    Cmd::new("rustup").args(["target", "add"]).args(targets).no_deadline()
}

fn is_debian_like() -> bool {
    in_path("apt-get").is_some() && in_path("dpkg-query").is_some()
}

fn installed_packages() -> Result<BTreeSet<String>> {
    let format = "${db:Status-Abbrev} ${Package}\n";
    let listed = Cmd::new("dpkg-query").args(["--show", "--showformat", format]).read()?;
    Ok(listed
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let status = fields.next()?;
            let name = fields.next()?;
            status.ends_with('i').then(|| name.to_owned())
        })
        .collect())
}

/// Where there are no packages we know: the programs themselves.
fn programs_missing(nightly: bool) -> Vec<String> {
    const PROGRAMS: &[(&str, &str)] = &[
        ("cc", "links Rust programs"),
        ("protoc", "etcd's client is generated from its protocol"),
        ("etcd", "the store where hosts take their leases"),
        ("etcdctl", "looks into the store from outside"),
        ("dockerd", "real containers for the demo and the docker tests"),
        ("docker", "its client"),
        ("ip", "network namespaces, links, routes (iproute2)"),
        ("iptables", "Docker's rules, which our packets must pass"),
        ("nft", "what these rules are underneath"),
        ("ethtool", "switches offloads, to imitate a wire"),
        ("bpftool", "looks into maps and programs from outside"),
        ("tcpdump", "captures the wire"),
        ("tshark", "reads captures (wireshark-cli)"),
        ("iperf3", "measures throughput"),
        ("ping", "ping with every size"),
        ("sysctl", "sets kernel parameters (procps)"),
        ("nsenter", "enters namespaces (util-linux)"),
        ("busybox", "the containers' image, statically linked"),
        ("promtool", "judges our metrics and tries our alerts (prometheus)"),
        ("qemu-system-x86_64", "boots the kernels that people run, for the tests in layer vm"),
        ("modinfo", "says which modules those kernels need (kmod)"),
        ("xz", "their modules are compressed"),
        ("strip", "makes what goes into their memory small (binutils)"),
    ];
    let mut sentences: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| {
            in_path(program).is_none()
                && !["/usr/sbin", "/sbin"]
                    .iter()
                    .any(|directory| Path::new(directory).join(program).exists())
        })
        .map(|(program, why)| format!("{program:<24} {why}"))
        .collect();
    if !nightly {
        sentences.push(format!(
            "{:<24} builds the BPF programs: `rustup toolchain install nightly --component rust-src`",
            "nightly with rust-src"
        ));
        sentences.push(format!("{LINKER:<24} links them: from its releases, in PATH"));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_has_a_reason() {
        for package in PACKAGES {
            assert!(!package.names.is_empty());
            assert!(!package.why.is_empty(), "{}", package.names[0]);
        }
    }

    #[test]
    fn the_command_for_people_is_the_one_we_run() {
        let missing = Missing { packages: vec![&PACKAGES[0]], ..Missing::default() };
        let commands = missing.commands().unwrap();
        assert_eq!(commands[0], "apt-get update");
        assert!(commands[1].ends_with("install --yes --no-install-recommends gcc"), "{commands:?}");
    }
}
