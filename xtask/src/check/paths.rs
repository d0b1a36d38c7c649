//! Documents name files that are there.

use std::fs;

use anyhow::{Context as _, Result, bail};
use overlay_lab::{command::Cmd, workspace};

/// What was true when it was written stays as it is.
const HISTORY: &str = "CHANGELOG.md";

/// Fails where a document names a source file or a folder of ours that is not there.
pub(super) fn check() -> Result<()> {
    let root = workspace::root();
    let list = |what: &[&str]| Cmd::new("git").arg("ls-files").args(what).directory(root).read();
    let (tracked, documents) = (list(&[])?, list(&["*.md"])?);
    let tracked: Vec<_> = tracked.lines().collect();
    let mut missing = Vec::new();
    for document in documents.lines().filter(|document| *document != HISTORY) {
        let text = fs::read_to_string(root.join(document))
            .with_context(|| format!("cannot read {document}"))?;
        let paths = text.split('`').skip(1).step_by(2).flat_map(|code| named(code, &tracked));
        missing.extend(
            paths
                .filter(|path| !is_there(path, &tracked))
                .map(|path| format!("{path} ({document})")),
        );
    }
    if !missing.is_empty() {
        bail!("documents name what is not there: {}", missing.join(", "));
    }
    Ok(())
}

/// The paths that a piece of code in a document is, if it is any: of Rust files, or below a folder of ours.
fn named(code: &str, tracked: &[&str]) -> Vec<String> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-{},".contains(letter);
    let (first, rest) = code.split_once('/').unwrap_or(("", code));
    let is_ours = !rest.is_empty()
        && tracked
            .iter()
            .any(|path| path.strip_prefix(first).is_some_and(|at| at.starts_with('/')));
    let is_rust = std::path::Path::new(code).extension().is_some_and(|extension| extension == "rs");
    if code.is_empty() || !code.chars().all(plain) || !(is_rust || is_ours) {
        return Vec::new();
    }
    let Some((before, (inner, after))) =
        code.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
    else {
        return vec![code.to_owned()];
    };
    inner.split(',').map(|part| format!("{before}{part}{after}")).collect()
}

/// Whether a path is a file's, a folder's, or the end of one.
fn is_there(path: &str, tracked: &[&str]) -> bool {
    let path = path.trim_end_matches('/');
    let follows =
        |rest: Option<&str>| rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    tracked.iter().any(|file| {
        follows(file.strip_prefix(path))
            || file
                .match_indices(path)
                .any(|(at, _)| file[..at].ends_with('/') && follows(file.get(at + path.len()..)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: &[&str] = &["agent/src/kernel/mod.rs", "agent/src/control/host.rs", "README.md"];

    fn missing(code: &str) -> Vec<String> {
        named(code, FILES).into_iter().filter(|path| !is_there(path, FILES)).collect()
    }

    #[test]
    fn what_is_not_there_is_found_and_nothing_else_is() {
        for there in [
            "agent/src/{kernel,control}/",
            "control/host.rs",
            "agent/src/kernel",
            "cargo xtask test",
            "a/b",
        ] {
            assert_eq!(missing(there), Vec::<String>::new(), "{there}");
        }
        assert_eq!(missing("agent/src/{kernel,places}"), ["agent/src/places"]);
        assert_eq!(missing("host/control.rs"), ["host/control.rs"]);
        assert_eq!(missing("agent/src/kern"), ["agent/src/kern"]);
    }
}
