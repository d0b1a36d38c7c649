//! The tests: the corpus, and worlds from seeds.

use std::{
    collections::BTreeMap,
    env, fs,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use overlay_lab::corpus;

use crate::{
    compare::{Difference, Findings, findings},
    generate,
    play::{Mode, Story, play},
    shape::World,
    shrink,
};

/// What the default run begins with, and how many it plays.
const SEED: u64 = 1;
const COUNT: u64 = 50;

/// So many worlds are played side by side; most of a play is waiting.
const AT_A_TIME: usize = 3;

/// What playing a world has shown.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// But for what rules excuse, each so many times.
    Same(BTreeMap<&'static str, usize>),
    Different(Vec<Difference>),
}

/// Plays a world by all datapaths at once.
pub(crate) fn compare(world: &World) -> Verdict {
    let stories: Vec<_> = thread::scope(|scope| {
        let plays: Vec<_> =
            Mode::ALL.map(|mode| scope.spawn(move || play(world, mode))).into_iter().collect();
        plays.into_iter().map(|play| play.join().unwrap()).collect()
    });
    let mut broken = Vec::new();
    let mut told: Vec<Story> = Vec::new();
    for (mode, story) in Mode::ALL.into_iter().zip(stories) {
        match story {
            Ok(story) => told.push(story),
            Err(error) => {
                broken.push(Difference::Broken { mode, error: format!("{error:#}") });
            }
        }
    }
    let Ok(stories) = <[Story; 3]>::try_from(told) else { return Verdict::Different(broken) };
    let Findings { differences, excused, .. } = findings(world, &stories);
    if differences.is_empty() { Verdict::Same(excused) } else { Verdict::Different(differences) }
}

/// Once more where something differs: what a busy machine has lost is not lost twice.
fn compare_twice(world: &World) -> Verdict {
    match compare(world) {
        same @ Verdict::Same(_) => same,
        Verdict::Different(found) => {
            for difference in &found {
                eprintln!("{}: {difference}", world.about);
            }
            compare(world)
        }
    }
}

fn tell(world: &World, found: &[Difference]) -> String {
    let json = world.to_json();
    let found: Vec<_> = found.iter().map(|difference| format!("  {difference}\n")).collect();
    format!("{}:\n{}{json}", world.about, found.concat())
}

#[test]
fn what_differed_once_does_not_differ_again() {
    let files = corpus::files("worlds").unwrap();
    let files = Mutex::new(files.into_iter());
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(file) = { files.lock().unwrap().next() } {
                    let text = fs::read_to_string(&file).unwrap();
                    let world: World = serde_json::from_str(&text)
                        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
                    if let Verdict::Different(found) = compare_twice(&world) {
                        failed.lock().unwrap().push(tell(&world, &found));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// A world is told by its seed, and kept as JSON.
#[test]
fn worlds_are_made_again() {
    for seed in 0..200 {
        let world = generate::world(seed);
        assert_eq!(world, generate::world(seed));
        assert_eq!(serde_json::from_str::<World>(&world.to_json()).unwrap(), world);
    }
}

pub(crate) fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn random_worlds() {
    let seed = number("OVERLAY_WORLD_SEED").unwrap_or(SEED);
    let count = number("OVERLAY_WORLD_COUNT").unwrap_or(COUNT);
    let (next, end) = (AtomicU64::new(seed), seed + count);
    let failed = Mutex::new(Vec::new());
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    let world = generate::world(seed);
                    let begun = Instant::now();
                    let verdict = compare_twice(&world);
                    let is = match &verdict {
                        Verdict::Same(excused) => format!("the same, excused {excused:?}"),
                        Verdict::Different(found) => format!("{} DIFFERENCES", found.len()),
                    };
                    eprintln!("seed {seed}: {is}, {:.1?}", begun.elapsed());
                    if let Verdict::Different(found) = verdict {
                        failed.lock().unwrap().push((world, found));
                    }
                }
            });
        }
    });
    eprintln!("{count} worlds from seed {seed} in {:.0?}", start.elapsed());
    let failed = failed.into_inner().unwrap();
    let told: Vec<_> = failed.iter().map(|(world, found)| tell_smallest(world, found)).collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}

fn tell_smallest(world: &World, found: &[Difference]) -> String {
    if number("OVERLAY_WORLD_SHRINK") == Some(0) {
        return tell(world, found);
    }
    let smallest = shrink::shrink(world, found);
    match compare(&smallest) {
        Verdict::Different(found) => tell(&smallest, &found),
        Verdict::Same(_) => tell(world, found),
    }
}
