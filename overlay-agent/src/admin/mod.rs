//! What the agent tells about itself: over its socket to the command line, over HTTP to probes.

mod client;
mod drops;
mod metrics;
mod probes;
mod pulse;
mod server;
mod status;
mod waiting;

pub use client::{fetch_lines, fetch_status, fetch_text};
pub use metrics::Meters;
pub use probes::serve_probes;
pub use pulse::{Census, Listener, Pulse, Readiness};
pub use server::{Requests, serve_socket};
pub use status::{
    Answered, CounterStatus, FeatureStatus, LeaseStatus, OverlayStatus, PeerStatus,
    PolicyRuleStatus, ProbeKind, ProgramStatus, RulesStatus, Status, UplinkStatus, Verdicts,
};
pub use waiting::Waiting;

/// Where the agent listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/overlay/agent.sock";
