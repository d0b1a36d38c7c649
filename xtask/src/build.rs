//! `build`: the BPF object first, then the agent that carries it.

pub(crate) mod portable;

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use overlay_lab::{command::Cmd, workspace};

use crate::{
    arch::Arch,
    toolchain::{DEBIAN_CARGO, DEBIAN_RUSTC, TARGET, linker, nightly_source, prebuilt_core},
};

/// The crate, and its binary.
const PACKAGE: &str = "overlay-ebpf";

/// The command line of `build`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Options {
    /// Build the agent optimised (the BPF programs always are)
    #[arg(long)]
    pub(crate) release: bool,

    /// Let the BPF programs log every packet's hook and reason, by number; for debugging only
    #[arg(long)]
    pub(crate) bpf_log: bool,
}

/// Builds both.
pub(crate) fn run(options: Options) -> Result<()> {
    let object = object_with(options.bpf_log)?;
    let agent = agent(options.release)?;
    println!("BPF object  {}", object.display());
    println!("agent       {}", agent.display());
    Ok(())
}

/// The agent that tests, lab and demo run: the one that `cargo xtask build` makes.
pub(crate) fn agent_binary() -> Result<PathBuf> {
    binary(false)
}

/// The same for a machine with this processor.
pub(crate) fn agent_binary_for(arch: Arch) -> Result<PathBuf> {
    if arch == Arch::of_this_machine()? { agent_binary() } else { portable::binary(arch, false) }
}

/// Builds the agent with the BPF object that is there.
pub(crate) fn agent(release: bool) -> Result<PathBuf> {
    let mut command = workspace::cargo().args(["build", "--locked", "--package", "overlay-agent"]);
    if release {
        command = command.arg("--release");
    }
    command.stream()?;
    binary(release)
}

/// Builds an optimised agent with other programs, those that log, and leaves the one with ours behind it.
/// Returns both: the other one's file is `other`.
pub(crate) fn agent_and_another(other: &Path) -> Result<PathBuf> {
    object_with(true)?;
    let built = agent(true)?;
    fs::copy(&built, other)
        .with_context(|| format!("cannot copy {} to {}", built.display(), other.display()))?;
    object()?;
    agent(true)
}

/// Builds the agent with other programs into a file of its own. The one with ours stays where everybody looks for it.
pub(crate) fn agent_with(object: &Path, other: &Path) -> Result<()> {
    let object = fs::canonicalize(object)
        .with_context(|| format!("there is no BPF object at {}", object.display()))?;
    let built = binary(false)?;
    let ours = built.with_extension("ours");
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    };
    let had_ours = built.exists();
    if had_ours {
        copy(&built, &ours)?;
    }
    let done = workspace::cargo()
        .args(["build", "--locked", "--package", "overlay-agent"])
        .env("OVERLAY_BPF_OBJECT", object)
        .stream()
        .and_then(|()| copy(&built, other));
    // Whoever builds next builds anew; whoever only runs what is there gets what was there.
    let put_back = if had_ours { fs::rename(&ours, &built) } else { fs::remove_file(&built) };
    done?;
    put_back.with_context(|| format!("cannot put {} back", built.display()))
}

/// Where the BPF object is that the agent's build script embeds.
pub(crate) fn object_path() -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join("bpf/overlay.bpf.o"))
}

/// Builds the BPF object as users run it.
pub(crate) fn object() -> Result<PathBuf> {
    object_with(false)
}

fn object_with(log: bool) -> Result<PathBuf> {
    let toolchain = Toolchain::find()?;
    let target = workspace::target_dir()?.join("bpf");
    toolchain
        .cargo()?
        .args(["build", "--locked", "--release", "--package", PACKAGE])
        .args(["--bin", PACKAGE, "--target", TARGET])
        .arg("--target-dir")
        .arg(&target)
        .args(toolchain.build_std())
        .args(log.then_some("--features=log"))
        .stream()
        .with_context(|| format!("cannot build {PACKAGE} with {}", toolchain.describe()))?;
    let built = target.join(TARGET).join("release").join(PACKAGE);
    let object = object_path()?;
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// One of the two ways to compile for BPF.
#[derive(Debug, Clone)]
enum Toolchain {
    /// A distribution's compiler with its prebuilt `core` for BPF.
    Prebuilt {
        /// `bpf-linker`.
        linker: PathBuf,
    },
    /// Rustup's nightly, which compiles `core` from source.
    Nightly {
        /// `bpf-linker`.
        linker: PathBuf,
    },
}

impl Toolchain {
    /// Finds out which one is here; says what is missing when there is neither.
    fn find() -> Result<Self> {
        let linker = linker();
        let prebuilt = prebuilt_core();
        let nightly = nightly_source();
        match (linker, prebuilt, nightly) {
            (Ok(linker), Ok(()), _) => Ok(Self::Prebuilt { linker }),
            (Ok(linker), Err(_), Ok(())) => Ok(Self::Nightly { linker }),
            (linker, prebuilt, nightly) => {
                let mut missing = Vec::new();
                if let Err(error) = linker {
                    missing.push(format!("{error:#}"));
                }
                if let (Err(prebuilt), Err(nightly)) = (prebuilt, nightly) {
                    missing.push(format!("no Rust for BPF, neither of Debian ({prebuilt:#})"));
                    missing.push(format!("nor of rustup ({nightly:#})"));
                }
                bail!(
                    "the BPF programs cannot be built:\n  {}\n`cargo xtask setup` installs what is \
                     missing, `cargo xtask setup --check` says how",
                    missing.join("\n  ")
                )
            }
        }
    }

    /// Its cargo, with everything that a BPF build needs in the environment.
    fn cargo(&self) -> Result<Cmd> {
        let (command, linker) = match self {
            Self::Prebuilt { linker } => (
                Cmd::new(DEBIAN_CARGO)
                    .env("RUSTC", DEBIAN_RUSTC)
                    // The target's core is there, but a stable compiler asks for leave to use it.
                    .env("RUSTC_BOOTSTRAP", "1"),
                linker,
            ),
            Self::Nightly { linker } => {
                (Cmd::new("rustup").args(["run", "nightly", "cargo"]), linker)
            }
        };
        let flags = [
            "-Cdebuginfo=2",
            // 32-bit arithmetic and wide jumps; in every kernel since 5.1.
            "-Ctarget-cpu=v3",
            "-Clink-arg=--btf",
            // By default every memset becomes a call, which the verifier refuses.
            "-Clink-arg=--disable-expand-memcpy-in-order",
        ];
        // What cargo and rustup say about the toolchain we run under is not for this one.
        let inherited = [
            "CARGO",
            "CARGO_BUILD_TARGET",
            "CARGO_TARGET_DIR",
            "LD_LIBRARY_PATH",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTDOC",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ];
        let command = inherited.into_iter().fold(command, Cmd::env_remove);
        let flags: Vec<_> = flags
            .map(str::to_owned)
            .into_iter()
            .chain(portable::renamed("--remap-path-prefix=")?)
            .collect();
        Ok(command
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .directory(workspace::root())
            .no_deadline())
    }

    /// The arguments by which `core` is compiled along, where it is not prebuilt.
    fn build_std(&self) -> &'static [&'static str] {
        match self {
            Self::Prebuilt { .. } => &[],
            Self::Nightly { .. } => &["-Z", "build-std=core"],
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Prebuilt { linker } => format!("{DEBIAN_RUSTC} and {}", linker.display()),
            Self::Nightly { linker } => format!("rustup's nightly and {}", linker.display()),
        }
    }
}

fn binary(release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    Ok(workspace::target_dir()?.join(profile).join("overlay-agent"))
}

/// Leaves an unchanged file alone, so that cargo does not build the agent again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    match fs::read(to) {
        Ok(old) if old == new => return Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot read {}", to.display()));
        }
        Ok(_) | Err(_) => {}
    }
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_object_keeps_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| directory.path().join(name));
        fs::write(&from, b"one").unwrap();
        copy_if_changed(&from, &to).unwrap();
        let before = fs::metadata(&to).unwrap().modified().unwrap();
        copy_if_changed(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), before);
        fs::write(&from, b"two").unwrap();
        copy_if_changed(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"two");
    }
}
