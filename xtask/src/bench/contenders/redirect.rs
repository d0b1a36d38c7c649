//! No overlay, but a program on each container's veth that redirects to the uplink, and one on the uplink
//! that redirects to the container: what any datapath outside of the container reaches at best. Its
//! packets are as large as ours inside, so that what ours takes beyond it is encapsulation and its checks.

use anyhow::Result;
use overlay_lab::UPLINK;

use super::{Contender, OVERHEAD, Site, Standing, add_containers, index_of, mac_bytes, program};

pub(super) const CONTENDER: Contender = Contender {
    name: super::CEILING,
    about: "BPF redirect without encapsulation: the ceiling",
    usual: true,
    set_up,
};

const NETWORK: u8 = 70;

fn set_up(site: &Site<'_>) -> Result<Standing> {
    let containers = add_containers(site, NETWORK, site.mtu - OVERHEAD)?;
    let [one, two] = site.hosts;
    for (host, peer, container, other) in
        [(one, two, &containers[0], 2), (two, one, &containers[1], 1)]
    {
        let [peer_mac, own_mac] = [
            mac_bytes(&peer.namespace().mac(UPLINK)?)?,
            mac_bytes(&host.namespace().mac(UPLINK)?)?,
        ];
        let uplink = index_of(host.namespace(), UPLINK)?;
        let veth = index_of(host.namespace(), container.veth())?;
        let mac = mac_bytes(&container.namespace().mac("eth0")?)?;
        let out = program::to_uplink([10, NETWORK, other, 0], [peer_mac, own_mac], uplink);
        let into = program::from_uplink(container.address(), mac, veth);
        program::attach(host, "to_uplink", &out, container.veth())?;
        program::attach(host, "from_uplink", &into, UPLINK)?;
    }
    Standing::of_containers(Vec::new(), containers)
}
