//! What is ours on this host, and the way to the other hosts.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::Result;
use ipnetwork::Ipv4Network;
use overlay_common::tables::ABI_VERSION;
use overlay_lease::config::ENCAPSULATION_OVERHEAD;

use super::{Check, Findings, Host, ping::Probe};
use crate::{
    admin::{Answered, ProbeKind},
    dataplane::containers::mtu_beyond,
    kernel::{
        datapath::pinned_abi_version,
        netlink::{self, Link, LinkKind, Vrf},
    },
    provision::DOCKER_BRIDGE,
    subnet_env::bridge_address,
};

/// Of thousands of peers, as many say how things are.
const PEERS: usize = 16;

/// How old an answer to the agent's question may be, in seconds.
const RECENTLY: u64 = 30;

/// Whatever source the kernel chooses.
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// Less is no underlay for IPv4.
const SMALLEST: u16 = 576;

/// Whether the pinned maps are those of this agent, and this agent is the one that runs.
pub(super) fn maps(host: &Host, found: &mut Findings) {
    let own = env!("CARGO_PKG_VERSION");
    if let Ok(status) = &host.agent
        && status.version != own
    {
        found.add(
            Check::Maps,
            format!(
                "the agent that runs is {}, and the one that is installed {own}",
                status.version
            ),
            "systemctl restart overlay-agent",
        );
    }
    match pinned_abi_version(&host.places.pin_path) {
        // 0: nobody has filled them.
        Ok(None | Some(0 | ABI_VERSION)) => {}
        Ok(Some(version)) => found.add(
            Check::Maps,
            format!(
                "the maps at {} are of version {version}, and this agent's are of version {ABI_VERSION}: it is \
                 not the one that made them",
                host.places.pin_path.display()
            ),
            "install the newest overlay-agent, then systemctl restart overlay-agent",
        ),
        Err(error) => found.unknown(format!("maps: {error:#}")),
    }
}

/// Whether another device has the port.
pub(super) fn device(host: &Host, found: &mut Findings) {
    let Some(vni) = host.network.as_ref().map(|network| network.vni) else { return };
    if let Err(error) = netlink::check_port(&host.observed, vni, host.port(), false) {
        found.add(
            Check::Device,
            format!("{error:#}"),
            "ip link delete DEVICE, with the name above; of flanneld, run the agent with --replace-flannel",
        );
    }
}

/// Whether containers send what the overlay carries: they keep the MTU that they were started with.
pub(super) fn container_mtu(host: &Host, found: &mut Findings) {
    let Some(overlay) = host.overlay() else { return };
    let links = &host.observed.links;
    for bridge in links.values().filter(|link| overlay.bridges.contains(&link.name)) {
        let Some(mtu) = mtu_beyond(&host.observed, bridge, overlay.mtu) else { continue };
        found.add(
            Check::Docker,
            format!(
                "containers behind {} have an MTU of up to {mtu}, and the overlay carries {}: what is larger takes the slow \
                 way in parts, or is lost where it must not be cut",
                bridge.name, overlay.mtu
            ),
            "overlay-agent docker-opts -c, then restart Docker with $DOCKER_OPTS, and the containers",
        );
    }
}

/// Whether Docker's bridge is in the leased subnet.
pub(super) fn docker(host: &Host, found: &mut Findings) {
    let bridge = host.observed.links.values().find(|link| link.name == DOCKER_BRIDGE);
    let (Some(bridge), Some(subnet)) = (bridge, host.subnet) else { return };
    if host.overlay().is_some_and(|overlay| !overlay.bridges.is_empty()) {
        return;
    }
    let wanted = (bridge.index, bridge_address(subnet), subnet.prefix());
    if host.observed.addresses.contains(&wanted) {
        return;
    }
    let has: Vec<_> = host
        .observed
        .addresses
        .iter()
        .filter(|(index, ..)| *index == bridge.index)
        .map(|(_, address, length)| format!("{address}/{length}"))
        .collect();
    found.add(
        Check::Docker,
        format!(
            "Docker's bridge has {}, and this host's subnet is {subnet}: no other host reaches its containers",
            if has.is_empty() { "no address".to_owned() } else { has.join(", ") }
        ),
        "overlay-agent docker-opts -c, then restart Docker with $DOCKER_OPTS; after `init` or `join`, systemctl \
         restart docker",
    );
}

/// Docker's networks that are not in the overlay, which is what compose makes: nothing is wrong with them.
pub(super) fn docker_networks(host: &Host) -> Vec<String> {
    let Some(overlay) = host.overlay() else { return Vec::new() };
    let of_docker = |link: &&Link| {
        link.kind == LinkKind::Bridge
            && !overlay.bridges.contains(&link.name)
            && (link.name == DOCKER_BRIDGE || link.name.starts_with("br-"))
    };
    let network = overlay.network;
    let note = |link: &Link| {
        let addresses = host.observed.addresses.iter();
        let (_, address, length) = addresses
            .filter(|(index, address, _)| *index == link.index && !network.contains(*address))
            .min_by_key(|(_, address, _)| *address)?;
        Some(format!(
            "{} ({address}/{length}) is not in the overlay {network}: other hosts reach containers there by published ports \
             only",
            link.name
        ))
    };
    host.observed.links.values().filter(of_docker).filter_map(note).collect()
}

/// Probes the way to peers: whether they answer, with whole packets, and inside the overlay.
pub(super) async fn paths(host: &Host, explained: &BTreeSet<Ipv4Addr>, found: &mut Findings) {
    let Some(overlay) = host.overlay() else { return };
    let peers: Vec<_> =
        host.peers().into_iter().filter(|(_, peer)| !explained.contains(peer)).collect();
    if peers.len() > PEERS {
        found.unknown(format!("paths to {} of {} peers", peers.len() - PEERS, peers.len()));
    }
    let whole =
        u16::try_from(overlay.mtu).unwrap_or(u16::MAX).saturating_add(ENCAPSULATION_OVERHEAD);
    let own = overlay.lease.subnet.network();
    let uplink = host.observed.links.values().find(|link| link.name == overlay.uplink.name);
    let vrf = uplink.and_then(|link| Vrf::of(&host.observed, link.index)).map(|vrf| vrf.ifindex);
    for &(subnet, peer) in peers.iter().take(PEERS) {
        let status = overlay.peers.iter().find(|known| known.public_ip == peer);
        let answered = status.and_then(|known| known.answered);
        let past = Probe { vrf, peer, from: ANY };
        let through = Probe { vrf: None, peer: subnet.network(), from: own };
        if let Err(error) = path(subnet, past, through, whole, host.port(), answered, found).await {
            found.add(
                Check::Peer,
                format!("{peer}, which leases {subnet}, cannot be reached from here: {error:#}"),
                format!("look at `ip route get {peer}`, and add the route that is missing"),
            );
        }
    }
}

/// Asks a peer past the overlay and through it.
async fn path(
    subnet: Ipv4Network,
    past: Probe,
    through: Probe,
    whole: u16,
    port: u16,
    answered: Option<Answered>,
    found: &mut Findings,
) -> Result<()> {
    let peer = past.peer;
    let outer = past.answers(SMALLEST).await?;
    // Our own programs answer also where a firewall lets no ICMP in.
    let inner = answered
        .is_some_and(|answered| answered.by == ProbeKind::Vxlan && answered.seconds_ago < RECENTLY)
        || through.answers(SMALLEST).await?;
    match (outer, inner) {
        (false, true) => found.unknown(format!(
            "whether packets of {whole} bytes reach {peer}, which answers no ICMP"
        )),
        (false, false) => found.add(
            Check::Peer,
            format!("{peer}, which leases {subnet}, does not answer at all"),
            format!("look after that host; if it is gone for good, overlay-agent lease release {subnet}"),
        ),
        (true, false) => found.add(
            Check::UdpPort,
            format!("{peer} answers, but not through the overlay: something between blocks UDP port {port}"),
            format!("on both hosts and all between: iptables -I INPUT -p udp --dport {port} -j ACCEPT"),
        ),
        _ => {}
    }
    if outer && !past.answers(whole).await? {
        let largest = largest(past, whole).await?;
        let underlay = serde_json::json!({ "Type": "vxlan", "MTU": largest });
        found.add(
            Check::Mtu,
            format!(
                "{peer} gets packets of {largest} bytes at most, and the overlay sends up to {whole}: large \
                 ones are lost or cut"
            ),
            format!(
                "raise the MTU on the way to {whole}, or overlay-agent config set with \"Backend\": {underlay}"
            ),
        );
    }
    Ok(())
}

/// The largest packet that is answered, found by halves.
async fn largest(past: Probe, whole: u16) -> Result<u16> {
    let (mut good, mut bad) = (SMALLEST, whole);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if past.answers(middle).await? {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Ok(good)
}
