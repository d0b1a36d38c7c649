//! What the agent says, and where: answers to stdout, everything else to stderr.

use std::io::{self, IsTerminal as _, Write};

use tracing_subscriber::EnvFilter;

/// The netlink library warns when the agent stops listening, as it does when it stops.
const QUIET: &str = "netlink_proto=error";

use crate::exit::Exit;

/// Starts logging to stderr. `RUST_LOG` decides what is logged; without it, the level of `-v` does.
pub fn start(verbosity: u8) {
    let level = match verbosity {
        0 => "info",
        1..=4 => "info,overlay_agent=debug,overlay_lease=debug",
        _ => "debug,overlay_agent=trace,overlay_lease=trace",
    };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},{QUIET}")));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// Prints what clap has to say: help to stdout, complaints to stderr.
pub fn print_usage(error: &clap::Error) -> Exit {
    // A reader that has gone away is nobody to complain to.
    drop(error.print());
    if error.use_stderr() { Exit::Usage } else { Exit::Ok }
}

/// Prints why the program ends, and says with which code. A reader of ours that went away, such as
/// `head`, is no failure.
pub fn print_failure(error: &anyhow::Error, mut out: impl Write) -> Exit {
    let broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(broken_pipe) {
        return Exit::Ok;
    }
    // If stderr is gone, the exit code has to do.
    drop(writeln!(out, "error: {error:#}"));
    Exit::of(error)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;
    use crate::exit::WithExit as _;

    #[test]
    fn a_failure_is_one_line_with_all_its_causes() {
        let mut out = Vec::new();
        let result: anyhow::Result<()> = Err(anyhow!("why")).context("what").exit(Exit::Busy);
        assert_eq!(print_failure(&result.unwrap_err(), &mut out), Exit::Busy);
        assert_eq!(String::from_utf8(out).unwrap(), "error: what: why\n");
    }

    #[test]
    fn a_broken_pipe_is_quiet() {
        let mut out = Vec::new();
        let pipe = io::Error::from(io::ErrorKind::BrokenPipe);
        let error = anyhow::Error::new(pipe).context("cannot print");
        assert_eq!(print_failure(&error, &mut out), Exit::Ok);
        assert!(out.is_empty());
    }
}
