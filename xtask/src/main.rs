//! The one door to the project: setting a machine up, building, checking, testing, showing, measuring.

mod arch;
mod bench;
mod build;
mod check;
mod counts;
mod crates;
mod demo;
mod dist;
mod docs;
mod lab;
mod load;
mod setup;
mod test;
mod toolchain;
mod verifier;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use overlay_lab::interrupt;

/// Setting up, building, checking, testing and showing the overlay.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what building, running and testing need
    Setup(setup::Options),
    /// Build the BPF programs and the agent that carries them
    Build(build::Options),
    /// Formatting and lints, exactly as CI has them
    Check,
    /// Run the tests, layer by layer
    Test(test::Options),
    /// What each BPF program costs the verifier, on this kernel and on those that people run
    Verifier(verifier::Options),
    /// Write the pages that are made of what the code says; make a book of all
    Docs(docs::Options),
    /// Show two Docker hosts talking, on this machine
    Demo(demo::Options),
    /// Hosts left standing to explore
    #[command(subcommand)]
    Lab(lab::Verb),
    /// Load the programs on this very host and follow their counters until Ctrl-C, then remove everything
    Load(load::Options),
    /// Make what users install: packages, tarballs, an image, and what they are made of
    Dist(dist::Options),
    /// Measure us beside flannel, Docker's own overlay, Cilium's way and no overlay at all
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    interrupt::install();
    let result = match cli.verb {
        Verb::Setup(options) => setup::run(options),
        Verb::Build(options) => build::run(options),
        Verb::Check => check::run(),
        Verb::Test(options) => test::run(&options),
        Verb::Verifier(options) => verifier::run(options),
        Verb::Docs(options) => docs::run(options),
        Verb::Demo(options) => demo::run(&options),
        Verb::Dist(options) => dist::run(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Lab(verb) => lab::run(verb),
        Verb::Load(options) => load::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupt::received() => {
            eprintln!("interrupted; everything is cleaned up");
            u8::try_from(interrupt::EXIT_CODE).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Err(error) if error.is::<test::Failed>() => ExitCode::FAILURE,
        Err(error) => {
            let ended = error.downcast_ref::<load::Ended>();
            if !ended.is_some_and(load::Ended::is_said) {
                eprintln!("error: {error:#}");
            }
            ended.map_or(ExitCode::FAILURE, |ended| ended.code.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use overlay_lab::pages;

    use super::*;

    #[test]
    fn what_the_manual_says_of_this_program_it_takes() {
        let mut taken = 0;
        for page in pages::manual().unwrap() {
            let typed = page.blocks.iter().filter(|block| block.is_typed());
            for command in typed.flat_map(pages::Block::typed).map(|typed| typed.command) {
                for words in pages::invocations("cargo", &command) {
                    if let Err(error) = Cli::try_parse_from(&words[1..]) {
                        panic!("{}: {command}: {error}", page.path);
                    }
                    taken += 1;
                }
            }
        }
        assert!(taken > 5, "{taken} command lines");
    }
}
