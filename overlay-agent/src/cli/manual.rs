//! What the manual tells its readers to type is what this command line takes. That it does what the page says is shown
//! by the layer `install`.

use std::{collections::BTreeSet, fs, process::Command};

use overlay_lab::pages::{self, Page, Role};

use super::*;

fn manual() -> Vec<Page> {
    let pages = pages::manual().unwrap();
    assert!(pages.len() > 10, "{}", pages.len());
    pages
}

#[test]
fn each_block_of_commands_says_how_it_is_held_true() {
    let pages = manual();
    let run: BTreeSet<_> = pages
        .iter()
        .flat_map(|page| &page.blocks)
        .filter(|block| block.is_run())
        .flat_map(pages::Block::typed)
        .map(|typed| typed.command)
        .collect();
    for page in &pages {
        for block in page.blocks.iter().filter(|block| block.is_typed()) {
            let place = format!("{}:{}", page.path, block.line);
            match &block.role {
                None => panic!("{place}: no comment says how it is held true (overlay_lab::pages)"),
                Some(Role::By(test)) => {
                    assert!(is_a_test(test), "{place}: there is no test {test}");
                }
                Some(Role::Elsewhere) => {
                    let missing =
                        block.typed().into_iter().find(|typed| !run.contains(&typed.command));
                    assert_eq!(missing, None, "{place}: no page has it run");
                }
                Some(Role::Run { .. } | Role::Not(_)) => {}
            }
            assert!(!block.typed().is_empty(), "{place}: nothing is typed");
        }
    }
}

/// `members::each_member_…`, in whatever layer.
fn is_a_test(name: &str) -> bool {
    let tests = overlay_lab::workspace::root().join("overlay-agent/tests");
    let Some((module, function)) = name.rsplit_once("::") else { return false };
    fs::read_dir(tests).unwrap().flatten().any(|layer| {
        let file = layer.path().join(module.replace("::", "/")).with_extension("rs");
        fs::read_to_string(file).is_ok_and(|source| source.contains(&format!("fn {function}()")))
    })
}

#[test]
fn each_command_is_one_that_bash_and_this_program_take() {
    let mut taken = 0;
    for page in manual() {
        for block in page.blocks.iter().filter(|block| block.is_typed()) {
            for typed in block.typed() {
                let place = format!("{}:{}: {}", page.path, block.line, typed.command);
                let bash =
                    Command::new("bash").args(["-n", "-c", &typed.command]).output().unwrap();
                assert!(
                    bash.status.success(),
                    "{place}: {}",
                    String::from_utf8_lossy(&bash.stderr)
                );
                for arguments in pages::invocations("overlay-agent", &typed.command) {
                    let cli = Cli::from_command_line(
                        arguments.into_iter().map(OsString::from),
                        &|_: &str| None,
                    );
                    let cli = cli.unwrap_or_else(|error| panic!("{place}: {error}"));
                    assert_eq!(cli.passed_over, Vec::<String>::new(), "{place}");
                    taken += 1;
                }
            }
        }
    }
    assert!(taken > 30, "{taken} command lines");
}

#[test]
fn each_network_config_of_the_manual_is_one() {
    let mut read = 0;
    for page in manual() {
        for block in page.blocks.iter().filter(|block| block.text.contains("\"Network\"")) {
            let text = block.text.trim().as_bytes();
            if block.language == "json" {
                let place = format!("{}:{}", page.path, block.line);
                let parsed = overlay_lease::config::NetworkConfig::parse(text);
                let parsed = parsed.unwrap_or_else(|error| panic!("{place}: {error}"));
                assert_eq!(parsed.notes.len(), 0, "{place}: {:?}", parsed.notes);
                read += 1;
            }
        }
    }
    assert!(read > 1, "{read} configs");
}

#[test]
fn a_flag_that_is_none_and_a_verb_that_is_none_are_found() {
    let taken = |line: &str| {
        let mut all = pages::invocations("overlay-agent", line).into_iter();
        all.all(|arguments| {
            Cli::from_command_line(arguments.into_iter().map(OsString::from), &|_: &str| None)
                .is_ok_and(|cli| cli.passed_over.is_empty())
        })
    };
    assert!(taken("systemctl restart overlay-agent"));
    assert!(taken("curl --nothing | overlay-agent join - && overlay-agent status > --file"));
    for line in ["true && overlay-agent state", "overlay-agent init --netwrok 10.1.0.0/16"] {
        assert!(!taken(line), "{line}");
    }
}
