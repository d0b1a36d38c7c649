//! `check`: formatting, lints and documentation, exactly as CI has them.

mod circles;
mod dependencies;
mod links;
mod names;
mod paths;
mod sources;

use std::{fmt, fs};

use anyhow::{Context as _, Result, bail};
use overlay_lab::{command::Cmd, interrupt, workspace};

use crate::{
    docs,
    setup::{self, OTHER_PROCESSOR},
};

/// The crate that only compiles for BPF, or where a panic aborts.
const BPF_PACKAGE: &str = "overlay-ebpf";

/// One check: fails with what it found.
type Check = fn() -> Result<()>;

/// Runs every check, and fails if one of them does.
pub(crate) fn run() -> Result<()> {
    setup::ensure()?;
    let checks: [(&str, Check); 15] = [
        ("no file is longer than can be read at once", files_are_short),
        ("no file uses another in a circle, and no room does", circles::check),
        ("no two public types of one name", names::check),
        ("documents name files that are there", paths::check),
        ("links lead somewhere, and the contents have every page", links::check),
        ("every crate inherits the workspace's lints", lints_are_inherited),
        ("every dependency is used", dependencies::are_used),
        ("dependencies are what we want of others", dependencies::are_welcome),
        ("formatting", formatting),
        ("lints", lints),
        ("lints of the BPF programs", bpf_lints),
        ("documentation", documentation),
        ("pages that are made of what the code says", docs::check),
        ("the types of another processor", other_processor),
        ("the pure decisions under Miri", miri),
    ];
    let mut failed = Vec::new();
    let mut not_made = Vec::new();
    for (title, check) in checks {
        println!("━━━━ {title}");
        if let Err(error) = check() {
            interrupt::check()?;
            if error.is::<NotMade>() {
                println!("{error}");
                not_made.push(title);
                continue;
            }
            eprintln!("{error:#}");
            failed.push(title);
        }
    }
    if !failed.is_empty() {
        bail!("these checks failed: {}", failed.join(", "));
    }
    if not_made.is_empty() {
        println!("all checks passed");
    } else {
        println!("passed, but these checks were not made: {}", not_made.join(", "));
    }
    Ok(())
}

/// A check cannot be made on this machine, which is no fault of the code: what would have to be done.
#[derive(Debug)]
struct NotMade(String);

impl fmt::Display for NotMade {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "not checked: {}", self.0)
    }
}

impl std::error::Error for NotMade {}

/// Lines of a source file.
const LONGEST: usize = 500;

fn files_are_short() -> Result<()> {
    let listed = Cmd::new("git").args(["ls-files", "*.rs"]).directory(workspace::root()).read()?;
    let mut long = Vec::new();
    for name in listed.lines() {
        let path = workspace::root().join(name);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = text.lines().count();
        if lines > LONGEST {
            long.push(format!("{name} has {lines} lines"));
        }
    }
    if !long.is_empty() {
        bail!("{}: {LONGEST} are enough", long.join(", "));
    }
    Ok(())
}

/// A lint table that nobody inherits looks just like one that everybody follows.
fn lints_are_inherited() -> Result<()> {
    let mut deaf = Vec::new();
    for package in workspace::packages()? {
        let path = &package.manifest_path;
        let manifest =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        if !inherits_lints(&manifest) {
            deaf.push(package.name);
        }
    }
    if !deaf.is_empty() {
        bail!("no `[lints] workspace = true` in the Cargo.toml of {}", deaf.join(", "));
    }
    Ok(())
}

fn inherits_lints(manifest: &str) -> bool {
    let mut in_lints = false;
    for line in manifest.lines().map(str::trim) {
        let words = line.replace(' ', "");
        if line.starts_with('[') {
            in_lints = line == "[lints]";
        } else if words == "lints.workspace=true" || in_lints && words == "workspace=true" {
            return true;
        }
    }
    false
}

fn formatting() -> Result<()> {
    workspace::cargo().args(["fmt", "--all", "--check"]).stream()
}

fn lints() -> Result<()> {
    workspace::cargo()
        .args(["clippy", "--locked", "--workspace", "--exclude", BPF_PACKAGE])
        .args(["--all-targets", "--", "--deny", "warnings"])
        .stream()
}

/// The programs bring their own panic handler, which fits the machine's target only where a panic
/// aborts; for a lint that never links that is enough, and needs no clippy of a BPF compiler.
fn bpf_lints() -> Result<()> {
    workspace::cargo()
        .args(["clippy", "--locked", "--package", BPF_PACKAGE, "--bin", BPF_PACKAGE])
        .args(["--config", "profile.dev.panic=\"abort\"", "--", "--deny", "warnings"])
        .stream()
}

/// A link to what has been renamed is only noticed here.
fn documentation() -> Result<()> {
    workspace::cargo()
        .env("RUSTDOCFLAGS", "--deny warnings")
        .args(["doc", "--locked", "--no-deps", "--workspace", "--exclude", BPF_PACKAGE])
        .stream()
}

/// All that runs on users' hosts, nothing linked: the C parts of dependencies need no compiler for that processor.
fn other_processor() -> Result<()> {
    if !setup::target_is_there(setup::OTHER_PROCESSOR) {
        bail!(NotMade(format!("`rustup target add {OTHER_PROCESSOR}` is what is missing")));
    }
    let suffix = OTHER_PROCESSOR.replace('-', "_");
    workspace::cargo()
        .env(format!("CC_{suffix}"), "true")
        .env(format!("AR_{suffix}"), "true")
        .args(["check", "--locked", "--package", "overlay-agent", "--target", OTHER_PROCESSOR])
        .stream()
}

/// What needs no kernel, under an interpreter that knows every undefined behaviour.
fn miri() -> Result<()> {
    let there = Cmd::new("rustup")
        .args(["run", "nightly", "cargo", "miri", "--version"])
        .env_remove("RUSTUP_TOOLCHAIN")
        .output();
    if !there.is_ok_and(|output| output.status.success()) {
        bail!(NotMade(
            "`rustup component add miri rust-src --toolchain nightly` is what is missing"
                .to_owned()
        ));
    }
    Cmd::new("rustup")
        .args(["run", "nightly", "cargo", "miri", "test", "--locked"])
        .args(["--package", "overlay-common", "--lib", "--target-dir"])
        .arg(workspace::target_dir()?.join("miri"))
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env("PROPTEST_CASES", "4")
        // Property tests write what failed beside their source.
        .env("MIRIFLAGS", "-Zmiri-disable-isolation")
        .directory(workspace::root())
        .no_deadline()
        .stream()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lints_are_found_where_they_are() {
        assert!(inherits_lints("[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"));
        assert!(inherits_lints("lints.workspace = true\n"));
        assert!(!inherits_lints("[package]\nversion.workspace = true\n"));
        assert!(!inherits_lints("[lints]\n[dependencies]\nworkspace = true\n"));
    }
}
