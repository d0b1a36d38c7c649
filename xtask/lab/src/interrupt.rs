//! Ctrl-C and SIGTERM as a flag, so that every `Drop` runs and nothing is left behind.

use std::{
    fmt,
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

/// How many signals it takes to leave at once, without cleaning up: somebody insists.
const IMPATIENT: usize = 3;

/// Exit code of a process that ended because of SIGINT, as shells count it.
pub const EXIT_CODE: i32 = 130;

static RECEIVED: AtomicUsize = AtomicUsize::new(0);

/// The error that [`check`] returns once a signal has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

extern "C" fn on_signal(_signal: libc::c_int) {
    if RECEIVED.fetch_add(1, Ordering::SeqCst) + 1 >= IMPATIENT {
        // SAFETY: _exit is async-signal-safe and does not return.
        unsafe { libc::_exit(EXIT_CODE) }
    }
}

/// Turns SIGINT and SIGTERM into the flag that [`check`] reads; the third one exits at once.
///
/// Installing twice does nothing. A signal that the process was started to ignore stays ignored
/// only until here: `nohup` matters for SIGHUP, which is left alone.
pub fn install() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let action =
            SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            // SAFETY: the handler touches one atomic and calls _exit, both async-signal-safe.
            if let Err(error) = unsafe { sigaction(signal, &action) } {
                eprintln!("cannot handle {signal}: {error}; Ctrl-C may leave things behind");
            }
        }
    });
}

/// Whether a signal has arrived.
pub fn received() -> bool {
    RECEIVED.load(Ordering::SeqCst) > 0
}

/// Fails with [`Interrupted`] once a signal has arrived.
pub fn check() -> Result<(), Interrupted> {
    if received() { Err(Interrupted) } else { Ok(()) }
}
