//! Other agents of this host: who has which network is known from their settings in the kernel, wherever they pin them.

use anyhow::{Context, Result};
use aya::maps::{Array, Map, MapData, MapError, loaded_maps};
use ipnetwork::Ipv4Network;
use nix::errno::Errno;
use overlay_common::tables::{CONFIG_MAP, CONFIG_SLOTS, HostConfig};

use super::PinPath;
use crate::kernel::netlink::{KernelState, Link};

/// Settings of the agents that this host has beside the one that is asked about.
#[derive(Clone, Debug, Default)]
pub struct OtherAgents(Vec<HostConfig>);

/// The others beside the agent of `pins` and of this subnet, by the tunnel devices of theirs that are here: every network
/// namespace has an agent of its own in the same kernel. Those of another version, whose settings look different, are not
/// seen.
pub fn other_agents(
    pins: &PinPath,
    subnet: Option<Ipv4Network>,
    observed: &KernelState,
) -> Result<OtherAgents> {
    let own = MapData::from_pin(pins.map(CONFIG_MAP)).and_then(|map| map.info());
    let own = own.map(|map| map.id()).ok();
    let mut others = Vec::new();
    for found in loaded_maps() {
        let found = match found {
            Ok(found) => found,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error).context("listing BPF maps"),
        };
        let is_settings = found.name_as_str() == Some(CONFIG_MAP)
            && found.value_size() as usize == size_of::<HostConfig>()
            && found.max_entries() as usize == CONFIG_SLOTS;
        if !is_settings || Some(found.id()) == own {
            continue;
        }
        let map = match MapData::from_id(found.id()) {
            Ok(map) => Map::Array(map),
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error).context("opening BPF map config of another agent"),
        };
        let slots: Array<MapData, HostConfig> =
            map.try_into().context("opening BPF map config of another agent")?;
        others.extend(slots.iter().filter_map(Result::ok));
    }
    // Filters keep our own settings alive where somebody has removed the pins.
    let own = subnet.map(|subnet| subnet.network().octets());
    others.retain(|other| {
        Some(other.subnet) != own && observed.links.values().any(|link| is_of(other, link))
    });
    Ok(OtherAgents(others))
}

/// Whether a map has gone since it was listed: it is nobody's.
fn is_gone(error: &MapError) -> bool {
    let MapError::SyscallError(error) = error else { return false };
    error.io_error.raw_os_error() == Some(Errno::ENOENT as i32)
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
