//! Docker's own overlay network, as a swarm's hosts have it (moby, `daemon/libnetwork/drivers/overlay`). The network has a
//! namespace of its own (`/var/run/docker/netns/1-…`) with a bridge `br0`, a VXLAN device that comes from the host's namespace
//! and has its underlay socket there still (`createVxlan`), one end of each container's veth (`Join`), and a neighbour and a
//! forwarding entry for each container of another host (`addNeighbor`).
//!
//! Without the rules that Docker's resolver has in each container, and without services (IPVS): a lower bound.

use std::net::Ipv4Addr;

use anyhow::Result;
use overlay_lab::{Host, Namespace};

use super::{Contender, OVERHEAD, Place, Site, Standing, ip};

pub(super) const CONTENDER: Contender = Contender {
    name: super::SWARM,
    about: "Docker's overlay driver as libnetwork sets it up, not encrypted",
    usual: true,
    set_up,
};

const NETWORK: u8 = 35;

/// Swarm counts its networks from 4096 on, of which the first is its ingress.
const VNI: u32 = 4097;

/// The device while it is still in the host's namespace.
const DEVICE: &str = "vx-001001-bench";

/// One subnet for all hosts.
const PREFIX_LENGTH: u8 = 24;

fn set_up(site: &Site<'_>) -> Result<Standing> {
    let [one, two] = site.hosts;
    let mtu = site.mtu - OVERHEAD;
    let (client, first) = stand(one, two, 1, mtu)?;
    let (server, second) = stand(two, one, 2, mtu)?;
    let namespaces = first.into_iter().chain(second).collect();
    Ok(Standing::of_namespaces([client, server], namespaces))
}

/// One host's side: where its container is, and the namespaces that were made for it.
fn stand(host: &Host, peer: &Host, number: u8, mtu: u32) -> Result<(Place, [Namespace; 2])> {
    let network = network(host, mtu)?;
    let container = container(host, &network, number, mtu)?;
    add_neighbour(&network, peer, 3 - number)?;
    let place = Place { namespace: container.name().to_owned(), address: address(number) };
    Ok((place, [network, container]))
}

/// The container's address on the host of this number. The gateway's is before them.
const fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, NETWORK, 0, number + 1)
}

/// Its MAC address is made of that (`GenerateMACFromIP`).
fn mac(number: u8) -> String {
    let [a, b, c, d] = address(number).octets();
    format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

fn inside(namespace: &Namespace, command: &str) -> Result<String> {
    namespace.ip(command.split_whitespace())
}

/// The network's namespace on a host (`setupSubnetSandbox`).
fn network(host: &Host, mtu: u32) -> Result<Namespace> {
    let network = Namespace::create(host.ledger(), &format!("{}-1-bench", host.name()))?;
    // Without VLANs, as `set-default-vlan` leaves it.
    inside(&network, "link add br0 type bridge vlan_default_pvid 0")?;
    inside(&network, &format!("address add 10.{NETWORK}.0.1/{PREFIX_LENGTH} dev br0"))?;
    inside(&network, "link set br0 up")?;
    ip(
        host,
        &format!(
            "link add {DEVICE} mtu {mtu} type vxlan id {VNI} dstport 4789 learning proxy l2miss l3miss"
        ),
    )?;
    ip(host, &format!("link set {DEVICE} netns {} name vxlan0", network.name()))?;
    inside(&network, "link set vxlan0 master br0 up")?;
    Ok(network)
}

fn container(host: &Host, network: &Namespace, number: u8, mtu: u32) -> Result<Namespace> {
    let container = Namespace::create(host.ledger(), &format!("{}-c", host.name()))?;
    let (mac, name) = (mac(number), container.name());
    inside(
        network,
        &format!(
            "link add veth0 mtu {mtu} type veth peer name eth0 mtu {mtu} address {mac} netns {name}"
        ),
    )?;
    inside(network, "link set veth0 master br0 up")?;
    inside(&container, &format!("address add {}/{PREFIX_LENGTH} dev eth0", address(number)))?;
    inside(&container, "link set eth0 up")?;
    Ok(container)
}

/// What a host knows of the container on the other one: the device answers ARP by the first, and sends by the second.
fn add_neighbour(network: &Namespace, peer: &Host, number: u8) -> Result<()> {
    let (address, mac) = (address(number), mac(number));
    inside(network, &format!("neighbour add {address} lladdr {mac} dev vxlan0 nud permanent"))?;
    let to = peer.address().to_string();
    let entry = ["fdb", "add", &mac, "dev", "vxlan0", "dst", &to, "self", "permanent"];
    network.command("bridge").args(entry).run()?;
    Ok(())
}
