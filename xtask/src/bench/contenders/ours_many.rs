//! Our agent with every lease that a /8 has room for, two of which belong to hosts that exist.

use std::{fmt::Write as _, fs, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use overlay_lab::AgentOptions;

use super::{Contender, Site, Standing, ours};

pub(super) const CONTENDER: Contender = Contender {
    name: super::OURS_MANY,
    about: "ours with 65,536 leases; only where it is named",
    usual: false,
    set_up,
};

/// Its first octet is nobody else's here.
const NETWORK: &str = "11.0.0.0/8";

/// Leases of hosts that nobody talks to: 11.0.0.0/24 up to 11.255.253.0/24.
const OTHERS: u32 = 65_534;

/// From a peers file: a store with so many takes longer to fill, and the datapath is the same.
fn set_up(site: &Site<'_>) -> Result<Standing> {
    let mut text = format!("network = \"{NETWORK}\"\n");
    let mut host = |address: Ipv4Addr, number: u32| {
        let subnet = Ipv4Addr::from(u32::from(Ipv4Addr::new(11, 0, 0, 0)) + (number << 8));
        write!(text, "[[host]]\npublic-ip = \"{address}\"\nsubnet = \"{subnet}/24\"\n")
    };
    for number in 0..OTHERS {
        host(Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) + number), number)?;
    }
    for (number, existing) in (OTHERS..).zip(site.hosts) {
        host(existing.address(), number)?;
    }
    let file = site.hosts[0].directory().join("peers.toml");
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    let options = AgentOptions::new(&site.agents.now, site.etcd)
        .argument(&format!("--peers={}", file.display()));
    ours::with_agents(site, &options, usize::try_from(OTHERS)? + 1)
}
