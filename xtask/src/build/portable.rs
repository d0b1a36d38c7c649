//! Programs that run on any Linux, and come out the same, byte for byte, wherever they are built.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use overlay_lab::{command::Cmd, workspace};

use super::{object, object_path};
use crate::arch::Arch;

/// Builds the agent for another processor or another libc than this machine's, with the BPF object that it carries, and
/// returns where it is.
pub(crate) fn agent(arch: Arch, release: bool) -> Result<PathBuf> {
    object()?;
    cargo(arch, "build")?.args(release.then_some("--release")).stream()?;
    binary(arch, release)
}

/// Where that is.
pub(super) fn binary(arch: Arch, release: bool) -> Result<PathBuf> {
    let profile = if release { "release" } else { "debug" };
    Ok(workspace::target_dir()?.join(arch.static_target()).join(profile).join("overlay-agent"))
}

/// A command of cargo's that builds the agent's package without any library of the system.
pub(crate) fn cargo(arch: Arch, verb: &str) -> Result<Cmd> {
    let target = arch.static_target();
    let for_target = |name: &str| format!("{name}_{}", target.replace('-', "_"));
    let [rust, c] = ["--remap-path-prefix=", "-ffile-prefix-map="].map(renamed);
    Ok(workspace::cargo()
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", rust?.join("\x1f"))
        .env(for_target("CFLAGS"), c?.join(" "))
        .env(for_target("CC"), arch.c_compiler())
        // rustup's own linker: for whatever processor, without one of the system's for each.
        .env(format!("CARGO_TARGET_{}_LINKER", target.replace('-', "_").to_uppercase()), "rust-lld")
        // Nobody looks at these symbols: a debugger's part is left out by the profile.
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        // The folder is a level deeper than where the build script looks.
        .env("OVERLAY_BPF_OBJECT", object_path()?)
        .args([verb, "--locked", "--package", "overlay-agent", "--target", target]))
}

/// Flags of a compiler by which folders of this machine have the same names everywhere, in messages and in debug information; of those
/// that apply, the last counts. Sources of ours stay where the BPF linker finds them: it copies lines of them.
pub(super) fn renamed(flag: &str) -> Result<[String; 3]> {
    let name = |folder: &Path, name: &str| format!("{flag}{}={name}", folder.display());
    Ok([
        name(workspace::root(), "."),
        name(&workspace::target_dir()?, "target"),
        name(&cargo_home()?, "cargo"),
    ])
}

/// Where cargo keeps the sources of others.
fn cargo_home() -> Result<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")))
        .context("neither CARGO_HOME nor HOME says where cargo keeps its sources")
}
