//! `status` and `doctor` are judged: hosts of random shapes are made ill, one fault each. Whoever cannot talk is
//! named, with the cause; where a command is said to mend it, that command does; and where all is well, nothing is
//! said.
//!
//! `OVERLAY_HEALTH_SEED` and `OVERLAY_HEALTH_COUNT` make a long search of it, `OVERLAY_HEALTH_FAULT` plays one fault.

mod fault;
mod harmless;
mod talk;
mod ward;

use std::{
    env,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use rand::{SeedableRng as _, rngs::StdRng};

use self::{
    fault::{ALL, Fault},
    ward::{Said, Shape, Ward},
};

const SEED: u64 = 1;
const COUNT: u64 = 12;

/// No divisor of how many faults there are.
const STRIDE: u64 = 5;

/// So many are ill at a time.
const AT_A_TIME: usize = 3;

/// Within which whoever is asked must know.
const KNOWN: Duration = Duration::from_secs(30);

/// Within which whoever is well again is called well.
const WELL: Duration = Duration::from_secs(45);

/// Commands that a mend begins with, if it is one.
const COMMANDS: [&str; 7] = ["ip ", "iptables ", "nft ", "sysctl ", "ethtool ", "bridge ", "tc "];

/// What came of a fault.
#[derive(Debug, Default)]
struct Outcome {
    /// Whether somebody could not talk.
    broken: bool,
    /// Whether the cause was named, and by whom.
    named: Option<String>,
    /// What mended it.
    mended: Option<String>,
    /// What is wrong with what was said.
    faults: Vec<String>,
}

/// Makes hosts ill and well again.
fn play(seed: u64, fault: &Fault) -> Result<(Outcome, String)> {
    let shape = Shape::random(&mut StdRng::seed_from_u64(seed));
    let about = shape.to_string();
    let ward = Ward::new(shape).with_context(|| about.clone())?;
    let mut outcome = Outcome::default();
    if let Err(error) = ward.is_well(WELL) {
        outcome.faults.push(format!("before anything happened: {error:#}"));
        return Ok((outcome, about));
    }
    ward.make(fault)?;
    let silent = after_all(&ward);
    outcome.broken = !silent.is_empty();
    if outcome.broken {
        let words: Vec<_> =
            fault.words.iter().map(|words| ward.fill(words)).collect::<Result<_>>()?;
        let (said, took, named) = ward.listen(&words, KNOWN)?;
        let by = said
            .iter()
            .find(|said| words.iter().any(|word| said.text.contains(word.as_str())))
            .map(|said| format!("{} after {:.0} s", said.by, took.as_secs_f64()));
        if !named {
            let what = if said.is_empty() { "is called well" } else { "has other words" };
            outcome.faults.push(format!("{what}: {silent:?}, and what is said is {said:#?}"));
        }
        outcome.named = by;
        mend(&ward, &said, &mut outcome);
    }
    ward.undo(fault);
    if let Err(error) = ward.talks(WELL) {
        outcome.faults.push(format!("after it was undone: {error:#}"));
    } else if outcome.mended.is_none()
        && let Err(error) = ward.is_well(WELL)
    {
        outcome.faults.push(format!("after it was undone: {error:#}"));
    }
    Ok((outcome, about))
}

/// Who cannot talk, once what has happened is known to those whom it concerns.
fn after_all(ward: &Ward) -> Vec<String> {
    let mut silent = ward.silent();
    // Who can, may soon not be able to; who has just lost the way may find it again.
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(700));
        silent = ward.silent();
    }
    silent
}

/// Runs what `doctor` of the patient prints, if that is a command.
fn mend(ward: &Ward, said: &[Said], outcome: &mut Outcome) {
    let of_patient = |said: &&Said| said.by.starts_with(&format!("doctor of {}", ward::PATIENT));
    let mends: Vec<_> = said
        .iter()
        .filter(of_patient)
        .filter_map(|said| said.mend.as_deref())
        .filter(|mend| COMMANDS.iter().any(|command| mend.starts_with(command)))
        .collect();
    if mends.is_empty() {
        return;
    }
    let outcomes: Result<Vec<_>> = mends.iter().map(|mend| ward.run(mend)).collect();
    let result = outcomes.map(drop).and_then(|()| ward.talks(Duration::from_secs(15)));
    match result {
        Ok(()) => outcome.mended = Some(mends.join("; ")),
        Err(error) => outcome.faults.push(format!("{mends:?} do not mend it: {error:#}")),
    }
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// As many as there is time for where nothing else is said, each with hosts of another shape.
#[test]
fn who_cannot_talk_is_named() {
    let seed = number("OVERLAY_HEALTH_SEED").unwrap_or(SEED);
    let count = number("OVERLAY_HEALTH_COUNT").unwrap_or(COUNT);
    let one = env::var("OVERLAY_HEALTH_FAULT").ok();
    let faults: Vec<_> =
        ALL.iter().filter(|fault| one.as_ref().is_none_or(|one| fault.name == one)).collect();
    assert!(!faults.is_empty(), "there is no fault of this name");
    // All have their turn, those that are alike far from each other.
    let fault = |number: u64| faults[usize::try_from(number * STRIDE).unwrap() % faults.len()];
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let tally = Mutex::new([0_u64; 3]);
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let seed = seed + number;
                    let fault = fault(number);
                    let told = match play(seed, fault) {
                        Ok((outcome, about)) => {
                            let mut tally = tally.lock().unwrap();
                            tally[0] += 1;
                            tally[1] += u64::from(outcome.broken);
                            tally[2] += u64::from(outcome.named.is_some());
                            let Outcome { broken, named, mended, faults } = outcome;
                            let is = if broken { "broken" } else { "not broken" };
                            eprintln!(
                                "seed {seed}, {}: {is}, named by {named:?}, mended by {mended:?} ({about})",
                                fault.name
                            );
                            faults.into_iter().map(|what| format!("({about}) {what}")).collect()
                        }
                        Err(error) => vec![format!("{error:#}")],
                    };
                    for what in told {
                        let text = format!("seed {seed}, {}: {what}", fault.name);
                        eprintln!("{text}");
                        failed.lock().unwrap().push(text);
                    }
                }
            });
        }
    });
    let [played, broken, named] = *tally.lock().unwrap();
    eprintln!("{played} played, {broken} broken, {named} of them named");
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(broken > 0 || one.is_some(), "nothing was broken");
}
