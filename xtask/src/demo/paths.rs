//! Which way packets took, read off the agents' counters.

use anyhow::{Result, ensure};
use overlay_lab::{Agent, CounterReading};

/// The two ways out of a host and into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// In BPF, past the host's network stack.
    Fast,
    /// Through the host's network stack and its tunnel device.
    Slow,
}

/// Where a way shows, outwards and inwards: a hook, and the reasons that mean this way was taken.
type Marks = [(&'static str, &'static [&'static str]); 2];

const FAST: Marks =
    [("from_container", &["encapsulated"]), ("from_uplink", &["to_endpoint", "bridged"])];

const SLOW: Marks =
    [("to_tunnel", &["tunnel_key_set"]), ("from_tunnel", &["to_endpoint", "bridged", "to_stack"])];

/// Packets that left a host and that came to it, by one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Traffic {
    /// Outwards.
    pub(super) sent: u64,
    /// Inwards.
    pub(super) received: u64,
}

impl Traffic {
    /// What these counters say about one way.
    pub(super) fn of(way: Way, counters: &[CounterReading]) -> Self {
        let marks = match way {
            Way::Fast => FAST,
            Way::Slow => SLOW,
        };
        let [sent, received] = marks.map(|(hook, reasons)| {
            counters
                .iter()
                .filter(|counter| counter.hook == hook)
                .filter(|counter| reasons.contains(&counter.reason.as_str()))
                .map(|counter| counter.packets)
                .sum()
        });
        Self { sent, received }
    }

    fn since(self, before: Self) -> Self {
        // An agent that builds new maps counts from zero.
        Self {
            sent: self.sent.saturating_sub(before.sent),
            received: self.received.saturating_sub(before.received),
        }
    }
}

/// Runs `traffic`, which sends at least `least` packets both ways, and proves that it took one way
/// only, out of and into every host.
pub(super) fn prove(
    way: Way,
    agents: &[Agent],
    least: u64,
    traffic: impl FnOnce() -> Result<()>,
) -> Result<Vec<Traffic>> {
    let other = match way {
        Way::Fast => Way::Slow,
        Way::Slow => Way::Fast,
    };
    let read = |way| -> Result<Vec<Traffic>> {
        agents.iter().map(|agent| Ok(Traffic::of(way, &agent.counters()?))).collect()
    };
    let before = (read(way)?, read(other)?);
    traffic()?;
    let after = (read(way)?, read(other)?);
    let taken = differences(&after.0, &before.0);
    let avoided = differences(&after.1, &before.1);
    ensure!(
        taken.iter().all(|traffic| traffic.sent >= least && traffic.received >= least),
        "the counters do not show {least} packets by the {way:?} way, out of and into every host: \
         {taken:?}"
    );
    ensure!(
        avoided.iter().all(|traffic| traffic.sent == 0 && traffic.received == 0),
        "some packets took the {other:?} way: {avoided:?}"
    );
    Ok(taken)
}

fn differences(after: &[Traffic], before: &[Traffic]) -> Vec<Traffic> {
    after.iter().zip(before).map(|(after, before)| after.since(*before)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(hook: &str, reason: &str, packets: u64) -> CounterReading {
        CounterReading { hook: hook.to_owned(), reason: reason.to_owned(), packets, bytes: 0 }
    }

    #[test]
    fn a_hook_that_declines_does_not_count_as_its_way() {
        let counters = [
            counter("from_container", "encapsulated", 3),
            counter("from_container", "not_overlay", 9),
            counter("from_uplink", "to_endpoint", 2),
            counter("from_uplink", "bridged", 1),
            counter("to_tunnel", "tunnel_key_set", 5),
        ];
        let fast = Traffic::of(Way::Fast, &counters);
        assert_eq!((fast.sent, fast.received), (3, 3));
        let slow = Traffic::of(Way::Slow, &counters);
        assert_eq!((slow.sent, slow.received), (5, 0));
    }
}
