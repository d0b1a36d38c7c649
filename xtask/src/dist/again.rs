//! The same release once more, built from nothing in another folder: every byte has to be the same.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use overlay_lab::{command::Cmd, workspace};

use super::{SUMS, tree};
use crate::arch::Arch;

/// Makes it, and compares it with `made`.
pub(super) fn compare(archs: &[Arch], debug: bool, made: &Path) -> Result<()> {
    let folder = workspace::target_dir()?.join("again");
    tree::remove(&folder)?;
    let sources = folder.join("somewhere-else");
    copy_sources(&sources)?;
    let target = folder.join("its-target");
    fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
    // The same tools: what they make is compared, not they.
    let tools = workspace::target_dir()?.join("tools");
    symlink(&tools, target.join("tools"))
        .with_context(|| format!("cannot link to {}", tools.display()))?;
    println!("\nthe same once more, in {}", sources.display());
    let command = workspace::cargo()
        .directory(&sources)
        .env("CARGO_TARGET_DIR", &target)
        // Another place on Earth, and another language.
        .env("TZ", "Pacific/Auckland")
        .env("LC_ALL", "C")
        .args(["run", "--quiet", "--locked", "--package", "xtask", "--", "dist"])
        .args(archs.iter().flat_map(|arch| ["--arch", arch.name()]))
        .args(debug.then_some("--debug"));
    command.stream()?;
    let [first, second] = [sums(made)?, sums(&target.join("dist"))?];
    let names = first.keys().chain(second.keys());
    let mut different: Vec<_> =
        names.filter(|name| first.get(*name) != second.get(*name)).cloned().collect();
    different.sort_unstable();
    different.dedup();
    if !different.is_empty() {
        bail!(
            "built again, these are different: {} (those in {} and in {})",
            different.join(", "),
            made.display(),
            target.join("dist").display()
        );
    }
    tree::remove(&folder)?;
    println!("built again in another folder: {} files, not a byte is different", first.len());
    Ok(())
}

/// What git would take along, as it is now.
fn copy_sources(to: &Path) -> Result<()> {
    let listed = Cmd::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .directory(workspace::root())
        .read()?;
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        let from = workspace::root().join(name);
        // It may have been removed, and git not been told.
        if from.is_file() {
            tree::copy(&from, &to.join(name))?;
        }
    }
    Ok(())
}

/// The checksum of each file of a release.
fn sums(folder: &Path) -> Result<BTreeMap<String, String>> {
    let path: PathBuf = folder.join(SUMS);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines()
        .map(|line| {
            let (sum, name) =
                line.split_once("  ").with_context(|| format!("{line:?} is no checksum"))?;
            Ok((name.to_owned(), sum.to_owned()))
        })
        .collect()
}
