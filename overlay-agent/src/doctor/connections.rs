//! Connections that containers have with other hosts, as their sockets say: the fast path keeps no list of its own.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, SocketAddrV4},
};

use anyhow::{Context as _, Result};
use ipnetwork::Ipv4Network;
use overlay_common::packet::{PROTOCOL_TCP, PROTOCOL_UDP};
use procfs::{
    ProcResult,
    net::{TcpState, UdpState},
    process::{Process, all_processes},
};

use crate::kernel::firewall::Flow;

/// Those that processes of this host have from `subnet` with the rest of `network`, in whatever network namespace: TCP that is
/// established, and UDP sockets that are connected.
///
/// # Errors
/// Where there is no `/proc`. Processes that end meanwhile have no connections.
pub(super) fn with_other_hosts(
    network: Ipv4Network,
    subnet: Ipv4Network,
) -> Result<BTreeSet<Flow>> {
    let mut namespaces = BTreeSet::new();
    let mut flows = BTreeSet::new();
    for process in all_processes().context("listing processes")?.flatten() {
        let Ok(names) = process.namespaces() else { continue };
        let net =
            names.0.iter().find_map(|(name, space)| (name == "net").then_some(space.identifier));
        // A process that ends meanwhile speaks for nobody: another may be in its namespace.
        if let Some(net) = net.filter(|net| !namespaces.contains(net))
            && let Ok(found) = of_namespace(&process)
        {
            namespaces.insert(net);
            flows.extend(found);
        }
    }
    flows.retain(|flow: &Flow| {
        let (local, remote) = (*flow.local.ip(), *flow.remote.ip());
        subnet.contains(local) && network.contains(remote) && !subnet.contains(remote)
    });
    Ok(flows)
}

/// Of the network namespace that a process is in. Sockets of IPv6 carry IPv4, too.
fn of_namespace(process: &Process) -> ProcResult<Vec<Flow>> {
    let tcp = process.tcp()?.into_iter().chain(process.tcp6().unwrap_or_default());
    let udp = process.udp()?.into_iter().chain(process.udp6().unwrap_or_default());
    let tcp = tcp
        .filter(|entry| entry.state == TcpState::Established)
        .filter_map(|entry| flow(entry.local_address, entry.remote_address, PROTOCOL_TCP));
    let udp = udp
        .filter(|entry| entry.state == UdpState::Established)
        .filter_map(|entry| flow(entry.local_address, entry.remote_address, PROTOCOL_UDP));
    Ok(tcp.chain(udp).collect())
}

fn flow(local: SocketAddr, remote: SocketAddr, protocol: u8) -> Option<Flow> {
    Some(Flow { local: ipv4(local)?, remote: ipv4(remote)?, protocol })
}

fn ipv4(end: SocketAddr) -> Option<SocketAddrV4> {
    match end {
        SocketAddr::V4(end) => Some(end),
        SocketAddr::V6(end) => {
            end.ip().to_ipv4_mapped().map(|address| SocketAddrV4::new(address, end.port()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn sockets_that_are_connected_to_other_subnets_are_found() {
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        let server = listener.local_addr().unwrap();
        let stream = TcpStream::connect(server).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(server).unwrap();
        let ends = [
            (stream.local_addr().unwrap(), PROTOCOL_TCP),
            (socket.local_addr().unwrap(), PROTOCOL_UDP),
        ];
        let from = |subnet: &str| {
            with_other_hosts("127.0.0.0/8".parse().unwrap(), subnet.parse().unwrap()).unwrap()
        };
        let (apart, together) = (from("127.0.0.1/32"), from("127.0.0.0/30"));
        for (local, protocol) in ends {
            let wanted = flow(local, server, protocol).unwrap();
            assert!(apart.contains(&wanted), "{wanted:?}");
            assert!(!together.contains(&wanted), "{wanted:?}");
        }
    }
}
