//! A host that runs flannel: a kernel VXLAN device, neighbour, forwarding and route entries for every
//! lease, set up as flannel does, its own lease put into etcd.

use std::{fs, net::Ipv4Addr, time::Duration};

use overlay_lab::{Container, ETCD_PREFIX, Host, Lab, UPLINK, eventually};

use crate::{
    direct,
    overlay::{Overlay, SOON, network_of},
};

const SUBNET: &str = "10.1.200.0";
const MAC: &str = "c6:d2:32:6f:8f:44";

/// A flannel host, which has routes to others through its device, or, with `DirectRouting`, over the link.
pub(crate) fn become_flannel(overlay: &Overlay, host: &Host, direct: bool) -> Container {
    become_flannel_with("", overlay, host, direct)
}

/// The same with more words about its device.
fn become_flannel_with(more: &str, overlay: &Overlay, host: &Host, direct: bool) -> Container {
    let address = host.address().to_string();
    let ip = |command: &str| {
        host.ip(command.split_whitespace()).unwrap();
    };
    ip(&format!(
        "link add flannel.1 address {MAC} mtu 1450 type vxlan id 1 dev {UPLINK} local {address} dstport 8472 nolearning {more}"
    ));
    ip(&format!("address add {SUBNET}/32 dev flannel.1"));
    ip("link set flannel.1 up");
    for (agent, peer) in overlay.agents.iter().zip(overlay.lab.hosts()) {
        let status = agent.status().unwrap();
        let mac = status["lease"]["vtep_mac"].as_str().unwrap();
        let subnet = status["lease"]["subnet"].as_str().unwrap();
        if direct {
            ip(&format!("route add {subnet} via {} dev {UPLINK}", peer.address()));
            continue;
        }
        let gateway = subnet.trim_end_matches("/24");
        ip(&format!("neighbour add {gateway} lladdr {mac} dev flannel.1 nud permanent"));
        ip(&format!("route add {subnet} via {gateway} dev flannel.1 onlink"));
        host.command("bridge")
            .args(["fdb", "add", mac, "dev", "flannel.1", "dst", &peer.address().to_string()])
            .run()
            .unwrap();
    }
    fs::write(
        host.subnet_file(),
        "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.200.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
    )
    .unwrap();
    let value = format!(
        r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{MAC}"}}}}"#
    );
    overlay.etcd().put(&format!("{ETCD_PREFIX}/subnets/{SUBNET}-24"), &value).unwrap();
    host.add_container("c").unwrap()
}

/// Waits until both agents know its lease.
fn know_flannel(overlay: &Overlay) {
    for agent in &overlay.agents {
        eventually(SOON, "flannel's lease to be known", || {
            let known = agent.status()?["peers"].as_array().map_or(0, Vec::len);
            anyhow::ensure!(known == 2, "{known} peers");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_flannel_host_and_ours_exchange_pings_and_tcp() {
    for (fast_path, direct) in [(true, false), (false, false), (true, true), (false, true)] {
        let overlay =
            Overlay::with(Lab::builder().hosts(3), |options| options.fast_path(fast_path));
        if direct {
            direct::switch_on(&overlay);
        }
        let theirs = become_flannel(&overlay, overlay.lab.host(2), direct);
        know_flannel(&overlay);
        for (index, ours) in overlay.containers.iter().enumerate() {
            let host = overlay.lab.host(index);
            ours.ping(theirs.address()).unwrap();
            theirs.ping(ours.address()).unwrap();
            // flannel's hosts themselves, by the first address of their lease, and ours by its.
            ours.ping(SUBNET.parse().unwrap()).unwrap();
            theirs.ping(network_of(ours.address())).unwrap();
            let ping_from_their_host = |address: Ipv4Addr| {
                overlay
                    .lab
                    .host(2)
                    .command("ping")
                    .args(["-n", "-c1", "-W2", &address.to_string()])
                    .run()
                    .unwrap();
            };
            ping_from_their_host(ours.address());
            ping_from_their_host(network_of(ours.address()));
            for (client, server) in [(ours, &theirs), (&theirs, ours)] {
                let moved = tcp(client, server);
                assert!(moved > 50_000_000, "{moved} bytes in a second, to {}", host.name());
            }
        }
        let (hook, reason) = match (fast_path, direct) {
            (true, false) => ("from_container", "encapsulated"),
            (true, true) => ("from_container", "routed"),
            (false, false) => ("to_tunnel", "tunnel_key_set"),
            // As flannel's own: what the stack forwards leaves as it is.
            (false, true) => ("to_wire", "not_vxlan"),
        };
        let path = overlay.packets(hook, reason);
        assert!(path[0] > 100 && path[1] > 100, "{hook} {reason}: {path:?}");
    }
}

/// `Backend.GBP`: what netfilter marks on one host has that mark on the other, where the other's rules may ask for it, between hosts
/// of ours and flannel's; and what nobody marks takes the fast path.
#[test]
fn marks_are_carried_to_other_hosts() {
    const CONFIG: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","GBP":true}}"#;
    const GROUP: &str = "0x2a";
    for fast_path in [true, false] {
        let overlay =
            Overlay::of(CONFIG, Lab::builder().hosts(3), |options| options.fast_path(fast_path));
        let theirs = become_flannel_with("gbp", &overlay, overlay.lab.host(2), false);
        know_flannel(&overlay);
        let containers = [&overlay.containers[0], &overlay.containers[1], &theirs];
        let nft = |host: usize, rules: &str| {
            overlay.lab.host(host).command("nft").arg(rules).run().unwrap();
        };
        for (host, container) in containers.iter().enumerate() {
            // Where it arrives, it is counted; an answer has no mark.
            let rule = format!(
                "ip daddr {} icmp type echo-request meta mark {GROUP} counter",
                container.address()
            );
            let chain = "chain forward { type filter hook forward priority -1; ";
            nft(host, &format!("table ip groups {{ {chain}{rule}; }}; }}"));
        }
        let arrived = |host: usize| -> u64 {
            let listing = overlay
                .lab
                .host(host)
                .command("nft")
                .args(["list", "table", "ip", "groups"])
                .read()
                .unwrap();
            let (_, rest) = listing.split_once("counter packets ").unwrap();
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
            let [one, two] = [from, to].map(|host| containers[host]);
            let before = arrived(to);
            let is_fast = fast_path && from < 2;
            eventually(SOON, "what nobody marks to take the right path", || {
                let sent =
                    |host: usize| overlay.agents[host].packets("from_container", "encapsulated");
                let fast = if is_fast { sent(from)? } else { 0 };
                one.ping(two.address())?;
                anyhow::ensure!(!is_fast || sent(from)? > fast, "{from} to {to} by the stack");
                Ok(())
            })
            .unwrap();
            assert_eq!(arrived(to), before, "{from} to {to}: nobody has marked it");
            nft(
                from,
                &format!(
                    "table ip marks {{ chain forward {{ type filter hook forward priority -2; ip saddr {} icmp type echo-request meta mark set {GROUP}; }}; }}",
                    one.address()
                ),
            );
            eventually(SOON, "marks to arrive", || {
                let before = arrived(to);
                one.ping(two.address())?;
                let more = arrived(to) - before;
                anyhow::ensure!(more == 1, "{more} of one");
                Ok(())
            })
            .unwrap();
            nft(from, "delete table ip marks");
        }
        let left_to_the_stack = overlay.packets("from_uplink", "group_policy");
        assert_eq!(left_to_the_stack.map(|packets| packets > 0), [fast_path; 2]);
    }
}

/// Bytes that one second of TCP moves.
fn tcp(client: &Container, server: &Container) -> u64 {
    let server_command = server.command("iperf3").args(["-s", "-1", "-D"]);
    server_command.run().unwrap();
    let report = eventually(SOON, "iperf3 to connect", || {
        client
            .command("iperf3")
            .args(["-J", "-t1", "-c", &server.address().to_string()])
            .deadline(Duration::from_secs(20))
            .read()
    })
    .unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    report["end"]["sum_received"]["bytes"].as_u64().unwrap()
}
