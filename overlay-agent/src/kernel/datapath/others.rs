//! Other agents of this host: who has which network is known from their settings in the kernel, wherever they pin them.

use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData, loaded_maps};
use ipnetwork::Ipv4Network;
use overlay_common::tables::{CONFIG_MAP, CONFIG_SLOTS, HostConfig};

use super::PinPath;
use crate::kernel::netlink::{KernelState, Link};

/// Settings of the agents that this host has beside the one that is asked about.
#[derive(Clone, Debug, Default)]
pub struct OtherAgents(Vec<HostConfig>);

/// The others beside the agent of `pins`, by the tunnel devices of theirs that are here: every network namespace has an
/// agent of its own in the same kernel. Those of another version, whose settings look different, are not seen.
pub fn other_agents(pins: &PinPath, observed: &KernelState) -> Result<OtherAgents> {
    let own = MapData::from_pin(pins.map(CONFIG_MAP)).and_then(|map| map.info());
    let own = own.map(|map| map.id()).ok();
    let mut others = Vec::new();
    for found in loaded_maps() {
        let found = found.context("listing BPF maps")?;
        let is_settings = found.name_as_str() == Some(CONFIG_MAP)
            && found.value_size() as usize == size_of::<HostConfig>()
            && found.max_entries() as usize == CONFIG_SLOTS;
        if !is_settings || Some(found.id()) == own {
            continue;
        }
        // One that has gone since is nobody's.
        let Ok(map) = MapData::from_id(found.id()) else { continue };
        let map = Map::Array(map);
        let slots: Array<MapData, HostConfig> =
            map.try_into().context("opening BPF map config of another agent")?;
        others.extend(slots.iter().filter_map(Result::ok));
    }
    others.retain(|other| observed.links.values().any(|link| is_of(other, link)));
    Ok(OtherAgents(others))
}

fn is_of(other: &HostConfig, link: &Link) -> bool {
    link.index == other.tunnel_ifindex && link.mac.0 == other.vtep_mac
}

impl OtherAgents {
    /// Whether a device is the tunnel of one of them.
    pub fn have_device(&self, link: &Link) -> bool {
        self.0.iter().any(|other| is_of(other, link))
    }

    /// Whether a subnet lies in the network of one of them.
    pub fn have_subnet(&self, subnet: Ipv4Network) -> bool {
        self.0.iter().any(|other| other.network().contains(subnet.network().octets()))
    }

    /// Whether one of them has VXLAN on a UDP port.
    pub fn have_port(&self, port: u16) -> bool {
        self.0.iter().any(|other| other.port == port)
    }
}
