//! The agent's pulse: what probes are told without disturbing it.

use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

/// How often the agent tells how it is.
const OFTEN: Duration = Duration::from_secs(1);

/// Without a beat for so long, its loop hangs. Even a listing of 65,536 leases is programmed in a fifth of it.
const LONG: Duration = Duration::from_secs(10);

/// Ready: every known lease is programmed. Not ready: why. Problems that packets do not suffer from, such
/// as etcd being away, are told and leave a ready agent ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// Whether every known lease is programmed.
    pub ready: bool,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// What the loop alone knows, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Other hosts' leases that are believed and have a place in the maps.
    pub peers: usize,
    /// Those that are not believed.
    pub refused_leases: usize,
    /// Local containers that are delivered to directly.
    pub endpoints: usize,
    /// How often everything was looked at.
    pub verifications: u32,
}

/// The agent's end.
#[derive(Debug)]
pub struct Pulse(watch::Sender<Option<Beat>>);

/// The probes' end.
#[derive(Clone, Debug)]
pub struct Listener(watch::Receiver<Option<Beat>>);

#[derive(Clone, Debug)]
struct Beat {
    at: Instant,
    readiness: Readiness,
    census: Census,
}

/// What was told last, however long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Latest {
    /// How long.
    pub(super) age: Duration,
    /// How many things were wrong.
    pub(super) problems: usize,
    pub(super) census: Census,
}

/// What can be heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The agent does not run yet.
    Nothing,
    /// It runs, and is well or not.
    Beats(Readiness),
    /// It has not been heard for so long.
    Silence(Duration),
}

impl Pulse {
    /// Of an agent that does not run yet.
    pub fn new() -> (Self, Listener) {
        let (sender, receiver) = watch::channel(None);
        (Self(sender), Listener(receiver))
    }

    /// Whether it is time to tell.
    pub fn is_due(&self) -> bool {
        self.0.borrow().as_ref().is_none_or(|beat| beat.at.elapsed() >= OFTEN)
    }

    /// Tells.
    pub fn beat(&self, ready: bool, problems: Vec<String>, census: Census) {
        let readiness = Readiness { ready, problems };
        self.0.send_replace(Some(Beat { at: Instant::now(), readiness, census }));
    }
}

impl Listener {
    pub(super) fn listen(&self) -> Heard {
        heard(self.0.borrow().as_ref(), Instant::now())
    }

    pub(super) fn latest(&self) -> Option<Latest> {
        self.0.borrow().as_ref().map(|beat| Latest {
            age: beat.at.elapsed(),
            problems: beat.readiness.problems.len(),
            census: beat.census,
        })
    }
}

fn heard(beat: Option<&Beat>, now: Instant) -> Heard {
    let Some(beat) = beat else { return Heard::Nothing };
    match now.duration_since(beat.at) {
        silence if silence >= LONG => Heard::Silence(silence),
        _ => Heard::Beats(beat.readiness.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_does_not_turn_is_heard() {
        let (pulse, listener) = Pulse::new();
        assert!(pulse.is_due());
        assert_eq!(listener.listen(), Heard::Nothing);
        pulse.beat(true, vec!["why".to_owned()], Census::default());
        assert!(!pulse.is_due());
        let readiness = Readiness { ready: true, problems: vec!["why".to_owned()] };
        assert_eq!(listener.listen(), Heard::Beats(readiness.clone()));
        let at = Instant::now();
        let beat = Beat { at, readiness, census: Census::default() };
        assert_eq!(heard(Some(&beat), at + LONG), Heard::Silence(LONG));
    }
}
