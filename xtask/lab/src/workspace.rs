//! Where things are: the workspace, its target directory, its packages.

use std::{
    env,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::command::Cmd;

/// A package of the workspace.
#[derive(Debug, Clone, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its `Cargo.toml`.
    pub manifest_path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

/// The folder that holds the workspace's `Cargo.toml`.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest)
}

/// The cargo that runs us, otherwise whichever is in `PATH`.
pub fn cargo() -> Cmd {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Cargo tells its children about the package that it runs. A build script that looks at such a
    // variable would be run again whenever the door to it changes.
    env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| {
            let name = name.to_string_lossy();
            name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
                || name == "OUT_DIR"
        })
        .fold(Cmd::new(program), Cmd::env_remove)
        .directory(root())
        .no_deadline()
}

/// The target directory as cargo sees it.
///
/// A relative `CARGO_TARGET_DIR` counts from the workspace's root: cargo runs tests in the
/// package's folder, and both must mean the same directory.
pub fn target_dir() -> Result<PathBuf> {
    static TARGET: OnceLock<PathBuf> = OnceLock::new();
    if let Some(target) = TARGET.get() {
        return Ok(target.clone());
    }
    let target = match env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
        Some(value) => root().join(value),
        None => metadata()?.target_directory,
    };
    Ok(TARGET.get_or_init(|| target).clone())
}

/// The packages of the workspace.
pub fn packages() -> Result<Vec<Package>> {
    Ok(metadata()?.packages)
}

fn metadata() -> Result<Metadata> {
    let command = cargo().args(["metadata", "--no-deps", "--format-version", "1", "--locked"]);
    serde_json::from_str(&command.read()?)
        .with_context(|| format!("`{command}` printed something else than its metadata"))
}
