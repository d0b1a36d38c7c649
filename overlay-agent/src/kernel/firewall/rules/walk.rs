use std::collections::HashMap;

use super::{
    Concern, Scene, ServicePort, begin,
    packet::{Fit, Hook, Packet, all},
    plumbing,
    table::{Action, Base, DEPTH, Rule, Table},
};

/// Every rule in `table` that may concern the overlay, chain by chain, some more than once.
pub(super) fn concerns(table: &Table, scene: &Scene) -> Vec<Concern> {
    let mut found = met(table, scene, |hook| scene.packets(hook));
    for (name, base) in table.bases() {
        let packets = scene.packets_by_peer(base.hook).into_iter();
        let refusals =
            packets.flat_map(|packet| begin::refusals(table, scene, (name, base), packet));
        found.extend(refusals.map(|text| Concern { refuses: true, ..Concern::of_flows(text) }));
    }
    found
}

/// Every rule in `table` that may match some of these packets, as above.
pub(super) fn met(
    table: &Table,
    scene: &Scene,
    packets: impl Fn(Hook) -> Vec<Packet>,
) -> Vec<Concern> {
    let mut found = Vec::new();
    for (name, base) in table.bases() {
        for packet in packets(base.hook) {
            let mut walk = Walk {
                table,
                scene,
                packet,
                walked: HashMap::new(),
                is_parted: false,
                found: &mut found,
            };
            if walk.chain(name, 0, false)
                && let Some(drops) = table.drops(base)
            {
                let each_packet = walk.is_parted;
                found.push(Concern { each_packet, ..Concern::of_flows(drops) });
            }
        }
    }
    found
}

/// Every rule in `table` by which the host drops all packets of this service's.
pub(super) fn closing(table: &Table, scene: &Scene, service: ServicePort) -> Vec<String> {
    let of_base = |(name, base): (&String, &Base)| {
        let packets = scene.services(base.hook, &base.devices, service).into_iter();
        let refusals =
            packets.flat_map(|packet| begin::refusals(table, scene, (name, base), packet));
        refusals.collect::<Vec<_>>()
    };
    table.bases().flat_map(of_base).collect()
}

/// The way of one packet through a base chain.
struct Walk<'a> {
    table: &'a Table,
    scene: &'a Scene,
    packet: Packet,
    /// Chains that have been walked.
    walked: HashMap<&'a str, Walked>,
    /// Whether some packets of a flow may not have come this far, for what they are themselves. Once it is so, it
    /// stays so.
    is_parted: bool,
    found: &'a mut Vec<Concern>,
}

#[derive(Clone, Copy)]
struct Walked {
    /// Whether the packet may come out at the end.
    falls: bool,
    /// Whether only some packets of a flow may have come in.
    each_packet: bool,
}

impl<'a> Walk<'a> {
    /// Follows the packet through a chain that only some of its flow come to, if `each_packet`: at most once with and
    /// once without. Returns whether it may come out undecided.
    fn chain(&mut self, name: &'a str, depth: usize, each_packet: bool) -> bool {
        if let Some(walked) = self.walked.get(name)
            && (walked.each_packet || !each_packet)
        {
            return walked.falls;
        }
        // For a chain that leads back to itself, which the kernel should have refused.
        self.walked.insert(name, Walked { falls: true, each_packet });
        let falls = self.rules(name, depth, each_packet);
        if let Some(walked) = self.walked.get_mut(name) {
            walked.falls = falls;
        }
        falls
    }

    fn rules(&mut self, name: &'a str, depth: usize, each_packet: bool) -> bool {
        let table = self.table;
        let rules = table.chains.get(name).map_or(&[][..], |chain| &chain.rules);
        let mut falls = false;
        for rule in rules {
            let fit = all(&rule.tests, &self.packet);
            if fit == Fit::Never {
                continue;
            }
            let each_packet = each_packet || self.is_parted || rule.asks_of_packet();
            let ends = match &rule.action {
                Action::Nothing => false,
                Action::Accept => true,
                Action::Return => {
                    falls = true;
                    true
                }
                Action::Jump(target) => !self.branch(rule, target, depth, each_packet),
                Action::Goto(target) => {
                    falls |= self.branch(rule, target, depth, each_packet);
                    true
                }
                Action::Effect { what, each_packet: is_own } => {
                    self.effect(name, rule, what, each_packet || *is_own)
                }
            };
            self.is_parted |= ends && each_packet;
            if ends && fit == Fit::Surely {
                return falls;
            }
        }
        true
    }

    /// Follows a rule into another chain. Returns whether the packet may come out of that.
    fn branch(&mut self, rule: &Rule, target: &'a str, depth: usize, each_packet: bool) -> bool {
        if depth < DEPTH && self.table.chains.contains_key(target) {
            return self.chain(target, depth + 1, each_packet);
        }
        self.found.push(Concern::unclear(format!("{} (which was not followed)", rule.text)));
        true
    }

    /// Returns whether it is the last that happens to the packet.
    fn effect(&mut self, chain: &str, rule: &Rule, what: &str, each_packet: bool) -> bool {
        if plumbing::is_plumbing(self.table, chain, rule, what, self.scene) {
            return false;
        }
        self.found.push(Concern { each_packet, ..Concern::of_flows(rule.text.clone()) });
        Action::ends(what)
    }
}
