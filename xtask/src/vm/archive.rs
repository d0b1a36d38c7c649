//! The archive that a kernel unpacks into its first file system: cpio in the `newc` format
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;

/// An archive in the making. Folders come before what is in them, by themselves.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    seen: BTreeSet<PathBuf>,
}

impl Archive {
    /// Adds a folder, and those it is in.
    pub(super) fn folder(&mut self, path: &Path) -> Result<()> {
        if path.parent().is_none() || self.seen.contains(path) {
            return Ok(());
        }
        self.entry(path, FOLDER, &[])
    }

    /// Adds a file that may be executed; the first one of a name stays.
    pub(super) fn file(&mut self, path: &Path, content: &[u8]) -> Result<()> {
        self.entry(path, FILE, content)
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &Path, target: &str) -> Result<()> {
        self.entry(path, SYMLINK, target.as_bytes())
    }

    /// Whether there is something of this name.
    pub(super) fn contains(&self, path: &Path) -> bool {
        self.seen.contains(path)
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.header("TRAILER!!!", 0, 0, 0);
        self.bytes
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) -> Result<()> {
        if self.contains(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.folder(parent)?;
        }
        let name = path.to_str().context("a path that is not text")?.trim_start_matches('/');
        let length = u32::try_from(content.len()).context("a file that is too large")?;
        let number = u32::try_from(self.seen.len() + 1).context("too many files")?;
        self.header(name, number, mode, length);
        self.bytes.extend_from_slice(content);
        self.pad();
        self.seen.insert(path.to_owned());
        Ok(())
    }

    /// Thirteen numbers of eight hexadecimal digits: inode, mode, owner, group, links, time, length, two times
    /// major and minor, length of the name, checksum.
    fn header(&mut self, name: &str, inode: u32, mode: u32, length: u32) {
        let name_length = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(b"070701");
        for number in [inode, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0] {
            self.bytes.extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_lab::command::Cmd;

    #[test]
    fn cpio_reads_what_was_written() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b/file"), b"hello").unwrap();
        archive.symlink(Path::new("/a/link"), "b/file").unwrap();
        archive.file(Path::new("/a/b/file"), b"another").unwrap();
        let folder = tempfile::tempdir().unwrap();
        Cmd::new("busybox")
            .args(["cpio", "-i", "-d"])
            .directory(folder.path())
            .input(archive.finish())
            .run()
            .unwrap();
        assert_eq!(std::fs::read(folder.path().join("a/link")).unwrap(), b"hello");
    }
}
