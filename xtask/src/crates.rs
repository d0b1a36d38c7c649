//! What cargo knows of the crates that a target's build may need.

use anyhow::{Context as _, Result};
use overlay_lab::workspace;
use serde::Deserialize;

/// The crates, and how they hang together.
#[derive(Debug, Deserialize)]
pub(crate) struct Crates {
    /// All that are named anywhere.
    pub(crate) packages: Vec<Crate>,
    resolve: Resolve,
    /// Ours, by their identifiers.
    pub(crate) workspace_members: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

/// A crate that is built.
#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    /// Its identifier.
    pub(crate) id: String,
    /// Those of the crates that it is built with.
    pub(crate) dependencies: Vec<String>,
}

/// One version of a crate.
#[derive(Debug, Deserialize)]
pub(crate) struct Crate {
    /// What cargo tells it by.
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression.
    pub(crate) license: Option<String>,
    /// Where it is from; nowhere for ours.
    pub(crate) source: Option<String>,
    /// What it asks for, by name.
    pub(crate) dependencies: Vec<Asked>,
}

/// A crate that another asks for.
#[derive(Debug, Deserialize)]
pub(crate) struct Asked {
    pub(crate) name: String,
}

impl Crates {
    /// Asks cargo.
    pub(crate) fn of(target: &str) -> Result<Self> {
        let command = workspace::cargo().args([
            "metadata",
            "--locked",
            "--format-version",
            "1",
            "--filter-platform",
            target,
        ]);
        serde_json::from_str(&command.read()?)
            .with_context(|| format!("`{command}` printed something else than its metadata"))
    }

    /// Those that are built.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.resolve.nodes
    }
}
