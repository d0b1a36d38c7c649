//! How many leases there may be.

use std::collections::BTreeSet;

use overlay_common::tables::{PEER_PREFIX_LENGTHS, PEERS_CAPACITY};
use overlay_lease::{member::claim::Rank, wire::key::SubnetKey};

/// How many leases are believed, and programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of one public address. A host has one; a few more while it moves.
    pub of_writer: usize,
    /// In all: what the map `peers` holds.
    pub of_all: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { of_writer: 64, of_all: crate::fail::leases(PEERS_CAPACITY) }
    }
}

impl Limits {
    /// From here on, whoever looks is warned.
    pub const fn nearly(limit: usize) -> usize {
        limit - limit / 5
    }
}

/// Who has a place in the map: the oldest, as many as fit.
#[derive(Debug)]
pub(super) struct Seats {
    most: usize,
    taken: BTreeSet<Rank>,
    without: BTreeSet<Rank>,
}

impl Seats {
    pub(super) const fn new(most: usize) -> Self {
        Self { most, taken: BTreeSet::new(), without: BTreeSet::new() }
    }

    /// Gives a lease its place. Returns which lost theirs by that: one, or none.
    pub(super) fn add(&mut self, rank: Rank) -> Option<SubnetKey> {
        self.taken.insert(rank);
        if self.taken.len() <= self.most {
            return None;
        }
        let last = self.taken.pop_last()?;
        self.without.insert(last);
        (last != rank).then_some(last.key)
    }

    /// Takes a lease's place away, or its hope for one.
    pub(super) fn remove(&mut self, rank: Rank) {
        if !self.without.remove(&rank) {
            self.taken.remove(&rank);
        }
    }

    /// Gives a free place, if there is one, to the oldest without. Returns which that is.
    pub(super) fn next(&mut self) -> Option<SubnetKey> {
        if self.taken.len() >= self.most {
            return None;
        }
        let next = self.without.pop_first()?;
        self.taken.insert(next);
        Some(next.key)
    }

    /// Whether a lease has a place.
    pub(super) fn has(&self, rank: Rank) -> bool {
        // Nearly always there are enough.
        self.without.is_empty() || self.taken.contains(&rank)
    }

    /// How many have one.
    pub(super) fn taken(&self) -> usize {
        self.taken.len()
    }

    /// How many have none.
    pub(super) fn without(&self) -> usize {
        self.without.len()
    }
}

/// How many leases there are of each prefix length.
#[derive(Debug)]
pub(super) struct Lengths([usize; 33]);

impl Default for Lengths {
    fn default() -> Self {
        Self([0; 33])
    }
}

impl Lengths {
    pub(super) const fn add(&mut self, length: u8) {
        self.0[length as usize] += 1;
    }

    pub(super) const fn remove(&mut self, length: u8) {
        self.0[length as usize] -= 1;
    }

    /// The lengths that most leases have, longest first, and the others with how many leases they have.
    pub(super) fn chosen(&self) -> ([u8; PEER_PREFIX_LENGTHS], Vec<(u8, usize)>) {
        let mut used: Vec<_> = (0..).zip(self.0).filter(|(_, count)| *count > 0).collect();
        used.sort_unstable_by_key(|(length, count)| std::cmp::Reverse((*count, *length)));
        let left_out = used.split_off(used.len().min(PEER_PREFIX_LENGTHS));
        used.sort_unstable_by_key(|(length, _)| std::cmp::Reverse(*length));
        let mut lengths = [0; PEER_PREFIX_LENGTHS];
        for (slot, (length, _)) in lengths.iter_mut().zip(used) {
            *slot = length;
        }
        (lengths, left_out)
    }
}

#[cfg(test)]
mod tests {
    use overlay_lease::store::Revision;

    use super::*;

    fn rank(created: i64) -> Rank {
        let third = u8::try_from(created).unwrap();
        let subnet = ipnetwork::Ipv4Network::new([10, 1, third, 0].into(), 24).unwrap();
        let (created, key) = (Revision::new(created), SubnetKey { subnet, ipv6: None });
        Rank { doubtful: false, created, key }
    }

    #[test]
    fn the_oldest_have_a_place_and_the_next_one_follows() {
        let mut seats = Seats::new(2);
        assert_eq!(
            (seats.add(rank(1)), seats.add(rank(3)), seats.add(rank(4))),
            (None, None, None)
        );
        assert_eq!(
            seats.add(rank(2)),
            Some(rank(3).key),
            "an older one takes the place of the youngest"
        );
        assert_eq!((seats.taken(), seats.without()), (2, 2));
        assert!(seats.has(rank(2)) && !seats.has(rank(3)));
        seats.remove(rank(4));
        assert_eq!(seats.next(), None);
        seats.remove(rank(1));
        assert_eq!((seats.next(), seats.next()), (Some(rank(3).key), None));
        assert_eq!((seats.taken(), seats.without()), (2, 0));
    }

    #[test]
    fn the_lengths_of_most_leases_stay() {
        let mut lengths = Lengths::default();
        for (length, count) in [(24, 100), (25, 2), (26, 1), (27, 2), (28, 1), (29, 3)] {
            (0..count).for_each(|_| lengths.add(length));
        }
        assert_eq!(lengths.chosen(), ([29, 27, 25, 24], vec![(28, 1), (26, 1)]));
        (0..3).for_each(|_| lengths.remove(29));
        assert_eq!(lengths.chosen(), ([28, 27, 25, 24], vec![(26, 1)]));
        assert_eq!(Lengths::default().chosen(), ([0; 4], vec![]));
    }
}
