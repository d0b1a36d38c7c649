//! A real etcd: on a host of a lab, or on the loopback for tests that only need a store.

use std::{
    net::TcpListener,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::{
    command::Cmd, host::Host, ledger::Ledger, namespace, process::Process, wait::eventually,
};

/// How long etcd may take to elect itself.
const HEALTHY_WITHIN: Duration = Duration::from_secs(20);

/// The port that everybody expects, used on a host: it is alone in its namespace.
const CLIENT_PORT: u16 = 2379;

/// How often to try another free port when somebody was faster.
const PORT_ATTEMPTS: usize = 5;

/// A running member of an etcd, mostly the only one: stopped when dropped.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    endpoint: String,
    command: Cmd,
    log: PathBuf,
    namespace: Option<PathBuf>,
    ledger: Ledger,
}

/// What a member is started with.
struct Member<'a> {
    name: String,
    /// URLs for clients, separated by commas; the first is the one that it tells others.
    listen: String,
    /// Its URL for other members.
    peer: String,
    /// All members: `name=peer`, separated by commas.
    cluster: String,
    namespace: Option<PathBuf>,
    ledger: &'a Ledger,
}

impl Etcd {
    /// Starts one on a host, at its address on the wire and on its loopback.
    pub fn on_host(host: &Host) -> Result<Self> {
        let mut etcd = Self::start(Member::on_host(host, "http://127.0.0.1:2380".to_owned()))?;
        etcd.wait_healthy()?;
        Ok(etcd)
    }

    /// Starts a cluster with a member on each of these hosts.
    pub fn cluster(hosts: &[Host]) -> Result<Vec<Self>> {
        fn member(host: &Host) -> Member<'_> {
            Member::on_host(host, format!("http://{}:2380", host.address()))
        }
        let all: Vec<_> = hosts.iter().map(|host| member(host).cluster).collect();
        let start = |host| Self::start(Member { cluster: all.join(","), ..member(host) });
        let mut cluster = hosts.iter().map(start).collect::<Result<Vec<_>>>()?;
        for etcd in &mut cluster {
            etcd.wait_healthy()?;
        }
        Ok(cluster)
    }

    /// Starts one on the loopback of the namespace we are in, at a free port.
    pub fn on_loopback(ledger: &Ledger) -> Result<Self> {
        let mut attempt = 0;
        loop {
            let [listen, peer] =
                [free_port()?, free_port()?].map(|port| format!("http://127.0.0.1:{port}"));
            let mut etcd = Self::start(Member {
                name: "lab".to_owned(),
                cluster: format!("lab={peer}"),
                listen,
                peer,
                namespace: None,
                ledger,
            })?;
            match etcd.wait_healthy() {
                Err(error)
                    if attempt < PORT_ATTEMPTS
                        && format!("{error:#}").contains("address already in use") =>
                {
                    attempt += 1;
                }
                result => return result.map(|()| etcd),
            }
        }
    }

    fn start(member: Member<'_>) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let Member { name, listen, peer, cluster, namespace, ledger } = member;
        let directory = ledger.directory();
        let files = format!("etcd-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let endpoint = listen.split(',').next().unwrap_or(&listen).to_owned();
        let mut command = Cmd::new("etcd")
            .arg("--data-dir")
            .arg(directory.join(&files))
            .args(["--name", &name])
            .args(["--listen-client-urls", &listen])
            .args(["--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster]);
        if let Some(namespace) = &namespace {
            command = namespace::enter(namespace, command);
        }
        let log = directory.join(format!("{files}.log"));
        let process = Process::spawn(ledger, "etcd", &command, &log)?;
        Ok(Self { process, endpoint, command, log, namespace, ledger: ledger.clone() })
    }

    /// Its URL for clients.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until it answers.
    pub fn wait_healthy(&mut self) -> Result<()> {
        eventually(HEALTHY_WITHIN, "etcd is healthy", || {
            self.process.check_running()?;
            self.ctl(["endpoint", "health"]).deadline(Duration::from_secs(10)).run().map(drop)
        })
    }

    /// Stops it, keeping its data.
    pub fn stop(&mut self) -> Result<()> {
        self.process.stop().map(drop)
    }

    /// Starts it again with the same data, and waits until it is healthy.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.exit_status()?.is_some(), "etcd still runs: stop it first");
        self.process = Process::spawn(&self.ledger, "etcd", &self.command, &self.log)?;
        self.wait_healthy()
    }

    /// Freezes it: connections stay, answers do not come.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// Puts a key.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        // On standard input: a value may begin with a dash.
        self.ctl(["put", key]).input(value).run().map(drop)
    }

    /// The value of a key, if there is one.
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let value = self.ctl(["get", "--print-value-only", key]).read()?;
        Ok(Some(value).filter(|value| !value.is_empty()))
    }

    /// All keys with this prefix and their values, in the order of the keys.
    pub fn list(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let text = self.ctl(["get", "--prefix", prefix]).read()?;
        let lines: Vec<&str> = text.lines().collect();
        lines
            .chunks(2)
            .map(|pair| match pair {
                [key, value] => Ok(((*key).to_owned(), (*value).to_owned())),
                _ => Err(anyhow::anyhow!("etcdctl printed a key without a value: {pair:?}")),
            })
            .collect()
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.ctl(["del", key]).run().map(drop)
    }

    /// `etcdctl` with these arguments, talking to it.
    pub fn ctl<I: IntoIterator<Item = S>, S: AsRef<str>>(&self, args: I) -> Cmd {
        let command = Cmd::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint])
            .args(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        match &self.namespace {
            Some(namespace) => namespace::enter(namespace, command),
            None => command,
        }
    }
}

impl<'a> Member<'a> {
    /// The only member, unless its `cluster` says otherwise.
    fn on_host(host: &'a Host, peer: String) -> Self {
        Self {
            name: host.name().to_owned(),
            listen: format!(
                "http://{}:{CLIENT_PORT},http://127.0.0.1:{CLIENT_PORT}",
                host.address()
            ),
            cluster: format!("{}={peer}", host.name()),
            peer,
            namespace: Some(host.namespace().path()),
            ledger: host.ledger(),
        }
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("there is no free port")?;
    Ok(listener.local_addr().context("there is no free port")?.port())
}
