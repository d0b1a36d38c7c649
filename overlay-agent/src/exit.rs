//! The exit codes, and how an error carries one.

use std::{error::Error as StdError, fmt, process::ExitCode};

use overlay_lease::{
    member::registry::JoinError,
    store::{StoreError, operate::OperateError},
};

/// How the program ends. The numbers are part of the command line's contract; most are those of
/// `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// What was asked for is done.
    Ok = 0,
    /// Something failed that has no number of its own.
    Failure = 1,
    /// The command line, or the environment in its place, cannot be followed.
    Usage = 64,
    /// What was handed over is damaged or out of date.
    Data = 65,
    /// What was asked for is not there.
    NotFound = 66,
    /// This host cannot carry the overlay as it is now.
    Unavailable = 69,
    /// What was asked for would harm, or be in the way of, something that is there.
    Conflict = 73,
    /// Another agent holds what this one needs.
    Busy = 75,
    /// Who asks is not root, or this is for others to decide.
    NotPermitted = 77,
    /// The network config is malformed.
    Config = 78,
}

impl Exit {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::Ok,
        Self::Failure,
        Self::Usage,
        Self::Data,
        Self::NotFound,
        Self::Unavailable,
        Self::Conflict,
        Self::Busy,
        Self::NotPermitted,
        Self::Config,
    ];

    /// The number that the shell sees.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// What the number means, for `--help`.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done, or stopped by SIGTERM or SIGINT",
            Self::Failure => "unexpected failure; from `status` and `doctor`: something is wrong",
            Self::Usage => "bad flag or environment variable, or an --iface that does not exist",
            Self::Data => "the join token is damaged, or its time is over",
            Self::NotFound => "what was asked for is not there: no such lease, no network config",
            Self::Unavailable => {
                "something on this host is in the way: the kernel lacks something, or the UDP port is taken \
                 by another VXLAN device; or etcd, or the agent that was asked, does not answer"
            }
            Self::Conflict => {
                "it would harm what is there: leases, or settings that somebody else has made"
            }
            Self::Busy => "another agent runs on the same pin path",
            Self::NotPermitted => "not root, or not for this host to decide",
            Self::Config => {
                "the network config is malformed, or asks for what this agent does not do"
            }
        }
    }

    /// The number that `error` carries; [`Exit::Failure`] if none.
    pub fn of(error: &anyhow::Error) -> Self {
        error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Coded>())
            .map_or(Self::Failure, |coded| coded.exit)
    }

    /// The table of all codes, for `--help`.
    pub fn help() -> String {
        let rows =
            Self::ALL.map(|exit| format!("  {:>2}  {}", exit.code(), exit.meaning())).join("\n");
        format!("Exit codes:\n{rows}")
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// Gives an error an exit code, without changing what it says.
pub trait WithExit<T> {
    /// Makes the program end with `exit` if this error ends it.
    fn exit(self, exit: Exit) -> Result<T, anyhow::Error>;
}

impl<T, E: Into<anyhow::Error>> WithExit<T> for Result<T, E> {
    fn exit(self, exit: Exit) -> anyhow::Result<T> {
        self.map_err(|error| {
            let error = error.into();
            anyhow::Error::new(Coded { exit, error })
        })
    }
}

/// Gives an error the exit code of its kind, without changing what it says.
pub trait OwnExit<T> {
    /// Makes the program end with what is the error's own if this error ends it.
    fn own_exit(self) -> Result<T, anyhow::Error>;
}

impl<T, E> OwnExit<T> for Result<T, E>
where
    E: Into<anyhow::Error>,
    for<'error> Exit: From<&'error E>,
{
    fn own_exit(self) -> anyhow::Result<T> {
        self.or_else(|error| {
            let exit = Exit::from(&error);
            Err(error).exit(exit)
        })
    }
}

impl From<&JoinError> for Exit {
    fn from(error: &JoinError) -> Self {
        match error {
            JoinError::Config(_) | JoinError::Fixed(_) => Self::Config,
            JoinError::Acquire(_) => Self::Failure,
        }
    }
}

impl From<&OperateError> for Exit {
    fn from(error: &OperateError) -> Self {
        match error {
            OperateError::Store(StoreError::NotPermitted { .. }) => Self::NotPermitted,
            OperateError::Store(_) => Self::Unavailable,
            OperateError::NoLease { .. } | OperateError::NoConfig(_) => Self::NotFound,
            OperateError::MalformedConfig { .. } => Self::Config,
            OperateError::Malformed { .. } | OperateError::Restless(_) => Self::Failure,
            OperateError::Nobody => Self::Usage,
            OperateError::Harmful { .. }
            | OperateError::Leased { .. }
            | OperateError::NotAdmitted { .. }
            | OperateError::HasOther { .. }
            | OperateError::Overlaps { .. }
            | OperateError::AnothersLease(_)
            | OperateError::Changed(_) => Self::Conflict,
        }
    }
}

/// An error that knows its exit code. Transparent: its text and its causes are the inner error's.
#[derive(Debug)]
struct Coded {
    exit: Exit,
    error: anyhow::Error,
}

impl fmt::Display for Coded {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, out)
    }
}

impl StdError for Coded {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn a_code_is_found_under_any_number_of_contexts_and_changes_no_text() {
        let result: anyhow::Result<()> = Err(anyhow!("no such interface"))
            .context("choosing the uplink")
            .exit(Exit::Usage)
            .context("starting");
        let error = result.unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Usage);
        assert_eq!(format!("{error:#}"), "starting: choosing the uplink: no such interface");
    }

    #[test]
    fn an_error_without_a_code_is_a_failure() {
        assert_eq!(Exit::of(&anyhow!("oops")), Exit::Failure);
    }

    #[test]
    fn the_outermost_code_counts() {
        let result: anyhow::Result<()> = Err(anyhow!("oops")).exit(Exit::Busy).exit(Exit::Config);
        assert_eq!(Exit::of(&result.unwrap_err()), Exit::Config);
    }

    #[test]
    fn the_help_names_every_code_once() {
        let help = Exit::help();
        for exit in Exit::ALL {
            let line = format!("{:>2}  {}", exit.code(), exit.meaning());
            assert_eq!(help.matches(&line).count(), 1, "{line}");
        }
    }
}
