//! `overlay-agent config`: the network config that all hosts share, checked before it is written.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use super::{etcd::EtcdArgs, output::print};
use crate::{
    exit::{Exit, WithExit as _},
    network_config::{NetworkConfig, ParsedConfig, change::Harm},
    run_config::EtcdConfig,
    store::Etcd,
};

/// How often to start anew when somebody writes at the same time.
const RACES: usize = 10;

/// The verbs of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether a network config follows every rule, without writing it anywhere
    Check(FileArgs),
    /// Print the network config that is in etcd
    Get(EtcdArgs),
    /// Check a network config and write it to etcd
    Set(SetArgs),
}

/// Which text is meant.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The file; - is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Arguments of `config set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The file; - is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Write it even if leases would not be allowed any more, or hosts be parted from each other
    #[arg(long)]
    pub force: bool,

    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Does what was asked.
pub async fn run(command: ConfigCommand) -> anyhow::Result<Exit> {
    match command {
        ConfigCommand::Check(args) => {
            let (_, parsed) = read(&args.file)?;
            print(describe(&parsed.config))?;
        }
        ConfigCommand::Get(args) => {
            let store = store(&args)?;
            let key = store.prefix().config_key();
            let Some(entry) = store.get(&key).await.exit(Exit::Unavailable)? else {
                return Err(anyhow::anyhow!("there is no network config at {key}"))
                    .exit(Exit::NotFound);
            };
            print(format_args!("{}\n", String::from_utf8_lossy(&entry.value).trim_end()))?;
        }
        ConfigCommand::Set(args) => {
            let (text, parsed) = read(&args.file)?;
            let store = store(&args.etcd)?;
            set(&store, &text, &parsed.config, args.force).await?;
            print(format_args!(
                "{} is set: {}",
                store.prefix().config_key(),
                describe(&parsed.config)
            ))?;
        }
    }
    Ok(Exit::Ok)
}

/// The store of one command: it asks, and does not wait for etcd to come back.
pub(super) fn store(args: &EtcdArgs) -> anyhow::Result<Etcd> {
    let config = EtcdConfig::try_from(args).exit(Exit::Usage)?;
    Etcd::new(&config).exit(Exit::Usage)
}

/// Writes a config that has been checked, under the condition that what the decision rests on has
/// not changed.
pub async fn set(
    store: &Etcd,
    text: &[u8],
    config: &NetworkConfig,
    force: bool,
) -> anyhow::Result<()> {
    let key = store.prefix().config_key();
    for _ in 0..RACES {
        let old = store.get(&key).await.exit(Exit::Unavailable)?;
        let leases = store.list().await.exit(Exit::Unavailable)?;
        let subnets = leases
            .entries
            .iter()
            .filter_map(|entry| store.prefix().parse_subnet_key(&entry.key).ok())
            .map(|key| key.subnet);
        // What is malformed now stands for nothing that could be harmed.
        let before = old.as_ref().and_then(|entry| NetworkConfig::parse(&entry.value).ok());
        let harm = Harm::of(before.as_ref().map(|parsed| &parsed.config), config, subnets);
        if !harm.is_none() {
            if !force {
                return Err(anyhow::anyhow!("not written to {key}: {harm}; --force writes it"))
                    .exit(Exit::Conflict);
            }
            tracing::warn!("{harm}");
        }
        let revision = old.map_or(0, |entry| entry.mod_revision);
        if store.put_config(text, revision, leases.revision).await.exit(Exit::Unavailable)? {
            return Ok(());
        }
    }
    bail!("{key} or the leases change all the time: not written after {RACES} attempts")
}

fn read(file: &Path) -> anyhow::Result<(Vec<u8>, ParsedConfig)> {
    let (name, text) = if file == Path::new("-") {
        let mut text = Vec::new();
        let read = io::stdin().read_to_end(&mut text).map(|_| text);
        ("standard input".to_owned(), read)
    } else {
        (file.display().to_string(), std::fs::read(file))
    };
    let text = text.with_context(|| format!("cannot read {name}")).exit(Exit::NotFound)?;
    let parsed = NetworkConfig::parse(&text)
        .with_context(|| format!("the network config in {name} is malformed"))
        .exit(Exit::Config)?;
    for note in &parsed.notes {
        tracing::warn!("{note}");
    }
    // A line's end belongs to the file, not to the config.
    Ok((text.trim_ascii().to_vec(), parsed))
}

fn describe(config: &NetworkConfig) -> String {
    let NetworkConfig {
        network, subnet_len, subnet_min, subnet_max, vni, port, mtu, policy, ..
    } = config;
    let mtu = mtu.map_or_else(|| "the uplink's".to_owned(), |mtu| mtu.to_string());
    let policy = match policy.len() {
        0 => String::new(),
        count => format!("; a policy of {count} rules"),
    };
    format!(
        "Network {network}, room for {} hosts with a /{subnet_len} each, from {subnet_min} to \
         {subnet_max}; VNI {vni}, UDP port {port}, underlay MTU {mtu}{policy}\n",
        config.capacity()
    )
}
