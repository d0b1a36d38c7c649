use crate::{Class, Hook, Reason, abi::map_type};

/// Name of the ring buffer, and of its pin, in which programs lay what they tell of single packets.
pub const DROPS_MAP: &str = "drops";

/// Bytes of that ring: some 1,500 packets.
pub const DROPS_BYTES: usize = 256 * 1024;

/// Name of the map, and of its pin, whose only entry says which packets are told of.
pub const DROPS_WATCH_MAP: &str = "drops_watch";

/// Name of the map, and of its pin, of how many packets were told of, one entry for each reason.
pub const DROPS_PACE_MAP: &str = "drops_pace";

/// The first bytes of a packet that are kept: a frame in a VXLAN packet up to its TCP flags, tags and options of the outer
/// header included.
pub const DROP_BYTES: usize = 128;

map_type! {
    /// A packet that a program has dropped, or declined where somebody asks for those.
    pub struct DropRecord[160] {
        /// When: nanoseconds since the host's start (`CLOCK_MONOTONIC`).
        pub time: u64,
        /// Interface that the program ran on.
        pub ifindex: u32,
        /// Interface that the packet came to the host by; 0 where the host made it.
        pub ingress_ifindex: u32,
        /// The packet's length in bytes, Ethernet header included.
        pub length: u32,
        /// Its mark.
        pub mark: u32,
        /// Its `EtherType`, in network byte order, as the kernel knows it.
        pub protocol: [u8; 2],
        /// The tag that is not in its bytes: priority and VLAN.
        pub vlan_tci: u16,
        /// How many of `bytes` are the packet's.
        pub captured: u16,
        /// [`Hook`] of the program, by its number.
        pub hook: u8,
        /// [`Reason`], by its number.
        pub reason: u8,
        /// Its first bytes; what lies behind `captured` is nobody's.
        pub bytes: [[u8; 32]; DROP_BYTES / 32],
    }
}

impl DropRecord {
    /// Which program has written it, and why; `None` in one that none has written.
    pub fn verdict(&self) -> Option<(Hook, Reason)> {
        let hook = Hook::ALL.get(usize::from(self.hook))?;
        let reason = Reason::ALL.get(usize::from(self.reason))?;
        Some((*hook, *reason))
    }

    /// The packet's first bytes.
    pub fn packet(&self) -> &[u8] {
        let bytes = self.bytes.as_flattened();
        bytes.get(..usize::from(self.captured)).unwrap_or(bytes)
    }
}

map_type! {
    /// Which packets programs tell of.
    pub struct DropsWatch[8] {
        /// So many of each reason, on each processor, in each second; 0 for none.
        pub per_second: u32,
        /// Not 0 where packets that were declined are told of, too.
        pub declined: u32,
    }
}

impl DropsWatch {
    /// Whether packets with a verdict of this class are told of.
    #[inline(always)]
    pub const fn asks_for(&self, class: Class) -> bool {
        match class {
            Class::Dropped => true,
            Class::Declined => self.declined != 0,
            Class::Forwarded | Class::Passed => false,
        }
    }
}

map_type! {
    /// How many packets of one reason one processor has told of. Of packets that a [`DropsWatch`] asks for, each is either
    /// in the ring or counted in `held_back` or `lost`.
    pub struct DropsPace[24] {
        /// The second that `told` is of: nanoseconds since the host's start, shifted right by 30.
        pub second: u32,
        /// How many were told of in it.
        pub told: u32,
        /// How many were not, because there had been enough.
        pub held_back: u64,
        /// How many were not, because the ring was full.
        pub lost: u64,
    }
}

impl DropsPace {
    /// Whether one more may be told of at this time (nanoseconds since the host's start), of so many in a second, and counts
    /// it.
    #[inline(always)]
    pub fn admit(&mut self, per_second: u32, now: u64) -> bool {
        let second = (now >> 30) as u32;
        if self.second != second {
            self.second = second;
            self.told = 0;
        }
        if self.told >= per_second {
            self.held_back += 1;
            return false;
        }
        self.told += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1 << 30;

    #[test]
    fn each_packet_is_told_of_or_counted() {
        let mut pace = DropsPace::default();
        let told = (0..10).filter(|packet| pace.admit(3, SECOND * 7 + packet)).count();
        assert_eq!((told, pace.held_back), (3, 7));
        let told = (0..10).filter(|packet| pace.admit(3, SECOND * 8 + packet)).count();
        assert_eq!((told, pace.held_back), (3, 14), "a second later there is room for more");
        assert!(!pace.admit(0, SECOND * 9));
        assert_eq!(pace.held_back, 15);
    }

    #[test]
    fn what_was_declined_is_told_of_to_who_asks() {
        let drops = DropsWatch { per_second: 1, declined: 0 };
        let all = DropsWatch { declined: 1, ..drops };
        for (class, of_drops, of_all) in [
            (Class::Forwarded, false, false),
            (Class::Passed, false, false),
            (Class::Declined, false, true),
            (Class::Dropped, true, true),
        ] {
            assert_eq!((drops.asks_for(class), all.asks_for(class)), (of_drops, of_all));
        }
    }

    #[test]
    fn a_record_is_of_its_hook_and_reason() {
        let mut record = DropRecord { captured: 3, ..DropRecord::default() };
        for hook in Hook::ALL {
            for &reason in Reason::ALL {
                (record.hook, record.reason) = (hook as u8, reason as u8);
                assert_eq!(record.verdict(), Some((hook, reason)));
            }
        }
        record.reason = u8::MAX;
        assert_eq!(record.verdict(), None);
        assert_eq!(record.packet(), [0; 3]);
        record.captured = u16::MAX;
        assert_eq!(record.packet().len(), DROP_BYTES);
    }
}
