//! `overlay-agent init`: the first host of an overlay, with one line.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use ipnetwork::Ipv4Network;
use overlay_lease::{
    store::etcd::{EtcdConfig, Identity},
    wire::key::KeyPrefix,
};

use crate::{
    address_pools::{PoolSize, USUAL},
    exit::{Exit, WithExit as _},
    provision::{self, Consent, DEFAULT_NETWORK, Init},
};

const ETCD: &str = "etcd";

/// Arguments of `init`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct InitArgs {
    /// The overlay's network, from which every host gets a part
    #[arg(long, value_name = "CIDR", help = network_help())]
    pub network: Option<Ipv4Network>,

    /// The interface that reaches the other hosts, by name or address; by default the way out
    #[arg(long, value_name = "NAME|IP")]
    pub iface: Option<String>,

    /// How long the line for the other hosts is good
    #[arg(
        long, value_name = "HOURS", default_value_t = 24,
        value_parser = clap::value_parser!(u32).range(1..=8760)
    )]
    pub token_hours: u32,

    /// Let the line for the other hosts be good for one of them
    #[arg(long)]
    pub token_once: bool,

    /// For how long hosts' certificates are made from now on, 8,760 hours if nothing was ever said. Each is made anew at half
    /// of that
    #[arg(
        long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(10..=315_360_000),
        conflicts_with = "etcd_endpoints", help_heading = ETCD
    )]
    pub certificate_lifetime: Option<u32>,

    /// An etcd that exists, as a list of URLs separated by commas; otherwise this host's is set up
    #[arg(long, value_name = "URLS", value_delimiter = ',', help_heading = ETCD)]
    pub etcd_endpoints: Vec<String>,

    /// The place in etcd where the overlay's config and leases are
    #[arg(long, value_name = "KEY", default_value = "/coreos.com/network", help_heading = ETCD)]
    pub etcd_prefix: String,

    /// The authority that signed that etcd's certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "etcd_endpoints", help_heading = ETCD)]
    pub etcd_cafile: Option<PathBuf>,

    /// The certificate that hosts show to it, in PEM
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile", help_heading = ETCD)]
    pub etcd_certfile: Option<PathBuf>,

    /// That certificate's private key, in PEM
    #[arg(long, value_name = "FILE", requires = "etcd_certfile", help_heading = ETCD)]
    pub etcd_keyfile: Option<PathBuf>,

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

    /// Set etcd up without certificates, open to everybody who reaches it: for a lab only
    #[arg(long, conflicts_with = "etcd_endpoints", help_heading = ETCD)]
    pub no_tls: bool,
}

fn network_help() -> String {
    format!(
        "The overlay's network, from which every host gets a part; by default the one that is in etcd, \
         else {DEFAULT_NETWORK}"
    )
}

impl From<InitArgs> for Init {
    fn from(args: InitArgs) -> Self {
        let identity = args
            .etcd_certfile
            .zip(args.etcd_keyfile)
            .map(|(cert_file, key_file)| Identity { cert_file, key_file });
        let etcd = (!args.etcd_endpoints.is_empty()).then(|| EtcdConfig {
            endpoints: args.etcd_endpoints,
            prefix: KeyPrefix::new(&args.etcd_prefix),
            ca_file: args.etcd_cafile,
            identity,
            user: None,
        });
        Self {
            network: args.network,
            iface: args.iface,
            address_pools: args.address_pools,
            etcd,
            prefix: args.etcd_prefix,
            tls: !args.no_tls,
            token_lifetime: Duration::from_hours(args.token_hours.into()),
            token_once: args.token_once,
            certificate_lifetime: args
                .certificate_lifetime
                .map(|seconds| Duration::from_secs(seconds.into())),
            consent: Consent::of(args.yes, args.dry_run),
        }
    }
}

/// Makes this host the first one.
pub async fn run(args: InitArgs) -> anyhow::Result<()> {
    for file in [&args.etcd_cafile, &args.etcd_certfile, &args.etcd_keyfile].into_iter().flatten() {
        // The service reads them later, from another folder.
        if !file.is_absolute() {
            let error = anyhow::anyhow!("{} has to be an absolute path", file.display());
            return Err(error).exit(Exit::Usage);
        }
    }
    provision::init(&args.into()).await
}
