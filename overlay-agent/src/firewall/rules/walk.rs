use std::collections::{BTreeMap, HashMap};

use super::{
    Scene,
    packet::{Fit, Hook, Packet, Test, all},
    plumbing,
};

/// How deep chains may be nested before they are not followed any more. The kernel's own limit for nftables is 16.
const DEPTH: usize = 64;

/// Chains that can jump to each other.
#[derive(Debug)]
pub(super) struct Table {
    /// The tool that lists it.
    pub(super) tool: &'static str,
    /// As that tool calls it, `filter` or `inet firewalld`.
    pub(super) name: String,
    pub(super) chains: BTreeMap<String, Chain>,
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Accept,
    Return,
    Jump(String),
    Goto(String),
    /// The packet, or what is known of it, is not the same afterwards.
    Effect(String),
}

impl Action {
    /// Whether no rule of the same base chain sees the packet afterwards.
    fn ends(name: &str) -> bool {
        ["DROP", "REJECT"].iter().any(|verdict| name.eq_ignore_ascii_case(verdict))
    }
}

/// What an operator is told of every rule in `table` that may concern the overlay, chain by chain, of some more than
/// once.
pub(super) fn concerns(table: &Table, scene: &Scene) -> Vec<String> {
    let mut found = Vec::new();
    for (name, chain) in &table.chains {
        let Some(base) = &chain.base else { continue };
        for packet in scene.packets(base.hook) {
            let mut walk = Walk { table, scene, packet, falls: HashMap::new(), found: &mut found };
            if walk.chain(name, 0)
                && let Some(drops) = &base.drops
            {
                found.push(drops.clone());
            }
        }
    }
    found
}

/// The way of one packet through a base chain.
struct Walk<'a> {
    table: &'a Table,
    scene: &'a Scene,
    packet: Packet,
    /// Of chains that have been walked, whether the packet may come out at their end.
    falls: HashMap<&'a str, bool>,
    found: &'a mut Vec<String>,
}

impl<'a> Walk<'a> {
    /// Returns whether the packet may come out of the chain undecided.
    fn chain(&mut self, name: &'a str, depth: usize) -> bool {
        if let Some(falls) = self.falls.get(name) {
            return *falls;
        }
        // For a chain that leads back to itself, which the kernel should have refused.
        self.falls.insert(name, true);
        let falls = self.rules(name, depth);
        self.falls.insert(name, falls);
        falls
    }

    fn rules(&mut self, name: &'a str, depth: usize) -> bool {
        let table = self.table;
        let rules = table.chains.get(name).map_or(&[][..], |chain| &chain.rules);
        let mut falls = false;
        for rule in rules {
            let fit = all(&rule.tests, &self.packet);
            if fit == Fit::Never {
                continue;
            }
            let ends = match &rule.action {
                Action::Nothing => false,
                Action::Accept => true,
                Action::Return => {
                    falls = true;
                    true
                }
                Action::Jump(target) => !self.branch(rule, target, depth),
                Action::Goto(target) => {
                    falls |= self.branch(rule, target, depth);
                    true
                }
                Action::Effect(what) => self.effect(name, rule, what),
            };
            if ends && fit == Fit::Surely {
                return falls;
            }
        }
        true
    }

    /// Follows a rule into another chain. Returns whether the packet may come out of that.
    fn branch(&mut self, rule: &Rule, target: &'a str, depth: usize) -> bool {
        if depth < DEPTH && self.table.chains.contains_key(target) {
            return self.chain(target, depth + 1);
        }
        self.found.push(format!("{} (which was not followed)", rule.text));
        true
    }

    /// Returns whether it is the last that happens to the packet.
    fn effect(&mut self, chain: &str, rule: &Rule, what: &str) -> bool {
        if plumbing::is_plumbing(self.table, chain, rule, what, self.scene) {
            return false;
        }
        self.found.push(rule.text.clone());
        Action::ends(what)
    }
}
