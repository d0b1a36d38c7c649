//! Every map, in one screen.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, PerCpuArray},
    macros::btf_map,
};
use overlay_common::{
    decide::Tables,
    tables::{
        Counter, ENDPOINTS_CAPACITY, Endpoint, EndpointKey, HostConfig, PEERS_CAPACITY, Peer,
        PeerKey, VTEPS_CAPACITY, Vtep, VtepKey, counter_slots,
    },
};

/// Memory for what is there, not for what could be.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "config")]
static CONFIG: Array<HostConfig, 1> = Array::new();

#[btf_map(name = "peers")]
static PEERS: HashMap<PeerKey, Peer, PEERS_CAPACITY, ON_DEMAND> = HashMap::new();

#[btf_map(name = "vteps")]
static VTEPS: HashMap<VtepKey, Vtep, VTEPS_CAPACITY, ON_DEMAND> = HashMap::new();

#[btf_map(name = "endpoints")]
static ENDPOINTS: HashMap<EndpointKey, Endpoint, ENDPOINTS_CAPACITY, ON_DEMAND> = HashMap::new();

#[btf_map(name = "counters")]
pub(crate) static COUNTERS: PerCpuArray<Counter, { counter_slots() as usize }> = PerCpuArray::new();

/// This host's settings, once the agent has written them.
#[inline(always)]
pub(crate) fn host() -> Option<&'static HostConfig> {
    CONFIG.get(0).filter(|host| host.abi_version != 0)
}

/// The maps, for decisions.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn peer(&self, key: &PeerKey) -> Option<Peer> {
        // SAFETY: the agent replaces values as a whole; an entry removed meanwhile lives on until
        // this program ends (RCU).
        unsafe { PEERS.get(key) }.copied()
    }

    #[inline(always)]
    fn vtep(&self, key: &VtepKey) -> Option<Vtep> {
        // SAFETY: as above.
        unsafe { VTEPS.get(key) }.copied()
    }

    #[inline(always)]
    fn endpoint(&self, key: &EndpointKey) -> Option<Endpoint> {
        // SAFETY: as above.
        unsafe { ENDPOINTS.get(key) }.copied()
    }
}
