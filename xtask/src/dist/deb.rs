//! The Debian package: cargo-deb makes it as `overlay-agent/Cargo.toml` says.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use overlay_lab::{command::Cmd, workspace};

use super::{
    PACKAGE,
    tree::{self, Effort},
};
use crate::{arch::Arch, build, setup};

/// Packages the agent that was built for another processor or another libc than this machine's.
pub(super) fn portable(arch: Arch, profile: &str, time: u64, output: &Path) -> Result<PathBuf> {
    let target = arch.static_target();
    let staged = workspace::target_dir()?.join(target).join(profile).join("dist");
    let path = output.join(format!("{PACKAGE}_{}-1_{arch}.deb", super::VERSION));
    generate(&staged)?;
    // The linker has left out what could be stripped.
    pack(&["--no-strip", "--target", target, "--profile", profile], time, &path)?;
    Ok(path)
}

/// Packages the agent as `cargo xtask build` makes it.
pub(super) fn quick(time: u64, output: &Path) -> Result<PathBuf> {
    build::object()?;
    build::agent(false)?;
    let path = output.join(format!("{PACKAGE}-debug.deb"));
    generate(&workspace::target_dir()?.join("debug/dist"))?;
    pack(&["--profile", "dev", "--fast"], time, &path)?;
    Ok(path)
}

fn pack(arguments: &[&str], time: u64, path: &Path) -> Result<()> {
    workspace::cargo()
        .program(setup::PACKAGER.path()?)
        .env("SOURCE_DATE_EPOCH", time.to_string())
        .args(["--package", PACKAGE, "--no-build", "--locked"])
        .args(arguments)
        .arg("--output")
        .arg(path)
        .run()
        .map(drop)
}

/// Manual pages and completions, by the program that knows the command line, where cargo-deb looks for what is built: paths below
/// `target/release` are looked up where this profile's files really are.
fn generate(staged: &Path) -> Result<()> {
    tree::remove(staged)?;
    // The same pages by whatever profile; this one is built more quickly.
    workspace::cargo()
        .args(["run", "--quiet", "--locked", "--package", PACKAGE, "--example", "manual", "--"])
        .arg(staged)
        .stream()?;
    let changelog = staged.join("changelog");
    tree::copy(&tree::ours("CHANGELOG.md"), &changelog)?;
    tree::compress(&changelog, Effort::BEST)?;
    for page in fs::read_dir(staged.join("man")).context("there are no manual pages")? {
        tree::compress(&page.context("cannot list the manual pages")?.path(), Effort::BEST)?;
    }
    Ok(())
}

/// When this version was made, in seconds since 1970, as Debian's changelog says.
pub(super) fn time_of_version() -> Result<u64> {
    let read = Cmd::new("dpkg-parsechangelog")
        .args(["--show-field", "Timestamp", "--file"])
        .arg(tree::ours("packaging/debian/changelog"))
        .read()?;
    read.trim().parse().with_context(|| format!("{read:?} is no time"))
}

/// Fails where Debian's own checker finds an error, but for what is meant to be.
pub(super) fn lint(package: &Path) -> Result<()> {
    Cmd::new("lintian")
        .args(["--fail-on", "error", "--allow-root"])
        .args(["--suppress-tags", "statically-linked-binary,shared-library-lacks-prerequisites"])
        .arg(package)
        .no_deadline()
        .stream()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_changelog_is_of_this_version() {
        let text = fs::read_to_string(tree::ours("packaging/debian/changelog")).unwrap();
        let version = format!("{PACKAGE} ({}-1) ", super::super::VERSION);
        assert!(text.starts_with(&version), "{text}");
    }
}
