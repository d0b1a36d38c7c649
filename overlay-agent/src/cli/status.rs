//! `overlay-agent status`: what the running agent does, in words or as JSON.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::admin::fetch_status;

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
pub async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let status = fetch_status(&args.socket).await?;
    let text = match args.output {
        Output::Text => status.to_text(),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&status)?),
    };
    io::stdout().write_all(text.as_bytes()).context("cannot print the status")
}
