//! What these tests say over and over.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use overlay_lab::{Agent, AgentOptions, Etcd, Host, eventually};
use serde_json::Value;

/// For whatever takes seconds at most.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// Where probes are answered.
pub(crate) const PROBES: u16 = 8471;

pub(crate) fn options(etcd: &Etcd) -> AgentOptions {
    options_for(&etcd.endpoint())
}

/// For etcd endpoints as a comma-separated list of URLs.
pub(crate) fn options_for(endpoints: &str) -> AgentOptions {
    AgentOptions::with_endpoints(env!("CARGO_BIN_EXE_overlay-agent"), endpoints)
        .argument(&format!("--healthz-port={PROBES}"))
        .argument("--iptables-forward-rules=false")
}

/// Asks a probe of the agent on a host: the status code, and the body.
pub(crate) fn probe(host: &Host, path: &str) -> anyhow::Result<(u16, String)> {
    let (head, body) = ask(host, path, "*/*", SOON)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.context("no HTTP")?, body))
}

/// Asks the agent on a host at the port of its probes, for one kind of answer: the head of the answer, and the body.
pub(crate) fn ask(
    host: &Host,
    path: &str,
    accept: &str,
    within: Duration,
) -> anyhow::Result<(String, String)> {
    let request = request(path, accept);
    host.namespace().within(move || {
        let address = SocketAddr::from(([127, 0, 0, 1], PROBES));
        let mut stream = TcpStream::connect_timeout(&address, within)?;
        stream.set_read_timeout(Some(within))?;
        converse(&mut stream, &request)
    })
}

/// The same at the agent's socket.
pub(crate) fn ask_socket(
    host: &Host,
    path: &str,
    accept: &str,
) -> anyhow::Result<(String, String)> {
    let mut stream = UnixStream::connect(host.agent_socket())?;
    stream.set_read_timeout(Some(SOON))?;
    converse(&mut stream, &request(path, accept))
}

fn request(path: &str, accept: &str) -> String {
    format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n")
}

fn converse(stream: &mut (impl Read + Write), request: &str) -> anyhow::Result<(String, String)> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let parts = answer.split_once("\r\n\r\n");
    let (head, body) = parts.with_context(|| format!("no HTTP: {answer}"))?;
    Ok((head.to_owned(), body.to_owned()))
}

/// Waits until a status has a problem with these words.
pub(crate) fn wait_for_problem(agent: &mut Agent, words: &[&str]) -> Value {
    agent
        .wait_status(SOON, &format!("a problem with {words:?}"), |status| {
            let problems = problems(status);
            let has = |problem: &String| words.iter().all(|word| problem.contains(word));
            anyhow::ensure!(problems.iter().any(has), "{problems:?}");
            Ok(())
        })
        .unwrap()
}

/// Waits until no problem has this word any more.
pub(crate) fn wait_for_no_problem(agent: &mut Agent, word: &str) {
    agent
        .wait_status(SOON, &format!("no problem with {word:?} any more"), |status| {
            let problems = problems(status);
            anyhow::ensure!(!problems.iter().any(|problem| problem.contains(word)), "{problems:?}");
            Ok(())
        })
        .unwrap();
}

pub(crate) fn problems(status: &Value) -> Vec<String> {
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    problems.iter().filter_map(|problem| problem.as_str().map(str::to_owned)).collect()
}

/// Waits until a text is in the agent's log.
pub(crate) fn wait_for_log(agent: &Agent, text: &str) {
    eventually(SOON, &format!("{text:?} in the log"), || {
        let log = agent.log()?;
        anyhow::ensure!(log.contains(text), "{log}");
        Ok(())
    })
    .unwrap();
}

/// Asks an agent all the time, and returns the longest that an answer took.
pub(crate) struct Asking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Duration, u32)>,
}

impl Asking {
    pub(crate) fn start(host: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (socket, stopped) = (host.agent_socket(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (mut longest, mut count) = (Duration::ZERO, 0);
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                runtime.block_on(overlay_agent::admin::fetch_status(&socket)).unwrap();
                longest = longest.max(start.elapsed());
                count += 1;
            }
            (longest, count)
        });
        Self { stop, thread }
    }

    pub(crate) fn stop(self) -> (Duration, u32) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
