//! Places where a test can have the agent die, as if it had been killed just there. A release build has
//! none of them.

/// Names the place to die at.
pub const VARIABLE: &str = "OVERLAY_FAIL_AT";

/// Dies here if [`VARIABLE`] names this place.
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == name) {
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).ok();
    }
    #[cfg(not(debug_assertions))]
    let _: &str = name;
}
