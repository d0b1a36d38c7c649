//! Both ends of what iperf3 does not measure: request and response, connections, and datagrams with
//! a bounded number on their way. Run by the benchmark itself, in the contenders' namespaces.

mod client;
mod server;

use std::{net::Ipv4Addr, time::Duration};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

/// Where the server accepts connections of every [`Kind`].
const TCP_PORT: u16 = 7001;
/// Where it sends datagrams back.
const ECHO_PORT: u16 = 7002;
/// Where it counts datagrams.
const SINK_PORT: u16 = 7003;

/// What it prints once clients may come.
pub(super) const LISTENING: &str = "listening";

/// Length of a request and of its response.
const REQUEST: usize = 64;

/// The first byte of a connection says what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    /// Every request is sent back.
    Echo = b'e',
    /// One byte is sent back, and that was it.
    Once = b'1',
    /// Every byte is answered with how many datagrams have been received.
    Count = b'c',
}

/// The command line of a worker.
#[derive(Debug, Clone, Args)]
pub(super) struct Options {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Clone, Subcommand)]
enum Role {
    /// Answer until killed
    Serve { address: Ipv4Addr },
    /// One byte there and back over a new connection each time
    Connect(client::Target),
    /// Requests and responses over one TCP connection
    TcpRequests(client::Target),
    /// Requests and responses as UDP datagrams
    UdpRequests(client::Target),
    /// UDP datagrams in one direction
    Datagrams {
        #[command(flatten)]
        target: client::Target,
        /// Length of each
        #[arg(long)]
        bytes: usize,
    },
}

/// What a client prints.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Report {
    /// How long it measured.
    pub(super) seconds: f64,
    /// Requests answered, connections made, datagrams received.
    pub(super) done: u64,
    /// What got lost: datagrams sent and not received, requests not answered.
    pub(super) lost: u64,
    /// Median of the time from request to response.
    pub(super) median_nanoseconds: u64,
    /// The time that 99 of 100 do not exceed.
    pub(super) p99_nanoseconds: u64,
}

/// Runs one end.
pub(super) fn run(options: &Options) -> Result<()> {
    let report = match &options.role {
        Role::Serve { address } => return server::serve(*address),
        Role::Connect(target) => client::connect(target)?,
        Role::TcpRequests(target) => client::tcp_requests(target)?,
        Role::UdpRequests(target) => client::udp_requests(target)?,
        Role::Datagrams { target, bytes } => client::datagrams(target, *bytes)?,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// How long neither end waits for the other before giving up.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a client runs before what it measures counts.
pub(super) const WARM_UP: Duration = Duration::from_millis(50);
