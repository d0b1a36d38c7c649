//! `bench survival`: what containers notice of the agent's and etcd's life. Numbered datagrams, a thousand
//! a second, and a TCP stream run between the containers of two hosts, both ways, through every scenario.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use overlay_lab::{
    Agent, AgentOptions, Container, Etcd, Lab, NETWORK_CONFIG, Process, eventually,
    stream::{Seen, Stream},
    workspace,
};

use super::tcp::Tcp;
use crate::{build, setup};

/// How long a scenario goes on after what happens in it.
const CALM: Duration = Duration::from_secs(5);

/// Of the TCP stream, each way: far from what a core can do, so that what is sent again is sent again for
/// what happens, and not for a queue that was full.
const BITS_PER_SECOND: &str = "200M";

const REACHABLE_WITHIN: Duration = Duration::from_secs(10);

/// The command line of `bench survival`.
#[derive(Debug, Clone, Args)]
pub(super) struct Options {
    /// Measure this agent instead of building one
    #[arg(long, value_name = "FILE", requires = "other")]
    agent: Option<PathBuf>,
    /// Another agent, with other programs, to upgrade to
    #[arg(long, value_name = "FILE", requires = "agent")]
    other: Option<PathBuf>,
    /// How long etcd is away, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    etcd_away: u64,
}

/// Everything that runs, in the order in which it is to go.
struct Site {
    agents: Vec<Agent>,
    containers: Vec<Container>,
    options: AgentOptions,
    other: AgentOptions,
    etcd: Etcd,
    lab: Lab,
}

impl Site {
    fn start(agent: &Path, other: &Path) -> Result<Self> {
        let lab = Lab::builder().start()?;
        let etcd = lab.start_etcd(NETWORK_CONFIG)?;
        let options = AgentOptions::new(agent, &etcd);
        let other = AgentOptions::new(other, &etcd);
        let agents = lab
            .hosts()
            .iter()
            .map(|host| host.start_agent(&options))
            .collect::<Result<Vec<_>>>()?;
        let containers =
            lab.hosts().iter().map(|host| host.add_container("c")).collect::<Result<Vec<_>>>()?;
        let site = Self { agents, containers, options, other, etcd, lab };
        eventually(REACHABLE_WITHIN, "containers to reach each other", || {
            site.containers[0].ping(site.containers[1].address())
        })?;
        Ok(site)
    }

    fn start_agent(&mut self, options: &AgentOptions) -> Result<()> {
        self.agents[0] = self.lab.host(0).start_agent(options)?;
        Ok(())
    }

    fn transfer(&self) -> Result<Transfer> {
        let [client, server] = [&self.containers[0], &self.containers[1]];
        let spawn = |name: &str, container: &Container, arguments: &[&str]| {
            let host = self.lab.host(0);
            let command = container.command("iperf3").args(arguments);
            let log = host.directory().join(format!("iperf3-{name}.log"));
            Process::spawn(host.ledger(), &format!("iperf3 {name}"), &command, &log)
        };
        let server_process = spawn("server", server, &["--server", "--forceflush"])?;
        eventually(REACHABLE_WITHIN, "the server of iperf3 to listen", || {
            ensure!(server_process.log()?.contains("listening"), "{}", server_process.log()?);
            Ok(())
        })?;
        let address = server.address().to_string();
        let client_process = spawn(
            "client",
            client,
            &["--client", &address, "--bidir", "--bitrate", BITS_PER_SECOND, "--time", "86400"],
        )?;
        let transfer = Transfer { _processes: [client_process, server_process] };
        eventually(REACHABLE_WITHIN, "the TCP stream to flow", || {
            ensure!(tcp(client)?.sent > 10_000 && tcp(server)?.sent > 10_000, "it does not");
            Ok(())
        })?;
        Ok(transfer)
    }
}

/// A TCP stream each way, until dropped.
struct Transfer {
    _processes: [Process; 2],
}

/// What the TCP of a container's namespace has counted.
fn tcp(container: &Container) -> Result<Tcp> {
    Tcp::read(|command| Ok(container.namespace().wrap(command)))
}

/// What happens while the streams run.
struct Scenario {
    what: String,
    happens: Act,
}

type Act = Box<dyn FnOnce(&mut Site) -> Result<()>>;

fn scenarios(etcd_away: Duration) -> Vec<Scenario> {
    let scenario = |what: &str, happens: fn(&mut Site) -> Result<()>| Scenario {
        what: what.to_owned(),
        happens: Box::new(happens),
    };
    vec![
        scenario("nothing, for 20 s", |_| {
            sleep(Duration::from_secs(15));
            Ok(())
        }),
        scenario("agent stopped", |site| site.agents[0].stop()),
        scenario("agent started", |site| site.start_agent(&site.options.clone())),
        scenario("agent killed (-9), started", |site| {
            site.agents[0].kill()?;
            site.start_agent(&site.options.clone())
        }),
        scenario("upgrade to other programs", |site| {
            site.agents[0].stop()?;
            site.start_agent(&site.other.clone())
        }),
        scenario("and back", |site| {
            site.agents[0].stop()?;
            site.start_agent(&site.options.clone())
        }),
        scenario("upgrade to another ABI", |site| {
            site.agents[0].stop()?;
            site.lab.host(0).pretend_other_abi()?;
            site.start_agent(&site.options.clone())
        }),
        scenario("etcd killed (-9), started", |site| {
            site.etcd.process().kill()?;
            site.etcd.start_again()
        }),
        Scenario {
            what: format!("etcd away for {} s", etcd_away.as_secs()),
            happens: Box::new(move |site| {
                site.etcd.stop()?;
                sleep(etcd_away);
                site.etcd.start_again()
            }),
        },
    ]
}

/// A line of the table.
struct Row {
    what: String,
    /// Both ways together; the longest gap of either.
    datagrams: Seen,
    /// Both ways together.
    segments: Tcp,
}

impl Row {
    const fn is_clean(&self) -> bool {
        self.datagrams.lost == 0 && self.datagrams.doubled == 0 && self.segments.needed() == 0
    }
}

fn measure(site: &mut Site, scenario: Scenario) -> Result<Row> {
    let both =
        |site: &Site| -> Result<Tcp> { Ok(tcp(&site.containers[0])? + tcp(&site.containers[1])?) };
    let [one, two] = [&site.containers[0], &site.containers[1]];
    let streams = [Stream::start(one, two, 7001)?, Stream::start(two, one, 7002)?];
    let before = both(site)?;
    (scenario.happens)(site).with_context(|| format!("scenario «{}»", scenario.what))?;
    sleep(CALM);
    let after = both(site)?;
    let mut datagrams = Seen::default();
    for stream in streams {
        let seen = stream.stop()?;
        datagrams.sent += seen.sent;
        datagrams.lost += seen.lost;
        datagrams.doubled += seen.doubled;
        datagrams.longest_gap = datagrams.longest_gap.max(seen.longest_gap);
    }
    let segments = after.since(before);
    ensure!(segments.sent > 1000, "the TCP stream stands still in «{}»", scenario.what);
    Ok(Row { what: scenario.what, datagrams, segments })
}

/// Runs every scenario, prints the table, and fails if anything was lost or doubled, or had to be sent again.
pub(super) fn run(options: &Options) -> Result<()> {
    let agents = options.agents()?;
    let [agent, other] = &agents;
    let mut site = Site::start(agent, other)?;
    let _transfer = site.transfer()?;
    let mut rows = Vec::new();
    for scenario in scenarios(Duration::from_secs(options.etcd_away)) {
        eprintln!("{} …", scenario.what);
        rows.push(measure(&mut site, scenario)?);
    }
    println!("{}", table(&rows));
    let unclean: Vec<_> =
        rows.iter().filter(|row| !row.is_clean()).map(|row| row.what.as_str()).collect();
    ensure!(unclean.is_empty(), "containers notice: {}", unclean.join(", "));
    Ok(())
}

impl Options {
    fn agents(&self) -> Result<[PathBuf; 2]> {
        if let (Some(agent), Some(other)) = (&self.agent, &self.other) {
            let found = |path: &PathBuf| {
                fs::canonicalize(path)
                    .with_context(|| format!("there is no agent at {}", path.display()))
            };
            return Ok([found(agent)?, found(other)?]);
        }
        setup::ensure()?;
        let directory = workspace::target_dir()?.join("bench");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let other = directory.join("overlay-agent-with-other-programs");
        Ok([build::agent_and_another(&other)?, other])
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header([
        "what happens",
        "datagrams",
        "lost",
        "doubled",
        "longest gap",
        "TCP segments",
        "sent again",
        "needlessly",
    ]);
    table.add_rows(rows.iter().map(|row| {
        [
            row.what.clone(),
            row.datagrams.sent.to_string(),
            row.datagrams.lost.to_string(),
            row.datagrams.doubled.to_string(),
            format!("{:.1} ms", row.datagrams.longest_gap.as_secs_f64() * 1e3),
            row.segments.sent.to_string(),
            row.segments.sent_again.to_string(),
            row.segments.needless.to_string(),
        ]
    }));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
