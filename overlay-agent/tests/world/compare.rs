//! Whether three datapaths have made the same of a world.

use std::{collections::BTreeMap, fmt};

use crate::{
    play::{Mode, Story, Survey},
    rules::{self, Case},
    shape::{Element, Event, Place, Probe, Step, World},
    traffic::Fate,
};

/// What a datapath made otherwise than another, for no reason that we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// Of one probe.
    Fate { step: usize, what: String, fates: [String; 3] },
    /// A way was taken by many packets of a round, or by few.
    Way { step: usize, way: String, packets: [u64; 3] },
    /// All containers talk to each other, and an agent complains.
    Problem { mode: Mode, step: usize, host: u8, problem: String },
    /// A datapath could not be played to the end.
    Broken { mode: Mode, error: String },
}

impl Difference {
    /// The probe that shows it, or the first of the round after which it shows.
    pub(crate) const fn step(&self) -> Option<usize> {
        match self {
            Self::Fate { step, .. } | Self::Way { step, .. } | Self::Problem { step, .. } => {
                Some(*step)
            }
            Self::Broken { .. } => None,
        }
    }

    /// Whether a datapath could not be played at all.
    pub(crate) const fn is_broken(&self) -> bool {
        matches!(self, Self::Broken { .. })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fate { step, what, fates: [fast, stack, flannel] } => write!(
                formatter,
                "step {step}, {what}\n    fast path: {fast}\n    stack:     {stack}\n    flannel:   {flannel}"
            ),
            Self::Way { step, way, packets } => write!(
                formatter,
                "in the round from step {step}, {packets:?} packets went {way}: by fast path, stack, flannel"
            ),
            Self::Problem { mode, step, host, problem } => write!(
                formatter,
                "after the round from step {step}, all containers talk, and host {host} says ({mode:?}): {problem}"
            ),
            Self::Broken { mode, error } => write!(formatter, "{mode:?} does not play: {error}"),
        }
    }
}

/// What comparing has found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) differences: Vec<Difference>,
    /// How often which rule has excused one.
    pub(crate) excused: BTreeMap<&'static str, usize>,
    heard: [BTreeMap<Place, usize>; 3],
}

/// After so many complaints about routes, a kernel has told a sender all that it tells him at once.
const RATION: usize = 5;

/// As many packets may be something else, such as one probe that was lost and sent again; so many are not.
const FEW: u64 = 3;
const MANY: u64 = 10;

/// Whether a way was taken by some datapaths, and not by others.
fn is_other(packets: &[u64; 3]) -> bool {
    packets.iter().any(|packets| *packets <= FEW) && packets.iter().any(|packets| *packets >= MANY)
}

/// Compares the stories of one world, in the order of [`Mode::ALL`].
pub(crate) fn findings(world: &World, stories: &[Story; 3]) -> Findings {
    let heard = stories.each_ref().map(|story| story.heard.clone());
    let mut found = Findings { heard, ..Findings::default() };
    let mut elements = world.elements.clone();
    let mut surveys = stories.each_ref().map(|story| story.surveys.iter().peekable());
    for (step, what) in world.steps.iter().enumerate() {
        let probe = match what {
            Step::Event(Event::Add(element)) => {
                elements.push(*element);
                continue;
            }
            Step::Event(_) => continue,
            Step::Probe(probe) => probe,
        };
        if let [Some(fast), Some(stack), Some(flannel)] =
            stories.each_ref().map(|story| story.fates.get(&step))
        {
            found.judge(step, &elements, probe, [fast, stack, flannel]);
        }
        let of_step =
            surveys.each_mut().map(|surveys| surveys.next_if(|survey| survey.step == step));
        let [Some(fast), Some(stack), Some(flannel)] = of_step else { continue };
        for (pair, fate) in &fast.pairs {
            if let (Some(stack), Some(flannel)) = (stack.pairs.get(pair), flannel.pairs.get(pair)) {
                let probe = Probe::hello(pair.0, pair.1);
                found.judge(step, &elements, &probe, [fate, stack, flannel]);
            }
        }
        // What must not go by the tunnel, or not be forwarded, may go otherwise too; and what is not let in is not
        // answered, by whatever way.
        let is_refused = found.excused.contains_key("misplaced-vtep");
        if !is_refused && !elements.iter().any(|element| element.is_about_the_inside()) {
            let ways = [&fast.ways, &stack.ways, &flannel.ways];
            let other = fast.ways.keys().filter(|way| is_other(&ways.map(|of| of[*way])));
            found.differences.extend(other.map(|way| Difference::Way {
                step,
                way: way.clone(),
                packets: ways.map(|of| of[way]),
            }));
        }
        for (mode, survey) in Mode::ALL.into_iter().zip([fast, stack, flannel]) {
            found.complaints(mode, survey, world);
        }
    }
    found
}

/// What `status` says of containers that send more than the overlay carries.
const TOO_LARGE: &str = "have an MTU of up to";

/// What it says of routing that leads elsewhere.
const LED_AWAY: &str = "do not lead into the overlay";

impl Findings {
    fn judge(&mut self, step: usize, elements: &[Element], probe: &Probe, fates: [&Fate; 3]) {
        let mut fates = fates.map(Clone::clone);
        self.forgive_rationed(probe, &mut fates);
        let [fast, stack, flannel] = &fates;
        if let Some(rules) = rules::excuses(&Case { elements, probe, fast, stack, flannel }) {
            for rule in rules {
                *self.excused.entry(rule).or_default() += 1;
            }
            return;
        }
        let what = serde_json::to_string(probe).unwrap();
        let fates = fates.each_ref().map(ToString::to_string);
        self.differences.push(Difference::Fate { step, what, fates });
    }

    /// Where a complaint is missing that its sender's kernel had used up, it is as if it was there.
    fn forgive_rationed(&self, probe: &Probe, fates: &mut [Fate; 3]) {
        let Some(told) = fates.iter().find(|fate| fate.is_rationed()).cloned() else { return };
        let in_vain = told.is_in_vain();
        for (fate, heard) in fates.iter_mut().zip(&self.heard) {
            // Whoever is masqueraded has one ration with all others of his host.
            let of_host = heard.iter().filter(|(place, _)| place.host() == probe.from.host());
            let used_up = in_vain || of_host.map(|(_, heard)| heard).sum::<usize>() >= RATION;
            if fate.complaints.is_empty() && fate.arrived.is_empty() && used_up {
                fate.complaints.clone_from(&told.complaints);
            }
        }
    }

    /// Where all containers talk to each other, all is well, but for those that send more than the overlay carries.
    fn complaints(&mut self, mode: Mode, survey: &Survey, world: &World) {
        let pairs = usize::from(world.hosts) * usize::from(world.hosts - 1);
        if survey.pairs.len() < pairs || !survey.pairs.values().all(Fate::is_answered) {
            return;
        }
        let step = survey.step;
        for host in 0..world.hosts {
            let said = survey.problems.iter().filter(|(of, _)| *of == host);
            let (of_mtu, others): (Vec<_>, Vec<_>) =
                said.map(|(_, problem)| problem).partition(|problem| problem.contains(TOO_LARGE));
            let is_too_large = world.bridge_mtu(host) > world.overlay_mtu();
            let is_missing = is_too_large && of_mtu.is_empty() && mode != Mode::Flannel;
            let missing = is_missing.then(|| format!("nothing like «{TOO_LARGE}»"));
            // Containers' packets take the fast path all the same; the host's do not.
            let is_led_away = |problem: &&String| {
                problem.contains(LED_AWAY) && world.has_rules_about_the_inside()
            };
            let others = others.into_iter().filter(|problem| !is_led_away(problem));
            let wrong = of_mtu.into_iter().filter(|_| !is_too_large).chain(others).cloned();
            self.differences.extend(wrong.chain(missing).map(|problem| Difference::Problem {
                mode,
                step,
                host,
                problem,
            }));
        }
    }
}
