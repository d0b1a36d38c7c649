//! What flannel's vxlan backend sets up: a kernel VXLAN device; neighbour, forwarding and route entries
//! for every lease; its forwarding rules, and its masquerading rules for the traffic they return on.

use anyhow::Result;
use overlay_lab::{Host, UPLINK};

use super::{Contender, OVERHEAD, Site, Standing, add_containers, ip};

pub(super) const CONTENDER: Contender = Contender {
    name: super::FLANNEL,
    about: "kernel VXLAN device as flannel sets it up",
    usual: true,
    set_up,
};

const NETWORK: u8 = 30;

/// The VTEP of each host.
const MACS: [&str; 2] = ["c6:d2:32:6f:8f:41", "c6:d2:32:6f:8f:42"];

fn set_up(site: &Site<'_>) -> Result<Standing> {
    let [one, two] = site.hosts;
    for (host, peer, number) in [(one, two, 1), (two, one, 2)] {
        device(host, peer, number, site.mtu - OVERHEAD)?;
        rules(host, number)?;
    }
    let containers = add_containers(site, NETWORK, site.mtu - OVERHEAD)?;
    Standing::of_containers(Vec::new(), containers)
}

/// One host's device, with the entries for its peer's lease.
fn device(host: &Host, peer: &Host, number: usize, mtu: u32) -> Result<()> {
    let other = 3 - number;
    let [mac, peer_mac] = [MACS[number - 1], MACS[other - 1]];
    let subnet = format!("10.{NETWORK}.{other}.0");
    let address = host.address();
    ip(
        host,
        &format!(
            "link add flannel.1 address {mac} mtu {mtu} type vxlan id 1 dev {UPLINK} \
             local {address} dstport 8472 nolearning"
        ),
    )?;
    ip(host, &format!("address add 10.{NETWORK}.{number}.0/32 dev flannel.1"))?;
    ip(host, "link set flannel.1 up")?;
    ip(host, &format!("neighbour add {subnet} lladdr {peer_mac} dev flannel.1 nud permanent"))?;
    let to = peer.address().to_string();
    host.command("bridge").args(["fdb", "add", peer_mac, "dev", "flannel.1", "dst", &to]).run()?;
    ip(host, &format!("route add {subnet}/24 via {subnet} dev flannel.1 onlink"))?;
    Ok(())
}

/// Its chains, as `iptables-restore` gets them from flannel.
fn rules(host: &Host, number: usize) -> Result<()> {
    let network = format!("10.{NETWORK}.0.0/16");
    let own = format!("10.{NETWORK}.{number}.0/24");
    let rules = format!(
        "*filter\n:FLANNEL-FWD - [0:0]\n\
         -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
         -A FLANNEL-FWD -s {network} -m comment --comment \"flanneld forward\" -j ACCEPT\n\
         -A FLANNEL-FWD -d {network} -m comment --comment \"flanneld forward\" -j ACCEPT\n\
         COMMIT\n\
         *nat\n:FLANNEL-POSTRTG - [0:0]\n\
         -A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN\n\
         -A FLANNEL-POSTRTG -s {own} -d {network} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {network} -d {own} -j RETURN\n\
         -A FLANNEL-POSTRTG ! -s {network} -d {own} -j RETURN\n\
         -A FLANNEL-POSTRTG -s {network} ! -d 224.0.0.0/4 -j MASQUERADE --random-fully\n\
         -A FLANNEL-POSTRTG ! -s {network} -d {network} -j MASQUERADE --random-fully\n\
         COMMIT\n"
    );
    host.command("iptables-restore").arg("--noflush").input(rules).run()?;
    Ok(())
}
