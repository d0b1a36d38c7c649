use std::{
    collections::BTreeMap,
    mem,
    time::{Duration, Instant},
};

use super::container_ports;
use crate::kernel::netlink::{KernelState, Link};

/// A container's port is there before its own end is up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ports of containers that a bridge which is up lets nothing pass by, and since when.
#[derive(Debug, Default)]
pub struct CutOff {
    since: BTreeMap<u32, Instant>,
}

impl CutOff {
    /// Takes in how things are at this moment.
    pub fn look(&mut self, observed: &KernelState, bridges: &[Link], now: Instant) {
        let ports = bridges
            .iter()
            .filter_map(|bridge| observed.links.get(&bridge.index))
            .filter(|bridge| bridge.up)
            .flat_map(|bridge| container_ports(observed, bridge));
        let before = mem::take(&mut self.since);
        self.since = ports
            .filter(|port| !port.up || port.blocked)
            .map(|port| (port.index, before.get(&port.index).copied().unwrap_or(now)))
            .collect();
    }

    /// The numbers of those that have been so for longer than a container takes to start.
    pub fn ports(&self, now: Instant) -> impl Iterator<Item = u32> + '_ {
        let lasts = move |since: &Instant| now.duration_since(*since) >= PATIENCE;
        self.since.iter().filter(move |(_, since)| lasts(since)).map(|(port, _)| *port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::containers::test_support::{BRIDGE, NEIGHBOUR, VETH, observed};

    #[test]
    fn only_what_lasts_counts() {
        let mut host = observed();
        let bridges = [host.links[&BRIDGE].clone()];
        let start = Instant::now();
        let mut cut_off = CutOff::default();
        let mut look = |host: &KernelState, after: Duration| {
            cut_off.look(host, &bridges, start + after);
            cut_off.ports(start + after).collect::<Vec<_>>()
        };
        host.links.get_mut(&VETH).expect("there").blocked = true;
        assert_eq!(look(&host, Duration::ZERO), [0; 0]);
        host.links.get_mut(&NEIGHBOUR).expect("there").up = false;
        assert_eq!(look(&host, PATIENCE), [VETH]);
        host.links.get_mut(&VETH).expect("there").blocked = false;
        assert_eq!(look(&host, 2 * PATIENCE), [NEIGHBOUR]);
        host.links.get_mut(&BRIDGE).expect("there").up = false;
        assert_eq!(look(&host, 3 * PATIENCE), [0; 0], "the bridge's own fault");
    }
}
