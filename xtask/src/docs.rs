//! `docs`: pages that are made of what the code says, so that they cannot say anything else; and all pages as a book.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use overlay_common::{Feature, Need, feature::parse_version};
use overlay_lab::{command::Cmd, workspace};

use crate::{setup::BOOK, verifier, vm::KERNELS};

/// The kernel that this project is developed on, tested beside those in virtual machines.
const DEVELOPED_ON: &str = "6.18";

/// The command line of `docs`.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Options {
    /// Make a book of all pages, too, in target/book, with mdBook, which is built first if it is missing
    #[arg(long)]
    pub(crate) book: bool,
}

/// Writes every page.
pub(crate) fn run(options: Options) -> Result<()> {
    let path = path();
    fs::write(&path, kernel_support()?).with_context(|| format!("writing {}", path.display()))?;
    println!("{}", path.display());
    what_the_agent_says()?;
    if options.book {
        book()?;
    }
    Ok(())
}

/// Has the agent's tests write what they hold true: `cli/reference.rs`, `admin/metrics/tests.rs`.
fn what_the_agent_says() -> Result<()> {
    workspace::cargo()
        .env("OVERLAY_RECORD_PAGES", "1")
        .args(["test", "--locked", "--package", "overlay-agent", "--lib", "--"])
        .args(["the_page_of_", "the_dashboard_"])
        .stream()
}

/// Makes the book.
fn book() -> Result<()> {
    if !BOOK.is_there()? {
        println!("building {BOOK} (two minutes or three)");
        BOOK.install()?.stream()?;
    }
    let folder = workspace::target_dir()?.join("book");
    Cmd::new(BOOK.path()?)
        .args(["build", "--dest-dir"])
        .arg(&folder)
        .directory(workspace::root())
        .stream()?;
    println!("{}", folder.join("index.html").display());
    Ok(())
}

/// Fails where a page is not what it would be if it were written now. Those of the agent are held true by its unit tests.
pub(crate) fn check() -> Result<()> {
    let path = path();
    let found = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(found == kernel_support()?, "{} is stale: `cargo xtask docs`", path.display());
    Ok(())
}

fn path() -> PathBuf {
    workspace::root().join("docs/kernel-support.md")
}

fn kernel_support() -> Result<String> {
    let mut kernels: Vec<&str> = KERNELS.iter().map(|kernel| kernel.series).collect();
    kernels.push(DEVELOPED_ON);
    kernels.sort_by_key(|kernel| parse_version(kernel));
    let costs = verifier::recorded()?;
    let measured = verifier::in_order(&costs);
    let titles = |names: &[&str]| format!(" Linux {} |", names.join(" | Linux "));
    let rules = |count: usize| "---|".repeat(count);

    let mut page = String::from(INTRODUCTION);
    // Writing to a string cannot fail.
    writeln!(page, "| feature |{} what it is for |", titles(&kernels)).ok();
    writeln!(page, "|---|{}---|", rules(kernels.len())).ok();
    for &feature in Feature::ALL {
        write!(page, "| `{}` |", feature.name()).ok();
        for kernel in &kernels {
            let there = parse_version(kernel)
                .is_some_and(|(major, minor)| feature.expected_in(major, minor));
            write!(page, " {} |", if there { "yes" } else { "no" }).ok();
        }
        writeln!(page, " {} |", feature.gives()).ok();
    }
    page.push_str(WITHOUT);
    writeln!(page, "| feature | first Linux | without it |").ok();
    writeln!(page, "|---|---|---|").ok();
    for &feature in Feature::ALL {
        let without = match feature.need() {
            Need::Required => "The agent does not start: exit code 69, and a line that names it.",
            Need::Optional => feature.without(),
        };
        writeln!(page, "| `{}` | {} | {without} |", feature.name(), feature.since()).ok();
    }
    page.push_str(VERIFIER);
    writeln!(page, "| program |{}", titles(&measured)).ok();
    writeln!(page, "|---|{}", rules(measured.len())).ok();
    for row in verifier::rows(&costs, &measured) {
        writeln!(page, "| `{}` | {} |", row[0], row[1..].join(" | ")).ok();
    }
    Ok(page)
}

const INTRODUCTION: &str = "\
# Kernels

<!-- Written by `cargo xtask docs` from overlay-common/src/feature.rs and \
overlay-agent/tests/datapath/verifier-budget.txt. -->

Linux 6.1 and later. The agent goes by what it finds, not by the version: at its start it tries every feature once,
takes the best way that the kernel offers, and `overlay-agent status` lists what was found. `cargo xtask test vm`
boots Debian's 6.1, 6.12 and 7.2 and proves this table on each of them; on the oldest and the newest, or on one
that is named (`cargo xtask test 6.12`), that containers talk there by
the fast path and by the slow one, with offloads and without; and on the oldest, or on one that is named, that they lose
nothing when the agent is killed.

";

const WITHOUT: &str = "
## Where something is missing

";

const VERIFIER: &str = "
## What the programs cost the verifier

Instructions processed (of a million) and bytes of stack (of 512), as `cargo xtask verifier` found them. A program that
takes more than its budget fails the tests.

";
