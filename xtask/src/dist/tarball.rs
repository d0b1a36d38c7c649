//! The tarball, for hosts without dpkg and rpm: what `install.sh` puts below `/usr/local`.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{
    PACKAGE, VERSION,
    tree::{self, Effort},
};
use crate::arch::Arch;

/// What people read first, besides the licences.
const DOCUMENTS: [&str; 3] = ["README.md", "CHANGELOG.md", "docs/install.md"];

/// Packs the files of a release, with what installs and removes them.
pub(super) fn pack(
    arch: Arch,
    files: &[tree::File],
    time: u64,
    effort: Effort,
    output: &Path,
) -> Result<PathBuf> {
    let name = format!("{PACKAGE}-{VERSION}-linux-{arch}");
    let folder = output.join(&name);
    tree::remove(&folder)?;
    for file in files {
        // What was below /usr goes below /usr/local.
        let path = file.path.strip_prefix("usr").unwrap_or(&file.path);
        tree::copy(&file.source, &folder.join(path))?;
    }
    for document in DOCUMENTS.into_iter().chain(tree::LICENCES) {
        let name = Path::new(document).file_name().unwrap_or_default();
        tree::copy(&tree::ours(document), &folder.join(name))?;
    }
    let scripts =
        [("install.sh", "install.sh"), ("uninstall.sh", "share/overlay-agent/uninstall.sh")];
    for (script, path) in scripts {
        tree::copy(&tree::ours(&format!("packaging/tarball/{script}")), &folder.join(path))?;
    }
    let archive = output.join(format!("{name}.tar"));
    tree::pack(output, &name, time, &archive)?;
    tree::remove(&folder)?;
    tree::compress(&archive, effort)
}
