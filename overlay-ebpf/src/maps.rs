//! Every map, in one screen.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf,
        lpm_trie::Key as Prefix,
    },
    helpers::bpf_ktime_get_coarse_ns,
    macros::btf_map,
};
use overlay_common::{
    Reason,
    decide::Tables,
    tables::{
        Accepted, BRIDGES_CAPACITY, Bridge, BridgeKey, CLAIMS_CAPACITY, CONFIG_SLOTS, Claim,
        ClaimKey, Counter, DROPS_BYTES, Direction, DropRecord, DropsPace, DropsWatch,
        ENDPOINTS_CAPACITY, Endpoint, EndpointKey, HOMES_CAPACITY, Home, HomeKey, HostConfig,
        PEERS_CAPACITY, POLICY_CAPACITY, POLICY_RULES, PORTS_CAPACITY, Peer, PeerKey, PolicyField,
        PolicyFlow, PolicyRule, Port, PortKey, RuleSet, STACK_FLOWS_CAPACITY, STACK_TURNS_CAPACITY,
        SeatKey, StackFlow, StackFlowKey, StackState, Turn, VTEPS_CAPACITY, Vtep, VtepKey,
        counter_slots,
    },
};

/// Memory for what is there, not for what could be.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "config")]
static CONFIG: Array<HostConfig, CONFIG_SLOTS> = Array::new();

#[btf_map(name = "config_slot")]
static CONFIG_SLOT: Array<u32, 1> = Array::new();

#[btf_map(name = "peers")]
static PEERS: HashMap<PeerKey, Peer, PEERS_CAPACITY, ON_DEMAND> = HashMap::new();

#[btf_map(name = "vteps")]
static VTEPS: HashMap<VtepKey, Vtep, VTEPS_CAPACITY, ON_DEMAND> = HashMap::new();

#[btf_map(name = "bridges")]
static BRIDGES: HashMap<BridgeKey, Bridge, BRIDGES_CAPACITY, ON_DEMAND> = HashMap::new();

#[btf_map(name = "endpoints")]
static ENDPOINTS: HashMap<EndpointKey, Endpoint, ENDPOINTS_CAPACITY, ON_DEMAND> = HashMap::new();

#[btf_map(name = "ports")]
static PORTS: HashMap<PortKey, Port, PORTS_CAPACITY, ON_DEMAND> = HashMap::new();

#[btf_map(name = "homes")]
static HOMES: HashMap<HomeKey, Home, HOMES_CAPACITY, ON_DEMAND> = HashMap::new();

#[btf_map(name = "claims")]
static CLAIMS: LruHashMap<ClaimKey, Claim, CLAIMS_CAPACITY> = LruHashMap::new();

#[btf_map(name = "stack_flows")]
static STACK_FLOWS: LruHashMap<StackFlowKey, StackFlow, STACK_FLOWS_CAPACITY> = LruHashMap::new();

#[btf_map(name = "stack_seats")]
static STACK_SEATS: LruHashMap<SeatKey, StackFlowKey, STACK_FLOWS_CAPACITY> = LruHashMap::new();

#[btf_map(name = "stack_turns")]
static STACK_TURNS: LruHashMap<[u8; 4], Turn, STACK_TURNS_CAPACITY> = LruHashMap::new();

#[btf_map(name = "stack_state")]
static STACK_STATE: Array<StackState, 1> = Array::new();

#[btf_map(name = "handed_over")]
static HANDED_OVER: PerCpuArray<StackFlowKey, 1> = PerCpuArray::new();

#[btf_map(name = "accepted")]
static ACCEPTED: LruHashMap<StackFlowKey, Accepted, STACK_FLOWS_CAPACITY> = LruHashMap::new();

#[btf_map(name = "policy")]
static POLICY: LpmTrie<PolicyField, RuleSet, POLICY_CAPACITY> = LpmTrie::new();

#[btf_map(name = "policy_rules")]
static POLICY_RULE: Array<PolicyRule, { 2 * POLICY_RULES }> = Array::new();

#[btf_map(name = "policy_flows")]
static POLICY_FLOWS: LruHashMap<StackFlowKey, PolicyFlow, STACK_FLOWS_CAPACITY> = LruHashMap::new();

#[btf_map(name = "policy_denied")]
static POLICY_DENIED: PerCpuHashMap<u64, Counter, { 2 * POLICY_RULES }, ON_DEMAND> =
    PerCpuHashMap::new();

#[btf_map(name = "counters")]
pub(crate) static COUNTERS: PerCpuArray<Counter, { counter_slots() as usize }> = PerCpuArray::new();

#[btf_map(name = "drops")]
pub(crate) static DROPS: RingBuf<DropRecord, DROPS_BYTES> = RingBuf::new();

#[btf_map(name = "drops_watch")]
pub(crate) static DROPS_WATCH: Array<DropsWatch, 1> = Array::new();

#[btf_map(name = "drops_pace")]
pub(crate) static DROPS_PACE: PerCpuArray<DropsPace, { Reason::COUNT as usize }> =
    PerCpuArray::new();

/// This host's settings, once the agent has written them.
#[inline(always)]
pub(crate) fn host() -> Option<&'static HostConfig> {
    // Whatever somebody writes there, there are settings.
    CONFIG.get(*CONFIG_SLOT.get(0)? & 1).filter(|host| host.abi_version != 0)
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
    fn bridge(&self, key: &BridgeKey) -> Option<Bridge> {
        // SAFETY: as above.
        unsafe { BRIDGES.get(key) }.copied()
    }

    #[inline(always)]
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        // SAFETY: as above.
        unsafe { ENDPOINTS.get(key) }
    }

    #[inline(always)]
    fn port(&self, key: &PortKey) -> Option<Port> {
        // SAFETY: as above.
        unsafe { PORTS.get(key) }.copied()
    }

    #[inline(always)]
    fn home(&self, key: &HomeKey) -> Option<Home> {
        // SAFETY: as above.
        unsafe { HOMES.get(key) }.copied()
    }

    #[inline(always)]
    fn note_claim(&self, ifindex: u32, address: [u8; 4]) {
        if ifindex == 0 {
            return;
        }
        let key = ClaimKey { address, ifindex };
        if let Some(claim) = CLAIMS.get_ptr_mut(key) {
            // SAFETY: one integer; one that gets lost between two processors is not missed.
            unsafe { (*claim).packets += 1 };
        } else {
            // A full map makes room by itself.
            let _refused = CLAIMS.insert(key, Claim { packets: 1 }, 0);
        }
    }

    #[inline(always)]
    fn stack_flows(&self) -> u32 {
        STACK_STATE.get(0).map_or(0, StackState::directions)
    }

    #[inline(always)]
    fn stack_flow(&self, key: &StackFlowKey) -> StackFlow {
        // SAFETY: a flow's entry is two integers, each whole.
        unsafe { STACK_FLOWS.get(key) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn remember_stack_flow(&self, key: &StackFlowKey, flow: StackFlow, direction: Direction) {
        // A full map makes room by itself; if it still refuses, answers take the fast path. The answers of one that is
        // remembered find out as soon as this returns.
        let _forgotten = STACK_FLOWS.insert(key, flow, 0);
        if let Some(state) = STACK_STATE.get_ptr_mut(0) {
            // SAFETY: an integer for each direction, to which nobody writes anything else.
            unsafe {
                match direction {
                    Direction::Left => (*state).left = 1,
                    Direction::Arrived => (*state).arrived = 1,
                }
            }
        }
    }

    #[inline(always)]
    fn forget_stack_flow(&self, key: &StackFlowKey) {
        // One that is gone already is forgotten, too.
        let _gone = STACK_FLOWS.remove(key);
    }

    #[inline(always)]
    fn next_turn(&self, local: [u8; 4]) -> u32 {
        let Some(turn) = STACK_TURNS.get_ptr_mut(local) else {
            // Whoever comes at the same time begins anew, too.
            let _refused = STACK_TURNS.insert(local, Turn { next: 1 }, 0);
            return 0;
        };
        // SAFETY: one integer; two processors may get the same turn, of which one then does not get the place.
        unsafe {
            (*turn).next += 1;
            (*turn).next - 1
        }
    }

    #[inline(always)]
    fn seated(&self, key: &SeatKey) -> Option<StackFlowKey> {
        // SAFETY: an entry is made as a whole, and never changed.
        unsafe { STACK_SEATS.get(key) }.copied()
    }

    #[inline(always)]
    fn unseat(&self, key: &SeatKey) -> bool {
        STACK_SEATS.remove(key).is_ok()
    }

    #[inline(always)]
    fn seat(&self, key: &SeatKey, flow: &StackFlowKey) -> bool {
        STACK_SEATS.insert(key, *flow, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn handed_over(&self) -> StackFlowKey {
        HANDED_OVER.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn accepted(&self, key: &StackFlowKey) -> Accepted {
        // SAFETY: an entry is a few integers, each whole. Who reads one while another processor notes that a connection
        // begins has a packet of the connection before, which passes as the one before it did.
        unsafe { ACCEPTED.get(key) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn accept(&self, key: &StackFlowKey, note: impl FnOnce(&mut Accepted)) {
        if let Some(known) = ACCEPTED.get_ptr_mut(key) {
            // A note of the other direction that gets lost between two processors has the flow ask again.
            // SAFETY: as above.
            note(unsafe { &mut *known });
        } else {
            let mut accepted = Accepted::default();
            note(&mut accepted);
            // A full map makes room by itself; if it still refuses, the flow asks again.
            let _forgotten = ACCEPTED.insert(key, accepted, 0);
        }
    }

    #[inline(always)]
    fn policy_rules(&self, field: &PolicyField) -> Option<&RuleSet> {
        POLICY.get(&Prefix::new(PolicyField::BITS, *field))
    }

    #[inline(always)]
    fn policy_rule(&self, index: u32) -> PolicyRule {
        POLICY_RULE.get(index).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn count_denied(&self, rule: &PolicyRule, bytes: u32) {
        // The agent has made an entry for each rule before it put the policy in force.
        if let Some(counter) = POLICY_DENIED.get_ptr_mut(rule.name) {
            // SAFETY: this CPU's own slot, and a TC program is not interrupted by itself.
            unsafe {
                (*counter).packets += 1;
                (*counter).bytes += u64::from(bytes);
            }
        }
    }

    #[inline(always)]
    fn policy_flow(&self, key: &StackFlowKey) -> PolicyFlow {
        // SAFETY: an entry is replaced as a whole.
        unsafe { POLICY_FLOWS.get(key) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn note_policy_flow(&self, key: &StackFlowKey, flow: PolicyFlow) {
        // A full map makes room by itself; if it still refuses, the next packet is asked about anew.
        let _forgotten = POLICY_FLOWS.insert(key, flow, 0);
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper takes no arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}

/// Notes the flow of a packet that is left to the stack.
#[inline(always)]
pub(crate) fn note_handed_over(flow: &StackFlowKey) {
    if let Some(noted) = HANDED_OVER.get_ptr_mut(0) {
        // SAFETY: this CPU's own slot, and a TC program is not interrupted by itself.
        unsafe { *noted = *flow };
    }
}
