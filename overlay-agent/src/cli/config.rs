//! `overlay-agent config`: the network config that all hosts share, checked before it is written.

use std::{
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use overlay_lease::{
    config::{NetworkConfig, ParsedConfig},
    store::{
        Store as _,
        etcd::EtcdStore,
        operate::{self, OperateError},
    },
};

use super::etcd::EtcdArgs;
use crate::{
    exit::{Exit, OwnExit as _, WithExit as _},
    output::print,
    state_file,
};

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
                return Err(anyhow!("there is no network config at {key}")).exit(Exit::NotFound);
            };
            print(format_args!("{}\n", String::from_utf8_lossy(&entry.value).trim_end()))?;
        }
        ConfigCommand::Set(args) => {
            let (text, parsed) = read(&args.file)?;
            let store = store(&args.etcd)?;
            match operate::set_config(&store, &text, &parsed.config, args.force).await {
                Err(error @ OperateError::Harmful { .. }) => {
                    return Err(anyhow!("{error}; --force writes it")).exit(Exit::Conflict);
                }
                outcome => outcome.own_exit()?,
            }
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
pub(super) fn store(args: &EtcdArgs) -> anyhow::Result<EtcdStore> {
    let config = args.reach(Path::new(state_file::DEFAULT_PATH))?;
    EtcdStore::new(&config).exit(Exit::Usage)
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
