//! What compiles and links the BPF programs, and where it is.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use overlay_lab::{command::Cmd, workspace};

/// What the programs are compiled for.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The linker for BPF objects.
pub(crate) const BPF_LINKER: &str = "bpf-linker";

/// Debian's cargo and compiler, named in full: rustup's come first in `PATH`.
pub(crate) const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// See [`DEBIAN_CARGO`].
pub(crate) const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// The linker that `setup` built, otherwise the user's.
pub(crate) fn linker() -> Result<PathBuf> {
    let ours = workspace::target_dir()?.join("tools/bin").join(BPF_LINKER);
    if ours.is_file() {
        return Ok(ours);
    }
    in_path(BPF_LINKER)
        .with_context(|| format!("no {BPF_LINKER}, neither {} nor in PATH", ours.display()))
}

/// Whether Debian's compiler is there with its `core` for BPF.
pub(crate) fn prebuilt_core() -> Result<()> {
    for program in [DEBIAN_CARGO, DEBIAN_RUSTC] {
        if !Path::new(program).is_file() {
            bail!("there is no {program}");
        }
    }
    let sysroot =
        Cmd::new(DEBIAN_RUSTC).env_remove("LD_LIBRARY_PATH").args(["--print", "sysroot"]).read()?;
    let libraries = Path::new(&sysroot).join("lib/rustlib").join(TARGET).join("lib");
    let found = fs::read_dir(&libraries)
        .with_context(|| format!("no core for BPF in {}", libraries.display()))?
        .filter_map(Result::ok)
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"));
    if !found {
        bail!("no core for BPF in {}", libraries.display());
    }
    Ok(())
}

/// Whether rustup's nightly is there with the source of `core`.
pub(crate) fn nightly_source() -> Result<()> {
    if in_path("rustup").is_none() {
        bail!("there is no rustup");
    }
    let sysroot = Cmd::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .env_remove("RUSTUP_TOOLCHAIN")
        .read()
        .context("there is no nightly toolchain")?;
    let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
    if !source.is_dir() {
        bail!("nightly has no rust-src");
    }
    Ok(())
}

/// Whether rustup's nightly builds the BPF programs here, with nothing from a distribution.
pub(crate) fn nightly_is_complete() -> bool {
    in_path(BPF_LINKER).is_some() && nightly_source().is_ok() && prebuilt_core().is_err()
}

/// The first program of this name in `PATH`.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}
