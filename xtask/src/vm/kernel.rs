//! Debian's cloud kernels, as packages that stay unpacked under `target/`.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use overlay_common::{Feature, feature::parse_version};
use overlay_lab::release::Release;

use crate::arch::Arch;

/// A kernel that people run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// Major and minor number, by which people choose it.
    pub(crate) series: &'static str,
    /// The release of Debian that it is the kernel of.
    pub(super) suite: &'static str,
    /// What it runs on.
    pub(super) arch: Arch,
}

/// All that are tested, the oldest first.
pub(crate) const KERNELS: [Kernel; 3] = [
    Kernel { series: "6.1", suite: "bookworm", arch: Arch::Amd64 },
    Kernel { series: "6.12", suite: "trixie", arch: Arch::Amd64 },
    Kernel { series: "7.2", suite: "forky", arch: Arch::Amd64 },
];

/// The kernel of another processor.
pub(crate) const ARM64: Kernel = Kernel { series: "6.12", suite: "trixie", arch: Arch::Arm64 };

/// A kernel on disk.
#[derive(Debug, Clone)]
pub(crate) struct Unpacked {
    /// What `uname -r` says.
    pub(crate) release: String,
    /// The image to boot.
    pub(crate) image: PathBuf,
    /// Its modules.
    pub(crate) modules: PathBuf,
}

impl Kernel {
    /// What a table and a folder call it.
    pub(crate) fn name(self) -> String {
        match self.arch {
            Arch::Amd64 => self.series.to_owned(),
            Arch::Arm64 => format!("{}-{}", self.series, self.arch),
        }
    }

    /// Depends on the newest kernel of its suite.
    fn meta_package(self) -> String {
        format!("linux-image-cloud-{}", self.arch)
    }

    /// Whether it has TCX links.
    pub(crate) fn has_tcx(self) -> bool {
        parse_version(self.series)
            .is_some_and(|(major, minor)| Feature::Tcx.expected_in(major, minor))
    }

    /// The kernel, fetched unless it has been before.
    pub(crate) fn fetch(self) -> Result<Unpacked> {
        let release = Release::of(self.suite, self.arch.name())?;
        release.update()?;
        let mut roots = Vec::new();
        for package in closure(&release, &self.meta_package())? {
            roots.push(release.unpacked(&package)?);
        }
        let unpacked = find(&roots)?;
        ensure!(
            unpacked.release.starts_with(&format!("{}.", self.series)),
            "Debian's {} has Linux {} by now, not {}",
            self.suite,
            unpacked.release,
            self.series
        );
        Ok(unpacked)
    }
}

/// Where the parts are differs from one release of Debian to the next.
fn find(roots: &[PathBuf]) -> Result<Unpacked> {
    let folders = |names: [&'static str; 2]| {
        roots.iter().flat_map(move |root| names.map(|name| root.join(name)))
    };
    let modules = folders(["lib/modules", "usr/lib/modules"])
        .filter_map(|path| fs::read_dir(path).ok()?.next()?.ok())
        .map(|entry| entry.path())
        .find(|path| path.join("kernel").is_dir())
        .with_context(|| format!("no modules in {roots:?}"))?;
    let release = modules
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .context("modules without a release")?;
    let image = roots
        .iter()
        .flat_map(|root| {
            [
                root.join(format!("boot/vmlinuz-{release}")),
                root.join(format!("usr/lib/modules/{release}/vmlinuz")),
            ]
        })
        .find(|path| path.is_file())
        .with_context(|| format!("no kernel image in {roots:?}"))?;
    Ok(Unpacked { release, image, modules })
}

/// The packages that the newest kernel of a release consists of: those that the one depends on in exactly
/// its own version, and they in turn.
fn closure(release: &Release, meta_package: &str) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut open = vec![meta_package.to_owned()];
    while let Some(package) = open.pop() {
        let shown =
            release.apt("apt-cache").args(["show", "--no-all-versions", &package]).read()?;
        for part in parts(&shown) {
            if found.insert(part.clone()) {
                open.push(part);
            }
        }
    }
    ensure!(!found.is_empty(), "{meta_package} depends on no kernel");
    Ok(found)
}

/// What a package depends on in exactly its own version.
fn parts(shown: &str) -> Vec<String> {
    let field = |name: &str| shown.lines().find_map(|line| line.strip_prefix(name));
    let (Some(version), Some(depends)) = (field("Version: "), field("Depends: ")) else {
        return Vec::new();
    };
    let own = format!("(= {version})");
    depends
        .split(',')
        .filter_map(|dependency| dependency.trim().strip_suffix(&own))
        .map(|name| name.trim().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_consists_of_what_has_its_own_version() {
        let shown = "Package: linux-image-7\nVersion: 7.2.12-1\nDepends: dracut | initramfs-tools (>= \
                     0.120), linux-binary-7 (= 7.2.12-1), linux-modules-7 (= 7.2.12-1)\n";
        assert_eq!(parts(shown), ["linux-binary-7", "linux-modules-7"]);
        assert!(parts("Version: 1\nDepends: kmod, linux-base (>= 4.3~)\n").is_empty());
        assert!(parts("Version: 1\n").is_empty());
    }
}
