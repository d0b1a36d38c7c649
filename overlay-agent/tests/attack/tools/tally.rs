//! What the programs of the hosts have counted.

use std::{
    collections::BTreeMap,
    fmt,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

/// Which host's, hook, reason and class.
type Key = (usize, String, String, String);

/// The counters of some agents, summed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(BTreeMap<Key, u64>);

impl Tally {
    /// Asks the agents on the hosts of these numbers, by their sockets.
    pub(crate) fn of(agents: impl IntoIterator<Item = (usize, PathBuf)>) -> Self {
        let mut tally = Self::default();
        for (host, socket) in agents {
            let status = status(&socket).unwrap();
            let counters = status["counters"].as_array().cloned().unwrap_or_default();
            for counter in counters {
                let text = |name: &str| counter[name].as_str().unwrap_or_default().to_owned();
                let packets = counter["packets"].as_u64().unwrap_or_default();
                let key = (host, text("hook"), text("reason"), text("class"));
                *tally.0.entry(key).or_default() += packets;
            }
        }
        tally
    }

    /// What was counted between `before` and this.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let rise = self.0.iter().filter_map(|(key, &now)| {
            let rise = now - before.0.get(key).copied().unwrap_or(0);
            (rise > 0).then(|| (key.clone(), rise))
        });
        Self(rise.collect())
    }

    fn sum(&self, wanted: impl Fn(&Key) -> bool) -> u64 {
        self.0.iter().filter(|(key, _)| wanted(key)).map(|(_, packets)| packets).sum()
    }

    /// Packets that any program refused.
    pub(crate) fn dropped(&self) -> u64 {
        self.sum(|(.., class)| class == "dropped")
    }

    /// Packets that this program saw on the host of this number.
    pub(crate) fn at_host(&self, host: usize, hook: &str) -> u64 {
        self.sum(|(of, at, ..)| (*of, at.as_str()) == (host, hook))
    }
}

/// What `overlay-agent status` asks for, without a process for each question: there are many.
fn status(socket: &Path) -> Result<Value> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("no agent answers on {}", socket.display()))?;
    stream.write_all(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    serde_json::from_str(body).with_context(|| format!("the agent answers {head}"))
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self
            .0
            .iter()
            .map(|((host, hook, reason, _), packets)| {
                let host = host + 1;
                format!("{host}: {hook} {reason} +{packets}")
            })
            .collect();
        formatter.write_str(if lines.is_empty() { "nothing is counted" } else { "" })?;
        formatter.write_str(&lines.join(", "))
    }
}
