//! flannel's flags come from Go, where one dash does for a long name: `-etcd-endpoints=…`.

use std::ffi::{OsStr, OsString};

use clap::Command;

/// Gives every `-name` and `-name=value` its second dash, where `name` is a long flag of
/// `command`'s verbs, and `-v 4` its equals sign. Everything else, bundles of short flags included,
/// stays as it is.
pub(super) fn to_double_dashes(
    command: &Command,
    args: impl IntoIterator<Item = OsString>,
) -> Vec<OsString> {
    let mut flags_ended = false;
    let mut rewritten: Vec<OsString> = Vec::new();
    for arg in args {
        flags_ended |= arg == "--";
        match (rewritten.last_mut(), arg.to_str()) {
            _ if flags_ended => rewritten.push(arg),
            // Without a number it counts as one, so that no verb can be taken for its value.
            (Some(last), Some(level)) if last == "-v" && is_number(level) => {
                last.push("=");
                last.push(level);
            }
            (_, Some(text)) if is_long_with_one_dash(command, text) => {
                rewritten.push(format!("-{text}").into());
            }
            _ => rewritten.push(arg),
        }
    }
    rewritten
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
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
    command.get_arguments().filter_map(clap::Arg::get_long).any(|long| OsStr::new(long) == name)
        || command.get_subcommands().any(|verb| has_long(verb, name))
}
