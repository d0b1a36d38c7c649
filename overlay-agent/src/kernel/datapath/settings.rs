use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData};
use overlay_common::tables::{CONFIG_MAP, CONFIG_SLOT_MAP, HostConfig};
use rustix::thread::{MembarrierCommand, membarrier};

/// This host's settings in the kernel. The kernel copies what is written over what is there, byte by byte, while programs
/// read it: so new settings are written beside those in force, and then put in force by one number.
pub struct Settings {
    slots: Array<MapData, HostConfig>,
    in_force: Array<MapData, u32>,
}

impl Settings {
    pub(super) fn new(take: &mut impl FnMut(&'static str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            slots: take(CONFIG_MAP)?.try_into().context("opening BPF map config")?,
            in_force: take(CONFIG_SLOT_MAP)?.try_into().context("opening BPF map config_slot")?,
        })
    }

    /// Those in force; zeroes where none have been written.
    pub fn get(&self) -> Result<HostConfig> {
        self.slots.get(&self.slot()?, 0).context("reading BPF map config")
    }

    /// Puts others in force. Takes as long as every program needs that runs now, some milliseconds.
    pub fn set(&mut self, settings: HostConfig) -> Result<()> {
        let next = self.slot()? ^ 1;
        // A program may still be reading what was in force before those that are: they run in RCU's read side, whose
        // end this waits for (`synchronize_rcu`, kernel/sched/membarrier.c). Kernels with `nohz_full` refuse; there, only
        // a program that is held up between two changes of settings could meet half of one.
        membarrier(MembarrierCommand::Global).ok();
        self.slots.set(next, settings, 0).context("writing BPF map config")?;
        self.in_force.set(0, next, 0).context("writing BPF map config_slot")
    }

    fn slot(&self) -> Result<u32> {
        // As the programs read it.
        Ok(self.in_force.get(&0, 0).context("reading BPF map config_slot")? & 1)
    }
}
