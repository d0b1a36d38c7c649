//! `overlay-agent etcd`: the hosts that have a share in etcd, and copies of what it holds.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use overlay_lease::store::etcd::Secret;

use super::{consent::ConsentArgs, etcd::EtcdArgs, join::token};
use crate::{
    exit::Exit,
    output::{OutputFormat, print},
    provision::{self, Backup, Consent, Remove, Restore, TakePart},
    state_file,
};

/// The verbs of `etcd`.
#[derive(Debug, Subcommand)]
pub enum EtcdCommand {
    /// Say how every member is, and how many of them may be lost
    Status(ClusterArgs),
    /// Make this host, which is one of the overlay, a member of etcd
    Add(AddArgs),
    /// Take a member out of etcd, mostly one that is gone for good
    Remove(RemoveArgs),
    /// Make this host a member of etcd in the place of another one
    Replace(ReplaceArgs),
    /// Copy all that etcd holds into a file; a timer does it every hour on every member
    Backup(BackupArgs),
    /// Make of a copy a new etcd on this host, when too many members are gone
    Restore(RestoreArgs),
}

/// Arguments of `etcd status`.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// How to answer
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Arguments of `etcd add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The file for members that `init` made, or what is in it; - reads standard input, which keeps it off the list
    /// of processes
    #[arg(value_name = "FILE|TOKEN")]
    pub token: Secret,

    /// The interface that reaches the other hosts, by name or address; by default the way out
    #[arg(long, value_name = "NAME|IP")]
    pub iface: Option<String>,

    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `etcd remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Which one, as `etcd status` calls it, or its address
    #[arg(value_name = "MEMBER")]
    pub member: String,

    /// Whether to ask.
    #[command(flatten)]
    pub consent: ConsentArgs,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Arguments of `etcd replace`.
#[derive(Debug, Args)]
pub struct ReplaceArgs {
    /// The member that goes, as `etcd status` calls it, or its address
    #[arg(value_name = "MEMBER")]
    pub member: String,

    /// Do not ask
    #[arg(long, conflicts_with = "dry_run")]
    pub yes: bool,

    /// As for `etcd add`.
    #[command(flatten)]
    pub add: AddArgs,
}

/// Arguments of `etcd backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Where to write it; by default a new file in /var/lib/overlay/backups
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// How many files to keep there
    #[arg(
        long, value_name = "COUNT", default_value_t = 48, conflicts_with = "file",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub keep: u16,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Arguments of `etcd restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// What `etcd backup` has made; by default what this host's own etcd, which is stopped, has on its disk
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// The interface that reaches the other hosts, by name or address; by default the way out
    #[arg(long, value_name = "NAME|IP")]
    pub iface: Option<String>,

    /// Whether to ask.
    #[command(flatten)]
    pub consent: ConsentArgs,

    /// Where etcd was.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Does what one of the verbs says.
pub async fn run(command: EtcdCommand) -> Result<Exit> {
    let state_file = Path::new(state_file::DEFAULT_PATH);
    match command {
        EtcdCommand::Status(args) => {
            let status = provision::status(&args.etcd.reach(state_file)?).await?;
            args.output.print(&status, || status.to_text())?;
            if !status.is_fine() {
                return Ok(Exit::Failure);
            }
        }
        EtcdCommand::Add(args) => {
            let consent = Consent::of(false, args.dry_run);
            provision::add(&take_part(args, None, consent)?).await?;
        }
        EtcdCommand::Replace(args) => {
            let consent = Consent::of(args.yes, args.add.dry_run);
            provision::add(&take_part(args.add, Some(args.member), consent)?).await?;
        }
        EtcdCommand::Remove(args) => {
            let remove = Remove {
                etcd: args.etcd.reach(state_file)?,
                member: args.member,
                consent: args.consent.into(),
            };
            provision::remove(&remove).await?;
        }
        EtcdCommand::Backup(args) => {
            let backup = Backup {
                etcd: args.etcd.reach(state_file)?,
                file: args.file,
                keep: args.keep.into(),
            };
            let path = provision::backup(&backup).await?;
            print(format_args!(
                "All that etcd holds, and the hosts' authority, are in {}\n",
                path.display()
            ))?;
        }
        EtcdCommand::Restore(args) => {
            let restore = Restore {
                etcd: args.etcd.reach(state_file)?,
                file: args.file,
                iface: args.iface,
                consent: args.consent.into(),
            };
            provision::restore(&restore).await?;
        }
    }
    Ok(Exit::Ok)
}

fn take_part(args: AddArgs, replaces: Option<String>, consent: Consent) -> Result<TakePart> {
    Ok(TakePart { token: token(&args.token)?, replaces, iface: args.iface, consent })
}
