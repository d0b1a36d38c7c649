//! Removes everything that one agent made on this host, and nothing else. What is an agent's shows in its name or its
//! place: the pin path, VXLAN devices named `overlay.<VNI>`, routes with our numbers, the firewall rules that name such
//! a device, filters with our priority, the pin path's number and a hook's name, the subnet file and the socket. What
//! another agent of this host has by its settings stays.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use ipnetwork::Ipv4Network;
use overlay_common::MacAddr;
use rtnetlink::Handle;

use crate::{
    kernel::{
        datapath::{self, PinPath},
        firewall,
        netlink::{self, Link, LinkKind},
    },
    subnet_env::read_subnet,
};

/// Where things of ours are.
#[derive(Clone, Debug)]
pub struct Places {
    /// Where programs and maps are pinned.
    pub pin_path: PathBuf,
    /// The subnet file.
    pub subnet_file: PathBuf,
    /// What this host is known by. It stays as long as the lease does.
    pub state_file: PathBuf,
    /// The agent's socket.
    pub socket: PathBuf,
}

/// This host's lease, as what the agent has made shows it: the subnet of the subnet file, the MAC of the
/// tunnel device. None where either is missing.
pub async fn own_lease(places: &Places) -> Result<Option<(Ipv4Network, MacAddr)>> {
    let Some(subnet) = read_subnet(&places.subnet_file)? else { return Ok(None) };
    let observed = netlink::observe(&netlink::connect()?).await?;
    let devices: Vec<_> = observed.links.values().filter(|link| is_ours(link)).collect();
    let has_address = |link: &Link| {
        let mut addresses = observed.addresses.iter();
        addresses.any(|(index, address, _)| (*index, *address) == (link.index, subnet.network()))
    };
    // Another agent of this host has another subnet's address on its device.
    let device = match devices.as_slice() {
        [only] => Some(only),
        several => several.iter().find(|link| has_address(link)),
    };
    Ok(device.map(|device| (subnet, device.mac)))
}

/// Removes everything, and returns what there was, for people to read. Fails where an agent is running.
pub async fn cleanup(places: &Places) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    // Made if it is missing: the lock on it keeps an agent from starting meanwhile.
    let existed = places.pin_path.exists();
    let pins = PinPath::open(&places.pin_path)?;
    let handle = netlink::connect()?;
    let observed = netlink::observe(&handle).await?;
    // Not even a file that cannot be read keeps what it is about.
    let subnet = read_subnet(&places.subnet_file).unwrap_or_default();
    let others = datapath::other_agents(&pins, subnet, &observed)?;
    let is_its = |link: &&Link| is_ours(link) && !others.have_device(link);
    for device in observed.links.values().filter(is_its) {
        if firewall::remove(&device.name).await? {
            removed.push(format!("firewall rules for {}", device.name));
        }
        remove_device(&handle, device).await?;
        removed.push(format!("device {}, its address and its routes", device.name));
    }
    // Those to peers on the same link do not go with the device.
    if netlink::remove_lease_routes(&handle, |subnet| others.have_subnet(subnet)).await? > 0 {
        removed.push("routes to peers on the same link".to_owned());
    }
    if netlink::remove_vrf_rules(&handle, |port| others.have_port(port)).await? > 0 {
        removed.push("routing rule for the VRF".to_owned());
    }
    for subnet in netlink::remove_blackholes(&handle, |subnet| others.have_subnet(subnet)).await? {
        removed.push(format!("blackhole route for {subnet}"));
    }
    // Filters outlive their pin path; links go with it.
    let filtered = datapath::remove_filters(&handle, &pins, &observed).await?;
    if !filtered.is_empty() {
        removed.push(format!("filters on {}", filtered.join(", ")));
    }
    pins.remove()?;
    if existed {
        removed.push(format!("programs and maps pinned at {}", places.pin_path.display()));
    }
    for file in [&places.subnet_file, &places.socket] {
        if remove_file(file)? {
            removed.push(file.display().to_string());
        }
    }
    Ok(removed)
}

/// Whether a device is the tunnel of an agent's.
pub fn is_ours(link: &Link) -> bool {
    let number = link.name.strip_prefix("overlay.");
    matches!(link.kind, LinkKind::Vxlan { external: true, .. })
        && number.is_some_and(|vni| vni.parse::<u32>().is_ok())
}

async fn remove_device(handle: &Handle, device: &Link) -> Result<()> {
    handle
        .link()
        .del(device.index)
        .execute()
        .await
        .with_context(|| format!("removing device {}", device.name))
}

fn remove_file(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
    }
}
