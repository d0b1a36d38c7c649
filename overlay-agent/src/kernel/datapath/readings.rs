use anyhow::{Context as _, Result};
use aya::{
    Pod,
    maps::{HashMap as BpfHashMap, Map, MapData, PerCpuArray},
};
use overlay_common::tables::{
    COUNTERS_MAP, Counter, ENDPOINTS_MAP, Endpoint, EndpointKey, HOMES_MAP, Home, HomeKey,
    PEERS_MAP, PORTS_MAP, Peer, PeerKey, Port, PortKey, VTEPS_MAP, Vtep, VtepKey, Way,
};

use super::{CounterRow, Maps, read_counters};

/// Handles of their own to the maps that tell how the datapath is: who reads with them waits for nobody and keeps nobody
/// waiting, and no pin has to be there.
pub struct Readings {
    counters: PerCpuArray<MapData, Counter>,
    peers: Measured<PeerKey, Peer>,
    others: Vec<Box<dyn Measure>>,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// Its name.
    pub map: &'static str,
    /// Entries that it has.
    pub entries: usize,
    /// Entries that it has room for.
    pub capacity: usize,
}

/// How full maps are, and what is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Every map that can be full: others make room by themselves.
    pub fills: Vec<MapFill>,
    /// Leases of peers by the way that packets for them go.
    pub ways: [(Way, usize); 3],
}

impl Readings {
    /// Of the same maps as these.
    pub fn of(maps: &Maps) -> Result<Self> {
        let counters = maps.open(COUNTERS_MAP)?;
        Ok(Self {
            counters: Map::PerCpuArray(counters).try_into().context("opening BPF map counters")?,
            peers: Measured::open(maps, PEERS_MAP)?,
            others: vec![
                Box::new(Measured::<VtepKey, Vtep>::open(maps, VTEPS_MAP)?),
                Box::new(Measured::<EndpointKey, Endpoint>::open(maps, ENDPOINTS_MAP)?),
                Box::new(Measured::<PortKey, Port>::open(maps, PORTS_MAP)?),
                Box::new(Measured::<HomeKey, Home>::open(maps, HOMES_MAP)?),
            ],
        })
    }

    /// Every counter that is not zero, in the order of hooks and reasons. About a thousand system calls.
    pub fn counters(&self) -> Result<Vec<CounterRow>> {
        read_counters(&self.counters)
    }

    /// What the maps hold now. Of thousands of peers, it takes a system call or two for each.
    pub fn contents(&self) -> Result<Contents> {
        // Where entries go meanwhile, the kernel may begin anew: nobody counts for ever.
        let mut ways = [Way::Vxlan, Way::Direct, Way::Stack].map(|way| (way, 0));
        let mut peers = 0;
        for entry in self.peers.map.iter().take(self.peers.capacity) {
            let (_, peer) = entry.context("listing BPF map peers")?;
            peers += 1;
            if let Some((_, count)) = ways.iter_mut().find(|(way, _)| *way == peer.way()) {
                *count += 1;
            }
        }
        let mut fills = vec![self.peers.fill(peers)];
        for map in &self.others {
            fills.push(map.measure()?);
        }
        Ok(Contents { fills, ways })
    }
}

/// A map whose entries are counted.
struct Measured<K: Pod, V: Pod> {
    name: &'static str,
    capacity: usize,
    map: BpfHashMap<MapData, K, V>,
}

trait Measure: Send + Sync {
    fn measure(&self) -> Result<MapFill>;
}

impl<K: Pod, V: Pod> Measured<K, V> {
    fn open(maps: &Maps, name: &'static str) -> Result<Self> {
        let data = maps.open(name)?;
        let info = data.info().with_context(|| format!("asking about BPF map {name}"))?;
        let map = Map::HashMap(data).try_into();
        let map = map.with_context(|| format!("opening BPF map {name}"))?;
        Ok(Self { name, capacity: info.max_entries() as usize, map })
    }

    const fn fill(&self, entries: usize) -> MapFill {
        MapFill { map: self.name, entries, capacity: self.capacity }
    }
}

impl<K: Pod + Send + Sync, V: Pod + Send + Sync> Measure for Measured<K, V> {
    fn measure(&self) -> Result<MapFill> {
        let mut entries = 0;
        for key in self.map.keys().take(self.capacity) {
            key.with_context(|| format!("listing BPF map {}", self.name))?;
            entries += 1;
        }
        Ok(self.fill(entries))
    }
}
