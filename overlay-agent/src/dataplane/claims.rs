//! Addresses that containers claim and that are others': what the programs have refused, for `status`.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use overlay_common::tables::{Claim, ClaimKey};

use crate::kernel::netlink::Link;

/// For so long after the last time, a claim is a problem.
const RECENT: Duration = Duration::from_mins(1);

/// What has been claimed, and when that was last seen to go on.
#[derive(Debug, Default)]
pub struct Claims {
    /// What an earlier agent left is no news.
    started: bool,
    seen: HashMap<ClaimKey, (u64, Option<Instant>)>,
}

impl Claims {
    /// Takes in what the map holds now.
    pub fn look(&mut self, found: &HashMap<ClaimKey, Claim>, now: Instant) {
        let news = self.started.then_some(now);
        self.seen.retain(|key, _| found.contains_key(key));
        for (key, claim) in found {
            let seen = self.seen.entry(*key).or_insert((0, None));
            if seen.0 != claim.packets {
                *seen = (claim.packets, news);
            }
        }
        self.started = true;
    }

    /// The recent ones as sentences, in order.
    pub fn sentences(&self, links: &BTreeMap<u32, Link>, now: Instant) -> Vec<String> {
        let is_recent = |since: &Option<Instant>| {
            since.is_some_and(|since| now.saturating_duration_since(since) < RECENT)
        };
        let recent = self.seen.iter().filter(|(_, (_, since))| is_recent(since));
        let mut sentences: Vec<_> = recent
            .map(|(key, _)| {
                let port = links.get(&key.ifindex).map_or("a port that is gone", |link| &link.name);
                format!(
                    "The container behind {port} claims {}, which is not its own: its packets with that address \
                     are dropped, and nobody else is the worse for it.",
                    Ipv4Addr::from(key.address)
                )
            })
            .collect();
        sentences.sort_unstable();
        sentences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_told_for_a_minute_after_it_was_last_made() {
        let key = ClaimKey { address: [10, 1, 15, 3], ifindex: 7 };
        let claimed = |packets| HashMap::from([(key, Claim { packets })]);
        let mut claims = Claims::default();
        let start = Instant::now();
        claims.look(&claimed(5), start);
        let told = |claims: &Claims, after| {
            claims.sentences(&BTreeMap::new(), start + Duration::from_secs(after)).len()
        };
        assert_eq!(told(&claims, 0), 0, "an earlier agent's");
        claims.look(&claimed(6), start + Duration::from_secs(10));
        claims.look(&claimed(6), start + Duration::from_secs(20));
        assert_eq!((told(&claims, 69), told(&claims, 70)), (1, 0));
        claims.look(&HashMap::new(), start + Duration::from_secs(71));
        claims.look(&claimed(1), start + Duration::from_secs(80));
        let said = claims.sentences(&BTreeMap::new(), start + Duration::from_secs(80));
        assert!(said[0].contains("10.1.15.3"), "{said:?}");
    }
}
