//! `bench control`: the control plane with as many leases as a /8 has. The generator itself is an example of the
//! agent's crate, because it runs the agent's own control loops.

use anyhow::{Context as _, Result};
use clap::Args;
use overlay_lab::{command::Cmd, workspace};

use crate::build;

/// The command line of `bench control`.
#[derive(Debug, Clone, Args)]
pub(super) struct Options {
    /// How many leases there are
    #[arg(long, default_value_t = 65_536)]
    leases: u32,
    /// How many agents' control loops follow them
    #[arg(long, default_value_t = 100)]
    agents: u32,
    /// How many hosts take a subnet at once
    #[arg(long, default_value_t = 1000)]
    acquiring: u32,
    /// How many leases change, one after the other
    #[arg(long, default_value_t = 200)]
    changes: u32,
}

/// Builds the agent and the generator, optimised, and runs it.
pub(super) fn run(options: &Options) -> Result<()> {
    build::object()?;
    workspace::cargo()
        .args(["build", "--locked", "--release", "--package", "overlay-agent"])
        .args(["--bin", "overlay-agent", "--example", "load"])
        .no_deadline()
        .stream()?;
    let release = workspace::target_dir()?.join("release");
    let number = |name: &str, value: u32| [format!("--{name}"), value.to_string()];
    Cmd::new(release.join("examples/load"))
        .args(number("leases", options.leases))
        .args(number("agents", options.agents))
        .args(number("acquiring", options.acquiring))
        .args(number("changes", options.changes))
        .arg("--agent")
        .arg(release.join("overlay-agent"))
        .no_deadline()
        .stream()
        .context("the load generator")
}
