//! What the manual's readers type, typed: on whole machines, in the pages' order, as it stands there.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use overlay_lab::{
    Lab, Machine, eventually,
    pages::{self, Block, Page, Role, Typed},
};

use crate::support::{boot, timed};

/// Whatever is shown in the end is shown by then: a peer is named after half a minute without an answer.
const SHOWN_WITHIN: Duration = Duration::from_secs(20);

/// The pages that have something run, in the order of a reader's life with two hosts.
const TWO_HOSTS: &[&str] = &[
    "docs/quick-start.md",
    "docs/configuration.md",
    "docs/etcd-keys.md",
    "docs/policy.md",
    "docs/mtu.md",
    "docs/troubleshooting.md",
    "docs/upgrade.md",
    "docs/backup.md",
    "docs/sizing.md",
    "docs/operations.md",
];

/// The page for who cannot do without etcd.
const FOUR_HOSTS: &str = "docs/high-availability.md";

/// Stands for what the last command has printed, where a reader copies it.
const COPIED: &str = "ADDRESS";

/// The host of prompts in hidden blocks that is what lies between the hosts.
const SWITCH: &str = "switch";

struct Story<'lab> {
    lab: &'lab Lab,
    machines: Vec<(&'static str, Machine<'lab>)>,
    printed: String,
    /// What did not do what its page says.
    untrue: Vec<String>,
}

impl Story<'_> {
    fn read(&mut self, page: &Page) {
        for block in page.blocks.iter().filter(|block| block.is_run()) {
            for typed in block.typed() {
                let place = format!("{}:{}: {}", page.path, block.line, typed.command);
                let (result, time) = timed(|| self.run(block, &typed));
                println!("{place:<90.90} {:>5.1} s\n{}", time.as_secs_f64(), self.printed);
                if let Err(error) = result {
                    // One run tells of every page that has to be mended.
                    println!("{error:#}");
                    self.untrue.push(place);
                }
            }
        }
    }

    fn run(&mut self, block: &Block, typed: &Typed) -> Result<()> {
        let Some(Role::Run { soon, fails }) = block.role else { bail!("it is not run") };
        let command = typed.command.replace(COPIED, self.printed.trim());
        if let Some(file) = command.strip_prefix("scp ") {
            return self.copy(&typed.host, file);
        }
        let mut printed = String::new();
        let attempt = || {
            let shell = match typed.host.as_str() {
                SWITCH => self.lab.wire().switch().command("bash"),
                host => self.machine(host)?.command("bash")?,
            };
            // A reader is somewhere, and root, and says yes to what is asked.
            let shell = shell.args(["-c", &format!("cd /root && {command}")]).input("y\n");
            let output = shell.env("DEBIAN_FRONTEND", "noninteractive").output()?;
            printed = format!("{}{}", output.stdout, output.stderr);
            let code = output.status.code();
            // From 126 on, it is no answer of the command's: it is not there, or has crashed.
            let as_said = if fails { matches!(code, Some(1..126)) } else { code == Some(0) };
            ensure!(as_said, "it ended with {}: {printed}", output.status);
            if let Some(line) = pages::difference(&typed.shown, &printed) {
                bail!("it does not show «{line}» there: {printed}");
            }
            Ok(())
        };
        let result = once_or_soon(soon, attempt);
        self.printed = printed;
        result
    }

    fn machine(&self, host: &str) -> Result<&Machine<'_>> {
        let named = self.machines.iter().find(|(name, _)| *name == host || host.is_empty());
        named.map(|(_, machine)| machine).with_context(|| format!("there is no host {host}"))
    }

    /// `scp FILE HOST:`, with its mode; there is no server for it on these machines.
    fn copy(&self, from: &str, what: &str) -> Result<()> {
        let (file, to) = what.split_once(' ').context("scp takes a file and a host")?;
        let from = self.machine(from)?;
        let name = file.rsplit('/').next().unwrap_or(file);
        let path = format!("/root/{name}");
        let text = from.run("cat", [file])?;
        let to = self.machine(to.trim_end_matches(':'))?;
        to.write(&path, text.as_bytes())?;
        to.run("chmod", [&from.run("stat", ["-c", "%a", file])?, &path]).map(drop)
    }
}

fn once_or_soon(soon: bool, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    if soon { eventually(SHOWN_WITHIN, "what the page shows", attempt) } else { attempt() }
}

/// Machines of these names, on which pages are read one after the other.
fn tell(names: &[&'static str], pages: &[&str]) {
    let lab = Lab::builder().hosts(names.len()).start().unwrap();
    let machines = names.iter().enumerate().map(|(at, &name)| {
        let machine = boot(&lab, at);
        machine.shell("cp /srv/overlay-agent.deb /root").unwrap();
        machine.import_image().unwrap();
        (name, machine)
    });
    let mut story = Story {
        lab: &lab,
        machines: machines.collect(),
        printed: String::new(),
        untrue: Vec::new(),
    };
    for path in pages {
        story.read(&Page::read(path).unwrap());
    }
    assert_eq!(story.untrue, Vec::<String>::new());
}

#[test]
fn who_types_what_the_manual_says_sees_what_it_shows() {
    tell(&["one", "two"], TWO_HOSTS);
}

#[test]
fn who_types_what_it_says_of_three_members_loses_any_of_them_and_all() {
    tell(&["one", "two", "three", "new"], &[FOUR_HOSTS]);
}

#[test]
fn every_page_that_has_something_run_is_in_a_story() {
    let mut run: Vec<_> = pages::manual().unwrap();
    run.retain(|page| page.blocks.iter().any(Block::is_run));
    let mut told = [TWO_HOSTS, &[FOUR_HOSTS]].concat();
    told.sort_unstable();
    assert_eq!(run.iter().map(|page| page.path.as_str()).collect::<Vec<_>>(), told);
}
