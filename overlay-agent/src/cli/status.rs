//! `overlay-agent status`: what the running agent does, in words or as JSON.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Where the running agent listens
    #[arg(long, value_name = "PATH", default_value = super::run::DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// How to answer
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// In words and tables
    Text,
    /// As JSON
    Json,
}

/// Asks the running agent and prints its answer.
#[expect(
    clippy::unused_async,
    reason = "asking the agent will wait for its socket"
)]
pub async fn run(args: StatusArgs) -> anyhow::Result<()> {
    anyhow::bail!("{} is not connected yet", args.socket.display());
}
