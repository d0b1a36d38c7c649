//! Random hosts, traffic and events, each world played by three datapaths whose outcomes are compared: ours with the
//! fast path, ours without, and a kernel VXLAN device as flannel makes it.
//!
//! `OVERLAY_WORLD_SEED` and `OVERLAY_WORLD_COUNT` make a long search of it. What a world that failed boils down to is
//! printed as JSON: in a file of the corpus's `worlds` it is played from then on.
//!
//! `flows` tries random firewalls with flows by the thousands, and `health` makes hosts ill and judges what `status` and `doctor` say of them.
#![expect(clippy::unwrap_used, reason = "a test that panics has failed")]

mod compare;
mod flows;
mod generate;
mod health;
mod play;
mod rules;
mod search;
mod shape;
mod shrink;
mod traffic;
