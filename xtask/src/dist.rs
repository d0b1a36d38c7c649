//! `dist`: what users install, a Debian package and a tarball of the same files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use overlay_lab::{command::Cmd, workspace};

use crate::{build, setup};

/// The package that users install.
const PACKAGE: &str = "overlay-agent";

/// What people read first, and where it is in the workspace.
const DOCUMENTS: [&str; 5] =
    ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "LICENSE-GPL2"];

/// The command line of `dist`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Options {
    /// Package the agent as `cargo xtask build` makes it, not optimised: for tests of the package
    #[arg(long)]
    pub(crate) debug: bool,

    /// Make the package and nothing else, unchecked, and print where it is: for tests that install it
    #[arg(long)]
    pub(crate) only_package: bool,
}

/// Builds both, and says where they are.
pub(crate) fn run(options: Options) -> Result<()> {
    if options.only_package {
        println!("{}", package(options.debug)?.display());
        return Ok(());
    }
    setup::ensure()?;
    let package = package(options.debug)?;
    lint(&package)?;
    let tarball = tarball(&package)?;
    println!("package  {}\ntarball  {}", package.display(), tarball.display());
    Ok(())
}

/// Builds the Debian package.
fn package(debug: bool) -> Result<PathBuf> {
    build::object()?;
    build::agent(!debug)?;
    let profile = if debug { "debug" } else { "release" };
    // Paths below `target/release` are looked up where this profile's files really are.
    let staged = workspace::target_dir()?.join(profile).join("dist");
    generate(&staged)?;
    let output = workspace::target_dir()?.join("dist");
    fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    let path = output.join(format!("{PACKAGE}{}.deb", if debug { "-debug" } else { "" }));
    let mut command = workspace::cargo()
        .program(setup::PACKAGER.path()?)
        .args(["--package", PACKAGE, "--no-build", "--locked", "--output"])
        .arg(&path);
    if debug {
        command = command.args(["--profile", "dev"]);
    }
    command.run()?;
    Ok(path)
}

/// Manual pages and completions, by the program that knows the command line.
fn generate(staged: &Path) -> Result<()> {
    if staged.exists() {
        fs::remove_dir_all(staged)
            .with_context(|| format!("cannot remove {}", staged.display()))?;
    }
    // The same pages by whatever profile; this one is built more quickly.
    workspace::cargo()
        .args(["run", "--quiet", "--locked", "--package", PACKAGE, "--example", "manual", "--"])
        .arg(staged)
        .stream()?;
    let changelog = staged.join("changelog");
    fs::copy(workspace::root().join("CHANGELOG.md"), &changelog)
        .with_context(|| format!("cannot write {}", changelog.display()))?;
    let pages = fs::read_dir(staged.join("man")).context("there are no manual pages")?;
    let pages = pages.map(|page| Ok(page.context("cannot list the manual pages")?.path()));
    // Without names and times, so that the same text makes the same file.
    Cmd::new("gzip")
        .args(["--best", "--no-name"])
        .args(pages.collect::<Result<Vec<_>>>()?)
        .arg(&changelog)
        .run()
        .map(drop)
}

/// Fails where Debian's own checker finds an error.
fn lint(package: &Path) -> Result<()> {
    Cmd::new("lintian")
        .args(["--fail-on", "error", "--allow-root"])
        .arg(package)
        .no_deadline()
        .stream()
}

/// The package's files below one folder, with what people read first.
fn tarball(package: &Path) -> Result<PathBuf> {
    let name = format!("{PACKAGE}-{}-{}-linux", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let output = package.parent().unwrap_or(Path::new(".")).to_owned();
    let folder = output.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Cmd::new("dpkg-deb").arg("--extract").arg(package).arg(&folder).run()?;
    for document in DOCUMENTS {
        let from = workspace::root().join(document);
        fs::copy(&from, folder.join(document))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let path = output.join(format!("{name}.tar.gz"));
    Cmd::new("tar")
        .args(["--create", "--gzip", "--owner=0", "--group=0", "--numeric-owner", "--file"])
        .arg(&path)
        .arg("--directory")
        .arg(&output)
        .arg(&name)
        .run()?;
    ensure!(path.is_file(), "there is no {}", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debians_changelog_is_of_this_version() {
        let path = workspace::root().join("packaging/debian/changelog");
        let text = fs::read_to_string(&path).unwrap();
        let version = format!("{PACKAGE} ({}-1) ", env!("CARGO_PKG_VERSION"));
        assert!(text.starts_with(&version), "{text}");
    }
}
