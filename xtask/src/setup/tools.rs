//! Programs that cargo builds for us, each in one version for everybody.

use std::{fmt, path::PathBuf};

use anyhow::Result;
use overlay_lab::{command::Cmd, workspace};

use crate::toolchain::BPF_LINKER;

/// The LLVM that Debian's compiler for BPF is built with.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// A program, by its crate's name.
pub(crate) struct Tool {
    name: &'static str,
    version: &'static str,
    /// What it does.
    pub(super) why: &'static str,
    /// For people who have to build it by themselves, too.
    environment: Option<(&'static str, &'static str)>,
    features: &'static [&'static str],
}

/// Links the BPF programs; its version goes with the compiler's LLVM.
pub(super) const LINKER: Tool = Tool {
    name: BPF_LINKER,
    version: "0.13.0",
    why: "links the BPF programs",
    environment: Some(("LLVM_PREFIX", LLVM_PREFIX)),
    features: &["--no-default-features", "--features", "llvm-22"],
};

/// Makes Debian packages of what cargo has built.
pub(crate) const PACKAGER: Tool = Tool {
    name: "cargo-deb",
    version: "3.8.0",
    why: "makes the Debian package",
    environment: None,
    features: &[],
};

/// Finds dependencies that nobody uses.
pub(crate) const MACHETE: Tool = Tool {
    name: "cargo-machete",
    version: "0.9.2",
    why: "finds dependencies that nobody uses",
    environment: None,
    features: &[],
};

/// Makes a book of the manual.
pub(crate) const BOOK: Tool = Tool {
    name: "mdbook",
    version: "0.5.4",
    environment: None,
    features: &[],
    why: "makes a book of the manual",
};

impl Tool {
    /// Where it is, once it was built.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        Ok(folder()?.join("bin").join(self.name))
    }

    /// Whether it was, in this version.
    pub(crate) fn is_there(&self) -> Result<bool> {
        let program = self.path()?;
        if !program.is_file() {
            return Ok(false);
        }
        let said = Cmd::new(&program).arg("--version").output()?;
        Ok(said.stdout.split_whitespace().last() == Some(self.version))
    }

    /// The command line that builds it, for people to read.
    pub(super) fn command_line(&self) -> Result<String> {
        let command = self.install()?;
        Ok(match self.environment {
            Some((name, value)) => format!("{name}={value} {command}"),
            None => command.to_string(),
        })
    }

    /// What builds it.
    pub(crate) fn install(&self) -> Result<Cmd> {
        let command = workspace::cargo()
            // It goes with the tools, wherever our own build goes. They work for seconds, and would be optimised for
            // minutes; nobody debugs them.
            .env_remove("CARGO_TARGET_DIR")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .args(["install", self.name, "--version", self.version, "--locked", "--debug"])
            .arg("--root")
            .arg(folder()?)
            .args(self.features);
        Ok(self.environment.iter().fold(command, |command, (name, value)| command.env(name, value)))
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The text as a whole, so that a width is kept.
        formatter.pad(&format!("{} {}", self.name, self.version))
    }
}

fn folder() -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join("tools"))
}
