//! Debian's cloud kernels, as packages, unpacked under `target/vm` and kept there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use overlay_common::{Feature, feature::parse_version};

use crate::{command::Cmd, workspace};

/// Where Debian's packages come from where apt is not told of a mirror.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// What signs Debian's archive.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Depends on the newest kernel of its suite.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel that people run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Major and minor number, by which people choose it.
    pub series: &'static str,
    /// The release of Debian that it is the kernel of.
    suite: &'static str,
}

/// All that are tested, the oldest first.
pub const KERNELS: [Kernel; 3] = [
    Kernel { series: "6.1", suite: "bookworm" },
    Kernel { series: "6.12", suite: "trixie" },
    Kernel { series: "7.2", suite: "forky" },
];

/// A kernel on disk.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// What `uname -r` says.
    pub release: String,
    /// The image to boot.
    pub image: PathBuf,
    /// Its modules.
    pub modules: PathBuf,
}

impl Kernel {
    /// Whether it has TCX links.
    pub fn has_tcx(self) -> bool {
        parse_version(self.series)
            .is_some_and(|(major, minor)| Feature::Tcx.expected_in(major, minor))
    }

    /// Its folder.
    pub fn directory(self) -> Result<PathBuf> {
        Ok(workspace::target_dir()?.join("vm").join(self.series))
    }

    /// The kernel, fetched unless it has been before.
    pub fn fetch(self) -> Result<Unpacked> {
        let root = self.directory()?.join("root");
        if !root.exists() {
            self.unpack(&root).with_context(|| {
                format!("Debian's kernel {} ({}) cannot be had", self.series, self.suite)
            })?;
        }
        let unpacked = find(&root)?;
        ensure!(
            unpacked.release.starts_with(&format!("{}.", self.series)),
            "{} has Linux {} by now, not {}",
            self.suite,
            unpacked.release,
            self.series
        );
        Ok(unpacked)
    }

    fn unpack(self, root: &Path) -> Result<()> {
        let directory = self.directory()?;
        let partial = directory.join("partial");
        match fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("removing half a download");
            }
            _ => fs::create_dir_all(&partial).context("making room for a download")?,
        }
        let apt = Apt::new(&directory.join("apt"), self.suite)?;
        for package in apt.closure(META_PACKAGE)? {
            apt.get(&["download", &package]).directory(&partial).run()?;
        }
        let unpacked = partial.join("root");
        for entry in fs::read_dir(&partial).context("listing the packages")? {
            let path = entry.context("listing the packages")?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                Cmd::new("dpkg-deb").arg("-x").arg(&path).arg(&unpacked).run()?;
            }
        }
        fs::rename(&unpacked, root).context("keeping the unpacked kernel")?;
        fs::remove_dir_all(&partial).context("removing the packages")
    }
}

/// Where the parts are differs from one release of Debian to the next.
fn find(root: &Path) -> Result<Unpacked> {
    let modules = ["lib/modules", "usr/lib/modules"]
        .iter()
        .filter_map(|path| fs::read_dir(root.join(path)).ok())
        .find_map(|mut entries| Some(entries.next()?.ok()?.path()))
        .with_context(|| format!("no modules in {}", root.display()))?;
    let release = modules
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .context("modules without a release")?;
    let image = [root.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("no kernel image in {}", root.display()))?;
    Ok(Unpacked { release, image, modules })
}

/// Apt with a state of its own, that knows one suite of Debian and nothing of this machine's packages.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(directory: &Path, suite: &str) -> Result<Self> {
        for folder in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(directory.join(folder))
                .with_context(|| format!("making {}", directory.display()))?;
        }
        let sources = directory.join("sources.list");
        let line = format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror()?);
        fs::write(&sources, line).with_context(|| format!("writing {}", sources.display()))?;
        let place = |name: &str, path: &Path| format!("{name}={}", path.display());
        let options = [
            place("Dir::Etc::SourceList", &sources),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            place("Dir::State", &directory.join("state")),
            "Dir::State::Status=/dev/null".to_owned(),
            place("Dir::Cache", &directory.join("cache")),
            "APT::Architecture=amd64".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        let apt = Self {
            options: options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect(),
        };
        // An index that is not there is only a warning without this.
        apt.get(&["-o", "APT::Update::Error-Mode=any", "update"]).run()?;
        Ok(apt)
    }

    fn get(&self, words: &[&str]) -> Cmd {
        Cmd::new("apt-get").arg("-qq").args(&self.options).args(words).no_deadline()
    }

    /// The packages that this one consists of: those it depends on in exactly its own version.
    fn closure(&self, package: &str) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let mut open = vec![package.to_owned()];
        while let Some(package) = open.pop() {
            let shown = Cmd::new("apt-cache")
                .args(&self.options)
                .args(["show", "--no-all-versions", &package])
                .read()?;
            open.extend(parts(&shown).into_iter().filter(|part| !found.contains(part)));
            found.insert(package);
        }
        if found.len() < 2 {
            bail!("{package} depends on no kernel: {found:?}");
        }
        Ok(found)
    }
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

/// The mirror of Debian that apt uses on this machine.
fn mirror() -> Result<String> {
    let listed = Cmd::new("apt-get")
        .args(["indextargets", "--format", "$(LABEL) $(SITE)", "Created-By: Packages"])
        .read()
        .context("asking apt for its mirror")?;
    let site = listed.lines().find_map(|line| line.strip_prefix("Debian "));
    Ok(site.unwrap_or(DEFAULT_MIRROR).to_owned())
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
