//! The control plane under load: as many leases as a /8 has, a real etcd, a real agent, and the control
//! loops of many. `cargo xtask bench control` builds and runs this, optimised.

mod agent;
mod etcd;
mod followers;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::Parser;
use comfy_table::{Table, presets::NOTHING};
use overlay_lab::{Etcd, Host, Lab};

/// Loads the control plane and prints what it costs.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// How many leases there are
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    leases: u32,

    /// How many agents' control loops follow them
    #[arg(long, default_value_t = 100)]
    agents: usize,

    /// How many hosts take a subnet at once
    #[arg(long, default_value_t = 1000)]
    acquiring: u32,

    /// How many leases change, one after the other
    #[arg(long, default_value_t = 200)]
    changes: u32,

    /// The agent to run
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
}

/// A line of the table: what was measured, the figure, and what is wanted.
pub(crate) type Row = [String; 3];

/// Makes a [`Row`].
pub(crate) fn row(what: impl Into<String>, found: impl Into<String>, wanted: &str) -> Row {
    [what.into(), found.into(), wanted.to_owned()]
}

/// Where the network under load is in etcd.
const CONFIG: &str = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;

fn main() -> Result<()> {
    let options = Options::parse();
    let lab = Lab::builder().hosts(1).start()?;
    let store = lab.start_etcd(CONFIG)?;
    let mut rows = within(lab.host(0), {
        let (endpoint, leases, own) = (store.endpoint(), options.leases, lab.host(0).address());
        async move { etcd::fill(&endpoint, leases, own).await }
    })?;
    rows.extend(real_agent(&options, lab.host(0), &store)?);
    rows.extend(within(lab.host(0), {
        let (endpoint, options) = (store.endpoint(), options.clone());
        async move { followers::follow(&endpoint, options.agents, options.leases).await }
    })?);
    rows.extend(within(lab.host(0), {
        let (endpoint, hosts) = (store.endpoint(), options.acquiring);
        async move { followers::acquire_at_once(&endpoint, hosts).await }
    })?);

    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        format!("{} leases", options.leases),
        "found".to_owned(),
        "wanted".to_owned(),
    ]);
    table.add_rows(rows);
    println!("{table}");
    Ok(())
}

fn real_agent(options: &Options, host: &Host, store: &Etcd) -> Result<Vec<Row>> {
    let before = within(host, requests(store))?;
    let mut agent = agent::start(host, &options.agent, store)?;
    let mut rows = agent.rows()?;
    let (endpoint, changes, pins) = (store.endpoint(), options.changes, host.pins().to_owned());
    let leases = options.leases;
    rows.push(within(
        host,
        async move { agent::latency(&endpoint, &pins, leases, changes).await },
    )?);
    // Its watch began after it was ready, and the changes cost nothing more.
    let after = within(host, requests(store))?;
    rows.push(row(
        "agent: requests, from its start to the last change",
        etcd::difference(&before, &after),
        "one list in pages, one watch",
    ));
    rows.push(agent.memory("resident, after the changes")?);
    agent.stop()?;
    Ok(rows)
}

fn requests(store: &Etcd) -> impl Future<Output = Result<etcd::Requests>> + Send + use<> {
    let endpoint = store.endpoint();
    async move { etcd::requests(&endpoint).await }
}

/// Runs something in a host's network namespace.
fn within<T: Send + 'static>(
    host: &Host,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    host.namespace().within(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("starting a runtime")?;
        runtime.block_on(work)
    })
}

/// The middle one, and the largest.
pub(crate) fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    format!("{:.1?}, at most {:.1?}", at(times.len() / 2), at(times.len().saturating_sub(1)))
}
