//! The machines' only file system: the test programs, the agent, and the tools that they call, with the libraries of
//! all of them, each at the path that it has here.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use overlay_lab::{EVERY_KIND_VARIABLE, PATIENCE_VARIABLE, command::Cmd, workspace};

use super::{
    archive::Archive,
    kernel::{Kernel, Unpacked},
    userland::{BUSYBOX, Userland, read},
};
use crate::build;

/// What the datapath and the tests' hosts are made of, as far as it is not part of the kernel's image.
const MODULES: [&str; 18] = [
    "veth",
    "bridge",
    "vxlan",
    "sch_ingress",
    "cls_bpf",
    "af_packet",
    "nf_tables",
    "nft_chain_nat",
    "nft_fib_ipv4",
    "nft_masq",
    "nft_nat",
    // Uplinks are made of these.
    "8021q",
    "bonding",
    "macvlan",
    "vrf",
    "tun",
    "ipip",
    "wireguard",
];

/// One program to run in a machine.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// Its name in the result.
    pub(crate) name: &'static str,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// Its environment, beside what all have.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// Makes the archive for a kernel that runs `steps`.
pub(super) fn build(kernel: Kernel, unpacked: &Unpacked, steps: &[Step]) -> Result<Vec<u8>> {
    let userland = Userland::of(kernel.arch, kernel.suite)?;
    let mut archive = Archive::default();
    for folder in ["/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/etc", "/var/lib"] {
        archive.folder(Path::new(folder))?;
    }
    userland.add_tools(&mut archive)?;
    userland.add(&mut archive, &build::agent_binary_for(kernel.arch)?)?;
    for step in steps {
        userland.add(&mut archive, &step.program)?;
    }
    // One test reads the others.
    let package = workspace::root().join("overlay-agent");
    sources(&mut archive, &package.join("tests"))?;
    let modules = load_order(unpacked)?;
    let mut loads = String::new();
    for (number, module) in modules.iter().enumerate() {
        let path = format!("/modules/{number:02}.ko");
        archive.file(Path::new(&path), &uncompressed(module)?)?;
        // Writing to a string cannot fail.
        writeln!(loads, "insmod {path}").ok();
    }
    archive.file(Path::new("/init"), script(&loads, &package, steps)?.as_bytes())?;
    Ok(archive.finish())
}

/// The first process. It never ends by itself: the machine stops.
fn script(loads: &str, directory: &Path, steps: &[Step]) -> Result<String> {
    let mut script = format!(
        "#!{BUSYBOX} sh
{BUSYBOX} --install -s /bin
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp
export CARGO_TARGET_DIR={target} RUST_BACKTRACE=0 {PATIENCE_VARIABLE}=10 {EVERY_KIND_VARIABLE}=1
# Nothing here has rules that would be in the way.
export OVERLAY_IPTABLES_FORWARD_RULES=false
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /run/netns $CARGO_TARGET_DIR/lab
ip link set lo up
{loads}# Else every namespace has a tunl0.
sysctl -q -w net.core.fb_tunnels_only_for_init_net=1
# A reader that waits for its processor loses nothing.
sysctl -q -w net.core.rmem_default=8388608 net.core.netdev_max_backlog=10000
cd {directory}
",
        target = workspace::target_dir()?.display(),
        directory = directory.display(),
    );
    for Step { name, program, arguments, environment } in steps {
        // As above.
        writeln!(script, "echo 'vm: begin {name}'").ok();
        for (variable, value) in environment {
            write!(script, "{variable}='{value}' ").ok();
        }
        writeln!(script, "{} {}", program.display(), arguments.join(" ")).ok();
        writeln!(script, "echo \"vm: end {name} $?\"").ok();
    }
    script.push_str("echo 'vm: done'\nreboot -f\n");
    Ok(script)
}

fn sources(archive: &mut Archive, directory: &Path) -> Result<()> {
    let listing = || format!("listing {}", directory.display());
    for entry in fs::read_dir(directory).with_context(listing)? {
        let path = entry.with_context(listing)?.path();
        if path.is_dir() {
            sources(archive, &path)?;
        } else {
            archive.file(&path, &read(&path)?)?;
        }
    }
    Ok(())
}

/// The modules and what they depend on, which comes first. What is built in has no file.
fn load_order(kernel: &Unpacked) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    module_files(&kernel.modules.join("kernel"), &mut files)?;
    let mut ordered = Vec::new();
    for module in MODULES {
        load_after_dependencies(module, &files, &mut ordered)?;
    }
    Ok(ordered)
}

fn load_after_dependencies(
    name: &str,
    files: &[PathBuf],
    ordered: &mut Vec<PathBuf>,
) -> Result<()> {
    let Some(file) = files.iter().find(|file| module_name(file) == name) else {
        return Ok(());
    };
    if ordered.contains(file) {
        return Ok(());
    }
    let depends = Cmd::new("modinfo").args(["-F", "depends"]).arg(file).read()?;
    for dependency in depends.split(',').filter(|name| !name.is_empty()) {
        load_after_dependencies(&dependency.replace('-', "_"), files, ordered)?;
    }
    ordered.push(file.clone());
    Ok(())
}

fn module_files(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let listing = || format!("listing {}", directory.display());
    for entry in fs::read_dir(directory).with_context(listing)? {
        let path = entry.with_context(listing)?.path();
        if path.is_dir() {
            module_files(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// `…/sch-ingress.ko.xz` is `sch_ingress`.
fn module_name(file: &Path) -> String {
    let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

fn uncompressed(module: &Path) -> Result<Vec<u8>> {
    if module.extension().is_none_or(|extension| extension != "xz") {
        return read(module);
    }
    let copy =
        tempfile::Builder::new().suffix(".ko.xz").tempfile().context("making a temporary file")?;
    fs::copy(module, copy.path()).context("copying a module")?;
    Cmd::new("xz").args(["--decompress", "--force", "--keep"]).arg(copy.path()).run()?;
    let plain = copy.path().with_extension("");
    let content = read(&plain)?;
    fs::remove_file(&plain).context("removing a module's copy")?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_known_by_their_name_alone() {
        assert_eq!(module_name(Path::new("/a/sch-ingress.ko.xz")), "sch_ingress");
        assert_eq!(module_name(Path::new("/a/veth.ko")), "veth");
    }
}
