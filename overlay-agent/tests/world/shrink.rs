//! The smallest world that still fails.

use std::time::{Duration, Instant};

use crate::{
    search::{Verdict, compare},
    shape::World,
};

/// A world that takes longer to shrink stays larger than it need be.
const WITHIN: Duration = Duration::from_mins(4);

/// Drops whatever can be dropped, steps by halves and then one by one, elements one by one.
pub(crate) fn shrink(world: &World) -> World {
    let start = Instant::now();
    let mut smallest = world.clone();
    let fails =
        |world: &World| start.elapsed() < WITHIN && matches!(compare(world), Verdict::Different(_));
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
