//! Attempts, each with a marker of its own, and what came of them.

use std::time::{Duration, Instant};

use overlay_lab::eventually;

use super::{
    site::{REMOTE, SOON, Site},
    sniffer::{Marker, Sniffer},
    tally::Tally,
};

/// How long a refusal may take to be counted.
const COUNTED_WITHIN: Duration = Duration::from_secs(2);

/// How long an honest container may wait for an answer.
const SERVED_WITHIN: Duration = Duration::from_secs(5);

/// What an attempt must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Every packet is counted as dropped, and none arrives.
    Refused,
    /// None arrives; whether the kernel or a program of ours sees to that does not matter.
    Stopped,
}

/// A row of attempts, judged together: one failure does not hide the others.
pub(crate) struct Trial<'site> {
    site: &'site Site,
    failures: Vec<String>,
    attempts: usize,
}

impl<'site> Trial<'site> {
    pub(crate) const fn new(site: &'site Site) -> Self {
        Self { site, failures: Vec::new(), attempts: 0 }
    }

    /// Sends `packets` packets that carry the marker, all to be refused.
    pub(crate) fn refuses(&mut self, what: &str, packets: u64, send: impl FnOnce([u8; 4])) {
        self.attempt(what, packets, Expected::Refused, send);
    }

    /// The same, whoever stops them.
    pub(crate) fn stops(&mut self, what: &str, packets: u64, send: impl FnOnce([u8; 4])) {
        self.attempt(what, packets, Expected::Stopped, send);
    }

    pub(crate) fn attempt(
        &mut self,
        what: &str,
        packets: u64,
        expected: Expected,
        send: impl FnOnce([u8; 4]),
    ) {
        self.attempts += 1;
        let marker = Marker::unique();
        let before = self.site.tally();
        send(marker.0);
        let start = Instant::now();
        let rise = loop {
            let rise = self.site.tally().since(&before);
            let done = match expected {
                Expected::Refused => rise.dropped() >= packets,
                // A program has no say in it, perhaps: the sentinel below tells when it is over.
                Expected::Stopped => true,
            };
            if done || self.arrived(marker) >= packets || start.elapsed() > COUNTED_WITHIN {
                break rise;
            }
        };
        if expected == Expected::Stopped
            && let Err(error) = self.sentinel()
        {
            self.fail(format!("{what}: the honest are not served any more: {error:#}"));
        }
        Sniffer::settle(&self.site.sniffers);
        for sniffer in &self.site.sniffers {
            let arrived = sniffer.count(marker);
            if arrived > 0 {
                let place = &sniffer.place;
                self.fail(format!("{what}: {arrived} of {packets} reached {place} ({rise})"));
            }
        }
        if expected == Expected::Refused && rise.dropped() != packets {
            let dropped = rise.dropped();
            self.fail(format!("{what}: {dropped} of {packets} counted as dropped ({rise})"));
        }
    }

    /// What is wrong with an attempt that was made otherwise.
    pub(crate) fn fail(&mut self, failure: String) {
        self.failures.push(failure);
    }

    /// Sends one honest packet, for which some eye must be open.
    pub(crate) fn delivers(&mut self, what: &str, send: impl FnOnce([u8; 4])) {
        let marker = Marker::unique();
        let before = self.site.tally();
        send(marker.0);
        eventually(SOON, what, || {
            let arrived = self.arrived(marker);
            let rise: Tally = self.site.tally().since(&before);
            anyhow::ensure!(arrived == 1, "{arrived} arrived ({rise})");
            Ok(())
        })
        .unwrap();
    }

    /// Something honest that goes the whole way, behind which nothing is on its way any more.
    fn sentinel(&self) -> anyhow::Result<()> {
        eventually(SERVED_WITHIN, "the remote container to answer", || {
            self.site.owner.ping(REMOTE)?;
            self.site.attacker.ping(REMOTE)
        })
    }

    fn arrived(&self, marker: Marker) -> u64 {
        self.site.sniffers.iter().map(|sniffer| sniffer.count(marker)).sum()
    }

    /// Panics with everything that went wrong.
    pub(crate) fn finish(self) {
        let count = self.failures.len();
        let list = self.failures.join("\n  ");
        assert!(count == 0, "{count} failures in {} attempts:\n  {list}", self.attempts);
    }
}
