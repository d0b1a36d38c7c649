//! The flags that say how to reach etcd: the same for every verb that does.

use std::path::Path;

use clap::Args;
use overlay_lease::store::etcd::{EtcdConfig, Secret};

use crate::{
    authority::as_root,
    control::etcd_members,
    exit::{Exit, WithExit as _},
};

const ETCD: &str = "etcd";

/// How to reach etcd, as typed.
#[derive(Debug, Args)]
pub struct EtcdArgs {
    /// Where etcd is: a list separated by commas
    #[arg(
        long,
        value_name = "URLS",
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379",
        help_heading = ETCD
    )]
    pub etcd_endpoints: String,

    /// The place in etcd where this network's config and leases are
    #[arg(long, value_name = "KEY", default_value = "/coreos.com/network", help_heading = ETCD)]
    pub etcd_prefix: String,

    /// The client's private key, in PEM; goes with --etcd-certfile
    #[arg(
        long, value_name = "FILE", default_value = "", hide_default_value = true,
        help_heading = ETCD
    )]
    pub etcd_keyfile: String,

    /// The client's certificate, in PEM; goes with --etcd-keyfile
    #[arg(
        long, value_name = "FILE", default_value = "", hide_default_value = true,
        help_heading = ETCD
    )]
    pub etcd_certfile: String,

    /// The authority that signed etcd's certificate, in PEM; alone is enough for TLS
    #[arg(
        long, value_name = "FILE", default_value = "", hide_default_value = true,
        help_heading = ETCD
    )]
    pub etcd_cafile: String,

    /// The user to be in etcd
    #[arg(
        long, value_name = "NAME", default_value = "", hide_default_value = true,
        help_heading = ETCD
    )]
    pub etcd_username: String,

    /// The user's password; whoever lists processes sees it, so rather name a file, or set `OVERLAY_ETCD_PASSWORD`
    #[arg(
        long, value_name = "PASSWORD", default_value = "", hide_default_value = true,
        help_heading = ETCD
    )]
    pub etcd_password: Secret,

    /// The file that has the user's password in its first line
    #[arg(
        long, value_name = "FILE", default_value = "", hide_default_value = true,
        help_heading = ETCD
    )]
    pub etcd_password_file: String,
}

impl EtcdArgs {
    /// Where etcd is: as typed, and wherever else its members were when the agent last heard of them. On a host with a share in
    /// it, somebody asks who may do everything.
    pub(super) fn reach(&self, state_file: &Path) -> anyhow::Result<EtcdConfig> {
        let mut config = EtcdConfig::try_from(self).exit(Exit::Usage)?;
        let heard = etcd_members::heard_of(state_file, &config.endpoints);
        let others: Vec<_> =
            heard.into_iter().filter(|member| !config.endpoints.contains(member)).collect();
        config.endpoints.extend(others);
        Ok(as_root(config))
    }
}
