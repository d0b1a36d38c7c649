//! Whether nothing can begin: rules that every packet meets which begins a flow of TCP's or of UDP's, behind none that
//! might accept one. That pings pass is not enough: ufw lets them, whatever else it refuses.

use super::{
    Scene,
    packet::{Fit, Packet, all},
    plumbing,
    table::{Action, Base, DEPTH, Table},
};

/// So many rules are looked at. Chains can be nested so that there are more ways through them than anybody can walk.
const STEPS: u32 = 100_000;

/// What a chain does with packets that begin a flow.
enum Fate {
    /// It refuses all of them, by this rule.
    Refused(String),
    /// It accepts some, for all we know.
    Open,
    /// They come out at its end, those that it does not refuse.
    Undecided,
}

/// The rules by which a base chain refuses whatever begins a flow with packets like this one; none if some can begin.
pub(super) fn refusals(
    table: &Table,
    scene: &Scene,
    (name, base): (&str, &Base),
    packet: Packet,
) -> Vec<String> {
    let refusal = |packet| {
        let mut beginning = Beginning { table, scene, packet, steps: STEPS };
        match beginning.chain(name, 0) {
            Fate::Refused(rule) => Some(rule),
            Fate::Open => None,
            Fate::Undecided => table.drops(base),
        }
    };
    let each: Option<Vec<_>> = packet.beginning().into_iter().map(refusal).collect();
    each.unwrap_or_default()
}

struct Beginning<'a> {
    table: &'a Table,
    scene: &'a Scene,
    packet: Packet,
    steps: u32,
}

impl Beginning<'_> {
    fn chain(&mut self, name: &str, depth: usize) -> Fate {
        if depth > DEPTH {
            return Fate::Open;
        }
        let table = self.table;
        let rules = table.chains.get(name).map_or(&[][..], |chain| &chain.rules);
        for rule in rules {
            let Some(steps) = self.steps.checked_sub(1) else { return Fate::Open };
            self.steps = steps;
            let fit = all(&rule.tests, &self.packet);
            if fit == Fit::Never {
                continue;
            }
            let is_sure = fit == Fit::Surely;
            match &rule.action {
                Action::Return if is_sure => return Fate::Undecided,
                // Of a return that is not sure, some go on and others do not.
                Action::Accept | Action::Return => return Fate::Open,
                Action::Jump(target) => match self.chain(target, depth + 1) {
                    Fate::Open => return Fate::Open,
                    Fate::Refused(rule) if is_sure => return Fate::Refused(rule),
                    Fate::Refused(_) | Fate::Undecided => {}
                },
                Action::Goto(target) => match self.chain(target, depth + 1) {
                    Fate::Refused(_) if !is_sure => {}
                    fate if is_sure => return fate,
                    _ => return Fate::Open,
                },
                Action::Effect { what, .. } if is_sure && Action::ends(what) => {
                    if !plumbing::is_plumbing(table, name, rule, what, self.scene) {
                        return Fate::Refused(rule.text.clone());
                    }
                }
                Action::Effect { .. } | Action::Nothing => {}
            }
        }
        Fate::Undecided
    }
}
