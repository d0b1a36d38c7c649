use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    address::AddressAttribute,
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};
use overlay_common::MacAddr;
use rtnetlink::Handle;

/// What the kernel knows, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Every interface, by its number.
    pub links: BTreeMap<u32, Link>,
    /// IPv4 addresses of the host: interface, address, prefix length.
    pub addresses: Vec<(u32, Ipv4Addr, u8)>,
    /// IPv4 neighbours whose MAC is known.
    pub neighbours: Vec<Neighbour>,
    /// Forwarding entries of bridges: behind which port a MAC was seen.
    pub forwarding: Vec<(MacAddr, u32)>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Number.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MAC; all zero where the interface has none.
    pub mac: MacAddr,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it does without ARP.
    pub no_arp: bool,
    /// The bridge (or bond, …) that it is a port of.
    pub master: Option<u32>,
    /// What it is.
    pub kind: LinkKind,
}

/// What an interface is, as far as it matters to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// One half of a veth pair; whether the other half is in another network namespace.
    Veth {
        /// `redirect_peer` works only then.
        peer_is_elsewhere: bool,
    },
    /// A VXLAN device.
    Vxlan {
        /// UDP port.
        port: u16,
        /// Collect-metadata mode: one device for all tunnels.
        external: bool,
    },
    /// Anything else.
    Other,
}

/// An IPv4 neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Interface behind which it was found.
    pub ifindex: u32,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its MAC.
    pub mac: MacAddr,
}

/// Asks the kernel for everything in [`Observed`].
pub async fn observe(handle: &Handle) -> Result<Observed> {
    let mut observed = Observed::default();
    let mut links = handle.link().get().execute();
    while let Some(message) = links.try_next().await.context("listing interfaces")? {
        let link = parse_link(&message);
        observed.links.insert(link.index, link);
    }
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.context("listing addresses")? {
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(std::net::IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
        if let Some(address) = local {
            let header = &message.header;
            observed.addresses.push((header.index, address, header.prefix_len));
        }
    }
    let mut neighbours =
        handle.neighbours().get().set_address_family(AddressFamily::Inet).execute();
    while let Some(message) = neighbours.try_next().await.context("listing neighbours")? {
        observed.neighbours.extend(parse_neighbour(&message));
    }
    let mut forwarding =
        handle.neighbours().get().set_address_family(AddressFamily::Bridge).execute();
    while let Some(message) =
        forwarding.try_next().await.context("listing bridges' forwarding entries")?
    {
        observed.forwarding.extend(parse_forwarding(&message));
    }
    Ok(observed)
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    Some(MacAddr(bytes.try_into().ok()?))
}

fn parse_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: MacAddr::default(),
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        no_arp: message.header.flags.contains(LinkFlags::Noarp),
        master: None,
        kind: LinkKind::Other,
    };
    let mut peer_is_elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes).unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkNetNsId(_) => peer_is_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => link.kind = parse_kind(infos),
            _ => {}
        }
    }
    if let LinkKind::Veth { peer_is_elsewhere: elsewhere } = &mut link.kind {
        *elsewhere = peer_is_elsewhere;
    }
    link
}

fn parse_kind(infos: &[LinkInfo]) -> LinkKind {
    let mut kind = LinkKind::Other;
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => kind = LinkKind::Bridge,
            LinkInfo::Kind(InfoKind::Veth) => kind = LinkKind::Veth { peer_is_elsewhere: false },
            LinkInfo::Data(InfoData::Vxlan(settings)) => {
                let mut port = 0;
                let mut external = false;
                for setting in settings {
                    match setting {
                        InfoVxlan::Port(number) => port = *number,
                        InfoVxlan::CollectMetadata(on) => external = *on,
                        _ => {}
                    }
                }
                kind = LinkKind::Vxlan { port, external };
            }
            _ => {}
        }
    }
    kind
}

fn parse_neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    if !matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
    ) {
        return None;
    }
    let mut address = None;
    let mut link_layer = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(*found);
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => link_layer = mac(bytes),
            _ => {}
        }
    }
    Some(Neighbour { ifindex: message.header.ifindex, address: address?, mac: link_layer? })
}

/// Entries that say which port a MAC is behind; a port's own address is marked permanent.
fn parse_forwarding(message: &NeighbourMessage) -> Option<(MacAddr, u32)> {
    if message.header.state == NeighbourState::Permanent {
        return None;
    }
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
        _ => None,
    })?;
    Some((mac, message.header.ifindex))
}
