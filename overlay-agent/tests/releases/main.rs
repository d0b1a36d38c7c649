//! What `cargo xtask dist` has made, as users have it: not built here, for that takes long.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod debian;
mod image;
mod parts;
mod program;

use std::{fs, path::PathBuf};

use overlay_lab::workspace;

/// Processors, by Debian's names, with what the kernel calls them.
const ARCHS: [(&str, &str); 2] = [("amd64", "x86_64"), ("arm64", "aarch64")];

/// Where it is.
fn folder() -> PathBuf {
    workspace::target_dir().unwrap().join("dist")
}

/// The one file whose name ends so.
fn file(end: &str) -> PathBuf {
    let folder = folder();
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| {
        panic!(
            "there is no release in {} ({error}): `cargo xtask dist` makes one",
            folder.display()
        )
    });
    let paths = entries.map(|entry| entry.unwrap().path());
    let found: Vec<_> = paths.filter(|path| path.to_str().unwrap().ends_with(end)).collect();
    let [path] = &found[..] else { panic!("{end} is not the end of one file: {found:?}") };
    path.clone()
}
