//! One file per BPF map: its name, capacity, key and value. MACs are plain byte arrays here, so that a
//! dump of `bpftool` shows them as one.

mod claim;
mod config;
mod counter;
mod endpoint;
mod home;
mod peer;
mod port;
mod stack_flow;
mod vtep;

pub use claim::{CLAIMS_CAPACITY, CLAIMS_MAP, Claim, ClaimKey};
pub use config::{CONFIG_MAP, HostConfig, PEER_PREFIX_LENGTHS};
pub use counter::{COUNTERS_MAP, Counter, counter_index, counter_slots};
pub use endpoint::{ENDPOINTS_CAPACITY, ENDPOINTS_MAP, Endpoint, EndpointKey};
pub use home::{HOMES_CAPACITY, HOMES_MAP, Home, HomeKey};
pub use peer::{PEERS_CAPACITY, PEERS_MAP, Peer, PeerKey};
pub use port::{PORTS_CAPACITY, PORTS_MAP, Port, PortKey};
pub use stack_flow::{
    Direction, HANDED_OVER_MAP, STACK_FLOWS_CAPACITY, STACK_FLOWS_MAP, STACK_FLOWS_SHARES,
    STACK_SEATS_MAP, STACK_STATE_MAP, STACK_TURNS_CAPACITY, STACK_TURNS_MAP, SeatKey, StackFlow,
    StackFlowKey, StackState, Turn,
};
pub use vtep::{VTEPS_CAPACITY, VTEPS_MAP, Vtep, VtepKey};

/// Version of every layout in this module. A new agent adopts pinned maps only if theirs is the
/// same; raise it with any change of a key, a value, a capacity or the meaning of a field.
pub const ABI_VERSION: u32 = 5;
