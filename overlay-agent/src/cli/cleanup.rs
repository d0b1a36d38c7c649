//! `overlay-agent cleanup`: removes what the agent made on this host.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::Args;
use overlay_lease::store::operate::give_back;

use super::{config::store, etcd::EtcdArgs};
use crate::{
    admin::DEFAULT_SOCKET,
    cleanup::{Places, cleanup, own_lease},
    control::{etcd_members, last_known},
    exit::{Exit, OwnExit as _, WithExit as _},
    kernel::datapath::DEFAULT_PIN_PATH,
    state_file, subnet_env,
};

/// Where things of the agent's are.
#[derive(Debug, Args)]
pub struct PlacesArgs {
    /// Where the programs and maps are pinned
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH)]
    pub pin_path: PathBuf,

    /// The file that tells Docker the subnet
    #[arg(long, value_name = "FILE", default_value = subnet_env::DEFAULT_PATH)]
    pub subnet_file: PathBuf,

    /// The file by which this host finds its subnet again. It is removed with the lease
    #[arg(long, value_name = "FILE", default_value = state_file::DEFAULT_PATH)]
    pub state_file: PathBuf,

    /// Where the agent listens
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

impl From<PlacesArgs> for Places {
    fn from(args: PlacesArgs) -> Self {
        let PlacesArgs { pin_path, subnet_file, state_file, socket } = args;
        Self { pin_path, subnet_file, state_file, socket }
    }
}

/// Arguments of `cleanup`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Where things of the agent's are.
    #[command(flatten)]
    pub places: PlacesArgs,

    /// Give the lease back to etcd, too, so that another host may have the subnet at once
    #[arg(long)]
    pub lease: bool,

    /// How to reach etcd, for --lease.
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// Cleans up and says what was there.
pub async fn run(args: CleanupArgs) -> anyhow::Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err(anyhow::anyhow!("overlay-agent cleanup has to be root"))
            .exit(Exit::NotPermitted);
    }
    let places = Places::from(args.places);
    let lease = if args.lease {
        let lease = own_lease(&places).await?;
        let lease = lease.context("there is no lease to give back: no subnet file, or no device");
        Some((lease.exit(Exit::NotFound)?, store(&args.etcd)?))
    } else {
        None
    };
    let mut removed = cleanup(&places).await?;
    if let Some(((subnet, vtep_mac), store)) = lease {
        let given = give_back(&store, subnet, vtep_mac).await.own_exit();
        given.with_context(|| {
            format!("everything on this host is removed, but lease {subnet} is still in etcd")
        })?;
        removed.push(format!("lease {subnet} from etcd"));
        last_known::forget(&places.state_file)?;
        etcd_members::forget(&places.state_file)?;
        if state_file::remove(&places.state_file)? {
            removed.push(places.state_file.display().to_string());
        }
    }
    let text = if removed.is_empty() {
        "there was nothing to remove\n".to_owned()
    } else {
        removed.iter().map(|line| ["removed ", line, "\n"].concat()).collect()
    };
    io::stdout().write_all(text.as_bytes()).context("cannot print what was removed")
}
