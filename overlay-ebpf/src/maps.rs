//! Every map, in one screen.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use overlay_common::{
    decide::Tables,
    tables::{
        Counter, ENDPOINTS_CAPACITY, Endpoint, EndpointKey, HostConfig, PEERS_CAPACITY, Peer,
        PeerKey, STACK_FLOWS_CAPACITY, StackFlow, StackFlowKey, StackState, VTEPS_CAPACITY, Vtep,
        VtepKey, counter_slots,
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

#[btf_map(name = "stack_flows")]
static STACK_FLOWS: LruHashMap<StackFlowKey, StackFlow, STACK_FLOWS_CAPACITY> = LruHashMap::new();

#[btf_map(name = "stack_state")]
static STACK_STATE: Array<StackState, 1> = Array::new();

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

    #[inline(always)]
    fn any_stack_flow(&self) -> bool {
        STACK_STATE.get(0).is_some_and(|state| state.any != 0)
    }

    #[inline(always)]
    fn is_stack_flow(&self, key: &StackFlowKey) -> bool {
        STACK_FLOWS.get_ptr(key).is_some()
    }
}

/// Remembers that a flow left through the stack. Its answers find out as soon as this returns.
#[inline(always)]
pub(crate) fn remember_stack_flow(key: &StackFlowKey) {
    if STACK_FLOWS.get_ptr(key).is_some() {
        return;
    }
    // A full map makes room by itself; if it still refuses, the flow is delivered directly.
    let _forgotten = STACK_FLOWS.insert(key, StackFlow { present: 1 }, 0);
    let _as_above = STACK_STATE.set(0, StackState { any: 1 }, 0);
}
