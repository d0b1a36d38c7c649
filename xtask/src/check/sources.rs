//! The sources of a crate, but for its tests.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use overlay_lab::workspace::Package;
use syn::Attribute;

/// A module's path below its crate's root.
pub(super) type Module = Vec<String>;

/// The files of a crate that are not for tests alone, by their modules.
pub(super) fn of(package: &Package) -> Result<BTreeMap<Module, String>> {
    let manifest = PathBuf::from(&package.manifest_path);
    let mut files = BTreeMap::new();
    read(&manifest.with_file_name("src"), &mut Vec::new(), &mut files)?;
    Ok(files)
}

fn read(directory: &Path, at: &mut Module, files: &mut BTreeMap<Module, String>) -> Result<()> {
    let listing = || format!("cannot list {}", directory.display());
    for entry in fs::read_dir(directory).with_context(listing)? {
        let path = entry.with_context(listing)?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if is_for_tests(&name) {
            continue;
        }
        at.push(name);
        if path.is_dir() {
            read(&path, at, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            files.insert(module(at), text);
        }
        at.pop();
    }
    Ok(())
}

fn is_for_tests(name: &str) -> bool {
    name == "tests" || name.ends_with("_tests") || name == "test_support"
}

/// Of which module a file is the text.
fn module(file: &[String]) -> Module {
    match file {
        [root] if root == "lib" || root == "main" => Vec::new(),
        [above @ .., last] if last == "mod" => above.to_vec(),
        file => file.to_vec(),
    }
}

/// Whether what has this attribute is for tests alone.
pub(super) fn is_cfg_test(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute.parse_args::<syn::Ident>().is_ok_and(|what| what == "test")
}
