//! Where the fast path differs from the stack on purpose. Each rule is one of `docs/differences.md`, by its name there,
//! and as narrow as it says. Between the stack with our agent and flannel nothing is excused here.

use std::collections::BTreeSet;

use crate::{
    shape::{Element, Place, Probe, Selector},
    traffic::{Arrival, Fate},
};

/// What a probe is judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case<'a> {
    /// What is there when the probe is sent.
    pub(crate) elements: &'a [Element],
    pub(crate) probe: &'a Probe,
    pub(crate) fast: &'a Fate,
    pub(crate) stack: &'a Fate,
}

type Rule = (&'static str, fn(&Case) -> bool);

const RULES: [Rule; 2] = [("one-hop", one_hop), ("inner-rules", inner_rules)];

/// The rule by which the fast path may differ from the stack here.
pub(crate) fn excuse(case: &Case) -> Option<&'static str> {
    RULES.iter().find(|(_, holds)| holds(case)).map(|(name, _)| *name)
}

/// ICMP: the TTL has run out on its way.
const EXPIRED: (u8, u8) = (11, 0);

/// Where the fast path delivers to a container, what comes from another host's has been forwarded once, not twice.
fn one_hop(case: &Case) -> bool {
    let Case { probe, fast, stack, .. } = case;
    let from = probe.from;
    let spared = |arrival: &Arrival, sender: Option<Place>| matches!((arrival.place, sender.and_then(host_of)), (Place::Container { host, .. }, Some(of)) if of != host);
    let answerer = fast.arrived.iter().next().map(|arrival| arrival.place);
    if same(&fast.arrived, &stack.arrived, |arrival| spared(arrival, Some(from)))
        && same(&fast.answered, &stack.answered, |arrival| spared(arrival, answerer))
    {
        return fast.complaints == stack.complaints && fast.said == stack.said;
    }
    // With one hop more, it would not have arrived.
    let last = |arrived: &BTreeSet<Arrival>, sender| {
        !arrived.is_empty()
            && arrived.iter().all(|arrival| arrival.ttl == 1 && spared(arrival, sender))
    };
    let expired =
        stack.complaints.iter().all(|complaint| (complaint.kind, complaint.code) == EXPIRED);
    if !stack.arrived.is_empty() || !expired {
        return false;
    }
    // Or it would have been the last host to give it up, and not nobody who is asked for.
    let absent = fast.arrived.is_empty()
        && !stack.complaints.is_empty()
        && probe.ttl == if matches!(from, Place::Container { .. }) { 2 } else { 1 };
    last(&fast.arrived, Some(from)) || absent
}

/// Whether packets have arrived alike, but for one hop less where that is allowed.
fn same(
    fast: &BTreeSet<Arrival>,
    stack: &BTreeSet<Arrival>,
    spared: impl Fn(&Arrival) -> bool,
) -> bool {
    fast.len() == stack.len()
        && fast.iter().zip(stack).all(|(fast, stack)| {
            let mut hop_more = fast.clone();
            hop_more.ttl = hop_more.ttl.saturating_sub(1);
            // Nor does the host that delivers write itself down.
            hop_more.options.clone_from(&stack.options);
            fast == stack || spared(fast) && hop_more == *stack
        })
}

fn host_of(place: Place) -> Option<u8> {
    match place {
        Place::Container { host, .. } | Place::Host(host) => Some(host),
        Place::Outside => None,
    }
}

/// Routing rules about addresses inside the overlay are the stack's: the fast path goes by leases.
fn inner_rules(case: &Case) -> bool {
    let hosts: Vec<_> = case
        .elements
        .iter()
        .filter_map(|element| match element {
            Element::Rule {
                host, selector: Selector::FromSubnet | Selector::ToSubnet(_), ..
            } => Some(*host),
            _ => None,
        })
        .collect();
    let concerns = |place: Place| host_of(place).is_some_and(|host| hosts.contains(&host));
    concerns(case.probe.from) || case.fast.arrived.iter().any(|arrival| concerns(arrival.place))
}
