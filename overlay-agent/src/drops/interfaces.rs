use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use netlink_packet_route::link::{LinkAttribute, LinkLayerType};
use rtnetlink::Handle;

use crate::kernel::netlink::dump;

/// For how long what the kernel has said counts: an interface may be given another name.
const FRESH: Duration = Duration::from_secs(10);

/// The least time between two questions: whoever makes interfaces must not make work, too.
const PAUSE: Duration = Duration::from_secs(1);

/// The host's interfaces, as far as packets tell of them.
pub(super) struct Interfaces {
    netlink: Handle,
    known: HashMap<u32, Interface>,
    asked: Option<Instant>,
}

/// An interface.
#[derive(Clone)]
pub(super) struct Interface {
    pub(super) name: String,
    /// Whether its packets begin with an Ethernet header.
    pub(super) ethernet: bool,
}

impl Interfaces {
    pub(super) fn new(netlink: Handle) -> Self {
        Self { netlink, known: HashMap::new(), asked: None }
    }

    /// Asks the kernel where one of these is not known, or was long ago.
    pub(super) async fn learn(&mut self, numbers: impl Iterator<Item = u32>) {
        let age = self.asked.map(|asked| asked.elapsed());
        let stale = age.is_none_or(|age| age > FRESH);
        let may_ask = age.is_none_or(|age| age > PAUSE);
        let mut numbers = numbers.filter(|number| *number != 0);
        let ask = stale || may_ask && numbers.any(|number| !self.known.contains_key(&number));
        if !ask {
            return;
        }
        self.asked = Some(Instant::now());
        // Without an answer, packets are told of without names.
        let Ok(links) = dump::links(&self.netlink).await else { return };
        // What has gone meanwhile keeps its name until the next question.
        self.known = links
            .into_iter()
            .filter_map(|link| {
                let name = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name.clone()),
                    _ => None,
                })?;
                let kind = link.header.link_layer_type;
                let ethernet = matches!(kind, LinkLayerType::Ether | LinkLayerType::Loopback);
                Some((link.header.index, Interface { name, ethernet }))
            })
            .collect();
    }

    pub(super) fn get(&self, number: u32) -> Option<&Interface> {
        self.known.get(&number)
    }
}
