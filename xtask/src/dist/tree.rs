//! The files of a release. The Debian package says which they are; whoever is not Debian has some of them elsewhere.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use overlay_lab::{command::Cmd, workspace};

/// Of which the texts are in the workspace's root.
pub(super) const LICENCES: [&str; 3] = ["LICENSE-APACHE", "LICENSE-MIT", "LICENSE-GPL2"];

/// Where Debian has what others have in another folder.
const ELSEWHERE: [(&str, &str); 1] =
    [("usr/share/zsh/vendor-completions", "usr/share/zsh/site-functions")];

/// What is about the Debian package, or names licences by where Debian has their texts: others get the texts.
const DEBIAN_ONLY: [&str; 2] =
    ["usr/share/doc/overlay-agent/changelog.Debian.gz", "usr/share/doc/overlay-agent/copyright"];

/// A file of a release.
#[derive(Debug)]
pub(super) struct File {
    /// Where it goes, from the root of the file system.
    pub(super) path: PathBuf,
    /// Who may read and execute it.
    pub(super) mode: u16,
    /// Where it is now.
    pub(super) source: PathBuf,
}

/// Unpacks a Debian package into `folder` and returns its files where others than Debian have them, by their names'
/// order.
pub(super) fn of(package: &Path, folder: &Path) -> Result<Vec<File>> {
    remove(folder)?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Cmd::new("dpkg-deb").arg("--extract").args([package, folder]).run()?;
    let mut files = Vec::new();
    collect(folder, folder, &mut files)?;
    files.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<File>) -> Result<()> {
    let listing = || format!("cannot list {}", folder.display());
    for entry in fs::read_dir(folder).with_context(listing)? {
        let source = entry.with_context(listing)?.path();
        let metadata = fs::symlink_metadata(&source).with_context(listing)?;
        if metadata.is_dir() {
            collect(root, &source, files)?;
            continue;
        }
        let path = source.strip_prefix(root).with_context(listing)?;
        if DEBIAN_ONLY.iter().any(|only| path == Path::new(only)) {
            continue;
        }
        let path = ELSEWHERE
            .iter()
            .find_map(|(debians, others)| {
                Some(Path::new(others).join(path.strip_prefix(debians).ok()?))
            })
            .unwrap_or_else(|| path.to_owned());
        let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        files.push(File { path, mode, source });
    }
    Ok(())
}

/// Removes a folder, if it is there.
pub(super) fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

/// Copies a file, whatever is missing of the folders on its way.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

/// Packs a folder, or what is in it, the same way whenever and by whomever: by its names' order, as root's, of one time.
pub(super) fn pack(folder: &Path, what: &str, time: u64, archive: &Path) -> Result<()> {
    Cmd::new("tar")
        .args(["--create", "--format=gnu", "--sort=name", "--owner=0", "--group=0"])
        .args(["--numeric-owner", "--mode=u+rw,go=rX", "--file"])
        .arg(archive)
        .arg(format!("--mtime=@{time}"))
        .arg("--directory")
        .arg(folder)
        .arg(what)
        .run()
        .map(drop)
}

/// How much is tried to make files small: as gzip counts it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort(pub(super) u8);

impl Effort {
    pub(super) const BEST: Self = Self(9);
    /// For tests, which throw the file away.
    pub(super) const LITTLE: Self = Self(1);
}

/// Compresses a file, and returns the name that it has then. Without name and time, so that the same file makes the same one.
pub(super) fn compress(file: &Path, effort: Effort) -> Result<PathBuf> {
    Cmd::new("gzip").args([&format!("-{}", effort.0), "--no-name", "--force"]).arg(file).run()?;
    let mut name = file.as_os_str().to_owned();
    name.push(".gz");
    Ok(name.into())
}

/// A file of the workspace, by its path there.
pub(super) fn ours(path: &str) -> PathBuf {
    workspace::root().join(path)
}
