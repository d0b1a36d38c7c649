//! The smallest world that still fails.

use std::time::{Duration, Instant};

use crate::{
    compare::Difference,
    search::{Verdict, compare},
    shape::{Step, World},
};

/// A world that takes longer to shrink stays larger than it need be.
const WITHIN: Duration = Duration::from_mins(4);

/// Drops whatever can be dropped: other probes and later events at once, then steps by halves and one by one, elements
/// one by one.
pub(crate) fn shrink(world: &World, found: &[Difference]) -> World {
    let start = Instant::now();
    // One that cannot even be made is no smaller case of one that could.
    let plays = !found.iter().any(Difference::is_broken);
    let fails = |world: &World| {
        start.elapsed() < WITHIN
            && match compare(world) {
                Verdict::Different(found) => !plays || !found.iter().any(Difference::is_broken),
                Verdict::Same(_) => false,
            }
    };
    let mut smallest = world.clone();
    if let Some(step) = found.iter().filter_map(Difference::step).min() {
        let alone = alone(world, step);
        if fails(&alone) {
            smallest = alone;
        }
    }
    let mut piece = smallest.steps.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < smallest.steps.len() {
            let mut smaller = smallest.clone();
            smaller.steps.drain(at..(at + piece).min(smallest.steps.len()));
            if !smaller.steps.is_empty() && fails(&smaller) {
                smallest = smaller;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    let mut at = 0;
    while at < smallest.elements.len() {
        let mut smaller = smallest.clone();
        smaller.elements.remove(at);
        if fails(&smaller) {
            smallest = smaller;
        } else {
            at += 1;
        }
    }
    smallest
}

/// One probe, with the events before it.
fn alone(world: &World, step: usize) -> World {
    let mut alone = world.clone();
    let mut number = 0..;
    alone.steps.retain(|what| {
        let number = number.next().unwrap_or(step);
        number == step || number < step && matches!(what, Step::Event(_))
    });
    alone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;

    #[test]
    fn a_probe_alone_keeps_what_happened_before_it() {
        let world = generate::world(1);
        let last = world.steps.len() - 1;
        let events = world.steps.iter().filter(|step| matches!(step, Step::Event(_)));
        let alone = alone(&world, last);
        assert_eq!(alone.steps.len(), events.count() + 1);
        assert_eq!(alone.steps.last(), world.steps.last());
    }
}
