//! The host itself: its kernel, its forwarding, its firewall, its network card.

use std::{collections::BTreeSet, fs, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use netlink_packet_route::route::RouteAttribute;
use overlay_lease::config::RulesMode;
use rtnetlink::RouteMessageBuilder;
use tokio::process::Command;

use super::{Check, Findings, Host};
use crate::kernel::{
    datapath::{Features, Programs},
    netlink,
};

/// Whether the programs can be loaded.
pub(super) fn kernel(found: &mut Findings) {
    if let Err(error) = Features::probe().and_then(|_| Programs::load_unpinned()) {
        found.add(
            Check::Kernel,
            format!("this kernel does not take the programs: {error:#}"),
            "boot Linux 6.1 or later with CONFIG_BPF_SYSCALL, and run this as root",
        );
    }
}

/// Whether the links that the agent goes by are up. (The tunnel device it sets up itself.)
pub(super) fn links(host: &Host, found: &mut Findings) {
    let Some(overlay) = host.overlay() else { return };
    let links = host.observed.links.values();
    let ours = links
        .filter(|link| link.name == overlay.uplink.name || overlay.bridges.contains(&link.name));
    for link in ours.filter(|link| !link.up) {
        let name = &link.name;
        found.add(Check::Link, format!("{name} is down"), format!("ip link set {name} up"));
    }
}

/// Whether packets are forwarded, by the host and by each interface that they come by.
pub(super) fn forwarding(host: &Host, found: &mut Findings) {
    let is_off = |name: &str| sysctl(name).is_some_and(|value| value == "0");
    if is_off("net/ipv4/ip_forward") {
        found.add(
            Check::IpForward,
            "this host does not forward packets: what is not for the fast path is dropped",
            "sysctl -w net.ipv4.ip_forward=1",
        );
        return;
    }
    let tunnel = host.tunnel();
    let bridges = host.overlay().map_or_else(Vec::new, |overlay| overlay.bridges.clone());
    for device in [tunnel].into_iter().chain(bridges) {
        // With slashes: a name may have dots.
        let name = format!("net/ipv4/conf/{device}/forwarding");
        if is_off(&name) {
            found.add(
                Check::IpForward,
                format!("what comes by {device} is not forwarded: what is not for the fast path is dropped"),
                format!("sysctl -w {name}=1"),
            );
        }
    }
}

fn sysctl(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    Some(text.trim().to_owned())
}

/// Whether FORWARD drops what comes out of the tunnel device, where no agent has read all of the rules and says so.
pub(super) async fn forward_policy(host: &Host, found: &mut Findings) {
    // Where rules are bypassed, refusals are not told.
    let bypass = RulesMode::Bypass.name();
    if host.overlay().is_some_and(|overlay| overlay.rules.mode != bypass) {
        return;
    }
    let device = host.tunnel();
    let rules = match output("iptables", &["-w", "5", "-S", "FORWARD"]).await {
        Ok(rules) => rules,
        Err(error) => {
            found.unknown(format!("FORWARD policy: {error:#}"));
            return;
        }
    };
    if drops(&rules, &device) {
        found.add(
            Check::ForwardPolicy,
            format!("the firewall drops what is forwarded from and to {device}: the policy of FORWARD is DROP, and no rule accepts it"),
            format!(
                "iptables -A FORWARD -i {device} -j ACCEPT && iptables -A FORWARD -o {device} -j ACCEPT \
                 # or run the agent without --iptables-forward-rules=false"
            ),
        );
    }
}

fn drops(rules: &str, device: &str) -> bool {
    let accepts = |direction: &str| {
        let begin = format!("-A FORWARD {direction} {device} ");
        rules.lines().any(|rule| rule.starts_with(&begin) && rule.ends_with("-j ACCEPT"))
    };
    rules.lines().any(|rule| rule == "-P FORWARD DROP") && !(accepts("-i") && accepts("-o"))
}

/// Whether strict filtering drops peers that are reached by another interface than they come by. Returns
/// these.
pub(super) async fn rp_filter(host: &Host, found: &mut Findings) -> Result<BTreeSet<Ipv4Addr>> {
    let mut unreachable = BTreeSet::new();
    let Some(overlay) = host.overlay() else { return Ok(unreachable) };
    let uplink = &overlay.uplink;
    // The kernel goes by the larger of the two: 0 off, 1 strict, 2 loose.
    let value = |name: &str| {
        sysctl(&format!("net/ipv4/conf/{name}/rp_filter"))
            .and_then(|value| value.parse::<u8>().ok())
    };
    if value("all").max(value(&uplink.name)) != Some(1) {
        return Ok(unreachable);
    }
    let handle = netlink::connect()?;
    for (_, peer) in host.peers() {
        let to = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(peer, 32).build();
        // «Unreachable» is an error in netlink and an answer to us.
        let Ok(Some(route)) = handle.route().get(to).execute().try_next().await else { continue };
        let other = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) if *index != uplink.ifindex => Some(*index),
            _ => None,
        });
        if let Some(other) = other.and_then(|index| host.observed.links.get(&index)) {
            found.add(
                Check::RpFilter,
                format!(
                    "{} filters strictly by source, and {peer} is reached by {}: packets that it sends to {} \
                     are dropped as forged",
                    uplink.name, other.name, uplink.name
                ),
                format!(
                    "sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{}.rp_filter=2",
                    uplink.name
                ),
            );
            unreachable.insert(peer);
        }
    }
    Ok(unreachable)
}

/// Whether the uplink's card is set as it should not be.
pub(super) async fn offloads(host: &Host, found: &mut Findings) {
    let Some(overlay) = host.overlay() else { return };
    let uplink = &overlay.uplink.name;
    let (features, driver) = (["-k", uplink], ["-i", uplink]);
    match tokio::try_join!(output("ethtool", &features), output("ethtool", &driver)) {
        Ok((features, driver)) => {
            for (problem, switch) in broken_offloads(&features, &driver, uplink) {
                found.add(Check::Offloads, problem, format!("ethtool -K {uplink} {switch}"));
            }
        }
        Err(error) => found.unknown(format!("offloads: {error:#}")),
    }
}

/// What is wrong, and how to switch it.
fn broken_offloads(features: &str, driver: &str, uplink: &str) -> Vec<(String, &'static str)> {
    let is = |name: &str, state: &str| {
        features.lines().any(|line| {
            let line = line.trim();
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(&format!(": {state}")))
        })
    };
    let mut broken = Vec::new();
    if is("large-receive-offload", "on") {
        broken.push((
            format!("{uplink} merges packets in a way that cannot be forwarded (LRO)"),
            "lro off",
        ));
    }
    let driven_by =
        |name: &str| driver.lines().any(|line| line.trim() == format!("driver: {name}"));
    // Two ends of a veth hand over packets that were never cut: there is nothing to put together.
    let uncut = driven_by("veth") && is("tcp-segmentation-offload", "on");
    if is("generic-receive-offload", "off") && !uncut {
        broken.push((
            format!("{uplink} does not aggregate what it receives (GRO): TCP is slower by half"),
            "gro on",
        ));
    }
    // VMware's card computes checksums of tunnels on its own port only.
    if driven_by("vmxnet3") && is("tx-udp_tnl-segmentation", "on") {
        broken.push((
            format!("{uplink} (vmxnet3) sends segments of tunnels with wrong checksums"),
            "tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off",
        ));
    }
    broken
}

/// What a program says.
pub(super) async fn output(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .await
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        anyhow::bail!("{program} failed: {}", reason.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_policy_without_our_exceptions_drops() {
        let rules = "-P FORWARD DROP\n-A FORWARD -i overlay.1 -m comment --comment \"overlay forward\" -j ACCEPT\n";
        assert!(drops(rules, "overlay.1"));
        let both = format!("{rules}-A FORWARD -o overlay.1 -j ACCEPT\n");
        assert!(!drops(&both, "overlay.1"));
        assert!(drops(&both, "overlay.11"));
        assert!(!drops("-P FORWARD ACCEPT\n", "overlay.1"));
    }

    #[test]
    fn offloads_that_break_tunnels_are_known_by_name() {
        let good = "tcp-segmentation-offload: on\ngeneric-receive-offload: on\n\
                    large-receive-offload: off [fixed]\ntx-udp_tnl-segmentation: on\n";
        assert!(broken_offloads(good, "driver: veth\n", "eth0").is_empty());
        assert_eq!(broken_offloads(good, "driver: vmxnet3\n", "eth0").len(), 1);
        let bad = good
            .replace("receive-offload: on", "receive-offload: off")
            .replace(": off [fixed]", ": on");
        let switches: Vec<_> =
            broken_offloads(&bad, "", "eth0").into_iter().map(|(_, switch)| switch).collect();
        assert_eq!(switches, ["lro off", "gro on"]);
        let veth = good.replace("generic-receive-offload: on", "generic-receive-offload: off");
        assert!(broken_offloads(&veth, "driver: veth\n", "eth0").is_empty());
        assert_eq!(
            broken_offloads(
                &veth.replace("tcp-segmentation-offload: on", ""),
                "driver: veth\n",
                "eth0"
            )
            .len(),
            1
        );
    }
}
