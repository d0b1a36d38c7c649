//! An uplink in a VRF. The kernel takes a packet for the VRF's by the interface that it came by, or is to leave by; of
//! a tunnel device that serves all peers neither is known when it sends, so that a rule tells the routing table.

use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
};

use anyhow::{Context, Result};
use netlink_packet_core::DefaultNla;
use netlink_packet_route::{
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange},
};
use rtnetlink::Handle;

use super::{KernelState, LinkKind, dump};
use crate::kernel::repairs;

/// That of the kernel's own rule for VRFs (`l3mdev`): what comes before that comes before ours.
const PRIORITY: u32 = 1000;

/// By which our rule is known in `ip rule` (`proto 111`), as our routes are.
const PROTOCOL: RouteProtocol = super::lease_routes::PROTOCOL;

/// The attribute for the protocol of what a rule is about (`linux/fib_rules.h`): the crate has it, and keeps its type
/// to itself.
const FRA_IP_PROTO: u16 = 22;
const UDP: u8 = 17;

/// A VRF, as seen from an interface in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vrf {
    /// The VRF's own number, to which sockets are bound.
    pub ifindex: NonZeroU32,
    /// Its routing table.
    pub table: u32,
}

impl Vrf {
    /// The one that an interface is in, if it is in one.
    pub fn of(observed: &KernelState, interface: u32) -> Option<Self> {
        let ifindex = NonZeroU32::new(observed.links.get(&interface)?.master?)?;
        match observed.links.get(&ifindex.get())?.kind {
            LinkKind::Vrf { table } => Some(Self { ifindex, table }),
            _ => None,
        }
    }
}

/// Where outer packets go, as this agent keeps it.
#[derive(Debug)]
pub struct Underlay {
    vrf: Option<Vrf>,
    /// An earlier agent may have left a rule.
    has_looked: bool,
}

impl Underlay {
    /// No rule has been made yet.
    pub const fn new(vrf: Option<Vrf>) -> Self {
        Self { vrf, has_looked: false }
    }

    /// The VRF that the uplink is in, if it is in one.
    pub const fn vrf(&self) -> Option<Vrf> {
        self.vrf
    }

    /// Whether packets have gone by another VRF until now, as our rule says: also where that was before this agent's
    /// time.
    pub async fn was_another(&self, handle: &Handle, vrf: Option<Vrf>, port: u16) -> Result<bool> {
        let Some(vrf) = vrf.filter(|_| !self.has_looked || vrf != self.vrf) else {
            return Ok(false);
        };
        Ok(Rule::made(handle, port).await?.iter().any(|(_, rule)| rule.table != vrf.table))
    }

    /// Has VXLAN from `source` to UDP port `port` go by the VRF's table, and changes nothing where it does so already.
    pub async fn follow(
        &mut self,
        handle: &Handle,
        vrf: Option<Vrf>,
        source: Ipv4Addr,
        port: u16,
    ) -> Result<()> {
        if vrf.is_some() || self.vrf.is_some() || !self.has_looked {
            let rule = vrf.map(|vrf| Rule { source, port, table: vrf.table });
            Rule::ensure(handle, port, rule).await?;
            self.has_looked = true;
        }
        self.vrf = vrf;
        Ok(())
    }
}

/// Outer packets from an address to a port go by a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    source: Ipv4Addr,
    port: u16,
    table: u32,
}

impl Rule {
    /// Makes `wanted` the only rule of ours for this UDP port, which no other agent of this host has.
    async fn ensure(handle: &Handle, port: u16, wanted: Option<Self>) -> Result<()> {
        let mut there = false;
        for (message, rule) in Self::made(handle, port).await? {
            if !there && Some(rule) == wanted {
                there = true;
                continue;
            }
            remove(handle, message).await?;
            repairs::made("rule that is no more ours");
        }
        let Some(wanted) = wanted.filter(|_| !there) else { return Ok(()) };
        wanted.add(handle).await?;
        repairs::made("rule");
        Ok(())
    }

    /// Those of ours for a UDP port, as they are.
    async fn made(handle: &Handle, port: u16) -> Result<Vec<(RuleMessage, Self)>> {
        let all = ours(handle).await?.into_iter();
        let parsed = all.filter_map(|message| Self::parse(&message).map(|rule| (message, rule)));
        Ok(parsed.filter(|(_, rule)| rule.port == port).collect())
    }

    async fn add(self, handle: &Handle) -> Result<()> {
        let Self { source, port, table } = self;
        let mut request = handle
            .rule()
            .add()
            .v4()
            .priority(PRIORITY)
            .source_prefix(source, 32)
            .table_id(table)
            .action(RuleAction::ToTable);
        request.message_mut().attributes.extend([
            RuleAttribute::Protocol(PROTOCOL),
            RuleAttribute::Other(DefaultNla::new(FRA_IP_PROTO, vec![UDP])),
            RuleAttribute::DestinationPortRange(RulePortRange { start: port, end: port }),
        ]);
        request.execute().await.with_context(|| {
            format!("adding a routing rule: VXLAN from {source} goes by the VRF's table {table}")
        })
    }

    fn parse(message: &RuleMessage) -> Option<Self> {
        let mut table = u32::from(message.header.table);
        let (mut source, mut port) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Source(IpAddr::V4(address)) => source = Some(*address),
                RuleAttribute::Table(number) => table = *number,
                RuleAttribute::DestinationPortRange(range) if range.start == range.end => {
                    port = Some(range.start);
                }
                _ => {}
            }
        }
        (message.header.src_len == 32).then_some(Self { source: source?, port: port?, table })
    }
}

/// Removes every rule of ours but those for the UDP ports that `keep` wants. Returns how many there were.
pub async fn remove_vrf_rules(handle: &Handle, keep: impl Fn(u16) -> bool) -> Result<usize> {
    let mut removed = 0;
    for rule in ours(handle).await? {
        if !Rule::parse(&rule).is_some_and(|rule| keep(rule.port)) {
            remove(handle, rule).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

async fn remove(handle: &Handle, rule: RuleMessage) -> Result<()> {
    handle.rule().del(rule).execute().await.context("removing a routing rule of ours")
}

async fn ours(handle: &Handle) -> Result<Vec<RuleMessage>> {
    let is_ours = |rule: &RuleMessage| {
        let has = |attribute| rule.attributes.contains(&attribute);
        has(RuleAttribute::Protocol(PROTOCOL)) && has(RuleAttribute::Priority(PRIORITY))
    };
    Ok(dump::rules(handle).await?.into_iter().filter(is_ours).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::containers::test_support::{link, observed};

    #[test]
    fn an_interface_is_in_the_vrf_that_is_its_master() {
        let mut observed = observed();
        let mut add = |index, kind, master| {
            observed.links.insert(index, link(index, kind, master));
        };
        add(70, LinkKind::Vrf { table: 17 }, None);
        add(71, LinkKind::Other, Some(70));
        add(72, LinkKind::Bridge, None);
        add(73, LinkKind::Other, Some(72));
        let vrf = Vrf { ifindex: NonZeroU32::new(70).unwrap(), table: 17 };
        assert_eq!(Vrf::of(&observed, 71), Some(vrf));
        for other in [70, 73, 99] {
            assert_eq!(Vrf::of(&observed, other), None, "{other}");
        }
    }
}
