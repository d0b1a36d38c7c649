//! Whole machines: Debian with its own systemd, our package installed by `apt`, and one line on each. What
//! is tested is what the README says.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod firewalls;
mod foreign;
mod formats;
mod harmless;
mod identities;
mod leave;
mod manual;
mod members;
mod ready;
mod reports;
mod restart;
mod rotation;
mod support;
mod tokens;
