//! Packages of other Debian releases than this machine's, unpacked under `target/`, installing nothing: what
//! people run besides what we run here.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{command::Cmd, workspace};

/// Where packages come from if apt does not say.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// Signs every release of the last years.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// For a package of tens of megabytes over a slow line.
const DOWNLOAD_WITHIN: Duration = Duration::from_mins(10);

/// A Debian release, with an apt of its own that leaves the machine's alone.
#[derive(Debug, Clone)]
pub struct Release {
    suite: &'static str,
    /// The processor, where it is not this machine's.
    arch: Option<&'static str>,
    directory: PathBuf,
}

impl Release {
    /// By the name of its suite: `trixie`, `forky`.
    pub fn new(suite: &'static str) -> Result<Self> {
        let directory = workspace::target_dir()?.join("packages").join(suite);
        Ok(Self { suite, arch: None, directory })
    }

    /// For machines with another processor than this one, by Debian's name for it.
    pub fn of(suite: &'static str, arch: &'static str) -> Result<Self> {
        let here = Cmd::new("dpkg").arg("--print-architecture").read()?;
        if here == arch {
            return Self::new(suite);
        }
        let directory = workspace::target_dir()?.join("packages").join(format!("{suite}-{arch}"));
        Ok(Self { suite, arch: Some(arch), directory })
    }

    /// The files of these packages and of all that they depend on, in one folder: fetched and unpacked where that has
    /// not been done before.
    pub fn root(&self, packages: &[&str]) -> Result<PathBuf> {
        let root = self.directory.join("root");
        let stamp = self.directory.join("root.packages");
        let wanted = packages.join(" ");
        if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(root);
        }
        println!("fetching {wanted} of Debian's {} for the tests", self.suite);
        self.update()?;
        self.apt("apt-get")
            .args(["install", "--yes", "--download-only", "--no-install-recommends"])
            .args(packages)
            .deadline(DOWNLOAD_WITHIN)
            .run()?;
        let archives = self.directory.join("apt/cache/archives");
        let listing = || format!("cannot list {}", archives.display());
        for entry in fs::read_dir(&archives).with_context(listing)? {
            let archive = entry.with_context(listing)?.path();
            if archive.extension().is_some_and(|extension| extension == "deb") {
                Cmd::new("dpkg-deb").arg("-x").args([&archive, &root]).run()?;
            }
        }
        fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
        Ok(root)
    }

    /// A package's files: fetched and unpacked where that has not been done before.
    pub fn unpacked(&self, package: &str) -> Result<PathBuf> {
        let root = self.directory.join(package);
        if root.exists() {
            return Ok(root);
        }
        println!("fetching {package} of Debian's {} for the tests", self.suite);
        self.fetch(package, &root)
            .with_context(|| format!("cannot get {package} of Debian's {}", self.suite))?;
        Ok(root)
    }

    fn fetch(&self, package: &str, root: &Path) -> Result<()> {
        self.update()?;
        let downloads = self.directory.join("apt/downloads");
        fs::create_dir_all(&downloads)
            .with_context(|| format!("cannot create {}", downloads.display()))?;
        self.apt("apt-get")
            .args(["download", package])
            .directory(&downloads)
            .deadline(DOWNLOAD_WITHIN)
            .run()?;
        let archive = fs::read_dir(&downloads)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&format!("{package}_"))
            })
            .with_context(|| format!("apt left no archive in {}", downloads.display()))?;
        // Under another name until it is complete.
        let partial = root.with_extension("partial");
        Cmd::new("dpkg-deb").arg("-x").args([&archive, &partial]).run()?;
        fs::rename(&partial, root)
            .with_context(|| format!("cannot rename {}", partial.display()))?;
        fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
    }

    /// Reads the release's index, where that has not been done before.
    pub fn update(&self) -> Result<()> {
        let apt = self.directory.join("apt");
        let updated = apt.join("updated");
        if updated.exists() {
            return Ok(());
        }
        for directory in ["lists/partial", "cache/archives/partial"] {
            let directory = apt.join(directory);
            fs::create_dir_all(&directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let write = |name: &str, text: &str| {
            let path = apt.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("status", "")?;
        let source = format!("deb [signed-by={KEYRING}] {} {} main\n", mirror()?, self.suite);
        write("sources.list", &source)?;
        self.apt("apt-get").arg("update").deadline(DOWNLOAD_WITHIN).run()?;
        write("updated", "")
    }

    /// One of apt's programs, with this release as its whole world. Proxies stay the machine's.
    pub fn apt(&self, program: &str) -> Cmd {
        let apt = self.directory.join("apt");
        let at = |option: &str, name: &str| format!("{option}={}", apt.join(name).display());
        let options = [
            at("Dir::Etc::SourceList", "sources.list"),
            "Dir::Etc::SourceParts=-".to_owned(),
            "Dir::Etc::Preferences=-".to_owned(),
            "Dir::Etc::PreferencesParts=-".to_owned(),
            at("Dir::State::Lists", "lists"),
            at("Dir::State::Status", "status"),
            at("Dir::Cache", "cache"),
            // Its sandbox's user cannot read our directories.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let arch = self.arch.map(|arch| format!("APT::Architecture={arch}"));
        let only = self.arch.map(|arch| format!("APT::Architectures={arch}"));
        options
            .into_iter()
            .chain(arch)
            .chain(only)
            .fold(Cmd::new(program), |command, option| command.arg("-o").arg(option))
    }
}

/// The mirror that this machine's own packages come from.
pub fn mirror() -> Result<String> {
    let targets = Cmd::new("apt-get")
        .args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(SITE)", "Created-By: Packages"])
        .read()
        .context("cannot ask apt for its mirror")?;
    let site = targets.lines().find_map(|line| line.strip_prefix("Debian Debian "));
    Ok(site.unwrap_or(DEFAULT_MIRROR).to_owned())
}
