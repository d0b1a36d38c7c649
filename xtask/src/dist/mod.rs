//! `dist`: what users install. One binary for each processor, which needs no library of the system and is in all that is
//! made: packages of Debian and of Red Hat's kind, a tarball, an image; what it is made of, and checksums.

mod again;
mod deb;
mod image;
mod rpm;
mod sbom;
mod tarball;
mod tree;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args;
use overlay_lab::{command::Cmd, workspace};

use self::tree::Effort;
use crate::{
    arch::Arch,
    build::portable,
    setup::{self, For},
};

/// The package that users install.
const PACKAGE: &str = "overlay-agent";

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The file of checksums.
const SUMS: &str = "SHA256SUMS";

/// The command line of `dist`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// For these processors only
    #[arg(long, value_enum)]
    arch: Vec<Arch>,

    /// Build it all again, in another folder, and fail where a byte is different
    #[arg(long)]
    twice: bool,

    /// Not optimised, for tests of what is around the agent
    #[arg(long)]
    debug: bool,

    /// The agent as `cargo xtask build` makes it, for this machine alone: for tests of packages that install them
    #[arg(long, conflicts_with_all = ["arch", "twice", "debug"])]
    quick: bool,
}

impl Options {
    /// What is released.
    pub(crate) const fn release() -> Self {
        Self { arch: Vec::new(), twice: false, debug: false, quick: false }
    }
}

/// Makes it, and says where it is.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.quick {
        return quick();
    }
    setup::ensure_for(For::Releases)?;
    let archs = if options.arch.is_empty() { &Arch::ALL[..] } else { &options.arch };
    let output = output("dist")?;
    let time = deb::time_of_version()?;
    let mut made = Vec::new();
    let mut agents = Vec::new();
    for &arch in archs {
        portable::agent(arch, !options.debug)?;
        let profile = if options.debug { "dev" } else { "release" };
        let package = deb::portable(arch, profile, time, &output)?;
        deb::lint(&package)?;
        let files = tree::of(&package, &unpacked(arch)?)?;
        made.push(rpm::pack(arch, &files, time, Effort::BEST, &output)?);
        made.push(tarball::pack(arch, &files, time, Effort::BEST, &output)?);
        made.push(sbom::write(arch, time, &output)?);
        made.push(package);
        agents.push((arch, files));
    }
    made.push(image::pack(&agents, time, &output)?);
    made.push(write_sums(&made, &output)?);
    for file in &made {
        println!("{}", file.display());
    }
    if options.twice {
        again::compare(archs, options.debug, &output)?;
    }
    Ok(())
}

/// What the tests of packages install on this machine's kind, quickly. What needs a static binary is not made.
fn quick() -> Result<()> {
    let arch = Arch::of_this_machine()?;
    let output = output("dist-quick")?;
    let time = deb::time_of_version()?;
    let package = deb::quick(time, &output)?;
    let files = tree::of(&package, &unpacked(arch)?)?;
    let made = [
        rpm::pack(arch, &files, time, Effort::LITTLE, &output)?,
        tarball::pack(arch, &files, time, Effort::LITTLE, &output)?,
        package,
    ];
    write_sums(&made, &output)?;
    println!("{}", output.display());
    Ok(())
}

/// A folder with nothing in it: checksums are of all that is there.
fn output(name: &str) -> Result<PathBuf> {
    let folder = workspace::target_dir()?.join(name);
    tree::remove(&folder)?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

fn unpacked(arch: Arch) -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join("dist-files").join(arch.name()))
}

/// Writes the checksums of these files into one beside them.
fn write_sums(files: &[PathBuf], output: &Path) -> Result<PathBuf> {
    let mut names: Vec<_> = files.iter().filter_map(|file| file.file_name()).collect();
    names.sort_unstable();
    let mut sums = Cmd::new("sha256sum").arg("--").args(names).directory(output).read()?;
    sums.push('\n');
    let path = output.join(SUMS);
    fs::write(&path, sums).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// As RFC 3339 writes a time.
fn date(time: u64) -> Result<String> {
    Cmd::new("date").args(["--utc", "--date", &format!("@{time}"), "+%Y-%m-%dT%H:%M:%SZ"]).read()
}
