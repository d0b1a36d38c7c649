use super::Direction;
use crate::{abi::map_type, packet::PROTOCOL_TCP};

/// Name of the map and of its pin: a trie of prefixes (`BPF_MAP_TYPE_LPM_TRIE`), each with the rules that concern it. Both
/// banks are in it, the one in force and the one that is being filled.
pub const POLICY_MAP: &str = "policy";

/// Prefixes of both banks together; memory is taken for those that there are.
pub const POLICY_CAPACITY: usize = 65_536;

/// Rules that one policy may have.
pub const POLICY_RULES: usize = 1024;

/// Name of the map and of its pin: what the rules do, first those of bank 0, then those of bank 1.
pub const POLICY_RULES_MAP: &str = "policy_rules";

/// Name of the map and of its pin: what the rules let through. It has as many entries as the flows that took the stack; the
/// least recently used makes room.
pub const POLICY_FLOWS_MAP: &str = "policy_flows";

/// Name of the map and of its pin: packets that each rule has denied, by [`PolicyRule::name`] and processor.
pub const POLICY_DENIED_MAP: &str = "policy_denied";

/// Of a flow that goes on, that is written down not more often than after so many nanoseconds.
const NEWS: u64 = 4_000_000_000;

/// So long, in nanoseconds, after it was written down a flow without TCP's signs of a beginning and an end counts as the same:
/// no less than connection tracking has it since the last packet (`nf_conntrack_udp_timeout_stream`, 120 s).
const ALIVE: u64 = 120_000_000_000 + NEWS;

map_type! {
    /// One of a packet's fields, in a bank of the policy: the key of its trie, behind the prefix's length in bits.
    pub struct PolicyField[8] {
        /// 0 or 1.
        pub bank: u8,
        /// `SOURCE`, `DESTINATION` or `SERVICE`.
        pub field: u8,
        /// The address; of a service the IPv4 protocol number, the port in network order, and zero.
        pub value: [u8; 4],
        /// Zero.
        pub reserved: [u8; 2],
    }
}

impl PolicyField {
    /// In `field`: the source address.
    pub const SOURCE: u8 = 0;
    /// In `field`: the destination address.
    pub const DESTINATION: u8 = 1;
    /// In `field`: protocol and destination port; 0 is the port of protocols without any.
    pub const SERVICE: u8 = 2;
    /// Bits in front of the value, which every prefix has.
    pub const FIXED_BITS: u32 = 16;
    /// Bits of a whole field.
    pub const BITS: u32 = Self::FIXED_BITS + 32;

    /// A field of the policy with this number.
    #[inline(always)]
    #[must_use]
    pub const fn new(policy: u32, field: u8, value: [u8; 4]) -> Self {
        Self { bank: (policy & 1) as u8, field, value, reserved: [0; 2] }
    }
}

/// Words of a [`RuleSet`].
const WORDS: usize = POLICY_RULES / 64;

map_type! {
    /// A set of rules: bit `n % 64` of word `n / 64` is rule `n`, the first is 0.
    pub struct RuleSet[128] {
        /// The bits.
        pub words: [u64; WORDS],
    }
}

impl RuleSet {
    /// Adds a rule; one beyond [`POLICY_RULES`] is none.
    pub fn add(&mut self, rule: usize) {
        if let Some(word) = self.words.get_mut(rule / 64) {
            *word |= 1 << (rule % 64);
        }
    }

    /// Adds all rules of another set.
    pub fn extend(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(other.words) {
            *word |= more;
        }
    }

    /// The first rule that is in all three.
    #[inline(always)]
    #[must_use]
    pub fn first_of_all(&self, second: &Self, third: &Self) -> Option<u32> {
        let mut at = 0;
        while at < WORDS {
            let common = self.words[at] & second.words[at] & third.words[at];
            if common != 0 {
                return Some(at as u32 * 64 + common.trailing_zeros());
            }
            at += 1;
        }
        None
    }
}

map_type! {
    /// What a rule does.
    pub struct PolicyRule[16] {
        /// The key that its denials are counted by: a hash of its name, so that another policy with a rule of that name
        /// counts on.
        pub name: u64,
        /// 1 where it denies; else it allows.
        pub denies: u32,
        /// Zero.
        pub reserved: u32,
    }
}

impl PolicyRule {
    /// Where a rule of the policy with this number is in its map.
    #[inline(always)]
    #[must_use]
    pub const fn index(policy: u32, rule: u32) -> u32 {
        (policy & 1) * POLICY_RULES as u32 + rule
    }
}

map_type! {
    /// A flow between a local address and another one, which some end has begun.
    pub struct PolicyFlow[16] {
        /// When it was last seen, in nanoseconds of the kernel's clock; of TCP, when it began.
        pub seen: u64,
        /// The policy that has let it in, where the other end has begun it.
        pub policy: u32,
        /// The [`Direction`] of its first packet; 0 where there is no such flow.
        pub begun: u32,
    }
}

impl PolicyFlow {
    /// Whether it is one that goes on. TCP says itself when a connection begins; everything else is a new flow after a
    /// pause.
    #[inline(always)]
    #[must_use]
    pub const fn is_alive(&self, protocol: u8, now: u64) -> bool {
        self.begun != 0 && (protocol == PROTOCOL_TCP || now.wrapping_sub(self.seen) < ALIVE)
    }

    /// Whether a packet of it may come in under this policy without a look at the rules.
    #[inline(always)]
    #[must_use]
    pub const fn is_let_in(&self, policy: u32, protocol: u8, now: u64) -> bool {
        let is_answer = self.begun == Direction::Left as u32;
        (is_answer || self.policy == policy) && self.is_alive(protocol, now)
    }

    /// Whether it is worth a note that it goes on.
    #[inline(always)]
    #[must_use]
    pub const fn is_news(&self, protocol: u8, now: u64) -> bool {
        protocol != PROTOCOL_TCP && now.wrapping_sub(self.seen) > NEWS
    }
}
