//! The environment as a fallback for flags: `OVERLAY_<NAME>`, then `FLANNELD_<NAME>`.
//!
//! A variable is turned into the argument it stands for and put at the end of the command line, so
//! that there is one parser, one set of rules and one kind of error for both.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
};

use clap::{Command, error::ErrorKind, parser::ValueSource};

use crate::{
    dotenv,
    provision::{AGENT_ENV, OPERATOR_ENV},
};

/// The prefixes of the variables' names, the first one first.
const PREFIXES: [&str; 2] = ["OVERLAY_", FLANNELS];

const FLANNELS: &str = "FLANNELD_";

/// Verbs whose flags have no variables: what mk-docker-opts.sh reads from the environment has its
/// own rules, and what `init` and `join` are asked for is not what the agent was told.
const WITHOUT: [&str; 3] = ["docker-opts", "init", "join"];

/// What is typed at a prompt and has no place in a service's environment, where `FLANNELD_VERSION`
/// may well mean something else.
const NOT_FLAGS: [&str; 2] = ["help", "version"];

/// A verb that says more than it was asked for is no use to whoever reads its answer.
const ONLY_OF_RUN: &str = "v";

/// Where variables are looked up; a trait so that tests need not change the process's.
pub trait Environment {
    /// The value of a variable, `None` if it is not set.
    fn get(&self, name: &str) -> Option<OsString>;
}

/// The process's environment, and behind it what this host's agent is told by its service: so that every
/// verb knows where etcd is.
#[derive(Clone, Debug)]
pub struct HostEnvironment(BTreeMap<String, OsString>);

impl HostEnvironment {
    /// Reads the service's files, as far as they are there.
    pub fn read() -> Self {
        let mut variables = BTreeMap::new();
        // In the order of the unit: the last one counts.
        for file in [AGENT_ENV, OPERATOR_ENV] {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let assignments = dotenv::assignments(&text);
            variables.extend(assignments.map(|(name, value)| (name.to_owned(), value.into())));
        }
        Self(variables)
    }
}

impl Environment for HostEnvironment {
    fn get(&self, name: &str) -> Option<OsString> {
        std::env::var_os(name).or_else(|| self.0.get(name).cloned())
    }
}

impl<F: Fn(&str) -> Option<OsString>> Environment for F {
    fn get(&self, name: &str) -> Option<OsString> {
        self(name)
    }
}

/// What `--help` says about variables.
pub(super) fn help() -> String {
    "Every flag can also be given as an environment variable, OVERLAY_<NAME> or FLANNELD_<NAME>, for \
     example OVERLAY_ETCD_ENDPOINTS. The command line counts first, then OVERLAY_, then FLANNELD_; \
     /etc/default/overlay-agent and /etc/overlay/agent.env stand in for the environment. An empty variable counts as unset; a flag that can be repeated takes one value. \
     A FLANNELD_ variable that its flag does not take is said and passed over; an OVERLAY_ one is an error.\n\n\
     Flags may have one dash, and given twice the last one counts, except for --iface and --iface-regex. They end at the first word that is none: \
     it and what follows are said and ignored."
        .to_owned()
}

/// A command line with what the environment adds to it.
pub(super) struct Appended {
    pub(super) args: Vec<OsString>,
    /// Variables of flannel's whose values are none for their flags: a sentence each.
    pub(super) bad: Vec<String>,
}

/// Appends to `args` what the environment says about flags that `args` does not mention.
pub(super) fn append(
    command: &Command,
    mut args: Vec<OsString>,
    environment: &impl Environment,
) -> Result<Appended, clap::Error> {
    let mut bad = Vec::new();
    let matches = command.clone().try_get_matches_from(&args)?;
    let (mut verb, mut matches) = (command, &matches);
    // `config set` and the like are verbs of verbs.
    while let Some((name, inner)) = matches.subcommand() {
        let Some(found) = verb.find_subcommand(name) else {
            return Ok(Appended { args, bad });
        };
        (verb, matches) = (found, inner);
    }
    if !has_variables(verb) {
        return Ok(Appended { args, bad });
    }
    for arg in verb.get_arguments() {
        let Some(long) = arg.get_long().filter(|long| !NOT_FLAGS.contains(long)) else {
            continue;
        };
        if long == ONLY_OF_RUN && verb.get_name() != "run" {
            continue;
        }
        let id = arg.get_id().as_str();
        let typed = matches
            .try_contains_id(id)
            .is_ok_and(|_| matches.value_source(id) == Some(ValueSource::CommandLine));
        if typed {
            continue;
        }
        let Some((name, value)) = lookup(long, environment) else {
            continue;
        };
        args.push(argument(long, &value));
        match check(command, &args, &name) {
            Ok(()) => {}
            // flanneld goes on with the default; what is written for us alone has to be right.
            Err(why) if name.starts_with(FLANNELS) => {
                args.pop();
                let why = why.lines().next().unwrap_or_default();
                bad.push(format!("{why}; it is passed over"));
            }
            Err(why) => return Err(clap::Error::raw(ErrorKind::ValueValidation, why)),
        }
    }
    Ok(Appended { args, bad })
}

/// Whether the environment says anything about this verb's flags.
pub(super) fn has_variables(verb: &Command) -> bool {
    !WITHOUT.contains(&verb.get_name())
}

/// What a flag is called in the environment, behind its prefix.
pub(super) fn suffix(long: &str) -> String {
    long.to_ascii_uppercase().replace('-', "_")
}

/// The first of a flag's variables that is set and not empty.
fn lookup(long: &str, environment: &impl Environment) -> Option<(String, OsString)> {
    let suffix = suffix(long);
    PREFIXES.into_iter().map(|prefix| format!("{prefix}{suffix}")).find_map(|name| {
        let value = environment.get(&name).filter(|value| !value.is_empty())?;
        Some((name, value))
    })
}

fn argument(long: &str, value: &OsStr) -> OsString {
    let mut argument = OsString::from(format!("--{long}="));
    argument.push(value);
    argument
}

/// Says which variable is to blame while that is known.
fn check(command: &Command, args: &[OsString], name: &str) -> Result<(), String> {
    match command.clone().try_get_matches_from(args) {
        Err(error) if error.use_stderr() => {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            Err(format!("environment variable {name}: {text}"))
        }
        _ => Ok(()),
    }
}
