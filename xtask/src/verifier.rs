//! `verifier`: what each program costs the kernel's verifier, on this kernel and on those that people run.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use overlay_lab::{command::Cmd, workspace};

use crate::{
    arch::Arch,
    build, setup,
    vm::{self, KERNELS, Step},
};

/// The tests that print what `verifier` reads, and fail beyond the budget.
const TESTS: &str = "budget::";

/// What one program costs on one kernel: instructions processed, bytes of stack.
type Cost = (u32, u32);

/// Costs by kernel and program.
type Costs = BTreeMap<String, BTreeMap<String, Cost>>;

/// The command line of `verifier`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Options {
    /// Record what was found, for docs/kernel-support.md; budgets are changed by hand
    #[arg(long)]
    pub(crate) write: bool,
}

/// Prints the table for this kernel and the others, and fails where a program costs more than its budget.
pub(crate) fn run(options: Options) -> Result<()> {
    setup::ensure()?;
    build::object()?;
    build::agent(false)?;
    let [program] = vm::test_programs(Arch::of_this_machine()?, ["datapath"])?;
    let arguments = ["--test-threads=1", "--nocapture", TESTS].map(str::to_owned).to_vec();
    let mut costs = Costs::new();
    let mut troubles = Vec::new();

    let here = Cmd::new(&program)
        .args(&arguments)
        .directory(workspace::root().join("overlay-agent"))
        .output()?;
    let release = Cmd::new("uname").arg("-r").read()?;
    costs.insert(series(&release), parse(&here.stdout));
    if !here.status.success() {
        troubles.push(format!("Linux {release}: {}{}", here.stdout, here.stderr));
    }
    let steps = |_| {
        vec![Step {
            name: "datapath",
            program: program.clone(),
            arguments: arguments.clone(),
            environment: Vec::new(),
        }]
    };
    for (kernel, result) in vm::run_all(&KERNELS, steps) {
        match result {
            Ok(run) => {
                for step in &run.steps {
                    costs.insert(kernel.series.to_owned(), parse(&step.output));
                    if step.code != Some(0) {
                        troubles.push(format!("Linux {}: {}", run.release, step.output));
                    }
                }
            }
            Err(error) => troubles.push(format!("Linux {}: {error:#}", kernel.series)),
        }
    }
    println!("\n{}\n", table(&costs));
    ensure!(troubles.is_empty(), "{}", troubles.join("\n"));
    if options.write {
        write(&costs)?;
    }
    Ok(())
}

/// Where budgets and what was found are recorded.
fn path() -> PathBuf {
    workspace::root().join("overlay-agent/tests/datapath/verifier-budget.txt")
}

/// `6.18.44` is of series 6.18.
fn series(release: &str) -> String {
    release.splitn(3, '.').take(2).collect::<Vec<_>>().join(".")
}

/// The lines `verifier: <program> <instructions> <stack>` of the test.
fn parse(output: &str) -> BTreeMap<String, Cost> {
    output
        .lines()
        .filter_map(|line| {
            // The test's own name may stand before the first one.
            let (_, found) = line.split_once("verifier: ")?;
            let mut words = found.split_whitespace();
            let name = words.next()?.to_owned();
            Some((name, (words.next()?.parse().ok()?, words.next()?.parse().ok()?)))
        })
        .collect()
}

/// What is recorded: lines of four words beside the budgets' three.
pub(crate) fn recorded() -> Result<Costs> {
    let text = read(&path())?;
    let mut costs = Costs::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<_> = line.split_whitespace().collect();
        if let [kernel, name, instructions, stack] = words[..] {
            let cost = (instructions.parse()?, stack.parse()?);
            costs.entry(kernel.to_owned()).or_default().insert(name.to_owned(), cost);
        }
    }
    if costs.is_empty() {
        bail!("nothing is recorded: `cargo xtask verifier --write`");
    }
    Ok(costs)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Replaces the measured lines of these kernels; those of others, and the budgets, stay.
fn write(costs: &Costs) -> Result<()> {
    let path = path();
    let text = read(&path)?;
    let kept = text.lines().filter(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        line.starts_with('#') || words.len() != 4 || !costs.contains_key(words[0])
    });
    let mut lines: Vec<String> = kept.map(str::to_owned).collect();
    for kernel in in_order(costs) {
        for (name, (instructions, stack)) in &costs[kernel] {
            lines.push(format!("{kernel} {name} {instructions} {stack}"));
        }
    }
    fs::write(&path, lines.join("\n") + "\n").with_context(|| format!("writing {}", path.display()))
}

/// The kernels, the oldest first.
pub(crate) fn in_order(costs: &Costs) -> Vec<&str> {
    let mut kernels: Vec<&str> = costs.keys().map(String::as_str).collect();
    kernels.sort_by_key(|kernel| overlay_common::feature::parse_version(kernel));
    kernels
}

fn table(costs: &Costs) -> Table {
    let kernels = in_order(costs);
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let titles = kernels.iter().map(|kernel| format!("Linux {kernel}"));
    table.set_header(
        std::iter::once("INSTRUCTIONS, STACK".to_owned()).chain(titles).collect::<Vec<_>>(),
    );
    for row in rows(costs, &kernels) {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// For each program its name and what it costs on each of `kernels`.
pub(crate) fn rows(costs: &Costs, kernels: &[&str]) -> Vec<Vec<String>> {
    overlay_common::Hook::ALL
        .iter()
        .map(|hook| {
            let cell = |kernel: &&str| {
                costs[*kernel]
                    .get(hook.name())
                    .map_or_else(String::new, |(count, stack)| format!("{count}, {stack}"))
            };
            std::iter::once(hook.name().to_owned()).chain(kernels.iter().map(cell)).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_test_are_read() {
        let output =
            "test budget::x ... verifier: from_bridge 290 64\nverifier: to_tunnel 5 6\nok\n";
        let costs = parse(output);
        assert_eq!(costs["from_bridge"], (290, 64));
        assert_eq!(costs["to_tunnel"], (5, 6));
    }

    #[test]
    fn kernels_are_in_the_order_of_their_numbers() {
        let costs: Costs =
            ["6.18", "7.2", "6.1"].map(|kernel| (kernel.to_owned(), BTreeMap::new())).into();
        assert_eq!(in_order(&costs), ["6.1", "6.18", "7.2"]);
        assert_eq!(series("6.18.44"), "6.18");
    }
}
