//! One file per BPF map: its name, capacity, key and value. MACs are plain byte arrays here, so that a
//! dump of `bpftool` shows them as one.

mod accepted;
mod bridge;
mod claim;
mod config;
mod counter;
mod drop;
mod endpoint;
mod home;
mod peer;
mod policy;
mod port;
mod stack_flow;
mod vtep;

pub use accepted::{ACCEPTED_MAP, Accepted};
pub use bridge::{BRIDGES_CAPACITY, BRIDGES_MAP, Bridge, BridgeKey};
pub use claim::{CLAIMS_CAPACITY, CLAIMS_MAP, Claim, ClaimKey};
pub use config::{CONFIG_MAP, CONFIG_SLOT_MAP, CONFIG_SLOTS, HostConfig, PEER_PREFIX_LENGTHS};
pub use counter::{COUNTERS_MAP, Counter, counter_index, counter_slots};
pub use drop::{
    DROP_BYTES, DROPS_BYTES, DROPS_MAP, DROPS_PACE_MAP, DROPS_WATCH_MAP, DropRecord, DropsPace,
    DropsWatch,
};
pub use endpoint::{ENDPOINTS_CAPACITY, ENDPOINTS_MAP, Endpoint, EndpointKey};
pub use home::{HOMES_CAPACITY, HOMES_MAP, Home, HomeKey};
pub use peer::{PEERS_CAPACITY, PEERS_MAP, Peer, PeerKey, Way};
pub use policy::{
    POLICY_CAPACITY, POLICY_DENIED_MAP, POLICY_FLOWS_MAP, POLICY_MAP, POLICY_RULES,
    POLICY_RULES_MAP, PolicyField, PolicyFlow, PolicyRule, RuleSet,
};
pub use port::{PORTS_CAPACITY, PORTS_MAP, Port, PortKey};
pub use stack_flow::{
    Direction, HANDED_OVER_MAP, STACK_FLOWS_CAPACITY, STACK_FLOWS_MAP, STACK_FLOWS_SHARES,
    STACK_SEATS_MAP, STACK_STATE_MAP, STACK_TURNS_CAPACITY, STACK_TURNS_MAP, SeatKey, StackFlow,
    StackFlowKey, StackState, Turn,
};
pub use vtep::{VTEPS_CAPACITY, VTEPS_MAP, Vtep, VtepKey};

/// Version of every layout in this module, and of the order of hooks and reasons, by which counters are numbered. A new
/// agent adopts pinned maps only if theirs is the same; raise it with any change of a key, a value, a capacity or the
/// meaning of a field.
pub const ABI_VERSION: u32 = 13;

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, fs, path::Path};

    use super::*;
    use crate::{Hook, Reason};

    /// Every key and value, as its source has it, but for what it says to people.
    const LAYOUTS: [&str; 29] = [
        HostConfig::LAYOUT,
        PeerKey::LAYOUT,
        Peer::LAYOUT,
        VtepKey::LAYOUT,
        Vtep::LAYOUT,
        BridgeKey::LAYOUT,
        Bridge::LAYOUT,
        EndpointKey::LAYOUT,
        Endpoint::LAYOUT,
        PortKey::LAYOUT,
        Port::LAYOUT,
        HomeKey::LAYOUT,
        Home::LAYOUT,
        ClaimKey::LAYOUT,
        Claim::LAYOUT,
        StackFlowKey::LAYOUT,
        StackFlow::LAYOUT,
        SeatKey::LAYOUT,
        Turn::LAYOUT,
        StackState::LAYOUT,
        Accepted::LAYOUT,
        PolicyField::LAYOUT,
        RuleSet::LAYOUT,
        PolicyRule::LAYOUT,
        PolicyFlow::LAYOUT,
        Counter::LAYOUT,
        DropRecord::LAYOUT,
        DropsWatch::LAYOUT,
        DropsPace::LAYOUT,
    ];

    fn without_docs(layout: &str) -> String {
        let mut parts = layout.split("#[doc =");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |code, part| code + part.split_once("\"]").map_or("", |(_, code)| code))
    }

    fn record() -> String {
        let mut record = format!("version {ABI_VERSION}\n");
        for layout in LAYOUTS {
            let words: Vec<_> =
                without_docs(layout).split_whitespace().map(str::to_owned).collect();
            writeln!(record, "{}", words.join(" ")).unwrap();
        }
        for (map, capacity) in [
            (CONFIG_MAP, CONFIG_SLOTS),
            (PEERS_MAP, PEERS_CAPACITY),
            (VTEPS_MAP, VTEPS_CAPACITY),
            (BRIDGES_MAP, BRIDGES_CAPACITY),
            (ENDPOINTS_MAP, ENDPOINTS_CAPACITY),
            (PORTS_MAP, PORTS_CAPACITY),
            (HOMES_MAP, HOMES_CAPACITY),
            (CLAIMS_MAP, CLAIMS_CAPACITY),
            (STACK_FLOWS_MAP, STACK_FLOWS_CAPACITY),
            (STACK_TURNS_MAP, STACK_TURNS_CAPACITY),
            (POLICY_MAP, POLICY_CAPACITY),
            (POLICY_RULES_MAP, 2 * POLICY_RULES),
            (DROPS_MAP, DROPS_BYTES),
        ] {
            writeln!(record, "{map} {capacity}").unwrap();
        }
        let hooks: Vec<_> = Hook::ALL.iter().map(|hook| hook.name()).collect();
        let reasons: Vec<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        writeln!(record, "hooks {}\nreasons {}", hooks.join(" "), reasons.join(" ")).unwrap();
        record
    }

    /// `OVERLAY_RECORD_ABI=1` writes the record anew, after the version was raised.
    #[test]
    fn what_programs_and_agents_agree_on_changes_with_its_version_only() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tables/abi.txt");
        let record = record();
        let version = |text: &str| text.lines().next().unwrap_or_default().to_owned();
        let before = fs::read_to_string(&path).unwrap_or_default();
        if std::env::var_os("OVERLAY_RECORD_ABI").is_some() {
            let is_new = version(&before) != version(&record) || before == record;
            assert!(is_new, "the layout has changed: raise ABI_VERSION first");
            fs::write(&path, record).unwrap();
            return;
        }
        assert_eq!(before, record, "raise ABI_VERSION, and record it with OVERLAY_RECORD_ABI=1");
    }
}
