//! `overlay-agent authority`: who signs for etcd and for all hosts.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{consent::ConsentArgs, etcd::EtcdArgs};
use crate::{
    exit::Exit,
    output::OutputFormat,
    provision::{self, Rotate},
    state_file,
};

/// The verbs of `authority`.
#[derive(Debug, Subcommand)]
pub enum AuthorityCommand {
    /// Say for how long it is good, and whether it is being made another
    Status(AuthorityStatusArgs),
    /// Make it another on all hosts while everything goes on, or go on where that was interrupted
    Rotate(RotateArgs),
    /// Take the next one from a file, on each other host with a share in etcd
    Adopt(AdoptArgs),
}

/// Arguments of `authority status`.
#[derive(Debug, Args)]
pub struct AuthorityStatusArgs {
    /// How to answer
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Arguments of `authority rotate`.
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// A host that is not waited for, and has to join again: its name, as `overlay-agent hosts` has it, its address or its
    /// subnet; more than once for several
    #[arg(long, value_name = "HOST")]
    pub without: Vec<String>,

    /// Whether to ask.
    #[command(flatten)]
    pub consent: ConsentArgs,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Arguments of `authority adopt`.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// A copy of what `authority rotate` has made
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Does what one of the verbs says.
pub async fn run(command: AuthorityCommand) -> Result<Exit> {
    let state_file = Path::new(state_file::DEFAULT_PATH);
    match command {
        AuthorityCommand::Status(args) => {
            let status = provision::authority_status(&args.etcd.reach(state_file)?).await?;
            args.output.print(&status, || status.to_text())?;
            if status.rotation.is_some() {
                return Ok(Exit::Failure);
            }
        }
        AuthorityCommand::Rotate(args) => {
            let rotate = Rotate {
                without: args.without,
                etcd: args.etcd.reach(state_file)?,
                consent: args.consent.into(),
            };
            provision::rotate(&rotate).await?;
        }
        AuthorityCommand::Adopt(args) => {
            provision::adopt(&args.file, &args.etcd.reach(state_file)?).await?;
        }
    }
    Ok(Exit::Ok)
}
