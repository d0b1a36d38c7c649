use std::{fmt::Write, net::Ipv4Addr};

use proptest::prelude::*;

use super::{super::Scene, closing, each_packet, refusals, saved, scenes, texts};

pub(super) const DOCKER_20: &str = include_str!("listings/docker-20.10.txt");
pub(super) const DOCKER_28: &str = include_str!("listings/docker-28.txt");
pub(super) const UFW: &str = include_str!("listings/ufw.txt");
pub(super) const KUBERNETES: &str = include_str!("listings/kubernetes.txt");

/// Our rules, as `firewall/forward.rs` makes them.
const OURS: &str = "-A FORWARD -i overlay.1 -m comment --comment \"overlay forward\" -j ACCEPT
-A FORWARD -o overlay.1 -m comment --comment \"overlay forward\" -j ACCEPT
-A FORWARD -s 10.1.0.0/16 -m comment --comment overlay-1-network -j ACCEPT
-A FORWARD -d 10.1.0.0/16 -m comment --comment overlay-1-network -j ACCEPT
";

/// A table with FORWARD, PREROUTING and two chains of an operator's.
fn table(name: &str, policy: &str, rules: &str) -> String {
    format!(
        "*{name}\n:PREROUTING ACCEPT [0:0]\n:FORWARD {policy} [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :DOCKER-USER - [0:0]\n:OTHER - [0:0]\n{rules}\nCOMMIT\n"
    )
}

fn of(text: &str) -> Vec<String> {
    texts(&saved(text), &Scene::example())
}

/// What concerns in FORWARD of filter.
fn forward(rules: &str) -> Vec<String> {
    of(&table("filter", "ACCEPT", rules))
}

/// One more rule in a listing, in front of the others of its chain.
pub(super) fn with(listing: &str, rule: &str) -> String {
    let chain = rule.split(' ').nth(1).unwrap();
    let first = format!("-A {chain} ");
    let at = listing.find(&first).or_else(|| listing.rfind("COMMIT")).unwrap();
    format!("{}{rule}\n{}", &listing[..at], &listing[at..])
}

#[test]
fn what_everybody_has_concerns_nobody() {
    for (name, listing) in
        [("20.10", DOCKER_20), ("28", DOCKER_28), ("ufw", UFW), ("kubernetes", KUBERNETES)]
    {
        for scene in scenes() {
            // Docker's rule about another network may be about ours where the bridge is not known.
            let found = texts(&saved(listing), &scene);
            if !scene.bridges.is_empty() || name != "28" {
                assert!(found.is_empty(), "{name}, {scene:?}: {found:#?}");
            }
        }
    }
}

#[test]
fn an_internal_network_is_one_of_our_concerns_if_it_is_ours() {
    let [out, into] =
        ["! -d 10.1.15.0/24 -i docker0 -j DROP", "! -s 10.1.15.0/24 -o docker0 -j DROP"];
    for (listing, chain) in
        [(DOCKER_20, "DOCKER-ISOLATION-STAGE-1"), (DOCKER_28, "DOCKER-INTERNAL")]
    {
        for rule in [out, into].map(|rule| format!("-A {chain} {rule}")) {
            assert_eq!(of(&with(listing, &rule)), [format!("iptables filter: {rule}")]);
        }
        assert_eq!(
            of(&with(listing, "-A DOCKER-USER ! -s 172.19.0.0/16 -o br-2 -j DROP")),
            [""; 0]
        );
    }
}

#[test]
fn a_rule_in_docker_user_concerns_if_it_is_about_us() {
    let listing = |rule: &str| with(DOCKER_28, &format!("-A DOCKER-USER {rule}"));
    for rule in [
        "-s 10.1.20.0/24 -j DROP",
        "-d 10.1.15.3/32 -j DROP",
        "-s 10.0.0.0/8 -o docker0 -j DROP",
        "! -s 10.1.15.0/24 -o docker0 -j REJECT --reject-with icmp-port-unreachable",
        "! -i eth+ -j DROP",
        "-i overlay.+ -p tcp -j DROP",
        "-i + -j NFQUEUE --queue-num 0",
        "-m set --match-set blocked src -j DROP",
        "-m iprange --src-range 10.1.20.0-10.1.20.8 -j DROP",
        "-s 10.1.0.3/255.255.0.255 -j DROP",
        "-m conntrack --ctstate INVALID,NEW -j DROP",
        "-m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP",
        "-m addrtype ! --dst-type LOCAL -j DROP",
        "-m string --string \"-j\" --algo bm --to 65535 -j DROP",
        "-m foo [unsupported revision] -j DROP",
        "-m limit --limit 3/min -j LOG --log-prefix \"seen: \"",
        "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        "-j MARK --set-xmark 0x1/0xffffffff",
        "-g NOWHERE",
    ] {
        let found = of(&listing(rule));
        assert_eq!(found.len(), 1, "{rule}: {found:#?}");
        assert!(found[0].starts_with(&format!("iptables filter: -A DOCKER-USER {rule}")));
    }
    for rule in [
        "-i eth0 -j DROP",
        "-i eth+ -o docker0 -j DROP",
        "-s 192.168.0.0/16 -j DROP",
        "-d 10.1.15.3/32 -i docker0 -j DROP",
        "-s 10.1.20.0/24 -i docker0 -j DROP",
        "! -s 10.0.0.0/8 -j DROP",
        "! -o docker0 -i overlay.1 -j DROP",
        "-m conntrack --ctstate INVALID -j DROP",
        "-m addrtype --dst-type LOCAL -j DROP",
        "-s 10.1.20.0/24 -j ACCEPT",
        "-p tcp -m tcp --dport 80",
        "-m comment --comment \"-j DROP \\\" it\\'s\" -j RETURN",
    ] {
        assert_eq!(of(&listing(rule)), [""; 0], "{rule}");
    }
}

#[test]
fn with_direct_routing_the_uplink_is_a_way_too() {
    let rule = "-A FORWARD -i eth0 -j DROP";
    let listing = table("filter", "ACCEPT", rule);
    assert_eq!(of(&listing), [""; 0]);
    let direct = Scene { direct: true, ..Scene::example() };
    assert_eq!(texts(&saved(&listing), &direct), [format!("iptables filter: {rule}")]);
}

#[test]
fn an_unknown_bridge_may_be_any() {
    let listing = table("filter", "ACCEPT", "-A FORWARD -i br-9 -j DROP");
    assert_eq!(of(&listing), [""; 0]);
    let unknown = Scene { bridges: Vec::new(), ..Scene::example() };
    assert_eq!(texts(&saved(&listing), &unknown).len(), 1);
}

#[test]
fn every_chain_that_they_come_by_counts() {
    for (name, chain) in [
        ("raw", "PREROUTING"),
        ("mangle", "PREROUTING"),
        ("nat", "PREROUTING"),
        ("mangle", "FORWARD"),
        ("filter", "FORWARD"),
        ("security", "FORWARD"),
        ("mangle", "POSTROUTING"),
    ] {
        let rule = format!("-A {chain} -p tcp -m tcp --dport 80 -j DROP");
        assert_eq!(of(&table(name, "ACCEPT", &rule)), [format!("iptables {name}: {rule}")]);
    }
    assert_eq!(of(&table("nat", "ACCEPT", "-A POSTROUTING -j MASQUERADE")), [""; 0]);
    assert_eq!(of(&table("filter", "ACCEPT", "-A OTHER -j DROP")), [""; 0]);
}

#[test]
fn dockers_guards_in_raw_count_unless_they_are_for_containers_of_ours() {
    let found = |rule: &str| of(&table("raw", "ACCEPT", &format!("-A PREROUTING {rule} -j DROP")));
    assert_eq!(found("-d 10.1.15.2/32 ! -i docker0").len(), 0);
    assert_eq!(found("-d 10.1.15.2/32 ! -i br-1").len(), 1);
    assert_eq!(found("-d 10.1.15.0/24 ! -i docker0").len(), 1);
    assert_eq!(found("-d 10.1.20.2/32 ! -i br-1").len(), 1);
    assert_eq!(found("-d 10.1.15.2/32 -i overlay.1").len(), 1);
}

#[test]
fn a_policy_counts_where_nothing_accepts_before() {
    assert_eq!(of(&table("filter", "DROP", "")), ["iptables filter: FORWARD policy DROP"]);
    assert_eq!(of(&table("filter", "DROP", OURS)), [""; 0]);
    let maybe = "-A FORWARD -p tcp -j ACCEPT";
    assert_eq!(of(&table("filter", "DROP", maybe)), ["iptables filter: FORWARD policy DROP"]);
    let returns = format!("-A FORWARD -p tcp -j RETURN\n{OURS}");
    assert_eq!(of(&table("filter", "DROP", &returns)), ["iptables filter: FORWARD policy DROP"]);
}

#[test]
fn what_comes_after_a_sure_verdict_does_not_count() {
    let drop = "-A FORWARD -p tcp -j DROP";
    assert_eq!(forward(&format!("{OURS}{drop}")), [""; 0]);
    assert_eq!(forward(&format!("{drop}\n{OURS}")).len(), 1);
    assert_eq!(forward(&format!("-A FORWARD -j RETURN\n{drop}")), [""; 0]);
    let all = "-A FORWARD -j DROP";
    assert_eq!(forward(&format!("{all}\n{drop}")), [format!("iptables filter: {all}")]);
}

#[test]
fn chains_are_followed_there_and_back() {
    let drop = "-A FORWARD -p tcp -j DROP";
    let after = |rules: &str| forward(&format!("{rules}\n{drop}")).len();
    assert_eq!(after("-A FORWARD -j OTHER\n-A OTHER -j ACCEPT"), 0);
    assert_eq!(after("-A FORWARD -j OTHER\n-A OTHER -j RETURN\n-A OTHER -j ACCEPT"), 1);
    assert_eq!(after("-A FORWARD -j OTHER\n-A OTHER -p tcp -j RETURN\n-A OTHER -j ACCEPT"), 1);
    assert_eq!(after("-A FORWARD -p tcp -j OTHER\n-A OTHER -j ACCEPT"), 1);
    assert_eq!(after("-A FORWARD -g OTHER"), 0);
    assert_eq!(after("-A FORWARD -p tcp -g OTHER"), 1);
    assert_eq!(after("-A FORWARD -i eth0 -g OTHER"), 1);
    // What falls out of a chain that was gone to comes back to where the chain before was jumped to.
    let goto = "-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -g OTHER\n-A DOCKER-USER -j LOG";
    assert_eq!(after(goto), 1);
    assert_eq!(after("-A FORWARD -j OTHER\n-A OTHER -j OTHER\n-A OTHER -j ACCEPT"), 0);
}

#[test]
fn chains_that_are_nested_too_deep_count() {
    use std::fmt::Write as _;
    let mut text = "*filter\n:FORWARD ACCEPT [0:0]\n".to_owned();
    for number in 0..1000 {
        writeln!(text, ":C{number} - [0:0]").unwrap();
    }
    writeln!(text, "-A FORWARD -j C0").unwrap();
    for number in 1..1000 {
        writeln!(text, "-A C{} -j C{number}", number - 1).unwrap();
    }
    let found = of(&text);
    assert_eq!(found.len(), 1);
    assert!(found[0].ends_with("(which was not followed)"));
}

#[test]
fn ufw_counts_where_it_was_told_something_about_routing() {
    let reject = "-A ufw-user-forward -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable";
    assert_eq!(of(&with(UFW, reject)), [format!("iptables filter: {reject}")]);
    let all = "-A ufw-reject-forward -j REJECT --reject-with icmp-port-unreachable";
    assert_eq!(of(&with(UFW, all)), [format!("iptables filter: {all}")]);
}

#[test]
fn of_kubernetes_only_what_decides_counts() {
    let marks = table("mangle", "ACCEPT", "-A FORWARD -j KUBE-X\n-A KUBE-X -j MARK --set-mark 1");
    let marks = marks.replacen(":OTHER", ":KUBE-X - [0:0]\n:OTHER", 1);
    assert_eq!(of(&marks), [""; 0]);
    let rejects = marks.replace("MARK --set-mark 1", "REJECT");
    assert_eq!(of(&rejects), ["iptables mangle: -A KUBE-X -j REJECT"]);
    let admin = marks.replace("KUBE-X", "CNI-ADMIN");
    assert_eq!(of(&admin).len(), 1);
}

#[test]
fn a_line_that_makes_no_sense_counts() {
    let found = forward("-A FORWARD -m comment --comment \"open -j ACCEPT");
    assert_eq!(
        found,
        [
            "iptables filter: -A FORWARD -m comment --comment \"open -j ACCEPT (which was not understood)"
        ]
    );
    assert_eq!(of("nonsense").len(), 1);
}

/// Whether the concerns in FORWARD of filter are about single packets.
fn kinds(rules: &str) -> Vec<bool> {
    each_packet(&saved(&table("filter", "ACCEPT", rules)))
}

#[test]
fn rules_that_have_one_answer_for_a_flow_are_about_flows() {
    for rule in [
        "-j DROP",
        "! -s 10.1.15.0/25 -i docker0 -j DROP",
        "-p tcp -m tcp --dport 80 -j DROP",
        "-p tcp -m multiport ! --dports 80,443 -j REJECT --reject-with tcp-reset",
        "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP",
        "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
        "-p tcp -m tcp --tcp-flags FIN,RST NONE -j DROP",
        "-p tcp -m tcp --tcp-flags ALL FIN,PSH,URG -j DROP",
        "-p icmp -m icmp --icmp-type 8 -j DROP",
        "-m conntrack --ctstate RELATED,ESTABLISHED -j DROP",
        "-m conntrack ! --ctstate NEW --ctdir REPLY -m comment --comment \"-m limit\" -j DROP",
        "-m set ! --match-set allowed src,dst -j DROP",
        "-m connlimit --connlimit-above 3 --connlimit-mask 32 --connlimit-saddr -j REJECT",
        "-m recent --rcheck --seconds 60 --name bad --mask 255.255.255.255 --rsource -j DROP",
        "-m time --timestart 08:00:00 --weekdays Mon,Tue -j DROP",
        "-m iprange --src-range 10.1.15.1-10.1.15.9 -j DROP",
        "-m mark --mark 0x1/0x1 -j DROP",
        "-j LOG --log-prefix \"limit \"",
        "-j SET --add-set seen src",
        "-j CT --helper ftp",
    ] {
        assert_eq!(kinds(&format!("-A FORWARD {rule}")), [false], "{rule}");
    }
}

#[test]
fn rules_that_look_at_or_change_packets_are_about_packets() {
    for rule in [
        "-m limit --limit 5/sec -j DROP",
        "-m limit --limit 5/min -j LOG",
        "-p tcp -m hashlimit --hashlimit-above 5/sec --hashlimit-name x -m tcp --dport 80 -j DROP",
        "-m length --length 1000:65535 -j DROP",
        "-m string --string \"x\" --algo bm -j DROP",
        "-m statistic --mode random --probability 0.5 -j DROP",
        "-m connbytes --connbytes 1000 --connbytes-mode bytes --connbytes-dir both -j DROP",
        "-m conntrack --ctexpire 5 -j DROP",
        "-m recent --update --hitcount 4 --name bad -j DROP",
        "-m set --match-set s src --packets-gt 9 -j DROP",
        "-m future -j DROP",
        "-p tcp -m tcp --tcp-flags PSH PSH -j DROP",
        "-p tcp -m tcp --tcp-flags ALL NONE -j DROP",
        "-p tcp -m tcp --tcp-flags SYN,ACK ACK -j DROP",
        "-p tcp -m tcp --tcp-option 8 -j DROP",
        "-j DSCP --set-dscp 0x0a",
        "-j MARK --set-xmark 0x1/0xffffffff",
        "-j CONNMARK --restore-mark",
        "-j NFQUEUE --queue-num 0",
        "-j TEE --gateway 10.0.0.1",
        "-j SET --map-set s src --map-mark",
        "-j FUTURE",
        "-m comment --comment \"open -j ACCEPT",
    ] {
        assert_eq!(kinds(&format!("-A FORWARD {rule}")), [true], "{rule}");
    }
}

/// What comes behind a verdict about single packets is met by some packets of a flow only.
#[test]
fn what_comes_behind_what_parts_a_flow_is_about_packets() {
    let limit = "-m limit --limit 5/sec";
    let kinds_of = |rules: &[&str]| {
        let rules: Vec<_> = rules.iter().map(|rule| format!("-A {rule}")).collect();
        each_packet(&saved(&table("filter", "DROP", &rules.join("\n"))))
    };
    let accept = format!("FORWARD {limit} -j ACCEPT");
    assert_eq!(kinds_of(&[]), [false]);
    assert_eq!(kinds_of(&[&accept]), [true]);
    assert_eq!(kinds_of(&[&accept, "FORWARD -j DROP"]), [true]);
    assert_eq!(kinds_of(&["FORWARD -p tcp -j DROP", &accept]), [false, true]);
    let elsewhere = format!("FORWARD -i eth9 {limit} -j ACCEPT");
    assert_eq!(kinds_of(&[&elsewhere]), [false]);
    let log = format!("FORWARD {limit} -j LOG");
    assert_eq!(kinds_of(&[&log, "FORWARD -j DROP"]), [true, false]);
    // In a chain, and by what way it is reached.
    let inner = format!("OTHER {limit} -j ACCEPT");
    assert_eq!(kinds_of(&["FORWARD -j OTHER", &inner]), [true]);
    let jump = format!("FORWARD {limit} -j OTHER");
    let (drop, plain) = ("OTHER -p tcp -j DROP", "FORWARD -j OTHER");
    assert_eq!(kinds_of(&[plain, drop]), [false, false]);
    assert_eq!(kinds_of(&[&jump, drop]), [true, true]);
    assert_eq!(kinds_of(&[plain, &jump, drop]), [true, true]);
    assert_eq!(kinds_of(&[&jump, "OTHER -j DOCKER-USER", "DOCKER-USER -j ACCEPT"]), [true]);
    assert_eq!(kinds_of(&[&jump, "OTHER -j LOG"]), [true, false]);
}

/// Each chain jumps to the next twice, once under a limit.
#[test]
fn many_ways_to_a_chain_are_not_all_walked() {
    let mut text = String::from("*filter\n:FORWARD ACCEPT [0:0]\n");
    for at in 0..40 {
        writeln!(text, ":C{at} - [0:0]").unwrap();
    }
    text += "-A FORWARD -j C0\n";
    for at in 0..39 {
        let next = at + 1;
        writeln!(text, "-A C{at} -p tcp -j C{next}\n-A C{at} -m limit -j C{next}").unwrap();
    }
    text += "-A C39 -j LOG\nCOMMIT\n";
    assert_eq!(each_packet(&saved(&text)), [true]);
}

proptest! {
    #[test]
    fn nothing_panics_and_accepting_alone_never_concerns(
        rules in proptest::collection::vec(
            (
                0..3_usize,
                prop::sample::select(vec!["", "-i eth0", "! -o docker0", "-s 10.1.15.128/25", "-p tcp", "-d 10.1.0.0/16"]),
                prop::sample::select(vec!["-j ACCEPT", "-j RETURN", "-j OTHER", "-g DOCKER-USER", "-j DROP", ""]),
            ),
            0..12,
        )
    ) {
        let chains = ["FORWARD", "OTHER", "DOCKER-USER"];
        let lines: Vec<_> =
            rules.iter().map(|(chain, test, action)| format!("-A {} {test} {action}", chains[*chain])).collect();
        let found = forward(&lines.join("\n"));
        let drops = rules.iter().any(|(_, _, action)| *action == "-j DROP");
        prop_assert!(drops || found.is_empty());
    }

    #[test]
    fn no_text_panics(text in "[ -~\n]{0,80}", prefix in prop::sample::select(vec!["", "*filter\n", "*filter\n:FORWARD ", "*raw\n-A FORWARD "])) {
        of(&format!("{prefix}{text}"));
    }
}

#[test]
fn where_nothing_can_begin_the_rule_is_named() {
    const ESTABLISHED: &str = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
    let with = |policy, rules: &str| refusals(&saved(&table("filter", policy, rules)));
    let policy = ["iptables filter: FORWARD policy DROP"];
    assert_eq!(with("DROP", ""), policy);
    assert_eq!(with("DROP", ESTABLISHED), policy, "nobody has begun");
    assert_eq!(with("DROP", "-A FORWARD -i docker0 -j ACCEPT"), policy, "the other way");
    assert_eq!(with("DROP", "-A FORWARD -p tcp -m tcp --dport 80 -j ACCEPT"), [""; 0]);
    assert_eq!(with("DROP", OURS), [""; 0]);
    let all = "-A FORWARD -i overlay.1 -j REJECT --reject-with icmp-port-unreachable";
    assert_eq!(with("ACCEPT", &format!("{ESTABLISHED}{all}")), [format!("iptables filter: {all}")]);
    assert_eq!(with("ACCEPT", "-A FORWARD -s 10.1.20.0/24 -j DROP"), [""; 0], "one host's");
    let nested =
        format!("-A OTHER -p icmp -j RETURN\n-A OTHER -j DROP\n-A FORWARD -j OTHER\n{OURS}");
    assert_eq!(with("ACCEPT", &nested), ["iptables filter: -A OTHER -j DROP"], "but pings");
    let some = nested.replace("-p icmp", "-p udp");
    assert_eq!(with("ACCEPT", &some), [""; 0]);
    let nested = "-A OTHER -j DROP\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -o docker0 -g OTHER";
    assert_eq!(with("ACCEPT", nested), ["iptables filter: -A OTHER -j DROP"]);
    let new = "-A FORWARD -i overlay.1 -m conntrack --ctstate INVALID,NEW -j DROP";
    assert_eq!(with("ACCEPT", new), [format!("iptables filter: {new}")]);
    assert_eq!(with("DROP", "-A FORWARD -m state --state NEW -j ACCEPT"), [""; 0]);
    for listing in [DOCKER_20, DOCKER_28, UFW, KUBERNETES] {
        assert_eq!(refusals(&saved(listing)), [""; 0]);
    }
}

/// Nothing can begin with one peer, nor come from it.
#[test]
fn what_is_refused_of_one_peer_is_named() {
    let peer = |number| {
        let subnet = format!("10.1.{number}.0/24").parse().unwrap();
        (Ipv4Addr::new(192, 168, 33, number), subnet)
    };
    let scene = Scene { peers: vec![peer(20), peer(21)], ..Scene::example() };
    let filter = |rules: &str| {
        let text =
            format!("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n{rules}\nCOMMIT\n");
        saved(&text).rules(&scene)
    };
    let refused =
        |rules: &str| filter(rules).concerns.into_iter().filter(|rule| rule.refuses).count();
    assert_eq!(refused("-A FORWARD -s 10.1.20.0/24 -j DROP"), 1);
    assert_eq!(refused("-A FORWARD -s 10.1.22.0/24 -j DROP"), 0, "nobody's");
    assert_eq!(refused("-A FORWARD -d 10.1.20.0/25 -j DROP"), 0, "some containers'");
    let closed = |rules: &str| filter(rules).closing.len();
    assert_eq!(closed("-A INPUT -s 192.168.33.20 -p udp -j DROP"), 1);
    assert_eq!(closed("-A INPUT -s 192.168.33.22 -p udp -j DROP"), 0, "nobody's");
    let one = "-A INPUT -s 192.168.33.20 -p udp -m udp --dport 8472 -j ACCEPT\n";
    let rest = "-A INPUT -p udp -m udp --dport 8472 -j DROP";
    assert_eq!(closed(&format!("{one}{rest}")), 1);
    let other = one.replace(".20 ", ".21 ");
    assert_eq!(closed(&format!("{one}{other}{rest}")), 0);
}

/// What drops VXLAN's port in INPUT, or before it, or in OUTPUT.
#[test]
fn a_closed_port_is_found() {
    let closed = |table: &str, policy: &str, rules: &str| {
        let text = format!(
            "*{table}\n:PREROUTING ACCEPT [0:0]\n:INPUT {policy} [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n\
             :OTHER - [0:0]\n{rules}\nCOMMIT\n"
        );
        closing(&saved(&text))
    };
    let named = |rule: &str| vec![format!("iptables filter: {rule}")];
    for rule in [
        "-A INPUT -p udp -m udp --dport 8472 -j DROP",
        "-A INPUT -i eth0 -p udp -j REJECT --reject-with icmp-port-unreachable",
        "-A INPUT -i eth+ -p udp -m multiport --dports 53,8000:9000 -j DROP",
        "-A INPUT ! -i lo ! -p tcp -m comment --comment \"no\" -j DROP",
        "-A INPUT -m addrtype --dst-type LOCAL -j DROP",
        "-A OUTPUT -o eth0 -p 17 -j DROP",
    ] {
        assert_eq!(closed("filter", "ACCEPT", rule), named(rule), "{rule}");
    }
    let raw = "-A PREROUTING -p udp -m udp --dport 8472 -j DROP";
    assert_eq!(closed("raw", "ACCEPT", raw), [format!("iptables raw: {raw}")]);
    for rule in [
        "-A INPUT -p udp -m udp --dport 8473 -j DROP",
        "-A INPUT -p udp -m udp --sport 8472 -j DROP",
        "-A INPUT -p tcp -j DROP",
        "-A INPUT ! -p udp -j DROP",
        "-A INPUT -i lo -j DROP",
        "-A INPUT -s 192.0.2.0/24 -p udp -m udp --dport 8472 -j DROP",
        "-A INPUT -m conntrack --ctstate INVALID -j DROP",
        "-A INPUT -p udp -m udp --dport 8472 -m limit --limit 1/sec -j DROP",
        "-A OUTPUT -o lo -j DROP",
        "-A FORWARD -p udp -m udp --dport 8472 -j DROP",
    ] {
        assert_eq!(closed("filter", "ACCEPT", rule), Vec::<String>::new(), "{rule}");
    }
    let policy = named("INPUT policy DROP");
    let accepts = "-A INPUT -i lo -j ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A INPUT -p icmp -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT";
    assert_eq!(closed("filter", "DROP", accepts), policy);
    for open in [
        "-A INPUT -p udp -m udp --dport 8472 -j ACCEPT",
        "-A INPUT -s 192.168.33.0/24 -j ACCEPT",
        "-A INPUT -j OTHER\n-A OTHER -p udp -m multiport --dports 4789,8472 -j ACCEPT",
    ] {
        assert_eq!(closed("filter", "DROP", open), Vec::<String>::new(), "{open}");
    }
}
