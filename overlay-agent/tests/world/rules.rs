//! Where ours differs on purpose. Each rule is one of `docs/differences.md`, by its name there, and as narrow as it says.

use std::{collections::BTreeSet, net::Ipv4Addr};

use crate::{
    shape::{Element, Place, Probe, Target, Way, wire},
    traffic::{Arrival, Complaint, Fate},
};

/// What a probe is judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case<'a> {
    /// What is there when the probe is sent.
    pub(crate) elements: &'a [Element],
    pub(crate) probe: &'a Probe,
    pub(crate) fast: &'a Fate,
    pub(crate) stack: &'a Fate,
    pub(crate) flannel: &'a Fate,
}

type Rule = (&'static str, fn(&Case) -> bool);

/// Of the fast path, compared to the stack with our agent.
const FAST: [Rule; 3] =
    [("one-hop", one_hop), ("inner-rules", inner_rules), ("outer-source-check", source_check)];

/// Of our agent, compared to flannel's device.
const OURS: [Rule; 4] = [
    ("own-addresses", own_addresses),
    ("plain-options", plain_options),
    ("around-the-tunnel", around_the_tunnel),
    ("misplaced-vtep", misplaced_vtep),
];

/// The rules by which all that differs may differ; none where something differs by no rule.
pub(crate) fn excuses(case: &Case) -> Option<Vec<&'static str>> {
    let find = |rules: &[Rule]| rules.iter().find(|(_, holds)| holds(case)).map(|(name, _)| *name);
    let mut found = Vec::new();
    if case.fast != case.stack {
        found.push(find(&FAST)?);
    }
    if case.stack != case.flannel {
        found.push(find(&OURS)?);
    }
    Some(found)
}

/// ICMP: the TTL has run out on its way.
const EXPIRED: (u8, u8) = (11, 0);

/// Where the fast path delivers to a container, what comes from another host's has been forwarded once, not twice.
fn one_hop(case: &Case) -> bool {
    let Case { probe, fast, stack, .. } = case;
    let from = probe.from;
    let spared = |arrival: &Arrival, sender: Option<Place>| {
        let own = host_of(arrival.place);
        let other = sender.and_then(host_of).is_some_and(|host| Some(host) != own);
        other && matches!(arrival.place, Place::Container { .. })
    };
    let answerer = fast.arrived.iter().next().map(|arrival| arrival.place);
    let answers = [fast, stack].map(|fate| without_options(&fate.answered));
    if same(&fast.arrived, &stack.arrived, |arrival| spared(arrival, Some(from)))
        && same(&answers[0], &answers[1], |arrival| spared(arrival, answerer))
        && (probe.options || fast.answered.iter().all(|answer| answer.options.is_empty()))
        && fast.complaints == stack.complaints
        && fast.said == stack.said
    {
        return true;
    }
    // With one hop more, it would not have arrived, or not have been looked for.
    let spared_all = |arrived: &BTreeSet<Arrival>| {
        arrived.iter().all(|arrival| arrival.ttl == 1 && spared(arrival, Some(from)))
    };
    let is_expired = |complaint: &Complaint| (complaint.kind, complaint.code) == EXPIRED;
    let last_hop = if matches!(from, Place::Container { .. }) { 2 } else { 1 };
    probe.ttl == last_hop
        && spared_all(&fast.arrived)
        && stack.arrived.is_empty()
        && stack.complaints.iter().all(is_expired)
        && !(fast.arrived.is_empty() && stack.complaints.is_empty())
}

/// Answers that tell the way that the question has recorded, as echo replies do, tell of one hop less, too.
fn without_options(answers: &BTreeSet<Arrival>) -> BTreeSet<Arrival> {
    answers.iter().map(|answer| Arrival { options: Vec::new(), ..answer.clone() }).collect()
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
    let mut arrived = case.fast.arrived.iter();
    is_ruled(case, case.probe.from) || arrived.any(|arrival| is_ruled(case, arrival.place))
}

/// Whether a place is on a host that has such rules.
fn is_ruled(case: &Case, place: Place) -> bool {
    let rules = case.elements.iter().filter(|element| element.is_about_the_inside());
    let mut hosts = rules.filter_map(|element| match element {
        Element::Rule { host, .. } => Some(*host),
        _ => None,
    });
    hosts.any(|host| host_of(place) == Some(host))
}

/// Return paths of outer packets (`rp_filter`) are not checked by the fast path, which knows by leases who may send.
fn source_check(case: &Case) -> bool {
    let Case { elements, probe, fast, stack, .. } = case;
    let is_checked = |host: u8| {
        let checks = |element: &Element| match *element {
            Element::SourceCheck { host: of, mode } => of == host && mode > 0,
            _ => false,
        };
        let detours = |element: &Element| {
            matches!(
                element,
                Element::Route { host: of, .. }
                    | Element::WorseRoute { host: of, .. }
                    | Element::Rule { host: of, .. } if *of == host
            )
        };
        elements.iter().any(checks) && elements.iter().any(detours)
    };
    let by_container = |place: Place| match place {
        Place::Container { host, .. } => is_checked(host),
        Place::Host(_) | Place::Outside => false,
    };
    if stack.arrived.is_empty() {
        return !fast.arrived.is_empty()
            && fast.arrived.iter().all(|arrival| by_container(arrival.place));
    }
    stack.answered.is_empty() && !fast.answered.is_empty() && by_container(probe.from)
}

/// What another host sends by the tunnel comes from its lease or from its public address, and is refused from any other
/// of its addresses.
fn own_addresses(case: &Case) -> bool {
    let Case { elements, probe, stack, flannel, .. } = case;
    let has_two = |host: u8| {
        elements.contains(&Element::SecondAddress { host })
            || elements.contains(&Element::LoopbackAddress { host })
    };
    match (probe.from, probe.to) {
        // The answer.
        (Place::Container { host: from, .. }, Target::Wire(host)) if host != from => {
            has_two(host)
                && !stack.arrived.is_empty()
                && stack.arrived == flannel.arrived
                && stack.answered.is_empty()
                && flannel.answered.iter().all(|answer| answer.source == wire(host))
        }
        // The question, whose source is chosen before its destination is translated.
        (Place::Host(host), Target::Service(_)) => {
            has_two(host)
                && stack.arrived.is_empty()
                && flannel.arrived.iter().all(|arrival| arrival.source == wire(host))
        }
        _ => false,
    }
}

/// Whether less arrives and is answered than with flannel, and nothing else.
fn is_less(case: &Case) -> bool {
    let Case { stack, flannel, .. } = case;
    stack.arrived.is_subset(&flannel.arrived) && stack.answered.is_subset(&flannel.answered)
}

/// What rules lead around the tunnel comes unencapsulated, and is refused.
fn around_the_tunnel(case: &Case) -> bool {
    let mut places = case.flannel.arrived.iter().map(|arrival| arrival.place);
    let ruled = is_ruled(case, case.probe.from) || places.any(|place| is_ruled(case, place));
    ruled && is_less(case)
}

/// VXLAN by an interface that does not lead to the peer is refused: of the second wire, where one of two hosts uses it
/// and the other does not.
fn misplaced_vtep(case: &Case) -> bool {
    let by_second = |element: &Element| match *element {
        Element::Route { host, way: Way::SecondWire, .. }
        | Element::WorseRoute { host, way: Way::SecondWire, .. }
        | Element::Rule { host, way: Way::SecondWire, .. } => Some(host),
        _ => None,
    };
    let using: BTreeSet<_> = case.elements.iter().filter_map(by_second).collect();
    let arrived = case.flannel.arrived.iter().filter_map(|arrival| host_of(arrival.place));
    let ends: BTreeSet<_> =
        arrived.chain(host_of(case.probe.from)).chain(case.probe.to.host()).collect();
    let concerned = ends.len() > 1 && ends.iter().any(|host| using.contains(host));
    concerned && is_less(case)
}

/// What comes to a host itself as it is, from an overlay address, is refused if it has IP options: they may lead on to
/// a container.
fn plain_options(case: &Case) -> bool {
    let Case { probe, stack, flannel, .. } = case;
    if !probe.options {
        return false;
    }
    // The echo's answer, with the question's options, to a host that has asked by its public address.
    if matches!(probe.from, Place::Host(_)) {
        return probe.bound
            && stack.arrived == flannel.arrived
            && stack.answered.is_empty()
            && flannel.answered.iter().all(|answer| is_inside(answer.source));
    }
    let (
        Target::Wire(host) | Target::Public(host) | Target::Published(host),
        Place::Container { host: from, .. },
    ) = (probe.to, probe.from)
    else {
        return false;
    };
    let is_plain =
        |arrival: &Arrival| host_of(arrival.place) == Some(host) && is_inside(arrival.source);
    // It has arrived, or the host has said that nobody listens.
    let is_unheard = |complaint: &Complaint| (complaint.kind, complaint.code) == (3, 3);
    host != from
        && stack.arrived.is_empty()
        && stack.complaints.is_empty()
        && flannel.arrived.iter().all(is_plain)
        && flannel.complaints.iter().all(is_unheard)
}

/// Whether an address is of the overlay.
fn is_inside(address: Ipv4Addr) -> bool {
    address.octets()[..2] == [10, 1]
}
