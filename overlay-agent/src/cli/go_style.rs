//! flannel's flags come from Go, where one dash does for a long name, `-etcd-endpoints=…`, and where
//! flags end at the first word that is none.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

use clap::{Arg, ArgAction, Command};

/// The one verb that flanneld's own command lines are given to.
const RUN: &str = "run";

/// A command line as clap reads it, and what of the typed one has no effect.
pub(super) struct Rewritten {
    pub(super) args: Vec<OsString>,
    /// The first word after the flags of `run`, and all that follows it: flanneld passes over them.
    pub(super) ignored: Vec<OsString>,
}

/// Gives every `-name` and `-name=value` its second dash, where `name` is a long flag of
/// `command`'s verbs, and `-v 4` its equals sign. The arguments of `run` are read by Go's rules altogether.
pub(super) fn to_double_dashes(
    command: &Command,
    args: impl IntoIterator<Item = OsString>,
) -> Rewritten {
    let mut args = args.into_iter();
    let mut rewritten: Vec<OsString> = args.next().into_iter().collect();
    let mut flags_ended = false;
    let mut verb = None;
    while let Some(arg) = args.next() {
        flags_ended |= arg == "--";
        match (rewritten.last_mut(), arg.to_str()) {
            _ if flags_ended => rewritten.push(arg),
            // Without a number it counts as one, so that no verb can be taken for its value.
            (Some(last), Some(level)) if is_verbosity(last) && is_number(level) => {
                last.push("=");
                last.push(level);
            }
            (_, Some(text)) if is_long_with_one_dash(command, text) => {
                rewritten.push(format!("-{text}").into());
            }
            (_, Some(text)) if verb.is_none() && !text.starts_with('-') => {
                verb = command.find_subcommand(text);
                rewritten.push(arg);
                if let Some(run) = verb.filter(|verb| verb.get_name() == RUN) {
                    let ignored = as_go_does(run, args, &mut rewritten);
                    return Rewritten { args: rewritten, ignored };
                }
            }
            _ => rewritten.push(arg),
        }
    }
    Rewritten { args: rewritten, ignored: Vec::new() }
}

/// Appends to `rewritten` what Go's flag package makes of `args`, each flag with its value in one word.
/// Returns what it would not look at.
fn as_go_does(
    run: &Command,
    args: impl Iterator<Item = OsString>,
    rewritten: &mut Vec<OsString>,
) -> Vec<OsString> {
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        if arg == "--" {
            return args.collect();
        }
        let Some((name, value)) = flag(&arg) else {
            return std::iter::once(arg).chain(args).collect();
        };
        let known = run.get_arguments().find(|known| is_called(known, name));
        match known.map(Arg::get_action) {
            // clap's own words for what it does not know, one letter as typed and several as a name.
            None if name.len() == 1 => rewritten.push(arg),
            None => rewritten.push(join(name, value)),
            Some(ArgAction::Version) if value.is_some_and(is_false) => {}
            Some(ArgAction::Version | ArgAction::Help) if name.len() == 1 => rewritten.push(arg),
            Some(ArgAction::Version | ArgAction::Help) => rewritten.push(join(name, None)),
            // Without a number `-v` counts as one, where flanneld would take the next flag for it.
            Some(_) if name == "v" && value.is_none() => {
                let level = args.next_if(|next| next.to_str().is_some_and(is_number));
                rewritten.push(join(name, level.as_deref()));
            }
            Some(_) if value.is_some() || known.is_some_and(is_switch) => {
                rewritten.push(join(name, value));
            }
            Some(_) => {
                let value = args.next();
                rewritten.push(join(name, value.as_deref()));
            }
        }
    }
    Vec::new()
}

/// Name and value of a flag, if `arg` is one.
fn flag(arg: &OsStr) -> Option<(&str, Option<&OsStr>)> {
    let bytes = arg.as_bytes().strip_prefix(b"-")?;
    let bytes = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let end = bytes.iter().position(|byte| *byte == b'=');
    let name = str::from_utf8(&bytes[..end.unwrap_or(bytes.len())]).ok()?;
    // Go's «bad flag syntax» is clap's to complain of.
    let value = end.map(|end| OsStr::from_bytes(&bytes[end + 1..]));
    (arg.len() > 1).then_some((name, value))
}

fn join(name: &str, value: Option<&OsStr>) -> OsString {
    let mut flag = format!("--{name}").into_bytes();
    if let Some(value) = value {
        flag.push(b'=');
        flag.extend(value.as_bytes());
    }
    OsString::from_vec(flag)
}

fn is_called(arg: &Arg, name: &str) -> bool {
    arg.get_long() == Some(name)
        || matches!((arg.get_short(), name), (Some(short), name) if name.chars().eq([short]))
}

/// Whether a flag goes without a value.
fn is_switch(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|values| values.min_values() == 0)
}

fn is_false(value: &OsStr) -> bool {
    value.to_str().is_some_and(|text| super::go_bool(text) == Ok(false))
}

fn is_verbosity(arg: &OsStr) -> bool {
    arg == "-v" || arg == "--v"
}

fn is_number(text: &str) -> bool {
    text.parse::<i32>().is_ok()
}

fn is_long_with_one_dash(command: &Command, arg: &str) -> bool {
    let Some(name) = arg.strip_prefix('-') else {
        return false;
    };
    let name = name.split_once('=').map_or(name, |(name, _)| name);
    // One letter is a short flag in either style.
    name.len() > 1 && has_long(command, name)
}

/// Whether `command` or a verb below it has a long flag of this name.
fn has_long(command: &Command, name: &str) -> bool {
    command.get_arguments().filter_map(Arg::get_long).any(|long| long == name)
        || command.get_subcommands().any(|verb| has_long(verb, name))
}

/// A whole number as Go's flag package reads it: `0x10`, `0b1`, `0o7`, `07` and `1_000` included.
pub(super) fn go_int(text: &str) -> Result<i64, String> {
    let failed = |why| format!("it must be a whole number: {why}");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    let starts_badly = digits.starts_with(['+', '-']) || (radix == 10 && digits.starts_with('_'));
    if starts_badly || digits.ends_with('_') || digits.contains("__") {
        return Err(failed("misplaced sign or underscore".to_owned()));
    }
    let number = format!("{sign}{}", digits.replace('_', ""));
    i64::from_str_radix(&number, radix).map_err(|error| failed(error.to_string()))
}

/// A level of klog's as `-v` takes it; beyond what a byte holds there is nothing more to say.
pub(super) fn level(text: &str) -> Result<u8, String> {
    let level: i32 = text.parse().map_err(|error| format!("it must be a whole number: {error}"))?;
    Ok(u8::try_from(level.max(0)).unwrap_or(u8::MAX))
}
