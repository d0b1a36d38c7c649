//! What a test can do to an agent from inside: have it die, as if it had been killed just there, or believe
//! that its kernel is older, or its maps smaller, than they are, or hang. A release build knows nothing of this.

/// Names the place to die at.
pub const VARIABLE: &str = "OVERLAY_FAIL_AT";

/// Names features that the kernel is taken not to have, separated by commas.
pub const WITHOUT_VARIABLE: &str = "OVERLAY_WITHOUT";

/// How many leases the maps are taken to hold.
pub const LEASES_VARIABLE: &str = "OVERLAY_LEASES";

/// Names a file for as long as whose existence the agent's loop hangs.
pub const HANG_VARIABLE: &str = "OVERLAY_HANG_WHILE";

/// Hangs here while there is the file that [`HANG_VARIABLE`] names.
pub async fn hang() {
    if !cfg!(debug_assertions) {
        return;
    }
    let Some(file) = std::env::var_os(HANG_VARIABLE) else { return };
    while std::path::Path::new(&file).exists() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Dies here if [`VARIABLE`] names this place.
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == name) {
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).ok();
    }
    #[cfg(not(debug_assertions))]
    let _: &str = name;
}

/// Whether [`WITHOUT_VARIABLE`] names this feature.
pub fn pretend_without(feature: &str) -> bool {
    cfg!(debug_assertions)
        && std::env::var(WITHOUT_VARIABLE)
            .is_ok_and(|wanted| wanted.split(',').any(|name| name == feature))
}

/// How many leases there is room for: what [`LEASES_VARIABLE`] says, if that is less.
pub fn leases(room: usize) -> usize {
    let wanted = std::env::var(LEASES_VARIABLE).ok().filter(|_| cfg!(debug_assertions));
    wanted.and_then(|text| text.parse().ok()).map_or(room, |wanted: usize| wanted.min(room))
}
