use std::{collections::BTreeMap, net::Ipv4Addr};

use anyhow::Result;
use netlink_packet_route::{
    address::AddressAttribute,
    link::{
        BridgePortState, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVrf, InfoVxlan,
        LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    },
};
use overlay_common::MacAddr;
use rtnetlink::Handle;

use super::dump;

/// What the kernel knows, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    /// Every interface, by its number.
    pub links: BTreeMap<u32, Link>,
    /// IPv4 addresses of the host: interface, address, prefix length.
    pub addresses: Vec<(u32, Ipv4Addr, u8)>,
}

/// An interface.
#[expect(clippy::struct_excessive_bools, reason = "the kernel's flags, one by one")]
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
    /// Whether its packets begin with an Ethernet header.
    pub ethernet: bool,
    /// Whether it is a loopback.
    pub loopback: bool,
    /// The bridge (or bond, …) that it is a port of.
    pub master: Option<u32>,
    /// Whether that bridge lets nothing pass by it: the port, what it leads to, or the bridge is down, or somebody has
    /// set its state.
    pub blocked: bool,
    /// What it is.
    pub kind: LinkKind,
}

/// What an interface is, as far as it matters to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// One half of a veth pair.
    Veth {
        /// The other half, where that is in another network namespace; `redirect_peer` works only then.
        peer: Option<PeerPlace>,
    },
    /// A VRF: interfaces in it are still interfaces.
    Vrf {
        /// The routing table by which they go.
        table: u32,
    },
    /// A TUN or TAP device: a virtual machine, mostly.
    Tun,
    /// A VXLAN device.
    Vxlan {
        /// UDP port.
        port: u16,
        /// Collect-metadata mode: one device for all tunnels.
        external: bool,
        /// Whether its packets carry a group.
        gbp: bool,
        /// The interface in whose VRF it listens, if it has one.
        lower: Option<u32>,
    },
    /// Anything else.
    Other,
}

/// An interface of another network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerPlace {
    /// Our namespace's number for that one.
    pub namespace: i32,
    /// The interface's number there.
    pub ifindex: u32,
}

/// Asks the kernel for everything in [`KernelState`].
pub async fn observe(handle: &Handle) -> Result<KernelState> {
    let mut observed = KernelState::default();
    for message in dump::links(handle).await? {
        let link = parse_link(&message);
        observed.links.insert(link.index, link);
    }
    for message in dump::addresses(handle).await? {
        let local = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(std::net::IpAddr::V4(address)) => Some(*address),
            _ => None,
        });
        if let Some(address) = local {
            let header = &message.header;
            observed.addresses.push((header.index, address, header.prefix_len));
        }
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
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        master: None,
        blocked: false,
        kind: LinkKind::Other,
    };
    let (mut peer_namespace, mut peer_ifindex) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = mac(bytes).unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::LinkNetNsId(namespace) => peer_namespace = Some(*namespace),
            LinkAttribute::Link(ifindex) => peer_ifindex = Some(*ifindex),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = parse_kind(infos);
                link.blocked = infos.iter().any(is_blocked);
            }
            _ => {}
        }
    }
    if let LinkKind::Veth { peer } = &mut link.kind {
        *peer = peer_namespace
            .zip(peer_ifindex)
            .map(|(namespace, ifindex)| PeerPlace { namespace, ifindex });
    }
    link
}

/// Listening and learning pass by themselves.
fn is_blocked(info: &LinkInfo) -> bool {
    let LinkInfo::PortData(InfoPortData::BridgePort(port)) = info else { return false };
    port.iter().any(|info| {
        matches!(info, InfoBridgePort::State(BridgePortState::Disabled | BridgePortState::Blocking))
    })
}

fn parse_kind(infos: &[LinkInfo]) -> LinkKind {
    let mut kind = LinkKind::Other;
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bridge) => kind = LinkKind::Bridge,
            LinkInfo::Kind(InfoKind::Veth) => kind = LinkKind::Veth { peer: None },
            LinkInfo::Kind(InfoKind::Tun) => kind = LinkKind::Tun,
            LinkInfo::Data(InfoData::Vrf(settings)) => {
                kind = settings.iter().find_map(vrf).unwrap_or(LinkKind::Other);
            }
            LinkInfo::Data(InfoData::Vxlan(settings)) => {
                let mut lower = None;
                let mut port = 0;
                let mut external = false;
                let mut gbp = false;
                for setting in settings {
                    match setting {
                        InfoVxlan::Port(number) => port = *number,
                        InfoVxlan::CollectMetadata(on) => external = *on,
                        InfoVxlan::Gbp => gbp = true,
                        InfoVxlan::Link(ifindex) => lower = Some(*ifindex),
                        _ => {}
                    }
                }
                kind = LinkKind::Vxlan { port, external, gbp, lower };
            }
            _ => {}
        }
    }
    kind
}

fn vrf(setting: &InfoVrf) -> Option<LinkKind> {
    match setting {
        InfoVrf::TableId(table) => Some(LinkKind::Vrf { table: *table }),
        _ => None,
    }
}
