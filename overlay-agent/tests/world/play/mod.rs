//! Playing a world: the same hosts, steps and probes, whatever carries the packets.

mod agents;
mod change;
mod flannel;
mod site;

use std::collections::BTreeMap;

use anyhow::Result;

pub(crate) use self::site::Site;
use crate::{
    shape::{Event, Place, Probe, Step, World},
    traffic::{self, Fate, Round},
};

/// What carries the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// Our agent.
    Fast,
    /// Our agent, `--fast-path off`.
    Stack,
    /// A kernel VXLAN device as flannel makes it, and no agent.
    Flannel,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Fast, Self::Stack, Self::Flannel];

    pub(crate) const fn is_ours(self) -> bool {
        !matches!(self, Self::Flannel)
    }
}

/// What a datapath made of a world.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    /// By step.
    pub(crate) fates: BTreeMap<usize, Fate>,
    pub(crate) surveys: Vec<Survey>,
    /// How often each sender has heard of routes.
    pub(crate) heard: BTreeMap<Place, usize>,
}

/// How things are after a round.
#[derive(Clone, Debug)]
pub(crate) struct Survey {
    /// The step that the round begins with.
    pub(crate) step: usize,
    /// What became of a probe from each host's first container to each other host's.
    pub(crate) pairs: BTreeMap<(u8, u8), Fate>,
    /// How many packets went by ways that they take by routes and rules only.
    pub(crate) ways: BTreeMap<String, u64>,
    /// What each host's agent says is wrong.
    pub(crate) problems: Vec<(u8, String)>,
}

/// Numbers of probes that are no steps.
const SURVEY: u16 = 9000;

/// As many as there can be in a survey.
const PAIRS: u16 = 20;

/// Plays a world to its end.
pub(crate) fn play(world: &World, mode: Mode) -> Result<Story> {
    let mut site = Site::new(world, mode)?;
    let mut story = Story::default();
    let mut round = Vec::new();
    for (number, step) in world.steps.iter().enumerate() {
        match step {
            Step::Probe(probe) => round.push((u16::try_from(number)?, *probe)),
            Step::Event(event) => {
                play_round(&mut site, &mut round, &mut story)?;
                happen(&mut site, *event)?;
            }
        }
    }
    play_round(&mut site, &mut round, &mut story)?;
    Ok(story)
}

fn play_round(site: &mut Site, round: &mut Vec<(u16, Probe)>, story: &mut Story) -> Result<()> {
    // What is gone sends nothing.
    round.retain(|(_, probe)| site.ears.has(probe.from));
    let Some((first, _)) = round.first() else { return Ok(()) };
    let step = usize::from(*first);
    let pairs = site.pairs();
    // Never the same ports again: what hosts remember of a flow is not to decide about the next.
    let first_of_survey = SURVEY + PAIRS * u16::try_from(story.surveys.len())?;
    let numbers = first_of_survey..;
    let survey = numbers.zip(&pairs).map(|(number, (from, to))| (number, Probe::hello(*from, *to)));
    let all: Vec<_> = round.drain(..).chain(survey).collect();
    for (number, probe) in &all {
        site.ears.aim(*number, site.world.source(probe), site.world.address(probe.to));
    }
    let before = site.ways()?;
    let Round { mut fates, heard } = traffic::round(&mut site.ears, &all)?;
    let after = site.ways()?;
    let ways = after
        .into_iter()
        .map(|(way, packets)| {
            let more = packets.saturating_sub(before.get(&way).copied().unwrap_or_default());
            (way, more)
        })
        .collect();
    for (place, times) in heard {
        *story.heard.entry(place).or_default() += times;
    }
    let pairs = (first_of_survey..)
        .zip(pairs)
        .map(|(number, pair)| (pair, fates.remove(&number).unwrap_or_default()))
        .collect();
    let problems = site.problems()?;
    story.surveys.push(Survey { step, pairs, ways, problems });
    story.fates.extend(fates.into_iter().map(|(number, fate)| (usize::from(number), fate)));
    Ok(())
}

fn happen(site: &mut Site, event: Event) -> Result<()> {
    match event {
        Event::Add(element) => site.change(element, true)?,
        Event::Remove(element) => site.change(element, false)?,
        Event::UplinkDown { host } => site.set_uplink(host, false)?,
        Event::UplinkUp { host } => site.set_uplink(host, true)?,
        Event::ContainerGoes { host } => site.remove_container(host)?,
        Event::SecondMoves { host } => site.move_second(host)?,
        Event::Crash { host } => site.restart(host, true)?,
        Event::Restart { host } => site.restart(host, false)?,
    }
    site.settle()
}
