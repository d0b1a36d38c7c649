//! Flags of flanneld's that have no meaning here: taken so that its command lines go on working, and said
//! to be without effect.

use clap::Args;

use super::go_bool;

const WITHOUT_EFFECT: &str = "Taken from flanneld's command lines, without effect";

/// What flanneld is told about Kubernetes and by whom it logs, as typed; `None` where it was not.
#[derive(Debug, Args)]
#[command(next_help_heading = WITHOUT_EFFECT)]
pub struct FlanneldArgs {
    /// Only false is taken: leases are in etcd, not in Kubernetes
    #[arg(
        long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = go_bool, value_name = "BOOL"
    )]
    pub kube_subnet_mgr: Option<bool>,

    /// Kubernetes is not asked
    #[arg(long, value_name = "URL")]
    pub kube_api_url: Option<String>,

    /// Kubernetes is not asked
    #[arg(long, value_name = "FILE")]
    pub kubeconfig_file: Option<String>,

    /// Nothing is annotated in Kubernetes
    #[arg(long, value_name = "PREFIX")]
    pub kube_annotation_prefix: Option<String>,

    /// The network config is in etcd, and flanneld reads this file for Kubernetes only
    #[arg(long, value_name = "FILE")]
    pub net_config_path: Option<String>,

    /// No node of Kubernetes is marked
    #[arg(
        long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = go_bool, value_name = "BOOL"
    )]
    pub set_node_network_unavailable: Option<bool>,

    /// Only IPv4 is carried
    #[arg(long, value_name = "IP")]
    pub public_ipv6: Option<String>,

    /// Leases are kept alive all the time, not renewed before their end. 1 to 1439
    #[arg(long, value_name = "MINUTES", allow_hyphen_values = true, value_parser = super::go_style::go_int)]
    pub subnet_lease_renew_margin: Option<i64>,

    /// -v and `RUST_LOG` say how much is logged
    #[arg(long, value_name = "PATTERNS")]
    pub vmodule: Option<String>,

    /// No stack traces are logged
    #[arg(long = "log_backtrace_at", value_name = "PLACE")]
    pub log_backtrace_at: Option<String>,

    /// The log goes to stderr, whatever this says
    #[arg(
        long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = go_bool, value_name = "BOOL"
    )]
    pub logtostderr: Option<bool>,

    /// The log goes to stderr and nowhere else
    #[arg(
        long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = go_bool, value_name = "BOOL"
    )]
    pub alsologtostderr: Option<bool>,

    /// The log goes to stderr, whatever its severity
    #[arg(long, value_name = "SEVERITY")]
    pub stderrthreshold: Option<String>,

    /// The log goes to stderr and to no file
    #[arg(long = "log_dir", value_name = "DIR")]
    pub log_dir: Option<String>,
}

impl FlanneldArgs {
    /// One sentence for each reason that flags are without effect, naming those that were given.
    pub(crate) fn without_effect(&self) -> Vec<String> {
        let kubernetes = [
            ("--kube-api-url", self.kube_api_url.is_some()),
            ("--kubeconfig-file", self.kubeconfig_file.is_some()),
            ("--kube-annotation-prefix", self.kube_annotation_prefix.is_some()),
            ("--net-config-path", self.net_config_path.is_some()),
            ("--set-node-network-unavailable", self.set_node_network_unavailable.is_some()),
        ];
        let log = [
            ("--vmodule", self.vmodule.is_some()),
            ("--log_backtrace_at", self.log_backtrace_at.is_some()),
            ("--logtostderr", self.logtostderr.is_some()),
            ("--alsologtostderr", self.alsologtostderr.is_some()),
            ("--stderrthreshold", self.stderrthreshold.is_some()),
            ("--log_dir", self.log_dir.is_some()),
        ];
        let ipv6 = [("--public-ipv6", self.public_ipv6.as_ref().is_some_and(|ip| !ip.is_empty()))];
        let margin = [("--subnet-lease-renew-margin", self.subnet_lease_renew_margin.is_some())];
        [
            sentence(&kubernetes, "leases and the network config are in etcd, not in Kubernetes"),
            sentence(&log, "the log goes to stderr, and -v and RUST_LOG say how much of it"),
            sentence(&ipv6, "only IPv4 is carried"),
            sentence(&margin, "leases are kept alive all the time"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn sentence(flags: &[(&str, bool)], why: &str) -> Option<String> {
    let given: Vec<_> = flags.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag).collect();
    let have = if given.len() == 1 { "has" } else { "have" };
    (!given.is_empty()).then(|| format!("{} {have} no effect: {why}", given.join(", ")))
}
