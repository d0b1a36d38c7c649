//! `overlay-agent run`: the flags as they are typed. [`RunConfig`](crate::control::run_config::RunConfig) is what becomes of them.
//!
//! Names, defaults and meanings are flannel's, except for those under «Overlay».

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use overlay_lease::config::RulesMode;

use super::{etcd::EtcdArgs, flanneld::FlanneldArgs, go_bool, go_style::go_int};
use crate::{
    admin::DEFAULT_SOCKET, dataplane::source_check::Strictness, kernel::datapath::DEFAULT_PIN_PATH,
    state_file::DEFAULT_PATH as DEFAULT_STATE_FILE, subnet_env,
};

const UPLINK: &str = "Uplink";
const OURS: &str = "Overlay";
const FIREWALL: &str = "Firewall";

/// Arguments of `run`, as typed.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flannel has as many flags of that kind")]
pub struct RunArgs {
    /// How to reach etcd.
    #[command(flatten)]
    pub etcd: EtcdArgs,

    /// The interface that reaches the other hosts, by name or address; the first that exists counts
    #[arg(long, value_name = "NAME|IP", action = ArgAction::Append, help_heading = UPLINK)]
    pub iface: Vec<String>,

    /// A regular expression for the interface's address or name, tried after --iface
    #[arg(long, value_name = "REGEX", action = ArgAction::Append, help_heading = UPLINK)]
    pub iface_regex: Vec<String>,

    /// Use the interface that the kernel would reach this address by, tried after --iface-regex
    #[arg(
        long, value_name = "IP", default_value = "", hide_default_value = true,
        help_heading = UPLINK
    )]
    pub iface_can_reach: String,

    /// The address that the other hosts send to; by default the interface's own
    #[arg(
        long, value_name = "IP", default_value = "", hide_default_value = true,
        help_heading = UPLINK
    )]
    pub public_ip: String,

    /// Where to write the subnet and the MTU for Docker
    #[arg(long, value_name = "FILE", default_value = subnet_env::DEFAULT_PATH)]
    pub subnet_file: PathBuf,

    /// The address to serve health checks at. Whoever can reach it is answered; 0.0.0.0, flannel's own
    /// default, means everybody
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub healthz_ip: String,

    /// The port to serve /healthz, /readyz and /metrics at; 0 serves none
    #[arg(
        long, value_name = "PORT", default_value_t = 0, allow_hyphen_values = true,
        value_parser = go_int
    )]
    pub healthz_port: i64,

    /// Masquerade what leaves the overlay: the containers' packets, and the host's to remote containers.
    /// subnet.env says so to Docker, which then makes no such rules of its own
    #[arg(
        long, num_args = 0..=1, require_equals = true, default_value_t = false,
        default_missing_value = "true", value_parser = go_bool, action = ArgAction::Set,
        value_name = "BOOL", help_heading = FIREWALL
    )]
    pub ip_masq: bool,

    /// Let the kernel keep source ports where it can when masquerading, instead of choosing them at random
    #[arg(
        long, num_args = 0..=1, require_equals = true, default_value_t = false,
        default_missing_value = "true", value_parser = go_bool, action = ArgAction::Set,
        value_name = "BOOL", help_heading = FIREWALL
    )]
    pub ip_masq_fully_random_disable: bool,

    /// How often to look after the firewall rules, besides whenever nftables tells of a change
    #[arg(
        long, value_name = "SECONDS", default_value_t = 5, allow_hyphen_values = true,
        value_parser = go_int, help_heading = FIREWALL
    )]
    pub iptables_resync: i64,

    /// Add rules that accept forwarding to and from the overlay
    #[arg(
        long, num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true", value_parser = go_bool, action = ArgAction::Set,
        value_name = "BOOL", help_heading = FIREWALL
    )]
    pub iptables_forward_rules: bool,

    /// Add a blackhole route for this host's own subnet, of the highest metric: it takes what no bridge is
    /// there for, and nothing else
    #[arg(
        long, num_args = 0..=1, require_equals = true, default_value_t = false,
        default_missing_value = "true", value_parser = go_bool, action = ArgAction::Set,
        value_name = "BOOL", help_heading = FIREWALL
    )]
    pub ip_blackhole_route: bool,

    /// What flanneld takes and this agent does not need.
    #[command(flatten)]
    pub flanneld: FlanneldArgs,

    /// Do without etcd: a file says who has which subnet. It is read again whenever it changes
    #[arg(long, value_name = "FILE", help_heading = OURS)]
    pub peers: Option<PathBuf>,

    /// A bridge of containers, may be repeated; by default all that have an address in this host's subnet
    #[arg(long, value_name = "NAME", value_delimiter = ',', help_heading = OURS)]
    pub bridge: Vec<String>,

    /// Whether packets take the short way past the kernel's network stack, or all go through it
    #[arg(long, value_enum, default_value_t = Switch::On, help_heading = OURS)]
    pub fast_path: Switch,

    /// Whether rules of the host's firewall for forwarded packets hold for the overlay's. Where they do, each flow
    /// takes the stack until netfilter has let it through both ways, and shows itself again more than once a second.
    /// Without this flag, `Rules` in the network config says it, also while agents run; without either, it is auto
    #[arg(long, value_enum, value_name = "MODE", help_heading = OURS)]
    pub rules: Option<RulesArg>,

    /// After how long without an answer a peer is named in `status`; each is asked three times meanwhile. 0: nobody is asked
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = OURS)]
    pub peer_timeout: u16,

    /// Which source addresses containers may use
    #[arg(long, value_enum, default_value_t = Strictness::Port, help_heading = OURS)]
    pub source_check: Strictness,

    /// A container that may use any source address, by its own: for direct server return (LVS), or for other
    /// addresses behind it. May be given several times
    #[arg(long, value_name = "IP", action = ArgAction::Append, help_heading = OURS)]
    pub source_check_exempt: Vec<std::net::Ipv4Addr>,

    /// What to do with device, programs and maps when the agent is stopped
    #[arg(long, value_enum, default_value_t = OnExit::Keep, help_heading = OURS)]
    pub on_exit: OnExit,

    /// Remove the device `flannel.VNI` of a flanneld that was stopped, and take its place
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", value_parser = go_bool, action = ArgAction::Set, value_name = "BOOL", help_heading = OURS)]
    pub replace_flannel: bool,

    /// Where to keep what this host is known by: it finds its subnet again after a reboot, whatever its address. One
    /// for each network
    #[arg(long, value_name = "FILE", default_value = DEFAULT_STATE_FILE, help_heading = OURS)]
    pub state_file: PathBuf,

    /// After how long without etcd to start on the subnet and the peers that this host knew last. 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = OURS)]
    pub start_without_etcd: u16,

    /// Where the programs and maps are pinned
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_PATH, help_heading = OURS)]
    pub pin_path: PathBuf,

    /// Where to listen for `overlay-agent status`
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, help_heading = OURS)]
    pub socket: PathBuf,

    /// How long the subnet stays ours when this host is cut off from etcd
    #[arg(
        long, value_name = "SECONDS", default_value_t = 86_400,
        value_parser = clap::value_parser!(u32).range(10..=31_536_000), help_heading = OURS
    )]
    pub lease_ttl: u32,
}

/// What becomes of the datapath when the agent is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnExit {
    /// It goes on without the agent
    Keep,
    /// It is removed, as by `overlay-agent cleanup`
    Cleanup,
}

/// What others' rules mean for the overlay's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RulesArg {
    /// Rules hold if there are any that may concern what containers send each other
    Auto,
    /// Rules hold
    Honour,
    /// The fast path carries everything from its first packet on, whatever the rules say
    Bypass,
}

impl From<RulesArg> for RulesMode {
    fn from(typed: RulesArg) -> Self {
        match typed {
            RulesArg::Auto => Self::Auto,
            RulesArg::Honour => Self::Honour,
            RulesArg::Bypass => Self::Bypass,
        }
    }
}

/// A switch of two positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On
    On,
    /// Off
    Off,
}
