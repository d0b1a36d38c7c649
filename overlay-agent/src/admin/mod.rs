//! What the agent tells about itself: over its socket to the command line, over HTTP to probes.

mod client;
mod server;
mod status;
mod waiting;

pub use client::fetch_status;
pub use server::{Requests, serve_probes, serve_socket};
pub use status::{
    CounterStatus, FeatureStatus, LeaseStatus, OverlayStatus, PeerStatus, ProgramStatus, Status,
    UplinkStatus, Verdicts,
};
pub use waiting::Waiting;
