//! What each program may cost the verifier. The kernel gives a million instructions; what is recorded in
//! `verifier-budget.txt` keeps a change from costing ten times as much unseen.

use std::collections::BTreeMap;

use overlay_common::Hook;

use crate::world::World;

const BUDGET: &str = include_str!("verifier-budget.txt");

#[test]
fn no_program_costs_the_verifier_more_than_its_budget() {
    let budget: BTreeMap<&str, u32> = BUDGET
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, count)| (name, count.trim().parse().unwrap()))
        .collect();
    let mut world = World::new();
    let mut over = Vec::new();
    for hook in Hook::ALL {
        let info = world.programs.get(hook).unwrap().info().unwrap();
        let verified = info.verified_instruction_count().unwrap();
        let name = hook.name();
        let allowed = *budget.get(name).unwrap_or_else(|| panic!("no budget for {name}"));
        println!("{name} {verified} of {allowed}");
        if verified > allowed {
            over.push(format!("{name} took {verified} instructions instead of {allowed}"));
        }
    }
    assert!(over.is_empty(), "{}: if it is worth it, raise verifier-budget.txt", over.join(", "));
    assert_eq!(budget.len(), Hook::ALL.len(), "a budget for a program that there is not");
}
