//! What this host's firewall keeps from the overlay, and the command that lets it pass, in the words of whoever rules
//! there. It has to hold after that one's next reload, and to leave everything else that was set as it is.

use std::collections::HashMap;

use anyhow::Result;
use ipnetwork::Ipv4Network;

use super::{Check, Findings, Host, connections, host::output};
use crate::{
    admin::OverlayStatus,
    kernel::firewall::{Rules, Scene},
    provision::DOCKER_BRIDGE,
};

/// Of firewalld's rich rules, none comes before one of this priority.
const FIRST: &str = "rule priority=-32768";

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
        let mend = match Place::of(rule).zone() {
            Some(zone) => {
                Zones::ask(&host.tunnel(), overlay.bridge.as_deref()).await.way_from(zone)
            }
            None => way_past(rule, overlay.network),
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
        let scene = Scene {
            network: overlay.network,
            subnet: overlay.lease.subnet,
            bridge: overlay.bridge.clone(),
            tunnel: overlay.tunnel.clone(),
            uplink: overlay.uplink.name.clone(),
            direct: host.network.as_ref().is_some_and(|network| network.direct_routing),
            port: overlay.port,
            peers: Vec::new(),
        };
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
            way_for_port(rule, port),
        );
    }
}

/// Where a rule stands, by the line that tells of it.
struct Place<'a> {
    tool: &'a str,
    /// Of nftables, with its family.
    table: &'a str,
    chain: &'a str,
    /// Whether that is a chain's policy, and ufw's.
    is_ufws_policy: bool,
}

impl<'a> Place<'a> {
    fn of(rule: &'a str) -> Self {
        let (place, what) = rule.split_once(": ").unwrap_or((rule, ""));
        let (tool, table) = place.split_once(' ').unwrap_or(("iptables", "filter"));
        let is_ufws_policy = what.ends_with(" (ufw)");
        if tool == "nftables" {
            let (table, chain) = table.rsplit_once(' ').unwrap_or((table, ""));
            return Self { tool: "nft", table, chain, is_ufws_policy };
        }
        let mut words = what.split(' ');
        let chain = match words.next() {
            Some("-A") => words.next(),
            policy => policy,
        };
        Self { tool, table, chain: chain.unwrap_or_default(), is_ufws_policy }
    }

    fn is_firewallds(&self) -> bool {
        self.table == "inet firewalld"
    }

    /// What `firewall-cmd --panic-on` makes.
    fn is_panic(&self) -> bool {
        self.table.starts_with("inet firewalld_")
    }

    /// Whether ufw has made it. What an administrator has written for ufw's own chains, in its files, ufw's commands
    /// come after.
    fn is_ufws(&self) -> bool {
        self.is_ufws_policy || self.chain.starts_with("ufw-") && !self.is_before_ufws()
    }

    fn is_before_ufws(&self) -> bool {
        self.chain.starts_with("ufw-before-") || self.chain == "ufw-not-local"
    }

    /// What comes before the rule, `asking`.
    fn insert(&self, asking: &str) -> String {
        let Self { tool, table, chain, .. } = self;
        if *tool == "nft" {
            return format!("nft insert rule {table} {chain} {asking} accept");
        }
        let table = if *table == "filter" { String::new() } else { format!("-t {table} ") };
        let kept = if self.is_before_ufws() {
            " # until ufw reloads: it belongs into /etc/ufw/before.rules"
        } else {
            ""
        };
        format!("{tool} {table}-I {chain} {asking} -j ACCEPT{kept}")
    }

    /// The name behind `filter_FWD_`, and which part of the chain it is, of that name.
    fn part(&self) -> (&'a str, &'a str) {
        let name = self.chain.splitn(3, '_').nth(2).unwrap_or_default();
        let parts = ["_pre", "_log", "_deny", "_allow", "_post"];
        let part = parts.into_iter().find_map(|part| Some((name.strip_suffix(part)?, part)));
        part.unwrap_or((name, ""))
    }

    /// What firewalld has the rule for, a zone or a policy, as an option; and whether what it accepts comes later.
    fn firewallds(&self) -> (String, bool) {
        let (name, part) = self.part();
        let option = match name.strip_prefix("policy_") {
            Some(policy) => format!("--policy={policy} "),
            None if name.is_empty() => String::new(),
            None => format!("--zone={name} "),
        };
        (option, ["_pre", "_log", "_deny"].contains(&part))
    }

    /// The zone of firewalld's from which it refuses what is forwarded.
    fn zone(&self) -> Option<&'a str> {
        let is_forwarding = self.is_firewallds() && self.chain.starts_with("filter_FWD_");
        let (name, _) = is_forwarding.then(|| self.part())?;
        (!name.starts_with("policy_")).then_some(name)
    }
}

/// Now and for ever. A reload would do as well, and forget what somebody has set for now.
fn firewall_cmd(arguments: &str) -> String {
    format!("firewall-cmd {arguments} && firewall-cmd --permanent {arguments}")
}

/// ufw's command for what is to pass, in `way` and `what`. Behind a rule of its own that refuses, it has to stand first:
/// `prepend` does nothing where there is that rule already, and `delete` fails where there is none.
fn ufw(place: &Place<'_>, way: &str, what: &str) -> String {
    let allow = |verb: &str| format!("ufw {way}{verb}allow {what}");
    if place.chain.starts_with("ufw-user-") {
        return ["", "delete ", "prepend "].map(allow).join(" && ");
    }
    allow("")
}

/// The command that lets a UDP port pass.
fn way_for_port(rule: &str, port: u16) -> String {
    let place = Place::of(rule);
    if place.is_panic() {
        return "firewall-cmd --panic-off".to_owned();
    }
    if place.is_firewallds() {
        let (where_to, is_early) = place.firewallds();
        return firewall_cmd(&if is_early {
            format!("{where_to}--add-rich-rule='{FIRST} port port={port} protocol=udp accept'")
        } else {
            format!("{where_to}--add-port={port}/udp")
        });
    }
    if place.is_ufws() {
        let goes = place.chain == "OUTPUT" || place.chain.ends_with("-output");
        return ufw(&place, "", &format!("{}{port}/udp", if goes { "out " } else { "" }));
    }
    match place.tool {
        "nft" => place.insert(&format!("udp dport {port}")),
        _ => place.insert(&format!("-p udp --dport {port}")),
    }
}

/// The command that lets the overlay's packets pass, by whatever way they come and go.
fn way_past(rule: &str, network: Ipv4Network) -> String {
    let place = Place::of(rule);
    if place.is_panic() {
        return "firewall-cmd --panic-off".to_owned();
    }
    if place.is_firewallds() {
        let (where_to, _) = place.firewallds();
        return firewall_cmd(&format!(
            "{where_to}--add-rich-rule='{FIRST} family=ipv4 source address={network} destination address={network} accept'"
        ));
    }
    if place.is_ufws() {
        return ufw(&place, "route ", &format!("from {network} to {network}"));
    }
    match place.tool {
        "nft" => place.insert(&format!("ip saddr {network} ip daddr {network}")),
        _ => place.insert(&format!("-s {network} -d {network}")),
    }
}

/// In which of firewalld's zones what the overlay comes by is.
struct Zones {
    /// With a name each, and the zone where it should be.
    interfaces: Vec<(String, Option<String>, &'static str)>,
    has_dockers: bool,
}

impl Zones {
    async fn ask(tunnel: &str, bridge: Option<&str>) -> Self {
        let mut interfaces = Vec::new();
        for name in [Some(tunnel), bridge].into_iter().flatten() {
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
    fn the_port_is_opened_in_the_words_of_whoever_closes_it() {
        for (rule, mend) in [
            (
                "iptables filter: INPUT policy DROP",
                "iptables -I INPUT -p udp --dport 8472 -j ACCEPT",
            ),
            ("iptables filter: INPUT policy DROP (ufw)", "ufw allow 8472/udp"),
            ("iptables filter: OUTPUT policy DROP (ufw)", "ufw allow out 8472/udp"),
            ("nftables ip filter OUTPUT: policy drop (ufw)", "ufw allow out 8472/udp"),
            (
                "iptables filter: -A ufw-reject-input -j REJECT --reject-with icmp-port-unreachable",
                "ufw allow 8472/udp",
            ),
            ("iptables filter: -A ufw-reject-output -j REJECT", "ufw allow out 8472/udp"),
            (
                "iptables filter: -A ufw-user-input -p udp -m udp --dport 8472 -j DROP",
                "ufw allow 8472/udp && ufw delete allow 8472/udp && ufw prepend allow 8472/udp",
            ),
            (
                "iptables filter: -A ufw-before-input -p udp -j DROP",
                "iptables -I ufw-before-input -p udp --dport 8472 -j ACCEPT \
                 # until ufw reloads: it belongs into /etc/ufw/before.rules",
            ),
            (
                "iptables-legacy raw: -A PREROUTING -p udp -m udp --dport 8472 -j DROP",
                "iptables-legacy -t raw -I PREROUTING -p udp --dport 8472 -j ACCEPT",
            ),
            ("iptables filter: -A OWN -j DROP", "iptables -I OWN -p udp --dport 8472 -j ACCEPT"),
            (
                "nftables inet own in: policy drop",
                "nft insert rule inet own in udp dport 8472 accept",
            ),
            (
                "nftables inet firewalld filter_IN_drop: drop",
                "firewall-cmd --zone=drop --add-port=8472/udp && \
                 firewall-cmd --permanent --zone=drop --add-port=8472/udp",
            ),
            (
                "nftables inet firewalld filter_IN_my_zone_deny: udp dport 8472 drop",
                "firewall-cmd --zone=my_zone \
                 --add-rich-rule='rule priority=-32768 port port=8472 protocol=udp accept' && \
                 firewall-cmd --permanent --zone=my_zone \
                 --add-rich-rule='rule priority=-32768 port port=8472 protocol=udp accept'",
            ),
            (
                "nftables inet firewalld filter_OUT_policy_out: drop",
                "firewall-cmd --policy=out --add-port=8472/udp && \
                 firewall-cmd --permanent --policy=out --add-port=8472/udp",
            ),
            (
                "nftables inet firewalld filter_INPUT: reject with icmpx admin-prohibited",
                "firewall-cmd --add-port=8472/udp && firewall-cmd --permanent --add-port=8472/udp",
            ),
            (
                "nftables inet firewalld_policy_drop raw_prerouting: policy drop",
                "firewall-cmd --panic-off",
            ),
        ] {
            assert_eq!(way_for_port(rule, 8472), mend, "{rule}");
        }
    }

    #[test]
    fn the_overlay_is_let_past_where_it_is_refused() {
        let network = "10.1.0.0/16".parse().unwrap();
        for (rule, mend) in [
            (
                "iptables filter: FORWARD policy DROP",
                "iptables -I FORWARD -s 10.1.0.0/16 -d 10.1.0.0/16 -j ACCEPT",
            ),
            // Docker puts DOCKER-USER first again when it starts.
            (
                "iptables filter: -A DOCKER-USER -j DROP",
                "iptables -I DOCKER-USER -s 10.1.0.0/16 -d 10.1.0.0/16 -j ACCEPT",
            ),
            (
                "iptables-legacy raw: -A PREROUTING -j DROP",
                "iptables-legacy -t raw -I PREROUTING -s 10.1.0.0/16 -d 10.1.0.0/16 -j ACCEPT",
            ),
            (
                "nftables inet own forward: policy drop",
                "nft insert rule inet own forward ip saddr 10.1.0.0/16 ip daddr 10.1.0.0/16 accept",
            ),
            (
                "iptables filter: FORWARD policy DROP (ufw)",
                "ufw route allow from 10.1.0.0/16 to 10.1.0.0/16",
            ),
            (
                "iptables filter: -A ufw-user-forward -j REJECT",
                "ufw route allow from 10.1.0.0/16 to 10.1.0.0/16 && \
                 ufw route delete allow from 10.1.0.0/16 to 10.1.0.0/16 && \
                 ufw route prepend allow from 10.1.0.0/16 to 10.1.0.0/16",
            ),
            (
                "nftables inet firewalld filter_FWD_policy_own: drop",
                "firewall-cmd --policy=own --add-rich-rule='rule priority=-32768 family=ipv4 \
                 source address=10.1.0.0/16 destination address=10.1.0.0/16 accept' && \
                 firewall-cmd --permanent --policy=own --add-rich-rule='rule priority=-32768 family=ipv4 \
                 source address=10.1.0.0/16 destination address=10.1.0.0/16 accept'",
            ),
        ] {
            assert!(Place::of(rule).zone().is_none(), "{rule}");
            assert_eq!(way_past(rule, network), mend, "{rule}");
        }
    }

    #[test]
    fn whatever_is_in_the_zone_that_refuses_is_taken_out_of_it() {
        let rule = "nftables inet firewalld filter_FWD_public: reject with icmpx admin-prohibited";
        assert_eq!(Place::of(rule).zone(), Some("public"));
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
