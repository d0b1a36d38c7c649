//! Cilium's way: a VXLAN device in collect-metadata mode, driven from TC. On each container's veth a
//! program names the peer (`bpf_skb_set_tunnel_key`) and redirects to the device, which encapsulates;
//! on the device's ingress another one redirects to the container (`bpf_redirect_peer`).
//!
//! Without what Cilium does besides (policy, connection tracking, identities): a lower bound.

use anyhow::Result;
use overlay_lab::{Container, Host};

use super::{
    Contender, OVERHEAD, Site, Standing, add_containers, index_of, ip, mac_bytes, program,
};

pub(super) const CONTENDER: Contender = Contender {
    name: "collect-metadata",
    about: "collect-metadata device driven from TC (Cilium's way)",
    usual: true,
    set_up,
};

const NETWORK: u8 = 40;

/// The VXLAN device.
const DEVICE: &str = "cm0";

/// Its MAC address, the same on both hosts: what it receives must be for it.
const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x40];

fn set_up(site: &Site<'_>) -> Result<Standing> {
    let containers = add_containers(site, NETWORK, site.mtu - OVERHEAD)?;
    let [one, two] = site.hosts;
    for (host, peer, container, other) in
        [(one, two, &containers[0], 2), (two, one, &containers[1], 1)]
    {
        drive(host, peer, container, [10, NETWORK, other, 0])?;
    }
    Standing::of_containers(Vec::new(), containers)
}

fn drive(host: &Host, peer: &Host, container: &Container, subnet: [u8; 4]) -> Result<()> {
    let mac = MAC.map(|byte| format!("{byte:02x}")).join(":");
    ip(host, &format!("link add {DEVICE} address {mac} type vxlan external dstport 8472"))?;
    ip(host, &format!("link set {DEVICE} up"))?;
    let device = index_of(host.namespace(), DEVICE)?;
    let veth = index_of(host.namespace(), container.veth())?;

    let out = program::to_tunnel(subnet, peer.address(), MAC, device);
    let mac = mac_bytes(&container.namespace().mac("eth0")?)?;
    program::attach(host, "to_tunnel", &out, container.veth())?;
    program::attach(host, "to_container", &program::to_container(mac, veth), DEVICE)
}
