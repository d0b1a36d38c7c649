//! What we take from others: nothing that nobody uses, under licences that go with ours, from one place, and each once.
//!
//! cargo-deny would say the same and more, and takes minutes to build where CI has none to give.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result, bail};
use overlay_lab::{command::Cmd, workspace};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use super::NotMade;
use crate::{
    crates::{Crate, Crates},
    setup,
};

/// What asks no more of who has our binary than ours does: to be told whose work is in it.
const LICENCES: [&str; 8] =
    ["Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "Unicode-3.0", "Zlib"];

/// What no crate may bring along, and why.
const BANNED: [(&str, &str); 4] = [
    ("aws-lc-sys", "ring is there already, and two of a kind have two kinds of errors"),
    ("libbpf-sys", "aya does it without C"),
    ("native-tls", "TLS is rustls's, whatever library the host has"),
    ("openssl-sys", "TLS is rustls's, whatever library the host has"),
];

/// Of which others need several versions. Whoever adds one costs everybody its time to build.
const SEVERAL: [&str; 13] = [
    "base64",
    "cpufeatures",
    "foldhash",
    "getrandom",
    "hashbrown",
    "nom",
    "num-derive",
    "prettyplease",
    "rand",
    "rand_core",
    "syn",
    "thiserror",
    "thiserror-impl",
];

/// Where crates come from.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Who builds for another system gets the same crates but for those of that system.
const TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(Debug, Deserialize)]
struct Manifest {
    workspace: Workspace,
}

#[derive(Debug, Deserialize)]
struct Workspace {
    dependencies: BTreeMap<String, toml::Value>,
}

/// Fails where a crate, or the workspace, names one that it does not use.
pub(super) fn are_used() -> Result<()> {
    let path = workspace::root().join("Cargo.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Manifest =
        toml::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
    let Crates { packages, workspace_members, .. } = Crates::of(TARGET)?;
    let ours = packages.iter().filter(|package| workspace_members.contains(&package.id));
    let asked: BTreeSet<_> =
        ours.flat_map(|ours| &ours.dependencies).map(|of| of.name.as_str()).collect();
    let mut named = manifest.workspace.dependencies.into_keys();
    if let Some(name) = named.find(|name| !asked.contains(name.as_str())) {
        bail!("no crate of the workspace asks for its dependency {name}");
    }
    if !setup::MACHETE.is_there()? {
        bail!(NotMade("`cargo xtask setup` builds cargo-machete, which is missing".to_owned()));
    }
    Cmd::new(setup::MACHETE.path()?).directory(workspace::root()).stream()
}

/// Fails where one is something that we do not want of others.
pub(super) fn are_welcome() -> Result<()> {
    let crates = Crates::of(TARGET)?;
    let built: BTreeSet<_> = crates.nodes().iter().map(|node| node.id.as_str()).collect();
    let theirs = crates
        .packages
        .iter()
        .filter(|package| package.source.is_some() && built.contains(package.id.as_str()));
    let complaints = complaints(&theirs.collect::<Vec<_>>());
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    Ok(())
}

fn complaints(packages: &[&Crate]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut versions = BTreeMap::<_, BTreeSet<_>>::new();
    for Crate { name, version, license, source, .. } in packages {
        versions.entry(name.as_str()).or_default().insert(version.as_str());
        let license = license.as_deref().unwrap_or("none");
        if !is_allowed(license) {
            complaints
                .push(format!("{name} {version} is under {license}, which is not in LICENCES"));
        }
        if source.as_deref() != Some(REGISTRY) {
            complaints.push(format!("{name} {version} is not from crates.io"));
        }
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| banned == name) {
            complaints.push(format!(
                "{name} is not wanted: {why}; `cargo tree -i {name}` says whose it is"
            ));
        }
    }
    let several: BTreeSet<_> =
        versions.iter().filter(|(_, versions)| versions.len() > 1).map(|(name, _)| *name).collect();
    let known = BTreeSet::from(SEVERAL);
    complaints.extend(several.difference(&known).map(|name| {
        let versions: Vec<_> = versions[name].iter().copied().collect();
        format!(
            "{name} is built in several versions, {}, and is not in SEVERAL",
            versions.join(" and ")
        )
    }));
    complaints.extend(
        known
            .difference(&several)
            .map(|name| format!("{name} is built once: take it out of SEVERAL")),
    );
    complaints
}

fn is_allowed(license: &str) -> bool {
    // Older crates write a stroke for «or».
    let mode = ParseMode { allow_slash_as_or_operator: true, ..ParseMode::STRICT };
    Expression::parse_mode(license, mode).is_ok_and(|expression| {
        expression.evaluate(|asked| LICENCES.contains(&asked.to_string().as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, license: &str, source: &str) -> Crate {
        Crate {
            id: format!("{name}@{version}"),
            name: name.to_owned(),
            version: version.to_owned(),
            license: Some(license.to_owned()),
            source: Some(source.to_owned()),
            dependencies: Vec::new(),
        }
    }

    #[test]
    fn a_licence_is_allowed_if_we_may_choose_one_that_is() {
        for fine in ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR MIT", "(MIT OR Apache-2.0) AND ISC"]
        {
            assert!(is_allowed(fine), "{fine}");
        }
        for other in ["GPL-3.0-only", "MIT AND LGPL-2.1-only", "none", "MIT OR"] {
            assert!(!is_allowed(other), "{other}");
        }
    }

    #[test]
    fn every_kind_of_complaint_is_made() {
        let mut packages: Vec<_> = SEVERAL
            .iter()
            .flat_map(|name| {
                ["1.0.0", "2.0.0"].map(|version| package(name, version, "MIT", REGISTRY))
            })
            .collect();
        assert_eq!(complaints(&packages.iter().collect::<Vec<_>>()), [""; 0]);
        packages.remove(0);
        packages.extend([
            package("rustables", "0.9.0", "GPL-3.0-only", REGISTRY),
            package("openssl-sys", "0.9.0", "MIT", REGISTRY),
            package("fork", "1.0.0", "MIT", "git+https://example.com/fork"),
            package("twice", "1.0.0", "MIT", REGISTRY),
            package("twice", "2.0.0", "MIT", REGISTRY),
        ]);
        let found = complaints(&packages.iter().collect::<Vec<_>>());
        let expected = [
            "rustables 0.9.0 is under GPL-3.0-only",
            "openssl-sys is not wanted: TLS is rustls's",
            "fork 1.0.0 is not from crates.io",
            "twice is built in several versions, 1.0.0 and 2.0.0,",
            "base64 is built once",
        ];
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }
}
