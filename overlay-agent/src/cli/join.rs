//! `overlay-agent join`: every other host, with the file that `init` made.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use clap::Args;
use overlay_lease::store::etcd::Secret;

use crate::{
    address_pools::{PoolSize, USUAL},
    exit::{Exit, WithExit as _},
    provision::{self, Consent, Join, token::Token},
};

/// Arguments of `join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The file that `overlay-agent init` made, or what is in it; - reads standard input, which keeps it off
    /// the list of processes
    #[arg(value_name = "FILE|TOKEN")]
    pub token: Secret,

    /// The interface that reaches the other hosts, by name or address; by default the way out
    #[arg(long, value_name = "NAME|IP")]
    pub iface: Option<String>,

    /// Take part in etcd, too, with the file for members that `init` made: with three such hosts, any one may be lost
    #[arg(long)]
    pub etcd: bool,

    /// Give the networks that Docker makes parts of this host's subnet, too, as `docker-opts --address-pools` does; a host
    /// that has once been told so goes on
    #[arg(long, value_name = "SIZE", num_args = 0..=1, require_equals = true, default_missing_value = USUAL)]
    pub address_pools: Option<PoolSize>,

    /// Do not ask before containers are ended
    #[arg(long)]
    pub yes: bool,

    /// Only say what would be done
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
}

/// Makes this host a member.
pub async fn run(args: JoinArgs) -> Result<()> {
    let token = token(&args.token)?;
    let consent = Consent::of(args.yes, args.dry_run);
    let address_pools = args.address_pools;
    provision::join(&Join { token, iface: args.iface, etcd: args.etcd, address_pools, consent })
        .await
}

/// What was made by `init`, however it is given.
pub(super) fn token(given: &Secret) -> Result<Token> {
    line(given.reveal())?.parse::<Token>().exit(Exit::Data)
}

/// The line itself, wherever it is.
fn line(given: &str) -> Result<String> {
    if given == "-" {
        let mut line = String::new();
        io::stdin()
            .read_to_string(&mut line)
            .context("cannot read the token from standard input")?;
        return Ok(line);
    }
    let path = Path::new(given);
    if !path.exists() && !given.contains('/') {
        return Ok(given.to_owned());
    }
    let line = fs::read_to_string(path)
        .with_context(|| format!("cannot read the token in {}", path.display()))
        .exit(Exit::NotFound)?;
    let mode = fs::metadata(path).map_or(0, |found| found.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!("others can read the token in {}: `chmod 600` it", path.display());
    }
    Ok(line)
}
