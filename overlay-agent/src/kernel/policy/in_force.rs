//! The policy that is in force: what of it is in the maps, and the change to another. The maps have room for two, in banks
//! of their own: one is filled, and then a single number of the settings says that it counts.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::{
    maps::{Array, LpmTrie, Map, MapData, PerCpuHashMap, PerCpuValues, lpm_trie::Key},
    util::nr_cpus,
};
use overlay_common::tables::{
    Counter, HostConfig, POLICY_DENIED_MAP, POLICY_MAP, POLICY_RULES_MAP, PolicyField, PolicyRule,
    RuleSet,
};
use overlay_lease::config::policy::Policy;

use super::{Compiled, FieldPrefix, compile::name_key};

/// Programs that began before the last change may still read the bank that was in force then. None runs for so long.
const PAUSE: Duration = Duration::from_millis(100);

/// Packets and bytes that a rule has denied, on all processors, since it is known by its name.
pub type Denials = Counter;

/// Handles to the policy's maps.
pub struct PolicyTables {
    prefixes: LpmTrie<MapData, PolicyField, RuleSet>,
    rules: Array<MapData, PolicyRule>,
    denied: PerCpuHashMap<MapData, u64, Counter>,
}

impl PolicyTables {
    /// Of the maps that `take` gives by name.
    pub fn new(mut take: impl FnMut(&'static str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            prefixes: take(POLICY_MAP)?.try_into().context("opening BPF map policy")?,
            rules: take(POLICY_RULES_MAP)?.try_into().context("opening BPF map policy_rules")?,
            denied: take(POLICY_DENIED_MAP)?.try_into().context("opening BPF map policy_denied")?,
        })
    }

    /// What a rule of this name has denied.
    pub fn denials(&self, name: &str) -> Denials {
        // A rule without an entry has denied nothing.
        self.denied.get(&name_key(name), 0).map_or_else(
            |_| Counter::default(),
            |per_cpu| Counter {
                packets: per_cpu.iter().map(|counter| counter.packets).sum(),
                bytes: per_cpu.iter().map(|counter| counter.bytes).sum(),
            },
        )
    }

    /// Which prefixes a bank has.
    fn bank(&self, policy: u32) -> Result<BTreeMap<FieldPrefix, RuleSet>> {
        let mut found = BTreeMap::new();
        for entry in &self.prefixes {
            let (key, rules) = entry.context("listing BPF map policy")?;
            let field = key.data();
            if u32::from(field.bank) == policy & 1 {
                let length = key.prefix_len().saturating_sub(PolicyField::FIXED_BITS);
                let value = u32::from_be_bytes(field.value);
                found.insert(FieldPrefix { field: field.field, length, value }, rules);
            }
        }
        Ok(found)
    }

    /// Whether a bank holds exactly this.
    fn holds(&self, policy: u32, compiled: &Compiled) -> Result<bool> {
        for (rule, wanted) in (0..).zip(&compiled.rules) {
            let index = PolicyRule::index(policy, rule);
            if self.rules.get(&index, 0).context("reading BPF map policy_rules")? != *wanted {
                return Ok(false);
            }
        }
        Ok(self.bank(policy)? == compiled.prefixes)
    }

    /// Makes a bank hold exactly this.
    ///
    /// What rules have denied that neither this nor `before`, which is still in force, knows is forgotten.
    fn fill(&mut self, policy: u32, compiled: &Compiled, before: &Compiled) -> Result<()> {
        self.forget_names(&[compiled, before])?;
        for rule in &compiled.rules {
            let is_known = self.denied.get(&rule.name, 0).is_ok();
            if rule.denies != 0 && !is_known {
                let processors = nr_cpus().map_err(|(_, error)| error);
                let processors = processors.context("counting processors")?;
                let none = PerCpuValues::try_from(vec![Counter::default(); processors])?;
                let inserted = self.denied.insert(rule.name, none, 0);
                inserted.context("writing to BPF map policy_denied")?;
            }
        }
        for (rule, wanted) in (0..).zip(&compiled.rules) {
            let index = PolicyRule::index(policy, rule);
            self.rules.set(index, *wanted, 0).context("writing to BPF map policy_rules")?;
        }
        let found = self.bank(policy)?;
        for prefix in found.keys().filter(|prefix| !compiled.prefixes.contains_key(prefix)) {
            let removed = self.prefixes.remove(&key(policy, prefix));
            removed.context("removing from BPF map policy")?;
        }
        for (prefix, rules) in &compiled.prefixes {
            if found.get(prefix) != Some(rules) {
                let written = self.prefixes.insert(&key(policy, prefix), *rules, 0);
                written.context("writing to BPF map policy")?;
            }
        }
        Ok(())
    }

    fn forget_names(&mut self, kept: &[&Compiled]) -> Result<()> {
        let rules = kept.iter().flat_map(|compiled| &compiled.rules);
        let names: HashSet<_> = rules.map(|rule| rule.name).collect();
        let known = self.denied.keys().collect::<Result<Vec<_>, _>>();
        let known = known.context("listing BPF map policy_denied")?;
        for name in known.iter().filter(|name| !names.contains(name)) {
            self.denied.remove(name).context("removing from BPF map policy_denied")?;
        }
        Ok(())
    }
}

fn key(policy: u32, prefix: &FieldPrefix) -> Key<PolicyField> {
    let field = PolicyField::new(policy, prefix.field, prefix.value.to_be_bytes());
    Key::new(PolicyField::FIXED_BITS + prefix.length, field)
}

/// What of a policy the programs go by.
#[derive(Debug, Default)]
pub struct InForce {
    policy: Policy,
    /// The same, compiled: that takes milliseconds where there are a thousand rules.
    compiled: Compiled,
    number: u32,
    /// Whether the settings are to lead to one.
    exists: bool,
    /// Whether it is known to be in the maps.
    is_there: bool,
    changed: Option<Instant>,
}

impl InForce {
    /// What an earlier agent has left, if anything.
    pub fn adopted(config: &HostConfig) -> Self {
        Self { number: config.policy, exists: config.has_policy(), ..Self::default() }
    }

    /// Its number, for the settings.
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// Whether there is one, for the settings: an earlier agent's until ours is in the maps.
    pub const fn exists(&self) -> bool {
        self.exists
    }

    /// Has a policy in the maps, from which the settings may lead to it; where that fails, the one before stays. Returns false
    /// where it has to be tried again, because the last change was a moment ago.
    pub fn follow(
        &mut self,
        policy: &Policy,
        tables: &mut PolicyTables,
        now: Instant,
    ) -> Result<bool> {
        if self.is_there && *policy == self.policy {
            return Ok(true);
        }
        let wanted = Compiled::of(policy);
        let exists = !wanted.rules.is_empty();
        let is_first = !self.is_there && self.changed.is_none();
        if exists && !(is_first && tables.holds(self.number, &wanted)?) {
            if self.changed.is_some_and(|changed| now.duration_since(changed) < PAUSE) {
                return Ok(false);
            }
            let next = self.number.wrapping_add(1);
            tables.fill(next, &wanted, &self.compiled)?;
            self.number = next;
            self.changed = Some(now);
        }
        self.policy.clone_from(policy);
        self.exists = exists;
        self.compiled = wanted;
        self.is_there = true;
        Ok(true)
    }

    /// Looks whether the maps still hold it; if somebody has changed them, it has to be put in force anew. Returns whether all
    /// is well.
    pub fn verify(&mut self, tables: &PolicyTables) -> Result<bool> {
        if !self.is_there || !self.exists() {
            return Ok(true);
        }
        self.is_there = tables.holds(self.number, &self.compiled)?;
        if !self.is_there {
            self.changed.get_or_insert_with(Instant::now);
        }
        Ok(self.is_there)
    }
}
