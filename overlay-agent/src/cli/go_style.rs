//! flannel's flags come from Go, where one dash does for a long name: `-etcd-endpoints=…`.

use std::ffi::{OsStr, OsString};

use clap::Command;

/// Gives every `-name` and `-name=value` its second dash, where `name` is a long flag of `command`'s
/// verbs. Everything else, bundles of short flags included, stays as it is.
pub(super) fn to_double_dashes(
    command: &Command,
    args: impl IntoIterator<Item = OsString>,
) -> Vec<OsString> {
    let mut flags_ended = false;
    args.into_iter()
        .map(|arg| {
            flags_ended |= arg == "--";
            match arg.to_str() {
                Some(text) if !flags_ended && is_long_with_one_dash(command, text) => {
                    let mut longer = OsString::from("-");
                    longer.push(&arg);
                    longer
                }
                _ => arg,
            }
        })
        .collect()
}

fn is_long_with_one_dash(command: &Command, arg: &str) -> bool {
    let Some(name) = arg.strip_prefix('-') else {
        return false;
    };
    let name = name.split_once('=').map_or(name, |(name, _)| name);
    // One letter is a short flag in either style.
    name.len() > 1
        && std::iter::once(command)
            .chain(command.get_subcommands())
            .flat_map(Command::get_arguments)
            .filter_map(clap::Arg::get_long)
            .any(|long| OsStr::new(long) == name)
}
