//! The command line: one file per verb, arguments as they are typed.

pub mod authority;
pub mod checked;
pub mod cleanup;
pub mod config;
mod consent;
pub mod docker_opts;
pub mod doctor;
pub mod drops;
pub mod env;
pub mod etcd;
pub mod etcd_cluster;
pub mod expel;
pub mod flanneld;
mod go_style;
pub mod init;
pub mod join;
pub mod lease;
pub mod leave;
pub mod report;
pub mod run;
pub mod status;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use self::{env::Appended, go_style::Rewritten};
use crate::exit::Exit;

/// An overlay network for Docker hosts, a drop-in for flannel's etcd and vxlan mode.
#[derive(Debug, Parser)]
#[command(
    name = "overlay-agent",
    version,
    propagate_version = true,
    args_override_self = true,
    after_help = Exit::help(),
    disable_help_subcommand = true
)]
pub struct Cli {
    /// Say more: -v what is done, -v=5 and above every detail. `RUST_LOG` overrides it.
    #[arg(
        short,
        long = "v",
        global = true,
        value_name = "LEVEL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = 0,
        default_missing_value = "1",
        value_parser = go_style::level,
        hide_default_value = true
    )]
    pub verbosity: u8,

    /// What of the command line and the environment was passed over: a sentence each.
    #[arg(skip)]
    pub passed_over: Vec<String>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take a subnet, follow everybody else's, and carry the packets between them
    #[command(after_help = env::help())]
    Run(Box<run::RunArgs>),
    /// Say what the running agent does, and what is wrong if something is
    Status(status::StatusArgs),
    /// Look for what is known to go wrong, and say what mends it
    Doctor(Box<doctor::DoctorArgs>),
    /// Show packets that were dropped, each with the reason, or follow them as they come
    Drops(Box<drops::DropsArgs>),
    /// Write one file with all that tells somebody else what this host is like, and no secrets
    Report(Box<report::ReportArgs>),
    /// Make this host the first one of an overlay: etcd, agent and Docker
    Init(Box<init::InitArgs>),
    /// Make this host a member, with the file that `init` made on the first one
    Join(join::JoinArgs),
    /// Give the lease back, and Docker a bridge of its own
    Leave(Box<leave::LeaveArgs>),
    /// Check, read or write the network config that all hosts share
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Look at leases, reserve subnets and release them
    #[command(subcommand)]
    Lease(lease::LeaseCommand),
    /// Look at etcd's members, add and remove them, and keep copies of what it holds
    #[command(subcommand)]
    Etcd(etcd_cluster::EtcdCommand),
    /// List the hosts that etcd knows by a certificate of their own
    Hosts(expel::HostsArgs),
    /// Shut a host out: its certificate opens nothing any more, and no host takes a packet of its containers
    Expel(expel::ExpelArgs),
    /// Look at the authority that signs for etcd and for all hosts, and make it another
    #[command(subcommand)]
    Authority(authority::AuthorityCommand),
    /// Remove everything that the agent made on this host; the lease stays
    Cleanup(cleanup::CleanupArgs),
    /// Turn subnet.env into options for dockerd, as flannel's mk-docker-opts.sh does
    DockerOpts(docker_opts::DockerOptsArgs),
}

impl Cli {
    /// Reads a command line, flannel's way of writing it included, with the environment as
    /// fallback.
    pub fn from_command_line(
        args: impl IntoIterator<Item = OsString>,
        environment: &impl env::Environment,
    ) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        command.build();
        let Rewritten { args, ignored } = go_style::to_double_dashes(&command, args);
        let Appended { args, bad } = env::append(&command, args, environment)?;
        let matches = command.try_get_matches_from_mut(args)?;
        let cli = Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        Ok(Self { passed_over: ignored_words(&ignored).into_iter().chain(bad).collect(), ..cli })
    }
}

/// The words after the flags, as a sentence. Only the first is shown: there may be a password among the others.
fn ignored_words(words: &[OsString]) -> Option<String> {
    let (first, others) = words.split_first()?;
    let first = first.to_string_lossy();
    let others = match others.len() {
        0 => String::new(),
        count => format!(", and the {count} after it"),
    };
    Some(format!(
        "{first:?} is no flag: it is ignored{others}, as by flanneld, for which the flags end there"
    ))
}

/// A boolean as Go writes it, for `value_parser`.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("it must be true or false".to_owned()),
    }
}

#[cfg(test)]
mod manual;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
