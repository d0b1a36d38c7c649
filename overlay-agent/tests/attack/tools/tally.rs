//! What the programs of the hosts have counted.

use std::{collections::BTreeMap, fmt};

use anyhow::Result;
use xtask::lab::Agent;

/// Which host's, hook, reason and class.
type Key = (usize, String, String, String);

/// The counters of some agents, summed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(BTreeMap<Key, u64>);

impl Tally {
    pub(crate) fn of(agents: &[Agent]) -> Self {
        Self::read(agents).unwrap()
    }

    fn read(agents: &[Agent]) -> Result<Self> {
        let mut tally = Self::default();
        for (host, agent) in agents.iter().enumerate() {
            let status = agent.status()?;
            let counters = status["counters"].as_array().cloned().unwrap_or_default();
            for counter in counters {
                let text = |name: &str| counter[name].as_str().unwrap_or_default().to_owned();
                let packets = counter["packets"].as_u64().unwrap_or_default();
                let key = (host, text("hook"), text("reason"), text("class"));
                *tally.0.entry(key).or_default() += packets;
            }
        }
        Ok(tally)
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
