//! The command that lets pass what a rule of the host's firewall keeps from the overlay, in the words of whoever rules
//! there.

use ipnetwork::Ipv4Network;

use super::ServicePort;

/// Of firewalld's rich rules, none comes before one of this priority.
const FIRST: &str = "rule priority=-32768";

/// The zone of firewalld's from which a rule refuses what is forwarded, if it is one of those.
pub fn zone(rule: &str) -> Option<&str> {
    Place::of(rule).zone()
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
pub fn firewall_cmd(arguments: &str) -> String {
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

/// The command that lets pass what others send to this service, which the rule drops.
pub fn for_service(rule: &str, service: ServicePort) -> String {
    let place = Place::of(rule);
    let (protocol, port) = service.parts();
    if place.is_panic() {
        return "firewall-cmd --panic-off".to_owned();
    }
    if place.is_firewallds() {
        let (where_to, is_early) = place.firewallds();
        return firewall_cmd(&if is_early {
            format!(
                "{where_to}--add-rich-rule='{FIRST} port port={port} protocol={protocol} accept'"
            )
        } else {
            format!("{where_to}--add-port={port}/{protocol}")
        });
    }
    if place.is_ufws() {
        let goes = place.chain == "OUTPUT" || place.chain.ends_with("-output");
        return ufw(&place, "", &format!("{}{port}/{protocol}", if goes { "out " } else { "" }));
    }
    match place.tool {
        "nft" => place.insert(&format!("{protocol} dport {port}")),
        _ => place.insert(&format!("-p {protocol} --dport {port}")),
    }
}

/// The command that lets the overlay's packets pass, by whatever way they come and go.
pub fn past(rule: &str, network: Ipv4Network) -> String {
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
            assert_eq!(for_service(rule, ServicePort::Udp(8472)), mend, "{rule}");
        }
    }

    #[test]
    fn a_port_of_tcp_is_opened_as_one_of_udp_is() {
        for (rule, mend) in [
            (
                "iptables filter: INPUT policy DROP",
                "iptables -I INPUT -p tcp --dport 2379 -j ACCEPT",
            ),
            ("iptables filter: INPUT policy DROP (ufw)", "ufw allow 2379/tcp"),
            (
                "nftables inet own in: policy drop",
                "nft insert rule inet own in tcp dport 2379 accept",
            ),
            (
                "nftables inet firewalld filter_IN_drop: drop",
                "firewall-cmd --zone=drop --add-port=2379/tcp && \
                 firewall-cmd --permanent --zone=drop --add-port=2379/tcp",
            ),
        ] {
            assert_eq!(for_service(rule, ServicePort::Tcp(2379)), mend, "{rule}");
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
            assert!(zone(rule).is_none(), "{rule}");
            assert_eq!(past(rule, network), mend, "{rule}");
        }
    }
}
