//! What this host's firewall keeps from the overlay, and the command that lets it pass, in the words of whoever rules
//! there. It has to hold after that one's next reload, and to leave everything else that was set as it is.

use std::collections::HashMap;

use anyhow::Result;

use super::{Check, Findings, Host, connections, host::output};
use crate::{
    admin::OverlayStatus,
    kernel::firewall::{
        Rules, Scene, ServicePort,
        mend::{self, firewall_cmd},
    },
    provision::{self, DOCKER_BRIDGE},
};

/// Where firewalld's zones let everything pass.
const TRUSTED: &str = "trusted";
/// The zone that Docker makes for its bridges. It does not start where one of them is in another.
const DOCKERS: &str = "docker";

/// Whether the agent was told to let the overlay's packets past rules that somebody has written.
pub(super) async fn rules(host: &Host, found: &mut Findings) {
    let Some(overlay) = host.overlay() else { return };
    let rules = &overlay.rules;
    if !rules.honoured && !rules.concerns.is_empty() {
        let met = Met::count(host, overlay).await;
        if let Err(error) = &met {
            found.unknown(format!("how many connections meet rules: {error:#}"));
        }
        for rule in &rules.concerns {
            let meetings = met.as_ref().map_or_else(|_| String::new(), |met| met.words(rule));
            found.add(
                Check::Rules,
                format!(
                    "containers' packets to and from other hosts pass without this rule being asked{meetings}: {rule}"
                ),
                "run the agent with --rules auto",
            );
        }
    }
    for rule in &rules.refusals {
        let mend = match mend::zone(rule) {
            Some(zone) => Zones::ask(&host.tunnel(), &overlay.bridges).await.way_from(zone),
            None => mend::past(rule, overlay.network),
        };
        found.add(
            Check::Rules,
            format!("the firewall refuses whatever begins between containers here and elsewhere, one way at least: {rule}"),
            mend,
        );
    }
}

/// How many of the connections that containers here have with other hosts would meet each rule, by its text.
struct Met {
    connections: usize,
    /// For so many of them rules were asked.
    looked_at: usize,
    by_rule: HashMap<String, usize>,
}

impl Met {
    /// Thousands of rules take a millisecond for each connection.
    const MOST: usize = 2_000;

    async fn count(host: &Host, overlay: &OverlayStatus) -> Result<Self> {
        let scene = scene(host, overlay);
        let flows = connections::with_other_hosts(scene.network, scene.subnet)?;
        let connections = flows.len();
        // Of very many, as many as can be looked at.
        let step = connections.div_ceil(Self::MOST).max(1);
        let flows: Vec<_> = flows.into_iter().step_by(step).collect();
        let by_rule = Rules::met_by(&scene, &flows).await;
        Ok(Self { connections, looked_at: flows.len(), by_rule })
    }

    fn words(&self, rule: &str) -> String {
        let met = self.by_rule.get(rule).copied().unwrap_or(0);
        let looked_at = self.looked_at;
        match self.connections {
            0 => " (there is no connection with another host now)".to_owned(),
            all if all == looked_at => {
                format!(" (of {all} connections with other hosts now, {met} meet it)")
            }
            all => format!(
                " (of {all} connections with other hosts now, {met} of {looked_at} that were looked at meet it)"
            ),
        }
    }
}

/// Whether this host lets the packets pass that the tunnel's are carried in.
pub(super) fn udp_port(host: &Host, found: &mut Findings) {
    let Some(overlay) = host.overlay() else { return };
    let port = overlay.port;
    for rule in &overlay.rules.closing {
        found.add(
            Check::UdpPort,
            format!(
                "this host's firewall drops UDP port {port}, in whose packets other hosts' come or go; what does not take \
                 the fast path is lost: {rule}"
            ),
            mend::for_service(rule, ServicePort::Udp(port)),
        );
    }
}

/// Whether this host, where it has the store, lets in those who ask it.
pub(super) async fn store_ports(host: &Host, found: &mut Findings) {
    let Some(overlay) = host.overlay().filter(|_| provision::serves_etcd()) else { return };
    let scene = scene(host, overlay);
    for (service, rules) in Rules::closing(&scene, &[provision::ETCD_PORT]).await {
        for rule in rules {
            found.add(
                Check::TcpPort,
                format!(
                    "this host's firewall drops {service}, at which other hosts ask etcd: they cannot take, keep or \
                     follow leases: {rule}"
                ),
                mend::for_service(&rule, service),
            );
        }
    }
}

/// What this host's firewall is asked about.
fn scene(host: &Host, overlay: &OverlayStatus) -> Scene {
    Scene {
        network: overlay.network,
        subnet: overlay.lease.subnet,
        bridges: overlay.bridges.clone(),
        tunnel: overlay.tunnel.clone(),
        uplink: overlay.uplink.name.clone(),
        direct: host.network.as_ref().is_some_and(|network| network.direct_routing),
        port: overlay.port,
        peers: Vec::new(),
    }
}

/// In which of firewalld's zones what the overlay comes by is.
struct Zones {
    /// With a name each, and the zone where it should be.
    interfaces: Vec<(String, Option<String>, &'static str)>,
    has_dockers: bool,
}

impl Zones {
    async fn ask(tunnel: &str, bridges: &[String]) -> Self {
        let mut interfaces = Vec::new();
        for name in [tunnel].into_iter().chain(bridges.iter().map(String::as_str)) {
            let is_dockers = name == DOCKER_BRIDGE || name.starts_with("br-");
            let zone = match firewalld(&format!("--get-zone-of-interface={name}")).await {
                None => firewalld("--get-default-zone").await,
                zone => zone,
            };
            interfaces.push((name.to_owned(), zone, if is_dockers { DOCKERS } else { TRUSTED }));
        }
        let zones = firewalld("--get-zones").await.unwrap_or_default();
        Self { interfaces, has_dockers: zones.split(' ').any(|zone| zone == DOCKERS) }
    }

    /// The command that takes out of a zone whatever of the overlay's is in it. Of what is not known, the tunnel is the
    /// likeliest: nobody puts it anywhere.
    fn way_from(&self, zone: &str) -> String {
        let is_there = |(_, there, _): &&(_, Option<String>, _)| there.as_deref() == Some(zone);
        let mut to_go: Vec<_> = self.interfaces.iter().filter(is_there).collect();
        if to_go.is_empty() {
            to_go.extend(self.interfaces.first());
        }
        let mut commands = Vec::new();
        // As Docker makes it, when it is started beside firewalld.
        if !self.has_dockers && to_go.iter().any(|(.., to)| *to == DOCKERS) {
            commands.push(format!(
                "firewall-cmd --permanent --new-zone={DOCKERS} && \
                 firewall-cmd --permanent --zone={DOCKERS} --set-target=ACCEPT && firewall-cmd --reload"
            ));
        }
        let moves = to_go
            .iter()
            .map(|(name, _, to)| firewall_cmd(&format!("--zone={to} --change-interface={name}")));
        commands.extend(moves);
        commands.join(" && ")
    }
}

/// What firewalld answers, if it does.
async fn firewalld(question: &str) -> Option<String> {
    let answer = output("firewall-cmd", &[question]).await.ok()?;
    Some(answer.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_in_the_zone_that_refuses_is_taken_out_of_it() {
        let rule = "nftables inet firewalld filter_FWD_public: reject with icmpx admin-prohibited";
        assert_eq!(mend::zone(rule), Some("public"));
        let in_zones = |tunnel: &str, bridge: Option<&str>, has_dockers| {
            let tunnel = ("overlay.1".to_owned(), Some(tunnel.to_owned()), TRUSTED);
            let bridge = ("docker0".to_owned(), bridge.map(str::to_owned), DOCKERS);
            Zones { interfaces: vec![tunnel, bridge], has_dockers }.way_from("public")
        };
        let tunnel = "firewall-cmd --zone=trusted --change-interface=overlay.1 && \
            firewall-cmd --permanent --zone=trusted --change-interface=overlay.1";
        let bridge = "firewall-cmd --zone=docker --change-interface=docker0 && \
            firewall-cmd --permanent --zone=docker --change-interface=docker0";
        assert_eq!(in_zones("public", Some("docker"), true), tunnel);
        assert_eq!(in_zones("trusted", Some("public"), true), bridge);
        assert_eq!(in_zones("public", Some("public"), true), format!("{tunnel} && {bridge}"));
        assert_eq!(in_zones("trusted", None, true), tunnel);
        let made = "firewall-cmd --permanent --new-zone=docker && \
            firewall-cmd --permanent --zone=docker --set-target=ACCEPT && firewall-cmd --reload";
        let all = format!("{made} && {tunnel} && {bridge}");
        assert_eq!(in_zones("public", Some("public"), false), all);
    }
}
