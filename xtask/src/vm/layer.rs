//! The layer `vm` of the tests: a row for each kernel.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use comfy_table::{Table, presets};

use super::{ARM64, KERNELS, Kernel, Run, Step, run_all, test_programs};
use crate::counts::Counts;

/// How many mutated frames of each kind the machines get: where that is set, they get nothing else. A hunt is for hours
/// of leisure.
const FRAMES: &str = "OVERLAY_ATTACK_FRAMES";

/// How many frames somebody wants, if they hunt.
pub(super) fn hunted() -> Option<String> {
    env::var(FRAMES).ok()
}

/// What a machine may run, as the table shows it.
const NAMES: [&str; 3] = ["datapath", "network", "attack"];

/// Of uplinks, the newest kernel makes those that the oldest has no time for.
const WITHOUT_ETHERNET: &str = "kernels::an_uplink_without";

/// Which tests with hosts and containers are for this kernel, beside every program. A machine takes minutes for them: of
/// all kernels the oldest runs them, and the newest those that the oldest cannot and those that no kernel may fail,
/// unless some are named. Programs can move between links and filters only where there are both.
fn hosts(kernel: Kernel, kernels: &[Kernel]) -> Vec<&'static str> {
    // Emulated it is slower still: that hosts talk by both paths, and come back, is what is asked of it.
    if kernel == ARM64 {
        return vec!["kernels::containers_talk"];
    }
    let mut filters = if kernels.len() < KERNELS.len() || kernels.first() == Some(&kernel) {
        vec!["kernels::"]
    } else if kernels.last() == Some(&kernel) {
        vec!["kernels::containers_talk", WITHOUT_ETHERNET]
    } else {
        return Vec::new();
    };
    if kernel.has_tcx() {
        filters.push("switching::");
    }
    if kernels.len() == KERNELS.len() && kernels.first() == Some(&kernel) {
        filters.extend(["--skip", WITHOUT_ETHERNET]);
    }
    filters
}

/// What to run where: every program and its decisions, packet by packet; then hosts and containers, where there are
/// tests of them; of both only what somebody asks for. Who hunts wants nothing else.
fn steps(
    hosts: &[&str],
    asked: &[String],
    hunted: Option<&str>,
    programs: &[PathBuf; 3],
) -> Vec<Step> {
    let [datapath, network, attack] = programs;
    let step = |name, program: &Path, filters: &[&str]| Step {
        name,
        program: program.to_owned(),
        arguments: ["--test-threads=1", "--nocapture"]
            .iter()
            .chain(filters)
            .map(|&word| word.to_owned())
            .collect(),
        environment: hunted.map(|frames| (FRAMES, frames.to_owned())).into_iter().collect(),
    };
    if hunted.is_some() {
        return vec![step("attack", attack, &["mutation::mutated_frames"])];
    }
    let asked: Vec<_> = asked.iter().map(String::as_str).collect();
    let mut steps = vec![step("datapath", datapath, &asked)];
    if !hosts.is_empty() {
        steps.push(step("network", network, if asked.is_empty() { hosts } else { &asked }));
    }
    steps
}

/// The kernels among `names`; all where there is none.
pub(crate) fn chosen(names: &[String]) -> Vec<Kernel> {
    let is_named = |kernel: &Kernel| names.iter().any(|name| name == kernel.series);
    let any = KERNELS.iter().any(is_named);
    KERNELS.into_iter().filter(|kernel| !any || is_named(kernel)).collect()
}

/// Runs the tests on these kernels, or those that `asked` names parts of, shows what came of each, and returns the counts and what went wrong apart from
/// failed tests.
///
/// All of them are of one processor.
pub(crate) fn test(kernels: &[Kernel], asked: &[String]) -> Result<(Counts, Option<String>)> {
    let arch = kernels.first().context("there is no kernel to test on")?.arch;
    let programs = test_programs(arch, NAMES)?;
    let hunted = hunted();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["KERNEL", "RELEASE", "DATAPATH", "NETWORK", "ATTACK", "TIME", "RESULT"]);
    let mut total = Counts::default();
    let mut troubles = Vec::new();
    let steps = |kernel| steps(&hosts(kernel, kernels), asked, hunted.as_deref(), &programs);
    for (kernel, result) in run_all(kernels, steps) {
        match result {
            Ok(run) => {
                let expected: Vec<_> = steps(kernel).iter().map(|step| step.name).collect();
                let (counts, row) = summarize(&run, &expected, &mut troubles);
                total.add(counts);
                table.add_row(row);
            }
            Err(error) => {
                table.add_row([&kernel.name(), "", "", "", "", "", "failed"]);
                troubles.push(format!("Linux {}: {error:#}", kernel.name()));
            }
        }
    }
    println!("\n{table}\n");
    Ok((total, (!troubles.is_empty()).then(|| troubles.join("\n"))))
}

fn summarize(run: &Run, expected: &[&str], troubles: &mut Vec<String>) -> (Counts, [String; 7]) {
    println!("\n── Linux {}", run.release);
    let mut total = Counts::default();
    let mut cells = NAMES.map(|name| {
        let text = if expected.contains(&name) { "did not run" } else { "if asked for" };
        text.to_owned()
    });
    let before = troubles.len();
    for (name, cell) in NAMES.iter().zip(&mut cells).filter(|(name, _)| expected.contains(name)) {
        let Some(step) = run.steps.iter().find(|step| step.name == *name) else {
            troubles.push(format!("Linux {}: {name} did not run", run.release));
            continue;
        };
        let counts = step.output.lines().find_map(Counts::parse);
        let fine = step.code == Some(0) && counts.is_some_and(|counts| counts.failed == 0);
        for line in step.output.lines().filter(|line| !fine || line.starts_with("test ")) {
            println!("{line}");
        }
        match counts {
            Some(counts) => {
                total.add(counts);
                *cell = counts.closing_line();
            }
            None => "did not end".clone_into(cell),
        }
        if !fine && counts.is_none_or(|counts| counts.failed == 0) {
            troubles.push(format!("Linux {}: {name} ended with {:?}", run.release, step.code));
        }
    }
    let fine = total.failed == 0 && troubles.len() == before;
    let [datapath, network, attack] = cells;
    let row = [
        run.kernel.name(),
        run.release.clone(),
        datapath,
        network,
        attack,
        format!("{:.0} s", run.time.as_secs_f64()),
        if fine { "passed" } else { "failed" }.to_owned(),
    ];
    (total, row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_for_the_oldest_and_the_newest_kernel_and_for_those_that_are_named() {
        let of = |kernels: &[Kernel]| {
            kernels.iter().map(|kernel| hosts(*kernel, kernels)).collect::<Vec<_>>()
        };
        let newest = vec!["kernels::containers_talk", WITHOUT_ETHERNET, "switching::"];
        let oldest = vec!["kernels::", "--skip", WITHOUT_ETHERNET];
        assert_eq!(of(&KERNELS), [oldest, vec![], newest]);
        assert_eq!(of(&KERNELS[1..2]), [vec!["kernels::", "switching::"]]);
    }

    #[test]
    fn kernels_are_chosen_by_their_number() {
        assert_eq!(chosen(&[]), KERNELS);
        assert_eq!(chosen(&["vm".to_owned()]), KERNELS);
        assert_eq!(chosen(&["6.12".to_owned()]), [KERNELS[1]]);
    }
}
