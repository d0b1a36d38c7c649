//! Whether three datapaths have made the same of a world.

use std::fmt;

use crate::{
    play::{Mode, Story},
    shape::{Step, World},
    traffic::Fate,
};

/// What a datapath made otherwise than another, for no reason that we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Difference {
    /// Of one probe.
    Fate { step: usize, what: String, fates: [String; 3] },
    /// All containers talk to each other, and an agent complains.
    Problem { mode: Mode, step: usize, host: u8, problem: String },
    /// A datapath could not be played to the end.
    Broken { mode: Mode, error: String },
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fate { step, what, fates: [fast, stack, flannel] } => write!(
                formatter,
                "step {step}, {what}\n    fast path: {fast}\n    stack:     {stack}\n    flannel:   {flannel}"
            ),
            Self::Problem { mode, step, host, problem } => write!(
                formatter,
                "after the round from step {step}, all containers talk, and host {host} says ({mode:?}): {problem}"
            ),
            Self::Broken { mode, error } => write!(formatter, "{mode:?} does not play: {error}"),
        }
    }
}

/// The differences between stories of one world, in the order of [`Mode::ALL`].
pub(crate) fn differences(world: &World, stories: &[Story; 3]) -> Vec<Difference> {
    let mut found = Vec::new();
    for (step, what) in world.steps.iter().enumerate() {
        let Step::Probe(probe) = what else { continue };
        let fates = stories.each_ref().map(|story| story.fates.get(&step));
        let [Some(fast), Some(stack), Some(flannel)] = fates else { continue };
        judge(&mut found, step, format!("{probe:?}"), [fast, stack, flannel]);
    }
    let surveys = stories.each_ref().map(|story| story.surveys.iter());
    let [fast, stack, flannel] = surveys;
    for ((fast, stack), flannel) in fast.zip(stack).zip(flannel) {
        for (pair, fate) in &fast.pairs {
            let (Some(stack), Some(flannel)) = (stack.pairs.get(pair), flannel.pairs.get(pair)) else {
                continue;
            };
            judge(&mut found, fast.step, format!("the survey's {pair:?}"), [fate, stack, flannel]);
        }
    }
    for (mode, story) in Mode::ALL.into_iter().zip(stories) {
        for survey in &story.surveys {
            if survey.pairs.values().all(Fate::is_answered) {
                found.extend(survey.problems.iter().map(|(host, problem)| Difference::Problem {
                    mode,
                    step: survey.step,
                    host: *host,
                    problem: problem.clone(),
                }));
            }
        }
    }
    found
}

fn judge(found: &mut Vec<Difference>, step: usize, what: String, fates: [&Fate; 3]) {
    let [fast, stack, flannel] = fates;
    if fast != stack || stack != flannel {
        let fates = fates.map(ToString::to_string);
        found.push(Difference::Fate { step, what, fates });
    }
}
