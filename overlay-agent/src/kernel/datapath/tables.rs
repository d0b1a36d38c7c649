use std::{collections::HashMap, fs, path::Path};

use super::{PinPath, Settings};
use anyhow::{Context, Result};
use aya::{
    Pod,
    maps::{HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray},
};
use overlay_common::tables::{
    BRIDGES_MAP, Bridge, BridgeKey, CLAIMS_MAP, CONFIG_MAP, COUNTERS_MAP, Claim, ClaimKey, Counter,
    ENDPOINTS_MAP, Endpoint, EndpointKey, HOMES_MAP, Home, HomeKey, PEERS_MAP, PORTS_MAP, Peer,
    PeerKey, Port, PortKey, VTEPS_MAP, Vtep, VtepKey,
};

use crate::{fail, kernel::policy::PolicyTables};

/// Handles to every map.
pub struct Maps {
    /// This host's settings.
    pub settings: Settings,
    /// Other hosts' leases.
    pub peers: TypedMap<PeerKey, Peer>,
    /// Outer sources that may speak.
    pub vteps: TypedMap<VtepKey, Vtep>,
    /// Local containers' bridges, and their ports.
    pub bridges: TypedMap<BridgeKey, Bridge>,
    /// Local containers.
    pub endpoints: TypedMap<EndpointKey, Endpoint>,
    /// Local containers' MACs.
    pub ports: TypedMap<PortKey, Port>,
    /// Other bridges that containers are behind.
    pub homes: TypedMap<HomeKey, Home>,
    /// Addresses that containers claim and that are others'.
    pub claims: TypedMap<ClaimKey, Claim>,
    /// The network's policy.
    pub policy: PolicyTables,
    /// Packets by hook and reason.
    pub counters: PerCpuArray<MapData, Counter>,
    /// How many flows that took the stack are one container's share of those remembered.
    pub flow_share: u16,
    /// The kernel's number of each map.
    ids: Vec<(&'static str, u32)>,
}

impl Maps {
    /// Of the maps that `take` gives by name.
    pub(super) fn new(mut take: impl FnMut(&'static str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            settings: Settings::new(&mut take)?,
            peers: TypedMap::new(PEERS_MAP, take(PEERS_MAP)?)?,
            vteps: TypedMap::new(VTEPS_MAP, take(VTEPS_MAP)?)?,
            bridges: TypedMap::new(BRIDGES_MAP, take(BRIDGES_MAP)?)?,
            endpoints: TypedMap::new(ENDPOINTS_MAP, take(ENDPOINTS_MAP)?)?,
            ports: TypedMap::new(PORTS_MAP, take(PORTS_MAP)?)?,
            homes: TypedMap::new(HOMES_MAP, take(HOMES_MAP)?)?,
            claims: TypedMap::new(CLAIMS_MAP, take(CLAIMS_MAP)?)?,
            policy: PolicyTables::new(&mut take)?,
            counters: take(COUNTERS_MAP)?.try_into().context("opening BPF map counters")?,
            flow_share: 0,
            ids: Vec::new(),
        })
    }

    /// With the kernel's number of every map that is to be pinned, and what no map holds.
    pub(super) fn with(self, ids: Vec<(&'static str, u32)>, flow_share: u16) -> Self {
        Self { flow_share, ids, ..self }
    }

    /// Another handle to a map.
    pub(super) fn open(&self, name: &'static str) -> Result<MapData> {
        let found = self.ids.iter().find(|(known, _)| *known == name);
        let (_, id) = found.with_context(|| format!("BPF map {name} is not there"))?;
        MapData::from_id(*id).with_context(|| format!("opening BPF map {name}"))
    }

    /// Pins every map that is not pinned, in place of whatever is in its place. Returns their names.
    ///
    /// The settings come last: with the version in them, they say that the others are there.
    pub fn ensure_pinned(&self, pins: &PinPath) -> Result<Vec<&'static str>> {
        let mut pinned = Vec::new();
        let (first, last): (Vec<_>, Vec<_>) =
            self.ids.iter().partition(|(name, _)| *name != CONFIG_MAP);
        for &(name, id) in first.into_iter().chain(last) {
            let path = pins.map(name);
            let found = MapData::from_pin(&path).and_then(|map| map.info()).map(|info| info.id());
            if found.is_ok_and(|found| found == id) {
                continue;
            }
            // Without a file descriptor to look with, nothing is known, and nothing is removed.
            let map = MapData::from_id(id).with_context(|| format!("opening BPF map {name}"))?;
            replace_pin(&map, &path)
                .with_context(|| format!("pinning BPF map {name} at {}", path.display()))?;
            pinned.push(name);
            fail::point(&format!("map {name}"));
        }
        Ok(pinned)
    }
}

/// Pins a map in place of whatever is pinned there. Whoever opens the pin finds one or the other.
fn replace_pin(map: &MapData, path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(map.pin(path)?);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The BPF file system takes no names with dots.
    let new = path.with_file_name(format!("{name}-new"));
    if new.exists() {
        fs::remove_file(&new).with_context(|| format!("removing {}", new.display()))?;
    }
    map.pin(&new)?;
    fs::rename(&new, path).with_context(|| format!("renaming {}", new.display()))
}

/// A hash map in the kernel.
pub struct TypedMap<K: Pod, V: Pod> {
    name: &'static str,
    map: BpfHashMap<MapData, K, V>,
}

/// What a [`TypedMap::converge`] had to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapChanges {
    /// Entries added or given another value.
    pub written: usize,
    /// Entries removed.
    pub removed: usize,
}

impl<K, V> TypedMap<K, V>
where
    K: Pod + Eq + std::hash::Hash + std::fmt::Debug,
    V: Pod + PartialEq,
{
    fn new(name: &'static str, map: Map) -> Result<Self> {
        let map = map.try_into().with_context(|| format!("opening BPF map {name}"))?;
        Ok(Self { name, map })
    }

    /// Adds or replaces one entry.
    pub fn insert(&mut self, key: &K, value: &V) -> Result<()> {
        self.map
            .insert(key, value, 0)
            .with_context(|| format!("writing {key:?} to BPF map {}", self.name))
    }

    /// Removes one entry; one that is not there is no error.
    pub fn remove(&mut self, key: &K) -> Result<()> {
        match self.map.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(error) => {
                Err(error).with_context(|| format!("removing {key:?} from BPF map {}", self.name))
            }
        }
    }

    /// Every entry.
    pub fn entries(&self) -> Result<HashMap<K, V>> {
        self.map
            .iter()
            .collect::<Result<_, _>>()
            .with_context(|| format!("listing BPF map {}", self.name))
    }

    /// Makes the map hold exactly `desired`, touching only what differs. New and changed entries come
    /// first, so that nothing that stays is ever missing.
    pub fn converge(&mut self, desired: &HashMap<K, V>) -> Result<MapChanges> {
        let observed = self.entries()?;
        let mut changes = MapChanges::default();
        for (key, value) in desired {
            if observed.get(key) != Some(value) {
                self.insert(key, value)?;
                changes.written += 1;
            }
        }
        for key in observed.keys().filter(|key| !desired.contains_key(key)) {
            self.remove(key)?;
            changes.removed += 1;
        }
        Ok(changes)
    }
}
