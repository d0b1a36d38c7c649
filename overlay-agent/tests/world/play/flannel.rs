//! What flannel makes of a host: a kernel VXLAN device, a route, a neighbour and a forwarding entry for every lease.

use anyhow::Result;
use overlay_lab::Host;

use super::change::Change;
use crate::shape::{NETWORK, World, subnet};

pub(crate) const DEVICE: &str = "flannel.1";

fn mac(host: u8) -> String {
    format!("02:6f:0a:01:{:02x}:00", host + 1)
}

/// The device and what leads to peers, and what flannel accepts. It is spared one fault, which the documentation of
/// differences names: what Docker masquerades would come from its hosts inside the overlay.
pub(crate) fn change(world: &World, host: u8) -> Change {
    let mtu = world.wire_mtu() - 50;
    let mut ip = vec![
        format!(
            "link add {DEVICE} address {} mtu {mtu} type vxlan id 1 dev eth0 local {} dstport 8472 \
             nolearning",
            mac(host),
            world.public(host)
        ),
        format!("address add {}/32 dev {DEVICE}", subnet(host)),
        format!("link set {DEVICE} up"),
    ];
    for peer in peers(world, host) {
        let address = subnet(peer);
        ip.push(format!("neighbour add {address} lladdr {} dev {DEVICE} nud permanent", mac(peer)));
        ip.push(format!("route add {address}/24 via {address} dev {DEVICE} onlink"));
    }
    let own = subnet(host);
    Change {
        ip,
        raw: Vec::new(),
        nat: vec![
            format!("-A POSTROUTING -o {DEVICE} -s {own}/24 -d {NETWORK} -j ACCEPT"),
            format!("-A POSTROUTING -o docker0 -s {NETWORK} -d {own}/24 -j ACCEPT"),
        ],
        filter: vec![
            format!("-A FORWARD -s {NETWORK} -j ACCEPT"),
            format!("-A FORWARD -d {NETWORK} -j ACCEPT"),
        ],
        settings: Vec::new(),
    }
}

/// Which address a peer's MAC is behind.
pub(crate) fn add_forwarding(world: &World, node: &Host, host: u8) -> Result<()> {
    let lines: Vec<_> = peers(world, host)
        .map(|peer| format!("fdb add {} dev {DEVICE} dst {}", mac(peer), world.public(peer)))
        .collect();
    node.command("bridge").args(["-batch", "-"]).input(lines.join("\n") + "\n").run()?;
    Ok(())
}

fn peers(world: &World, host: u8) -> impl Iterator<Item = u8> + use<> {
    (0..world.hosts).filter(move |peer| *peer != host)
}
