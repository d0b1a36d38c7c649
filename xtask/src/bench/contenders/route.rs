//! Plain routing between containers: what bridge, veth and forwarding cost without encapsulation.

use anyhow::Result;
use overlay_lab::UPLINK;

use super::{Contender, Site, Standing, add_containers, ip};

pub(super) const CONTENDER: Contender = Contender {
    name: "route",
    about: "containers, plain routing, no encapsulation",
    usual: true,
    set_up,
};

const NETWORK: u8 = 20;

fn set_up(site: &Site<'_>) -> Result<Standing> {
    let containers = add_containers(site, NETWORK, site.mtu)?;
    let [one, two] = site.hosts;
    ip(one, &format!("route add 10.{NETWORK}.2.0/24 via {} dev {UPLINK}", two.address()))?;
    ip(two, &format!("route add 10.{NETWORK}.1.0/24 via {} dev {UPLINK}", one.address()))?;
    Standing::of_containers(Vec::new(), containers)
}
