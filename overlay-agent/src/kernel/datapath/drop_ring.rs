use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, PerCpuArray, RingBuf};
use overlay_common::{
    Reason,
    tables::{
        CONFIG_MAP, DROPS_MAP, DROPS_PACE_MAP, DROPS_WATCH_MAP, DropRecord, DropsPace, DropsWatch,
        HostConfig,
    },
};
use zerocopy::FromBytes as _;

use super::Maps;

/// The ring in which programs tell of single packets. It has one reader.
pub struct DropRing(RingBuf<MapData>);

/// What is around that ring: which packets it is to have, and how many it does not have.
pub struct DropWatch {
    watch: Array<MapData, DropsWatch>,
    pace: PerCpuArray<MapData, DropsPace>,
    config: Array<MapData, HostConfig>,
}

/// Packets of each reason, by its number.
pub type ByReason = [u64; Reason::ALL.len()];

impl DropRing {
    /// Of the same maps as these.
    pub fn of(maps: &Maps) -> Result<(Self, DropWatch)> {
        let ring = Map::RingBuf(maps.open(DROPS_MAP)?).try_into();
        let watch = Map::Array(maps.open(DROPS_WATCH_MAP)?).try_into();
        let pace = Map::PerCpuArray(maps.open(DROPS_PACE_MAP)?).try_into();
        let config = Map::Array(maps.open(CONFIG_MAP)?).try_into();
        let watch = DropWatch {
            watch: watch.context("opening BPF map drops_watch")?,
            pace: pace.context("opening BPF map drops_pace")?,
            config: config.context("opening BPF map config")?,
        };
        Ok((Self(ring.context("opening BPF map drops")?), watch))
    }
}

impl Iterator for DropRing {
    type Item = DropRecord;

    /// The next packet. There may be more later.
    fn next(&mut self) -> Option<DropRecord> {
        // What is shorter than a record is no program's of ours.
        while let Some(item) = self.0.next() {
            if let Ok((record, _)) = DropRecord::read_from_prefix(&item) {
                return Some(record);
            }
        }
        None
    }
}

impl AsRawFd for DropRing {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl DropWatch {
    /// Says which packets the ring is to have, from the next one on.
    pub fn ask_for(&mut self, watch: DropsWatch) -> Result<()> {
        self.watch.set(0, watch, 0).context("writing BPF map drops_watch")
    }

    /// How many packets that were asked for are not in the ring, since the maps were made.
    pub fn missed(&self) -> Result<ByReason> {
        let mut missed = [0; Reason::ALL.len()];
        for (number, missed) in (0..).zip(&mut missed) {
            let paces = self.pace.get(&number, 0).context("reading BPF map drops_pace")?;
            *missed = paces.iter().map(|pace| pace.held_back + pace.lost).sum();
        }
        Ok(missed)
    }

    /// The UDP port of VXLAN; 0 where no settings are written.
    pub fn vxlan_port(&self) -> u16 {
        let ports = self.config.iter().filter_map(Result::ok).map(|config| config.port);
        ports.max().unwrap_or_default()
    }
}

/// The programs' clock, in nanoseconds.
pub fn monotonic() -> io::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    let nanoseconds = std::time::Duration::from(now).as_nanos();
    Ok(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}
