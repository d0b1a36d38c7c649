//! Files that appear whole, with their mode, and only where they would differ.

use std::{
    fs::{self, Permissions},
    io::{ErrorKind, Write as _},
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::unistd::Group;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Everybody.
    All,
    /// Root.
    Root,
    /// Root and this group.
    Group(&'static str),
}

impl Readers {
    const fn mode(self) -> u32 {
        match self {
            Self::All => 0o644,
            Self::Root => 0o600,
            Self::Group(_) => 0o640,
        }
    }
}

/// Makes the file what it should be. Returns whether it was not.
pub(crate) fn write(path: &Path, text: &str, readers: Readers) -> Result<bool> {
    let failed = || format!("cannot write {}", path.display());
    if fs::read(path).is_ok_and(|found| found == text.as_bytes()) {
        return Ok(false);
    }
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    fs::create_dir_all(directory).with_context(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(directory).with_context(failed)?;
    if let Readers::Group(name) = readers {
        let group = Group::from_name(name).with_context(failed)?.with_context(|| {
            format!("cannot write {}: there is no group {name}", path.display())
        })?;
        chown(file.path(), None, Some(group.gid.as_raw())).with_context(failed)?;
    }
    let permissions = Permissions::from_mode(readers.mode());
    file.as_file().set_permissions(permissions).with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    file.as_file().sync_all().with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(true)
}

/// The text of a file; nothing if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Removes a file. Returns whether it was there.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// Removes a folder with everything in it. Returns whether it was there.
pub(crate) fn remove_all(path: &Path) -> Result<bool> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_once_and_only_root_reads_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/key.pem");
        assert!(write(&path, "secret", Readers::Root).unwrap());
        assert!(!write(&path, "secret", Readers::Root).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write(&path, "other", Readers::All).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert!(remove(&path).unwrap() && !remove(&path).unwrap());
    }

    #[test]
    fn a_group_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        let error = write(&path, "", Readers::Group("no-such-group")).unwrap_err();
        assert!(error.to_string().ends_with("there is no group no-such-group"), "{error}");
        assert!(!path.exists());
    }
}
