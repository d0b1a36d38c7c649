//! Choosing a free subnet.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnetwork::Ipv4Network;
use rand::{Rng, seq::IndexedRandom};

use super::key::SubnetKey;
use crate::config::NetworkConfig;

/// How many free subnets flannel considers.
pub const CANDIDATES: usize = 100;

/// Picks one of the first `limit` free subnets of `config` at random, or `None` if there is none.
///
/// Free means that it overlaps nothing in `taken`, of whatever length that is. Picking at random
/// keeps hosts that start together from all wanting the same subnet.
pub fn choose(
    config: &NetworkConfig,
    taken: impl IntoIterator<Item = Ipv4Network>,
    limit: usize,
    rng: &mut impl Rng,
) -> Option<Ipv4Network> {
    let candidates = free(config, taken, limit);
    let address = *candidates.choose(rng)?;
    Ipv4Network::new(address, config.subnet_len).ok()
}

/// Whether the two have an address in common.
pub fn overlap(a: Ipv4Network, b: Ipv4Network) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// Those of `all` that overlap `subnet`, whose lengths are all among `lengths`: found by looking, not by going
/// through them.
pub fn overlapping<V>(
    all: &BTreeMap<SubnetKey, V>,
    lengths: impl IntoIterator<Item = u8>,
    subnet: Ipv4Network,
) -> impl Iterator<Item = (&SubnetKey, &V)> {
    let around = lengths
        .into_iter()
        .filter(move |length| *length < subnet.prefix())
        .filter_map(move |length| first_subnet(subnet.network(), length))
        // Those that begin where it does are found below.
        .filter(move |larger| larger.network() < subnet.network())
        .flat_map(|larger| all.range(first_key(larger)..=last_key(larger)));
    let within = Ipv4Network::new(subnet.network(), 0)
        .ok()
        .zip(Ipv4Network::new(subnet.broadcast(), 32).ok())
        .map(|(first, last)| all.range(first_key(first)..=last_key(last)));
    around.chain(within.into_iter().flatten())
}

/// The subnet of this length that `address` is in.
fn first_subnet(address: Ipv4Addr, length: u8) -> Option<Ipv4Network> {
    let host = Ipv4Network::new(address, length).ok()?;
    Ipv4Network::new(host.network(), length).ok()
}

const fn first_key(subnet: Ipv4Network) -> SubnetKey {
    SubnetKey { subnet, ipv6: None }
}

const fn last_key(subnet: Ipv4Network) -> SubnetKey {
    SubnetKey { subnet, ipv6: Some((Ipv6Addr::from_bits(u128::MAX), u8::MAX)) }
}

/// The first `limit` free subnets, in order. Works in 64 bits, where the end of the address space
/// is no special case.
fn free(
    config: &NetworkConfig,
    taken: impl IntoIterator<Item = Ipv4Network>,
    limit: usize,
) -> Vec<Ipv4Addr> {
    let step = 1_u64 << (32 - config.subnet_len);
    let last = bits(config.subnet_max);
    let mut obstacles = disjoint(taken).into_iter().peekable();
    let mut found = Vec::new();
    let mut next = bits(config.subnet_min);
    while next <= last && found.len() < limit {
        while obstacles.next_if(|range| *range.end() < next).is_some() {}
        match obstacles.peek() {
            Some(range) if *range.start() < next + step => {
                // Continue with the first subnet that begins after the obstacle.
                next = (range.end() / step + 1) * step;
            }
            _ => {
                found.extend(u32::try_from(next).map(Ipv4Addr::from));
                next += step;
            }
        }
    }
    found
}

/// The address ranges in order, those that overlap merged into one.
fn disjoint(networks: impl IntoIterator<Item = Ipv4Network>) -> Vec<RangeInclusive<u64>> {
    let mut ranges: Vec<_> = networks
        .into_iter()
        .map(|network| bits(network.network())..=bits(network.broadcast()))
        .collect();
    ranges.sort_unstable_by_key(|range| *range.start());
    ranges.dedup_by(|next, range| {
        let overlapping = next.start() <= range.end();
        if overlapping {
            *range = *range.start()..=*next.end().max(range.end());
        }
        overlapping
    });
    ranges
}

fn bits(address: Ipv4Addr) -> u64 {
    u64::from(u32::from(address))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text.as_bytes()).unwrap().config
    }

    fn subnet(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_subnet_is_skipped_and_the_last_is_used() {
        let config = config(r#"{"Network":"10.3.0.0/28","SubnetLen":30}"#);
        let found = free(&config, [], CANDIDATES);
        let expected = [4, 8, 12].map(|host| Ipv4Addr::new(10, 3, 0, host));
        assert_eq!(found, expected);
    }

    #[test]
    fn no_more_candidates_than_asked_for_are_considered() {
        let config = config(r#"{"Network":"10.0.0.0/8"}"#);
        let found = free(&config, [subnet("10.0.1.0/24")], 100);
        assert_eq!(found.len(), 100);
        assert_eq!(found[0], Ipv4Addr::new(10, 0, 2, 0));
        assert_eq!(found[99], Ipv4Addr::new(10, 0, 101, 0));
    }

    #[test]
    fn subnets_of_another_length_are_obstacles_too() {
        let config = config(r#"{"Network":"10.3.0.0/16","SubnetMax":"10.3.8.0"}"#);
        let taken = ["10.3.0.0/22", "10.3.5.128/25", "10.3.7.4/30", "10.0.0.0/16"].map(subnet);
        let expected = [4, 6, 8].map(|third| Ipv4Addr::new(10, 3, third, 0));
        assert_eq!(free(&config, taken, CANDIDATES), expected);
    }

    #[test]
    fn a_full_network_has_nothing_to_choose() {
        let config = config(r#"{"Network":"10.3.0.0/16"}"#);
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(choose(&config, [subnet("10.0.0.0/8")], CANDIDATES, &mut rng), None);
    }

    #[test]
    fn the_end_of_the_address_space_is_no_special_case() {
        let config = config(r#"{"Network":"255.255.255.0/24","SubnetLen":26}"#);
        let found = free(&config, [subnet("255.255.255.128/25")], CANDIDATES);
        assert_eq!(found, [Ipv4Addr::new(255, 255, 255, 64)]);
    }

    proptest! {
        #[test]
        fn what_overlaps_is_found_exactly(
            nets in vec((0_u32..64, 18_u8..=31, prop::bool::ANY), 0..16), at in 0_u32..64, len in 18_u8..=31,
        ) {
            let subnet = |at: u32, len: u8| {
                let host = Ipv4Network::new(Ipv4Addr::from(0x0a00_0000 + at * 37), len).unwrap();
                Ipv4Network::new(host.network(), len).unwrap()
            };
            let all: BTreeMap<_, _> = nets
                .into_iter()
                .map(|(at, len, both)| SubnetKey {
                    subnet: subnet(at, len),
                    ipv6: both.then_some((Ipv6Addr::LOCALHOST, 64)),
                })
                .map(|key| (key, key.subnet))
                .collect();
            let wanted = subnet(at, len);
            let found: Vec<_> = overlapping(&all, 0..=32, wanted).map(|(key, _)| *key).collect();
            let expected: BTreeSet<_> =
                all.keys().copied().filter(|key| overlap(key.subnet, wanted)).collect();
            prop_assert_eq!(found.len(), expected.len());
            prop_assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
        }

        #[test]
        fn what_is_chosen_is_admitted_and_overlaps_nothing(
            taken in vec((any::<u16>(), 8_u8..=31), 0..60), seed: u64, len in 18_u8..=30,
        ) {
            let config = config(&format!(r#"{{"Network":"10.3.0.0/16","SubnetLen":{len}}}"#));
            let taken: Vec<_> = taken
                .into_iter()
                .map(|(low, len)| {
                    let address = 0x0a03_0000 | u32::from(low);
                    Ipv4Network::new(address.into(), len).unwrap()
                })
                .collect();
            let mut rng = StdRng::seed_from_u64(seed);
            let choice = choose(&config, taken.clone(), CANDIDATES, &mut rng);
            prop_assert!(choice.is_none_or(|choice| config.admits(choice)));
            // By brute force: which subnets are really free?
            let step = 1_u32 << (32 - len);
            let free: Vec<_> = (u32::from(config.subnet_min)..=u32::from(config.subnet_max))
                .step_by(step as usize)
                .map(|candidate| Ipv4Network::new(candidate.into(), len).unwrap())
                .filter(|subnet| !taken.iter().any(|taken| overlap(*taken, *subnet)))
                .collect();
            prop_assert!(choice.map_or(free.is_empty(), |choice| free.contains(&choice)));
        }

        #[test]
        fn hosts_that_know_of_each_other_never_meet(seed: u64) {
            let config = config(r#"{"Network":"10.3.0.0/20"}"#);
            let mut rng = StdRng::seed_from_u64(seed);
            let mut taken = BTreeSet::new();
            while let Some(subnet) = choose(&config, taken.iter().copied(), CANDIDATES, &mut rng) {
                prop_assert!(taken.insert(subnet));
            }
            prop_assert_eq!(taken.len() as u64, config.capacity());
        }
    }
}
