//! The keys that must not exist when a subnet is taken.
//!
//! Checking a listing for overlaps and then creating a key leaves a gap in which another host can
//! take an overlapping subnet under a different key, for example when the network config has just
//! changed. With these guards as conditions of the creating transaction there is no gap.

use ipnetwork::Ipv4Network;

use super::key::KeyPrefix;

/// All keys from `start` up to, but without, `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key of the range.
    pub start: String,
    /// The first key after the range.
    pub end: String,
}

impl KeyRange {
    /// Whether `key` is one of the range.
    pub fn covers(&self, key: &[u8]) -> bool {
        (self.start.as_bytes()..self.end.as_bytes()).contains(&key)
    }
}

/// The ranges of keys in which a lease exists if, and only if, some lease overlaps `subnet`.
///
/// They number fewer than 128 for every subnet, which is how many conditions etcd allows in one
/// transaction.
pub fn guards(prefix: &KeyPrefix, subnet: Ipv4Network) -> Vec<KeyRange> {
    let mut ranges: Vec<_> = (1..subnet.prefix())
        .filter_map(|len| Ipv4Network::new(subnet.network(), len).ok())
        .map(|larger| {
            // From `10.5.0.0-16` to before `10.5.0.0-16'`: the key itself, and with `&` appended.
            let start = prefix.subnet_key(larger);
            let end = format!("{start}'");
            KeyRange { start, end }
        })
        .collect();
    ranges.extend(within(prefix, subnet));
    ranges
}

/// The ranges of all keys whose address is inside `subnet`.
///
/// Keys sort as text, so the addresses of a subnet that does not end at a dot are not neighbours: 2
/// comes after 19. Of the octet in which the subnet ends we therefore take the values in text
/// order, and make one range of each run of values that are inside.
fn within(prefix: &KeyPrefix, subnet: Ipv4Network) -> Vec<KeyRange> {
    let octets = subnet.network().octets();
    let index = usize::from((subnet.prefix().max(1) - 1) / 8);
    let first = octets[index];
    let last = subnet.broadcast().octets()[index];
    let separator = if index == 3 { '-' } else { '.' };
    let start = octets[..index]
        .iter()
        .fold(prefix.subnets_dir(), |start, octet| format!("{start}{octet}."));

    let mut names: Vec<(String, u8)> =
        (0..=u8::MAX).map(|value| (format!("{start}{value}{separator}"), value)).collect();
    names.sort_unstable();
    names
        .chunk_by(|(_, a), (_, b)| (first..=last).contains(a) == (first..=last).contains(b))
        .filter_map(|run| match run {
            [(start, value), ..] if (first..=last).contains(value) => {
                Some(KeyRange { start: start.clone(), end: successor(&run.last()?.0) })
            }
            _ => None,
        })
        .collect()
}

/// The first text after all that begin with `text`, which ends in an ASCII separator.
fn successor(text: &str) -> String {
    let mut end = text.to_owned();
    let last = end.pop().unwrap_or_default();
    // Neither '.' nor '-' is the last character there is.
    end.extend(char::from_u32(u32::from(last) + 1));
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::allocate::overlap;

    fn network(bits: u32, len: u8) -> Ipv4Network {
        let host = Ipv4Network::new(bits.into(), len).unwrap();
        Ipv4Network::new(host.network(), len).unwrap()
    }

    /// An address near `bits`, so that overlaps are common.
    fn near(bits: u32, keep: u8, noise: u32) -> u32 {
        bits ^ (noise >> keep.min(31))
    }

    #[test]
    fn a_usual_subnet_has_one_range_of_its_own() {
        let prefix = KeyPrefix::new("/n");
        let ranges = guards(&prefix, "10.5.52.0/24".parse().unwrap());
        let own = ranges.last().unwrap();
        assert_eq!(ranges.len(), 24);
        assert_eq!(own.start, "/n/subnets/10.5.52.");
        assert_eq!(own.end, "/n/subnets/10.5.52/");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_key_is_covered_exactly_if_its_subnet_overlaps(
            bits: u32, len in 1_u8..=31, keep in 0_u8..=32, noise: u32, other in 1_u8..=31,
            dual: bool,
        ) {
            let prefix = KeyPrefix::new("/coreos.com/network");
            let subnet = network(bits, len);
            let other = network(near(bits, keep, noise), other);
            let mut key = prefix.subnet_key(other);
            if dual {
                key += "&fd00:12:13::-56";
            }
            let covered = guards(&prefix, subnet).iter().any(|range| range.covers(key.as_bytes()));
            prop_assert_eq!(covered, overlap(subnet, other), "{} and {}", subnet, other);
        }

        #[test]
        fn the_guards_of_any_subnet_fit_one_transaction(bits: u32, len in 1_u8..=31) {
            prop_assert!(guards(&KeyPrefix::new("/n"), network(bits, len)).len() < 128);
        }
    }
}
