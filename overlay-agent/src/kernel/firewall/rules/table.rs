//! Rules as the tools list them, in one form.

use std::collections::BTreeMap;

use super::packet::{Hook, Test};

/// How deep chains may be nested before they are not followed any more. The kernel's own limit for nftables is 16.
pub(super) const DEPTH: usize = 64;

/// Chains that can jump to each other.
#[derive(Debug)]
pub(super) struct Table {
    /// The tool that lists it.
    pub(super) tool: &'static str,
    /// As that tool calls it, `filter` or `inet firewalld`.
    pub(super) name: String,
    pub(super) chains: BTreeMap<String, Chain>,
}

impl Table {
    /// Where packets enter it.
    pub(super) fn bases(&self) -> impl Iterator<Item = (&String, &Base)> {
        self.chains.iter().filter_map(|(name, chain)| Some((name, chain.base.as_ref()?)))
    }

    /// What an operator is told if a chain drops packets that no rule decides about. Where that is ufw's doing, ufw has
    /// the command; chains of one that is switched off are empty.
    pub(super) fn drops(&self, base: &Base) -> Option<String> {
        let drops = base.drops.as_ref()?;
        let is_ufws =
            self.chains.get("ufw-before-input").is_some_and(|chain| !chain.rules.is_empty());
        Some(if is_ufws { format!("{drops} (ufw)") } else { drops.clone() })
    }
}

#[derive(Debug, Default)]
pub(super) struct Chain {
    /// Where packets enter the table by this chain.
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

#[derive(Debug)]
pub(super) struct Base {
    pub(super) hook: Hook,
    /// Whose packets enter it, where it is one of devices.
    pub(super) devices: Vec<String>,
    /// What an operator is told if packets are dropped that no rule decides about.
    pub(super) drops: Option<String>,
}

/// A rule, or, where a rule does several things, one of them.
#[derive(Debug)]
pub(super) struct Rule {
    /// What an operator is told.
    pub(super) text: String,
    pub(super) tests: Vec<Test>,
    pub(super) action: Action,
}

impl Rule {
    /// Whether it asks something about single packets.
    pub(super) fn asks_of_packet(&self) -> bool {
        self.tests.iter().any(Test::each_packet)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Accept,
    Return,
    Jump(String),
    Goto(String),
    /// The packet, or what is known of it, is not the same afterwards.
    Effect {
        what: String,
        /// Whether it is not enough that some packets of a flow meet it, now and then.
        each_packet: bool,
    },
}

impl Action {
    /// Whether no rule of the same base chain sees the packet afterwards.
    pub(super) fn ends(name: &str) -> bool {
        ["DROP", "REJECT"].iter().any(|verdict| name.eq_ignore_ascii_case(verdict))
    }
}
