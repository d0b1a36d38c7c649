use std::{
    fs,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use overlay_lease::figures::Figures;

use super::Inner;
use crate::{
    admin::pulse::{Census, Heard, Latest},
    certificate,
    kernel::{
        datapath::{Contents, CounterRow, Readings},
        repairs,
    },
};

/// Maps are counted for a hundredth of the time at most: there may be thousands of peers.
const REST: u32 = 100;

/// What is known at one moment. What is not known is not there.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) started: SystemTime,
    /// Whether every known lease is programmed, and the loop turns.
    pub(super) ready: bool,
    /// The loop's latest beat.
    pub(super) latest: Option<Latest>,
    pub(super) repairs: u64,
    pub(super) counters: Option<Vec<CounterRow>>,
    pub(super) contents: Option<Contents>,
    pub(super) etcd: Option<Etcd>,
    /// How much is left of it, and with how much left somebody is told.
    pub(super) certificate: Option<(Duration, Duration)>,
}

#[derive(Debug)]
pub(super) struct Etcd {
    pub(super) connected: bool,
    pub(super) connections: u64,
    pub(super) listings: u64,
    pub(super) watches: u64,
    /// The lease's TTL, and what is left of it.
    pub(super) lease: Option<(Duration, Duration)>,
}

/// What was in the maps when they were last counted.
#[derive(Debug, Default)]
pub(super) struct MapCount {
    next: Option<Instant>,
    contents: Option<Contents>,
}

impl MapCount {
    fn look(&mut self, readings: &Readings) -> Option<Contents> {
        let start = Instant::now();
        if self.next.is_none_or(|next| next <= start) {
            self.contents = known(readings.contents());
            self.next = Some(Instant::now() + start.elapsed() * REST);
        }
        self.contents.clone()
    }
}

impl Snapshot {
    pub(super) fn take(inner: &Inner, maps: &mut MapCount) -> Self {
        let readings = inner.readings.get();
        Self {
            started: inner.started,
            ready: matches!(inner.listener.listen(), Heard::Beats(readiness) if readiness.ready),
            latest: inner.listener.latest(),
            repairs: repairs::count(),
            counters: readings.and_then(|readings| known(readings.counters())),
            contents: readings.and_then(|readings| maps.look(readings)),
            etcd: inner.figures.as_ref().map(Etcd::of),
            certificate: inner.certificate.as_deref().and_then(|path| known(left(path))),
        }
    }

    pub(super) fn census(&self) -> Option<Census> {
        self.latest.as_ref().map(|latest| latest.census)
    }
}

impl Etcd {
    fn of(figures: &Figures) -> Self {
        let now = Instant::now();
        Self {
            connected: figures.is_connected(),
            connections: figures.connections(),
            listings: figures.listings(),
            watches: figures.watches(),
            lease: figures.lease().map(|lease| (lease.ttl, lease.left(now))),
        }
    }
}

/// What is left of a certificate, nothing once it has expired; and with how much left somebody is told.
fn left(path: &Path) -> Result<(Duration, Duration)> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("reading certificate {}", path.display()))?;
    let unusable = || format!("understanding certificate {}", path.display());
    let left = certificate::left(&text).with_context(unusable)?;
    Ok((left.unwrap_or(Duration::ZERO), certificate::soon(&text).with_context(unusable)?))
}

/// What cannot be read is not shown. Whoever may ask this often is not to fill the log.
fn known<T>(outcome: Result<T>) -> Option<T> {
    outcome.inspect_err(|error| tracing::debug!("a metric is left out: {error:#}")).ok()
}
