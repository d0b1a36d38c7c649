//! What there is to say about leases: to `status` in sentences, to the log in a line now and then.

use overlay_lease::wire::key::SubnetKey;

use super::{Limits, Peers};

/// So many leases are named, and the rest counted.
const NAMED: usize = 10;

/// In the log, fewer are.
const LOGGED: usize = 3;

/// What has been said in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    refused: usize,
    without_place: usize,
}

impl Peers {
    /// What is wrong with everybody's leases, a sentence each; `name` says what the store calls a key. Of those
    /// that the store ignores there are already sentences: these count among the ones that are named.
    pub fn problems(
        &self,
        ignored: (Vec<String>, usize),
        name: impl Fn(&SubnetKey) -> String,
    ) -> Vec<String> {
        let (mut problems, ignored) = ignored;
        for sentence in &mut problems {
            sentence.push('.');
        }
        problems.truncate(NAMED);
        let refused = self.judge.refusals().take(NAMED - problems.len());
        problems.extend(
            refused.map(|(key, refusal)| {
                format!("The lease {} is not believed: {refusal}.", name(&key))
            }),
        );
        let all = ignored + self.judge.refused();
        if all > problems.len() {
            problems.push(format!("And {} more leases are not believed.", all - problems.len()));
        }
        problems.extend(self.silent(name));
        problems.extend(self.limits_reached());
        problems
    }

    /// Leases whose host speaks for another one of its.
    fn silent(&self, name: impl Fn(&SubnetKey) -> String) -> Vec<String> {
        let mut sentences: Vec<_> = self
            .judge
            .shared()
            .iter()
            .take(NAMED)
            .filter_map(|address| {
                let speaker = self.speaker(*address)?;
                let others = self.judge.of_address(*address).count() - 1;
                Some(format!(
                    "{address} has {others} more lease(s) than {}, for which it speaks: packets from the other \
                     subnets are refused, until whichever is not in use is deleted or expires.",
                    name(&speaker.key),
                ))
            })
            .collect();
        let more = self.judge.shared().len().saturating_sub(NAMED);
        if more > 0 {
            sentences.push(format!("And {more} more addresses have several leases."));
        }
        sentences
    }

    fn limits_reached(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        for (length, count) in self.lengths.chosen().1 {
            sentences.push(format!(
                "{count} lease(s) of length /{length} are not programmed: there are more different lengths than \
                 can be, and those of most leases count."
            ));
        }
        let (most, count) = (self.limits.of_all, self.count());
        let without = self.seats.without();
        if without > 0 {
            sentences.push(format!(
                "{without} lease(s) are not programmed: the maps hold {most}, and the oldest count."
            ));
        } else if count >= Limits::nearly(most) {
            sentences.push(format!("There are {count} leases, and the maps hold {most}."));
        }
        let most = self.limits.of_writer;
        sentences.extend(self.judge.crowded().take(NAMED).map(|(address, count)| {
            format!(
                "{address} has {count} leases, and no more than {most} of one host are believed."
            )
        }));
        sentences
    }

    /// Says in the log what is new since `said`: a line for each lease where these are few, one for all of
    /// them otherwise.
    pub fn log_changes(&self, said: Tally, name: impl Fn(&SubnetKey) -> String) -> Tally {
        let tally = Tally { refused: self.judge.refused(), without_place: self.seats.without() };
        if tally.refused != said.refused {
            if tally.refused <= LOGGED {
                for (key, refusal) in self.judge.refusals() {
                    tracing::warn!("the lease {} is not believed: {refusal}", name(&key));
                }
            }
            tracing::warn!(
                before = said.refused,
                "leases that are not believed, which `status` names: {}",
                tally.refused
            );
        }
        if tally.without_place != said.without_place {
            tracing::error!(
                before = said.without_place,
                "leases that are not programmed, because there are too many: {}",
                tally.without_place
            );
        }
        tally
    }
}
