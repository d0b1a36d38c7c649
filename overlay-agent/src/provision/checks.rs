//! What has to be so on a host before anything is changed.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context as _, Result, anyhow};
use ipnetwork::Ipv4Network;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use overlay_lease::config::NetworkConfig;

use super::docker;
use crate::{
    exit::{Exit, WithExit as _},
    kernel::{
        datapath::{Features, Programs},
        firewall::{Rules, Scene, ServicePort, mend},
        netlink::{self, KernelState},
        uplink::{self, Uplink, UplinkConfig},
    },
};

/// Fails for anybody but root.
pub(super) fn root(verb: &str) -> Result<()> {
    if nix::unistd::Uid::effective().is_root() {
        return Ok(());
    }
    Err(anyhow!("overlay-agent {verb} has to be root: it writes configuration and starts services"))
        .exit(Exit::NotPermitted)
}

/// The interface and the address by which other hosts reach this one.
pub(super) async fn uplink(iface: Option<&str>) -> Result<Uplink> {
    let config = UplinkConfig {
        ifaces: iface.into_iter().map(str::to_owned).collect(),
        ..Default::default()
    };
    uplink::discover(&config).await.context("cannot choose the interface to the other hosts")
}

/// Whether this kernel takes the programs, the port is free and the network is nobody else's.
pub(super) async fn kernel_and_network(network: &NetworkConfig) -> Result<()> {
    drop(
        Features::probe()
            .and_then(|_| Programs::load_unpinned())
            .context("this kernel does not take the overlay's programs")?,
    );
    let handle = netlink::connect()?;
    let observed = netlink::observe(&handle).await?;
    netlink::check_port(&observed, network.vni, network.port, false)?;
    let tunnel = netlink::tunnel_name(network.vni);
    if !observed.links.values().any(|link| link.name == tunnel) {
        port_is_free(network.port)?;
    }
    let routes = netlink::dump::routes(&handle, |_| true).await?;
    let routes = routes.iter().filter_map(|route| destination(route, &observed));
    match overlapping(network.network, &tunnel, routes) {
        None => Ok(()),
        Some((route, device)) => Err(anyhow!(
            "the overlay's network {} overlaps {route}, which this host reaches by {device}: choose \
             another one with `overlay-agent init --network`",
            network.network
        ))
        .exit(Exit::Conflict),
    }
}

/// Fails where this host's firewall drops all that others send to the overlay's port, or to one of these, and says what
/// mends that. Whether they come so far, this host cannot know.
pub(super) async fn firewall(
    uplink: &Uplink,
    network: &NetworkConfig,
    etcd: &[ServicePort],
) -> Result<()> {
    let scene = Scene {
        network: network.network,
        subnet: network.network,
        bridges: Vec::new(),
        tunnel: netlink::tunnel_name(network.vni),
        uplink: uplink.name.clone(),
        direct: network.direct_routing,
        port: network.port,
        peers: Vec::new(),
    };
    let services: Vec<_> = etcd.iter().copied().chain([ServicePort::Udp(network.port)]).collect();
    let closed: Vec<_> = Rules::closing(&scene, &services)
        .await
        .into_iter()
        .flat_map(|(service, rules)| rules.into_iter().map(move |rule| (service, rule)))
        .map(|(service, rule)| {
            format!("{service} ({rule}), which `{}` opens", mend::for_service(&rule, service))
        })
        .collect();
    if closed.is_empty() {
        return Ok(());
    }
    Err(anyhow!("this host's firewall keeps other hosts out: it drops {}", closed.join("; ")))
        .exit(Exit::Unavailable)
}

fn port_is_free(port: u16) -> Result<()> {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))
        .with_context(|| {
            format!("UDP port {port}, which carries the overlay, cannot be had: `ss -ulpn` names who has it")
        })
        .exit(Exit::Unavailable)
        .map(drop)
}

/// Where a route of the main table leads to, and by which interface; not the default route.
fn destination(route: &RouteMessage, observed: &KernelState) -> Option<(Ipv4Network, String)> {
    if route.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut address, mut device) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(found)) => address = Some(*found),
            RouteAttribute::Oif(index) => {
                device = observed.links.get(index).map(|link| link.name.clone());
            }
            _ => {}
        }
    }
    let network = Ipv4Network::new(address?, route.header.destination_prefix_length).ok()?;
    Some((network, device.unwrap_or_else(|| "nowhere".to_owned())))
}

/// The first route that is neither the overlay's own nor that of the bridge that moves into it.
fn overlapping(
    network: Ipv4Network,
    tunnel: &str,
    routes: impl IntoIterator<Item = (Ipv4Network, String)>,
) -> Option<(Ipv4Network, String)> {
    routes.into_iter().find(|(route, device)| {
        route.overlaps(network) && device != tunnel && device != docker::BRIDGE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_somebody_elses_route_is_in_the_way() {
        let routes = |list: &[(&str, &str)]| -> Vec<_> {
            list.iter().map(|(r, device)| (r.parse().unwrap(), (*device).to_owned())).collect()
        };
        let network = "10.1.0.0/16".parse().unwrap();
        let own =
            [("10.1.0.0/16", "overlay.1"), ("10.1.7.0/24", "docker0"), ("10.2.0.0/16", "eth0")];
        assert_eq!(overlapping(network, "overlay.1", routes(&own)), None);
        for (route, device) in [("10.0.0.0/8", "eth1"), ("10.1.9.0/30", "tun0")] {
            let found = overlapping(network, "overlay.1", routes(&[(route, device)]));
            assert_eq!(found, routes(&[(route, device)]).pop());
        }
    }
}
