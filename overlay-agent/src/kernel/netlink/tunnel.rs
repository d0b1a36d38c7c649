use std::{fs, net::Ipv4Addr};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use ipnetwork::Ipv4Network;
use overlay_common::{MacAddr, Vni};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVxlan};

use super::{KernelState, Link, LinkKind};
use crate::{
    exit::{Exit, WithExit},
    fail,
    kernel::repairs,
};

/// The one VXLAN device of the overlay, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelSpec {
    /// VXLAN network identifier; part of the device's name.
    pub vni: Vni,
    /// UDP port.
    pub port: u16,
    /// Our VTEP's MAC: the kernel drops inner frames that are addressed to another.
    pub mac: MacAddr,
    /// The overlay's MTU.
    pub mtu: u32,
    /// Our lease. Its first address, alone, is the device's.
    pub subnet: Ipv4Network,
    /// The whole overlay.
    pub network: Ipv4Network,
    /// Whether it carries packets' marks, as VXLAN's group policy extension has it.
    pub gbp: bool,
    /// The interface in whose VRF it listens, if the uplink is in one. (Linux goes by this when the device comes up.)
    pub lower: Option<u32>,
    /// Whether a device of flannel's with the same identifier and port makes way.
    pub replace_flannel: bool,
}

/// The device, as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its number.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
}

impl TunnelSpec {
    /// The device's name.
    pub fn name(&self) -> String {
        tunnel_name(self.vni)
    }

    /// Whether `link` is this device and needs no change.
    fn matches(&self, link: &Link) -> bool {
        self.is_same_device(link)
            && link.mac == self.mac
            && link.mtu == self.mtu
            && link.no_arp
            && link.up
    }

    /// Whether `link` can be made this device without replacing it.
    fn is_same_device(&self, link: &Link) -> bool {
        let Self { port, gbp, lower, .. } = *self;
        let kind = LinkKind::Vxlan { port, external: true, gbp, lower };
        link.name == self.name() && link.kind == kind
    }
}

/// Name of the tunnel device of a network.
pub fn tunnel_name(vni: Vni) -> String {
    format!("overlay.{vni}")
}

/// Name of flannel's device for a network.
pub fn flannel_name(vni: Vni) -> String {
    format!("flannel.{vni}")
}

/// Fails when somebody else's VXLAN device has the port, naming it; flannel's is to be replaced where
/// `replace_flannel` says so.
pub fn check_port(
    observed: &KernelState,
    vni: Vni,
    port: u16,
    replace_flannel: bool,
) -> Result<()> {
    let own = tunnel_name(vni);
    let flannel = flannel_name(vni);
    let holder = observed.links.values().find(|link| {
        matches!(link.kind, LinkKind::Vxlan { port: taken, .. } if taken == port)
            && link.name != own
            && !(replace_flannel && link.name == flannel)
    });
    match holder {
        None => Ok(()),
        Some(other) => Err(anyhow::anyhow!(
            "UDP port {port} is taken by VXLAN device {}: remove it, or choose another Port in the network config",
            other.name
        ))
        .exit(Exit::Unavailable),
    }
}

/// Makes the tunnel device and its address what `spec` says, and changes nothing where they
/// are so already.
///
/// Fails when another VXLAN device, or another program, has the port, naming the device.
pub async fn ensure_tunnel(
    handle: &Handle,
    observed: &KernelState,
    spec: &TunnelSpec,
) -> Result<Tunnel> {
    let name = spec.name();
    check_port(observed, spec.vni, spec.port, spec.replace_flannel)?;
    let existing = observed.links.values().find(|link| link.name == name);
    let usable = existing.filter(|link| spec.is_same_device(link));
    if let (Some(link), None) = (existing, usable) {
        handle
            .link()
            .del(link.index)
            .execute()
            .await
            .with_context(|| format!("removing {name}, which has other settings"))?;
    }
    let created = usable.is_none();
    if created {
        remove_flannel(handle, observed, spec).await?;
        create(handle, spec).await?;
        repairs::made("device");
        fail::point("device created");
    } else if !usable.is_some_and(|link| spec.matches(link)) {
        adjust(handle, usable.map_or(0, |link| link.index), spec).await?;
        repairs::made("MAC or MTU of the device");
    }
    match bring_up(handle, &name, spec, observed).await {
        Err(error) if created => {
            // Half a device would look like ours to the next start.
            if let Ok(ifindex) = index_of(handle, &name).await {
                handle.link().del(ifindex).execute().await.ok();
            }
            Err(error)
        }
        outcome => outcome,
    }
}

async fn bring_up(
    handle: &Handle,
    name: &str,
    spec: &TunnelSpec,
    observed: &KernelState,
) -> Result<Tunnel> {
    let ifindex = index_of(handle, name).await?;
    if !observed.links.get(&ifindex).is_some_and(|link| link.up) {
        set_up(handle, ifindex, spec).await?;
        repairs::made("state of the device");
    }
    fail::point("device up");
    ensure_address(handle, observed, ifindex, spec).await?;
    fail::point("address");
    ensure_sysctls(name)?;
    Ok(Tunnel { ifindex, name: name.to_owned() })
}

/// Removes flannel's device and with it its routes and neighbours: the port is free, and ours can take it.
async fn remove_flannel(handle: &Handle, observed: &KernelState, spec: &TunnelSpec) -> Result<()> {
    let name = flannel_name(spec.vni);
    let device = observed.links.values().find(|link| {
        spec.replace_flannel && link.name == name && matches!(link.kind, LinkKind::Vxlan { .. })
    });
    let Some(device) = device else { return Ok(()) };
    tracing::info!(device = name, "taking the place of flannel's device");
    handle
        .link()
        .del(device.index)
        .execute()
        .await
        .with_context(|| format!("removing flannel's device {name}"))
}

async fn create(handle: &Handle, spec: &TunnelSpec) -> Result<()> {
    let message = LinkMessageBuilder::<LinkVxlan>::new(&spec.name())
        .collect_metadata(true)
        .learning(false)
        .port(spec.port)
        .address(spec.mac.0.to_vec())
        .mtu(spec.mtu)
        .arp(false);
    let message = if spec.gbp { message.gbp() } else { message };
    let message = match spec.lower {
        Some(lower) => message.dev(lower),
        None => message,
    };
    handle
        .link()
        .add(message.build())
        .execute()
        .await
        .with_context(|| format!("creating VXLAN device {} on UDP port {}", spec.name(), spec.port))
}

async fn adjust(handle: &Handle, ifindex: u32, spec: &TunnelSpec) -> Result<()> {
    let message = LinkUnspec::new_with_index(ifindex)
        .address(spec.mac.0.to_vec())
        .mtu(spec.mtu)
        .arp(false)
        .build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .with_context(|| format!("setting MAC and MTU of {}", spec.name()))
}

async fn set_up(handle: &Handle, ifindex: u32, spec: &TunnelSpec) -> Result<()> {
    handle
        .link()
        .set(LinkUnspec::new_with_index(ifindex).up().build())
        .execute()
        .await
        .with_context(|| {
            format!("bringing up {}: UDP port {} may be taken", spec.name(), spec.port)
        })
        .exit(Exit::Unavailable)
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32> {
    let links: Vec<_> = handle
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_collect()
        .await
        .with_context(|| format!("looking for {name}"))?;
    links.first().map(|link| link.header.index).with_context(|| format!("{name} is not there"))
}

/// The lease's first address, as a /32 so that no broadcast route comes with it: flannel's peers reach
/// the host by it. Other addresses of the overlay on the device are from an earlier lease.
async fn ensure_address(
    handle: &Handle,
    observed: &KernelState,
    ifindex: u32,
    spec: &TunnelSpec,
) -> Result<()> {
    let wanted = spec.subnet.network();
    let mut found = false;
    for &(_, address, length) in observed.addresses.iter().filter(|(index, ..)| *index == ifindex) {
        if (address, length) == (wanted, 32) {
            found = true;
        } else if spec.network.contains(address) {
            remove_address(handle, ifindex, address, length).await?;
            repairs::made("address that is no more ours");
        }
    }
    if found {
        return Ok(());
    }
    repairs::made("address");
    handle
        .address()
        .add(ifindex, wanted.into(), 32)
        .replace()
        .execute()
        .await
        .with_context(|| format!("adding {wanted}/32 to {}", spec.name()))
}

async fn remove_address(
    handle: &Handle,
    ifindex: u32,
    address: Ipv4Addr,
    length: u8,
) -> Result<()> {
    let message = rtnetlink::AddressMessageBuilder::<Ipv4Addr>::new()
        .index(ifindex)
        .address(address, length)
        .build();
    handle
        .address()
        .del(message)
        .execute()
        .await
        .with_context(|| format!("removing {address}/{length} of an earlier lease"))
}

/// The host forwards between the device and the bridge.
fn ensure_sysctls(name: &str) -> Result<()> {
    for (file, value) in [
        ("/proc/sys/net/ipv4/ip_forward".to_owned(), "1"),
        // Router advertisements have no business on a tunnel.
        (format!("/proc/sys/net/ipv6/conf/{name}/accept_ra"), "0"),
    ] {
        match fs::read_to_string(&file) {
            Ok(found) if found.trim() == value => {}
            // No IPv6 on this host.
            Err(_) if file.contains("ipv6") => {}
            _ => {
                fs::write(&file, value).with_context(|| format!("setting {file} to {value}"))?;
                repairs::made(&file);
            }
        }
    }
    Ok(())
}
