//! What the firewalls that people install make of rules: ufw and firewalld, here by their listings and in `install` for
//! real.

use super::{
    closing,
    iptables::{DOCKER_20, DOCKER_28, KUBERNETES, UFW, with},
    native,
    nft::{self, DOCKER_29},
    refusals, saved,
};

/// Without Docker, and with nothing in any zone.
const FIREWALLD: &str = include_str!("listings/firewalld-alone.json");

const NONE: [&str; 0] = [];

#[test]
fn what_everybody_has_closes_no_port() {
    for listing in [DOCKER_20, DOCKER_28, KUBERNETES] {
        assert_eq!(closing(&saved(listing)), NONE);
    }
    for listing in [DOCKER_29, nft::KUBERNETES] {
        assert_eq!(closing(&native(listing)), NONE);
    }
}

#[test]
fn ufw_closes_the_port_until_it_is_told_otherwise() {
    assert_eq!(closing(&saved(UFW)), ["iptables filter: INPUT policy DROP (ufw)"]);
    let [allow, deny] = ["ACCEPT", "DROP"]
        .map(|verdict| format!("-A ufw-user-input -p udp -m udp --dport 8472 -j {verdict}"));
    assert_eq!(closing(&saved(&with(UFW, &allow))), NONE);
    assert_eq!(closing(&saved(&with(UFW, &deny))), [format!("iptables filter: {deny}")]);
}

/// It leaves its chains behind, empty.
#[test]
fn the_policy_is_not_that_of_a_ufw_that_is_off() {
    let is_kept = |line: &&str| !line.starts_with("-A ufw-");
    let off: Vec<_> = UFW.lines().filter(is_kept).collect();
    assert_eq!(closing(&saved(&off.join("\n"))), ["iptables filter: INPUT policy DROP"]);
}

/// It lets pings pass before anything else, which nobody would call a way in.
#[test]
fn ufw_lets_nothing_begin_where_it_was_told_so() {
    assert_eq!(refusals(&saved(UFW)), NONE);
    for chain in ["ufw-user-forward", "ufw-reject-forward"] {
        let all = format!("-A {chain} -j REJECT --reject-with icmp-port-unreachable");
        assert_eq!(refusals(&saved(&with(UFW, &all))), [format!("iptables filter: {all}")]);
    }
    let some = "-A ufw-user-forward -p tcp -m tcp --dport 80 -j REJECT";
    assert_eq!(refusals(&saved(&with(UFW, some))), NONE);
}

/// What it accepts of ICMP for IPv6, whatever zone it comes by, is none of the overlay's.
#[test]
fn firewalld_closes_everything_until_it_is_told_otherwise() {
    let rejects = |chain| {
        format!("nftables inet firewalld filter_{chain}_public: reject with icmpx admin-prohibited")
    };
    assert_eq!(closing(&native(FIREWALLD)), [rejects("IN")]);
    assert_eq!(refusals(&native(FIREWALLD)), [rejects("FWD")]);
    let opened = FIREWALLD.replacen("\"right\": 22", "\"right\": 8472", 1);
    assert_eq!(closing(&native(&opened)), [rejects("IN")], "of TCP");
    let opened = opened.replacen("\"tcp\"", "\"udp\"", 1);
    assert_eq!(closing(&native(&opened)), NONE);
}

#[test]
fn other_protocols_that_may_come_in_do_not_open_the_port() {
    let input = |rule: &str| format!("*filter\n:INPUT DROP [0:0]\n-A INPUT {rule}\nCOMMIT\n");
    for name in ["vrrp", "ospf", "esp", "ipencap", "103"] {
        let closed = closing(&saved(&input(&format!("-p {name} -j ACCEPT"))));
        assert_eq!(closed, ["iptables filter: INPUT policy DROP"], "{name}");
    }
    assert_eq!(closing(&saved(&input("-p udp -j ACCEPT"))), NONE);
}
