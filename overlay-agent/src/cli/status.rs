//! `overlay-agent status`: what the running agent does, in words or as JSON.

use std::path::PathBuf;

use clap::Args;

use crate::{
    admin::{DEFAULT_SOCKET, fetch_status},
    exit::{Exit, WithExit as _},
    output::OutputFormat,
};

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Where the running agent listens
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// How to answer
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

/// Asks the running agent and prints its answer. How things are decides the exit code.
pub async fn run(args: StatusArgs) -> anyhow::Result<Exit> {
    let status = fetch_status(&args.socket).await.exit(Exit::Unavailable)?;
    args.output.print(&status, || status.to_text())?;
    Ok(if status.is_fine() { Exit::Ok } else { Exit::Failure })
}
