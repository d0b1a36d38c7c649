//! What a release is made of, in the words of `CycloneDX`: every crate whose code may be in the program, as cargo would build it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use cyclonedx_bom::{
    external_models::{date_time::DateTime, uri::Purl},
    models::{
        component::{Classification, Component, Components},
        dependency::{Dependencies, Dependency},
        hash::{Hash, HashAlgorithm, HashValue, Hashes},
        license::{LicenseChoice, Licenses},
        metadata::Metadata,
    },
    prelude::{Bom, SpdxExpression, SpecVersion, Validate as _},
};
use overlay_lab::workspace;
use serde::Deserialize;

use super::{PACKAGE, VERSION, tree};
use crate::{
    arch::Arch,
    crates::{Crate, Crates},
};

#[derive(Debug, Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Debug, Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// Writes down what the agent for a processor is made of.
pub(super) fn write(arch: Arch, time: u64, output: &Path) -> Result<PathBuf> {
    let crates = Crates::of(arch.static_target())?;
    let parts = parts(arch)?;
    let parts: BTreeMap<&str, &Crate> = crates
        .packages
        .iter()
        .filter(|part| parts.contains(&(part.name.clone(), part.version.clone())))
        .map(|part| (part.id.as_str(), part))
        .collect();
    let checksums = checksums()?;
    let mut components = Vec::new();
    let mut agent = None;
    for part in parts.values() {
        let component = component(part, &checksums)?;
        if part.name == PACKAGE { agent = Some(component) } else { components.push(component) }
    }
    components.sort_unstable_by(|one, other| one.bom_ref.cmp(&other.bom_ref));
    let mut dependencies: Vec<_> = crates
        .nodes()
        .iter()
        .filter_map(|node| {
            let of = |id: &String| parts.get(id.as_str()).map(|part| reference(part));
            let mut dependencies: Vec<_> = node.dependencies.iter().filter_map(of).collect();
            dependencies.sort_unstable();
            Some(Dependency { dependency_ref: of(&node.id)?, dependencies })
        })
        .collect();
    dependencies.sort_unstable_by(|one, other| one.dependency_ref.cmp(&other.dependency_ref));
    let bom = Bom {
        // Without one, which would be another each time.
        serial_number: None,
        spec_version: SpecVersion::V1_5,
        metadata: Some(Metadata {
            timestamp: Some(DateTime::try_from(super::date(time)?).context("the version's date")?),
            component: agent,
            ..Metadata::default()
        }),
        components: Some(Components(components)),
        dependencies: Some(Dependencies(dependencies)),
        ..Bom::default()
    };
    let found = bom.validate_version(SpecVersion::V1_5);
    ensure!(
        found.passed(),
        "what the release is made of is not written as CycloneDX asks: {found:?}"
    );
    let mut text = Vec::new();
    bom.output_as_json_v1_5(&mut text).context("cannot write what the release is made of")?;
    let path = output.join(format!("{PACKAGE}-{VERSION}-linux-{arch}.cdx.json"));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Name and version of all that cargo builds for the agent, and for building it.
fn parts(arch: Arch) -> Result<BTreeSet<(String, String)>> {
    let printed = workspace::cargo()
        .args(["tree", "--locked", "--package", PACKAGE, "--target", arch.static_target()])
        .args(["--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .read()?;
    printed
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            let (name, version) =
                words.next().zip(words.next()).context("cargo tree names no version")?;
            Ok((name.to_owned(), version.trim_start_matches('v').to_owned()))
        })
        .collect()
}

fn checksums() -> Result<BTreeMap<(String, String), String>> {
    let path = tree::ours("Cargo.lock");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let lock: Lock =
        toml::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
    let locked = lock.package.into_iter();
    Ok(locked
        .filter_map(|Locked { name, version, checksum }| Some(((name, version), checksum?)))
        .collect())
}

fn component(part: &Crate, checksums: &BTreeMap<(String, String), String>) -> Result<Component> {
    let kind =
        if part.name == PACKAGE { Classification::Application } else { Classification::Library };
    let mut component = Component::new(kind, &part.name, &part.version, Some(reference(part)));
    if part.source.is_some() {
        let purl = Purl::new("cargo", &part.name, &part.version);
        component.purl = Some(purl.with_context(|| format!("{} cannot be named", part.name))?);
    }
    // Older crates write a stroke for «or».
    let licence = part.license.as_ref().map(|text| text.replace('/', " OR "));
    component.licenses =
        licence.map(|text| Licenses(vec![LicenseChoice::Expression(SpdxExpression::new(&text))]));
    let checksum = checksums.get(&(part.name.clone(), part.version.clone()));
    component.hashes = checksum.map(|checksum| {
        Hashes(vec![Hash { alg: HashAlgorithm::SHA_256, content: HashValue(checksum.clone()) }])
    });
    Ok(component)
}

/// What other entries name a crate by.
fn reference(part: &Crate) -> String {
    format!("{}@{}", part.name, part.version)
}
