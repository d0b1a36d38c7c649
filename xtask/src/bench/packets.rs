//! `bench packets`: the agent's own benchmark of its BPF programs, which xtask cannot link with.

use anyhow::Result;
use clap::Args;
use overlay_lab::workspace;

use crate::{build, setup};

/// The command line of `bench packets`.
#[derive(Debug, Clone, Args)]
pub(super) struct Options {
    /// Rounds; every program meets every number of leases once in each
    #[arg(long, value_name = "N", default_value_t = 60)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

/// Builds and runs it.
pub(super) fn run(options: &Options) -> Result<()> {
    setup::ensure()?;
    build::object()?;
    workspace::cargo()
        .args(["bench", "--locked", "--package", "overlay-agent", "--bench", "packets", "--"])
        .args(["--rounds", &options.rounds.to_string()])
        .stream()
}
