//! What the agent says, and where: answers to stdout, everything else to stderr.

use std::{
    env,
    io::{self, IsTerminal as _, Write},
};

use tracing::Level;
use tracing_subscriber::{
    Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::exit::Exit;

/// Starts logging to stderr. `RUST_LOG` decides what is logged; without it, the level of `-v` does.
pub fn start(verbosity: u8) {
    let asked = env::var("RUST_LOG").ok().and_then(|filter| filter.parse().ok());
    let filter: Targets = asked.unwrap_or_else(|| by_verbosity(verbosity));
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_filter(filter);
    tracing_subscriber::registry().with(lines).init();
}

fn by_verbosity(verbosity: u8) -> Targets {
    let (others, ours) = match verbosity {
        0 => (Level::INFO, Level::INFO),
        1..=4 => (Level::INFO, Level::DEBUG),
        _ => (Level::DEBUG, Level::TRACE),
    };
    let targets = Targets::new().with_default(others);
    let targets = targets.with_targets([("overlay_agent", ours), ("overlay_lease", ours)]);
    // The netlink library warns when the agent stops listening, as it does when it stops.
    targets.with_target("netlink_proto", Level::ERROR)
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
    fn more_verbosity_is_more_of_ours_first() {
        let says =
            |verbosity, target: &str, level| by_verbosity(verbosity).would_enable(target, &level);
        assert!(says(0, "overlay_agent::control", Level::INFO) && says(0, "h2", Level::INFO));
        assert!(!says(0, "overlay_agent::control", Level::DEBUG));
        assert!(says(1, "overlay_lease::member", Level::DEBUG) && !says(1, "h2", Level::DEBUG));
        assert!(says(5, "overlay_agent::control", Level::TRACE) && says(5, "h2", Level::DEBUG));
        assert!(!says(5, "netlink_proto::connection", Level::WARN));
    }

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
