//! Programs for the machines, with the libraries that they are linked with: this machine's, or those of Debian's packages
//! for another processor.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use overlay_lab::{command::Cmd, release::Release};

use super::archive::Archive;
use crate::{arch::Arch, toolchain::in_path};

/// What the lab and the tests call, and whose packages have it.
const TOOLS: [(&str, &str); 11] = [
    ("bridge", "iproute2"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("ethtool", "ethtool"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("ping", "iputils-ping"),
    ("sysctl", "procps"),
    ("tc", "iproute2"),
    ("wg", "wireguard-tools"),
];

/// A static shell with everything else.
pub(super) const BUSYBOX: &str = "/bin/busybox";

/// Where Debian has programs, real files before links to them.
const FOLDERS: [&str; 4] = ["usr/bin", "usr/sbin", "bin", "sbin"];

/// Where a machine's programs come from.
#[derive(Debug)]
pub(super) enum Userland {
    /// This machine.
    Here,
    /// Packages for another processor, unpacked.
    Packages { arch: Arch, root: PathBuf },
}

impl Userland {
    /// For machines of this processor, whose programs are otherwise of that release of Debian.
    pub(super) fn of(arch: Arch, suite: &'static str) -> Result<Self> {
        if arch == Arch::of_this_machine()? {
            return Ok(Self::Here);
        }
        let packages: BTreeSet<_> =
            TOOLS.iter().map(|(_, package)| *package).chain(["busybox-static"]).collect();
        let packages: Vec<_> = packages.into_iter().collect();
        let root = Release::of(suite, arch.name())?.root(&packages)?;
        Ok(Self::Packages { arch, root })
    }

    /// Adds the shell, and all that the lab and the tests call.
    pub(super) fn add_tools(&self, archive: &mut Archive) -> Result<()> {
        match self {
            Self::Here => self.add(archive, Path::new(BUSYBOX))?,
            Self::Packages { root, .. } => {
                archive.file(Path::new(BUSYBOX), &read(&find(root, &FOLDERS, "busybox")?)?)?;
            }
        }
        archive.symlink(Path::new("/bin/sh"), BUSYBOX)?;
        for (tool, _) in TOOLS {
            match self {
                Self::Here => self.add(archive, &find_here(tool)?)?,
                Self::Packages { root, .. } => {
                    let path = find(root, &FOLDERS, tool)?;
                    archive.file(&Path::new("/usr/bin").join(tool), &read(&path)?)?;
                    add_libraries(archive, root, &path)?;
                }
            }
        }
        Ok(())
    }

    /// Adds a program that was built for the machine, at the path that it has here and without its debug information, and the libraries it is
    /// linked with: those for another processor have none.
    pub(super) fn add(&self, archive: &mut Archive, path: &Path) -> Result<()> {
        if archive.contains(path) {
            return Ok(());
        }
        let strip = match self {
            Self::Here => "strip".to_owned(),
            Self::Packages { arch, .. } => format!("{}-linux-gnu-strip", arch.kernel_name()),
        };
        let stripped = tempfile::NamedTempFile::new().context("making a temporary file")?;
        Cmd::new(strip).arg("--strip-debug").arg("-o").arg(stripped.path()).arg(path).run()?;
        archive.file(path, &read(stripped.path())?)?;
        if matches!(self, Self::Here) {
            // Fails for static programs, which need none.
            let linked = Cmd::new("ldd").arg(path).output()?;
            for library in linked.stdout.split_whitespace().filter(|word| word.starts_with('/')) {
                let library = Path::new(library);
                archive.file(library, &read(library)?)?;
            }
        }
        Ok(())
    }
}

/// Adds what a program or library of packages is linked with, and that in turn, where its loader looks.
fn add_libraries(archive: &mut Archive, root: &Path, path: &Path) -> Result<()> {
    let printed =
        Cmd::new("readelf").args(["--wide", "--dynamic", "--program-headers"]).arg(path).read()?;
    for line in printed.lines() {
        let bracketed = || line.split_once('[')?.1.split_once(']').map(|(name, _)| name);
        if line.contains("(NEEDED)") {
            let name = bracketed().with_context(|| format!("{line:?} names no library"))?;
            let in_archive = Path::new("/lib").join(name);
            if archive.contains(&in_archive) {
                continue;
            }
            let library = find_library(root, name)?;
            archive.file(&in_archive, &read(&library)?)?;
            add_libraries(archive, root, &library)?;
        } else if line.contains("program interpreter:") {
            let loader = bracketed().and_then(|text| text.rsplit(' ').next());
            let loader = Path::new(loader.with_context(|| format!("{line:?} names no loader"))?);
            let name = loader.file_name().unwrap_or_default().to_string_lossy();
            archive.file(loader, &read(&find_library(root, &name)?)?)?;
        }
    }
    Ok(())
}

/// In the folders of whatever processor the packages are for.
fn find_library(root: &Path, name: &str) -> Result<PathBuf> {
    let mut folders = vec!["usr/lib".to_owned(), "lib".to_owned()];
    for arch in Arch::ALL {
        let triplet = format!("{}-linux-gnu", arch.kernel_name());
        folders.extend(["usr/lib", "lib"].map(|folder| format!("{folder}/{triplet}")));
    }
    let folders: Vec<_> = folders.iter().map(String::as_str).collect();
    find(root, &folders, name)
}

fn find(root: &Path, folders: &[&str], name: &str) -> Result<PathBuf> {
    let candidates = || folders.iter().map(|folder| root.join(folder).join(name));
    let is_file = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    candidates()
        .find(is_file)
        .or_else(|| candidates().find(|path| path.is_file()))
        .with_context(|| format!("the packages in {} have no {name}", root.display()))
}

fn find_here(name: &str) -> Result<PathBuf> {
    ["/usr/sbin", "/sbin"]
        .iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
        .or_else(|| in_path(name))
        .with_context(|| format!("{name} is not installed: `cargo xtask setup` does that"))
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
