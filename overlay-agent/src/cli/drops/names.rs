use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ipnetwork::Ipv4Network;
use serde::Deserialize;
use tokio::time::timeout;

use crate::{
    admin::{fetch_status, fetch_text},
    drops::ToldPacket,
};

/// Where Docker listens.
const DOCKER: &str = "/run/docker.sock";

/// How long Docker and the agent may take to say what they know.
const ANSWER: Duration = Duration::from_secs(2);

/// The least time between two questions.
const PAUSE: Duration = Duration::from_secs(1);

/// Whose addresses are in packets, as Docker and the agent know it. Where they do not answer, packets are shown without.
pub(super) struct Names {
    socket: PathBuf,
    asked: Option<Instant>,
    containers: HashMap<IpAddr, Container>,
    peers: Vec<(Ipv4Network, Ipv4Addr)>,
}

struct Container {
    name: String,
    network: String,
}

impl Names {
    pub(super) fn new(socket: PathBuf) -> Self {
        let (containers, peers) = (HashMap::new(), Vec::new());
        Self { socket, asked: None, containers, peers }
    }

    /// Says whose packet it is.
    pub(super) async fn add_to(&mut self, packet: &mut ToldPacket) {
        let addresses = [packet.ends.source, packet.ends.destination];
        let unknown = addresses.into_iter().flatten().any(|address| !self.knows(address));
        if unknown && self.asked.is_none_or(|asked| asked.elapsed() > PAUSE) {
            self.learn().await;
            self.asked = Some(Instant::now());
        }
        let mut addresses = addresses.into_iter().flatten();
        let container = addresses.find_map(|address| self.containers.get(&address));
        if let Some(container) = container {
            packet.container = Some(container.name.clone());
            packet.docker_network = Some(container.network.clone());
        }
        let outer = packet.outer.iter().flat_map(|outer| [outer.source, outer.destination]);
        let inner = [packet.ends.source, packet.ends.destination];
        packet.peer = outer.chain(inner).flatten().find_map(|address| self.peer(address));
    }

    fn knows(&self, address: IpAddr) -> bool {
        self.containers.contains_key(&address) || self.peer(address).is_some()
    }

    fn peer(&self, address: IpAddr) -> Option<Ipv4Addr> {
        let IpAddr::V4(address) = address else { return None };
        let of = |&&(subnet, public): &&(Ipv4Network, Ipv4Addr)| {
            public == address || subnet.contains(address)
        };
        self.peers.iter().find(of).map(|(_, public)| *public)
    }

    async fn learn(&mut self) {
        if let Ok(Ok(status)) = timeout(ANSWER, fetch_status(&self.socket)).await
            && let Some(overlay) = status.overlay
        {
            let peers = overlay.peers.into_iter();
            self.peers = peers.map(|peer| (peer.subnet, peer.public_ip)).collect();
        }
        let answer = timeout(ANSWER, fetch_text(Path::new(DOCKER), "/containers/json")).await;
        if let Ok(Ok(answer)) = answer {
            self.containers = containers(&answer);
        }
    }
}

/// A container in Docker's list (API 1.24 and later, `GET /containers/json`).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    #[serde(default)]
    names: Vec<String>,
    network_settings: Option<Attached>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attached {
    #[serde(default)]
    networks: HashMap<String, Place>,
}

#[derive(Deserialize)]
struct Place {
    #[serde(rename = "IPAddress", default)]
    ipv4: String,
    #[serde(rename = "GlobalIPv6Address", default)]
    ipv6: String,
}

/// Containers by address; nothing of a list that is not understood.
fn containers(list: &str) -> HashMap<IpAddr, Container> {
    let list: Vec<Listed> = serde_json::from_str(list).unwrap_or_default();
    let mut found = HashMap::new();
    for Listed { names, network_settings } in list {
        let name = names.first().map_or("", |name| name.trim_start_matches('/'));
        let networks = network_settings.map(|attached| attached.networks).unwrap_or_default();
        for (network, place) in networks {
            for address in [place.ipv4, place.ipv6] {
                if let Ok(address) = address.parse() {
                    let container = Container { name: name.to_owned(), network: network.clone() };
                    found.insert(address, container);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_those_of_dockers_list() {
        let list = r#"[{"Id":"1","Names":["/web"],"NetworkSettings":{"Networks":{"shop":{"IPAddress":"10.1.15.2",
            "GlobalIPv6Address":""},"bridge":{"IPAddress":"10.1.15.66"}}}},{"Names":["/none"],"NetworkSettings":
            {"Networks":{"none":{"IPAddress":""}}}}]"#;
        let found = containers(list);
        assert_eq!(found.len(), 2);
        let web = &found[&IpAddr::from([10, 1, 15, 2])];
        assert_eq!((&*web.name, &*web.network), ("web", "shop"));
        assert_eq!(found[&IpAddr::from([10, 1, 15, 66])].network, "bridge");
        assert!(containers("not JSON").is_empty());
    }
}
