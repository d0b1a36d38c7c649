use anyhow::{Context, Result};
use aya::maps::{MapData, PerCpuArray};
use overlay_common::{
    Class, Hook, Reason,
    tables::{Counter, counter_index},
};

/// One reason at one hook, all processors summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRow {
    /// Where.
    pub hook: Hook,
    /// Why.
    pub reason: Reason,
    /// How often. An aggregate (GRO, GSO) counts once.
    pub packets: u64,
    /// Bytes, Ethernet headers included.
    pub bytes: u64,
}

impl CounterRow {
    /// What became of the packets.
    pub const fn class(&self) -> Class {
        self.reason.class()
    }
}

/// Every counter that is not zero, in the order of hooks and reasons.
pub fn read_counters(counters: &PerCpuArray<MapData, Counter>) -> Result<Vec<CounterRow>> {
    let mut rows = Vec::new();
    for hook in Hook::ALL {
        for &reason in Reason::ALL {
            let per_cpu = counters
                .get(&counter_index(hook, reason), 0)
                .with_context(|| format!("reading counter {} {}", hook.name(), reason.name()))?;
            let packets = per_cpu.iter().map(|counter| counter.packets).sum();
            let bytes = per_cpu.iter().map(|counter| counter.bytes).sum();
            if packets != 0 {
                rows.push(CounterRow { hook, reason, packets, bytes });
            }
        }
    }
    Ok(rows)
}
