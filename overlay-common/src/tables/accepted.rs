use super::Direction;
use crate::abi::map_type;

/// Name of the map and of its pin. Its keys are those of the flows that took the stack, and it has as many entries. The
/// least recently used flow makes room for a new one, and then has to ask again.
pub const ACCEPTED_MAP: &str = "accepted";

/// For how long what the stack has let through counts, in nanoseconds: each flow shows itself to netfilter more than
/// once a second in each direction. So a new rule of whatever kind stops it within a second, and connection tracking
/// does not forget it.
const VALID: u64 = 800_000_000;

/// For how long counts what the stack has let through of the packets that carry the overlay's between two hosts, in
/// nanoseconds. A flow that is shown to netfilter may go without these for so long: a rule about them stops it within both
/// times together, which is still within a second.
const UNDERLAY_VALID: u64 = 150_000_000;

/// After a silence of so many nanoseconds netfilter may have forgotten the flow: below 30 s, which connection tracking
/// gives a flow without an answer (`nf_conntrack_udp_timeout`).
const FORGOTTEN: u64 = 25_000_000_000;

map_type! {
    /// What netfilter has let through of a flow, as it came.
    pub struct Accepted[24] {
        /// When it last let something out of the container, in nanoseconds of the kernel's clock.
        pub left: u64,
        /// When it last let something in to it.
        pub arrived: u64,
        /// The union of [`Direction`]s that it has seen, and of those that it has decided about when it knew both.
        pub states: u32,
        /// Zero.
        pub reserved: u32,
    }
}

impl Accepted {
    /// Whether a packet that goes `this` way needs not be shown to netfilter: it has lately let one through, and knew no
    /// less of the flow than now. As long as only one end talks, a flow is a new one for it; rules may decide otherwise
    /// about one of which it knows both.
    #[inline(always)]
    #[must_use]
    pub const fn holds(&self, this: Direction, now: u64) -> bool {
        let needed = if this.back().is_in(self.states) { decided(this) } else { this as u32 };
        self.states & needed != 0 && self.age(this, now) < VALID
    }

    /// Whether netfilter has just let a packet through `this` way, of those between two hosts that carry the overlay's.
    #[inline(always)]
    #[must_use]
    pub const fn underlay_holds(&self, this: Direction, now: u64) -> bool {
        this.is_in(self.states) && self.age(this, now) < UNDERLAY_VALID
    }

    #[inline(always)]
    const fn age(&self, this: Direction, now: u64) -> u64 {
        now.wrapping_sub(match this {
            Direction::Left => self.left,
            Direction::Arrived => self.arrived,
        })
    }

    /// Notes that netfilter is going to see a packet `this` way, whatever becomes of it. Returns whether that is news, of a
    /// flow of which it has let something through.
    #[inline(always)]
    pub const fn see(&mut self, this: Direction) -> bool {
        let is_news = self.states != 0 && !this.is_in(self.states);
        if is_news {
            self.states |= this as u32;
        }
        is_news
    }

    /// Notes that netfilter has let a packet through `this` way; `begins` says that it begins a connection.
    #[inline(always)]
    pub const fn note(&mut self, this: Direction, now: u64, begins: bool) {
        let latest = if self.left > self.arrived { self.left } else { self.arrived };
        if begins || now.wrapping_sub(latest) > FORGOTTEN {
            self.states = 0;
        }
        if this.back().is_in(self.states) {
            self.states |= decided(this);
        }
        self.states |= this as u32;
        match this {
            Direction::Left => self.left = now,
            Direction::Arrived => self.arrived = now,
        }
    }
}

/// The bit that says that netfilter knew of both directions when it decided about this one.
#[inline(always)]
const fn decided(this: Direction) -> u32 {
    (this as u32) << 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn talk(accepted: &mut Accepted, at: u64, packets: &[Direction]) {
        for way in packets {
            accepted.note(*way, at, false);
        }
    }

    #[test]
    fn a_flow_is_accepted_each_way_as_long_as_netfilter_knows_no_more() {
        use Direction::{Arrived, Left};
        let mut accepted = Accepted::default();
        let holds = |accepted: &Accepted, at| [Left, Arrived].map(|way| accepted.holds(way, at));
        assert_eq!(holds(&accepted, 0), [false; 2]);
        talk(&mut accepted, SECOND, &[Left, Left]);
        assert_eq!(holds(&accepted, SECOND), [true, false], "nobody has answered");
        talk(&mut accepted, SECOND, &[Arrived]);
        assert_eq!(holds(&accepted, SECOND), [false, true], "the question was a new flow's");
        talk(&mut accepted, SECOND, &[Left]);
        assert_eq!(holds(&accepted, SECOND), [true; 2]);
    }

    #[test]
    fn it_asks_again_within_a_second_each_way() {
        use Direction::{Arrived, Left};
        let mut accepted = Accepted::default();
        talk(&mut accepted, SECOND, &[Left, Arrived, Left]);
        assert!(!accepted.holds(Left, 2 * SECOND));
        talk(&mut accepted, 2 * SECOND, &[Left]);
        assert!(accepted.holds(Left, 2 * SECOND) && !accepted.holds(Arrived, 2 * SECOND));
    }

    #[test]
    fn a_rule_about_the_packets_around_it_stops_a_flow_within_a_second_too() {
        use Direction::{Arrived, Left};
        const { assert!(VALID + UNDERLAY_VALID < SECOND) };
        let mut underlay = Accepted::default();
        assert!(!underlay.underlay_holds(Arrived, 0));
        talk(&mut underlay, SECOND, &[Arrived]);
        assert!(underlay.underlay_holds(Arrived, SECOND) && !underlay.underlay_holds(Left, SECOND));
        assert!(!underlay.underlay_holds(Arrived, SECOND + UNDERLAY_VALID));
    }

    #[test]
    fn a_connection_that_begins_and_a_long_silence_begin_anew() {
        use Direction::{Arrived, Left};
        let mut accepted = Accepted::default();
        talk(&mut accepted, SECOND, &[Left, Arrived, Left]);
        accepted.note(Left, SECOND, true);
        assert!(accepted.holds(Left, SECOND) && !accepted.holds(Arrived, SECOND));
        talk(&mut accepted, SECOND, &[Arrived, Left]);
        assert!(accepted.holds(Left, SECOND));
        talk(&mut accepted, 40 * SECOND, &[Left]);
        assert!(!accepted.holds(Arrived, 40 * SECOND));
    }
}
