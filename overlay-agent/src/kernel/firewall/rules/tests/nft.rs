mod closing;

use serde_json::{Value, json};

use super::{
    super::{Saved, Scene, Sources},
    closing, each_packet, native, refusals, saved, scenes, texts,
};

pub(super) const DOCKER_29: &str = include_str!("listings/docker-29.json");
pub(super) const KUBERNETES: &str = include_str!("listings/kubernetes.json");
const FIREWALLD: &str = include_str!("listings/firewalld.json");
const FIREWALLD_TRUSTED: &str = include_str!("listings/firewalld-trusted.json");
const FIREWALLD_FORWARDING: &str = include_str!("listings/firewalld-docker-forwarding.json");

/// A table with one base chain and its rules.
fn ruleset(family: &str, hook: &str, policy: &str, rules: &[Value]) -> String {
    let mut objects = vec![
        json!({"metainfo": {"version": "1.0.6", "json_schema_version": 1}}),
        json!({"table": {"family": family, "name": "fw", "handle": 4}}),
        json!({"set": {"family": family, "name": "s", "table": "fw", "type": "ipv4_addr", "handle": 4, "flags": ["interval"],
            "elem": ["1.2.3.4", {"prefix": {"addr": "10.1.20.0", "len": 24}}, {"range": ["192.168.1.1", "192.168.1.9"]}]}}),
        json!({"set": {"family": family, "name": "others", "table": "fw", "type": "ifname", "handle": 5, "elem": ["eth0", "eth1"]}}),
        json!({"set": {"family": family, "name": "empty", "table": "fw", "type": "ipv4_addr", "handle": 6}}),
        json!({"set": {"family": family, "name": "learnt", "table": "fw", "type": "ipv4_addr", "handle": 7, "flags": ["dynamic"]}}),
        json!({"chain": {"family": family, "table": "fw", "name": "c", "handle": 1, "type": "filter", "hook": hook, "prio": 0, "policy": policy}}),
        json!({"chain": {"family": family, "table": "fw", "name": "other", "handle": 2}}),
    ];
    objects.extend(rules.iter().map(|expr| {
        json!({"rule": {"family": family, "table": "fw", "chain": "c", "handle": 7, "expr": expr}})
    }));
    json!({ "nftables": objects }).to_string()
}

fn equal(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn differs(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "!=", "left": left, "right": right}})
}

fn meta(key: &str) -> Value {
    json!({"meta": {"key": key}})
}

fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn state(right: &Value) -> Value {
    json!({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": right}})
}

/// What concerns of a chain `inet fw c` in `forward` with one rule, which drops what matches.
fn dropping(tests: &[Value]) -> Vec<String> {
    let mut rule = tests.to_vec();
    rule.push(json!({"drop": null}));
    texts(&native(&ruleset("inet", "forward", "accept", &[rule.into()])), &Scene::example())
}

#[test]
fn what_everybody_has_concerns_nobody() {
    for (name, listing) in [
        ("Docker 29", DOCKER_29),
        ("Kubernetes", KUBERNETES),
        ("firewalld with a trusted tunnel", FIREWALLD_TRUSTED),
        ("firewalld that forwards to Docker's zone", FIREWALLD_FORWARDING),
    ] {
        let found = texts(&native(listing), &Scene::example());
        assert!(found.is_empty(), "{name}: {found:#?}");
    }
}

/// The tunnel is in no zone, so it is in the default one, which really does reject what is to be forwarded from it.
#[test]
fn firewalld_concerns_where_it_rejects_what_the_tunnel_brings() {
    let rejects = "nftables inet firewalld filter_FWD_public: reject with icmpx admin-prohibited";
    assert_eq!(texts(&native(FIREWALLD), &Scene::example()), [rejects]);
    assert_eq!(refusals(&native(FIREWALLD)), [rejects]);
}

#[test]
fn an_internal_network_of_docker_29_concerns_if_it_is_ours() {
    let internal = Scene { bridges: vec!["br-1".to_owned()], ..Scene::example() };
    let found = texts(&native(DOCKER_29), &internal);
    let rules = found.iter().filter(|text| text.contains("INTERNAL NETWORK")).count();
    assert_eq!(rules, 2, "{found:#?}");
}

#[test]
fn rules_that_may_match_concern() {
    let [from, source, destination] = [meta("iifname"), field("ip", "saddr"), field("ip", "daddr")];
    let net = json!({"prefix": {"addr": "10.1.20.0", "len": 24}});
    for (tests, text) in [
        (vec![equal(&field("tcp", "dport"), &json!(80))], "tcp dport 80 drop"),
        (
            vec![equal(&source, &net), differs(&destination, &json!("10.1.15.3"))],
            "ip saddr 10.1.20.0/24 ip daddr != 10.1.15.3 drop",
        ),
        (
            vec![equal(
                &source,
                &json!({"set": [{"range": ["10.1.20.1", "10.1.20.9"]}, "4.4.4.4"]}),
            )],
            "ip saddr { 10.1.20.1-10.1.20.9, 4.4.4.4 } drop",
        ),
        (vec![equal(&source, &json!("@s"))], "ip saddr @s drop"),
        (vec![equal(&source, &json!("@learnt"))], "ip saddr @learnt drop"),
        (vec![equal(&source, &json!("@unknown"))], "ip saddr @unknown drop"),
        (vec![differs(&source, &json!("@empty"))], "ip saddr != @empty drop"),
        (vec![differs(&from, &json!("eth0"))], "iifname != \"eth0\" drop"),
        (vec![differs(&from, &json!("@others"))], "iifname != @others drop"),
        (
            vec![equal(&from, &json!({"set": ["overlay*", "eth0"]}))],
            "iifname { overlay*, eth0 } drop",
        ),
        (vec![state(&json!(["invalid", "new"]))], "ct state invalid,new drop"),
        (
            vec![differs(
                &json!({"fib": {"result": "type", "flags": ["daddr", "iif"]}}),
                &json!("local"),
            )],
            "fib daddr . iif type != local drop",
        ),
        (
            vec![json!({"limit": {"rate": 3, "burst": 5, "per": "minute"}})],
            "limit rate 3/minute drop",
        ),
        (vec![json!({"xt": null})], "xt ? ? drop"),
        (
            vec![json!({"match": {"op": "<", "left": source, "right": "10.0.0.0"}})],
            "ip saddr < 10.0.0.0 drop",
        ),
        (
            vec![equal(
                &json!({"concat": [from, meta("oifname")]}),
                &json!({"set": [{"concat": ["docker0", "overlay.1"]}]}),
            )],
            "iifname . oifname { docker0 . overlay.1 } drop",
        ),
        (vec![json!({"future": {"x": 1}})], "future {\"x\":1} drop"),
        (vec![json!({"counter": {"packets": 7, "bytes": 8}})], "drop"),
    ] {
        assert_eq!(dropping(&tests), [format!("nftables inet fw c: {text}")]);
    }
}

/// Whether the concerns of a chain in `forward` are about single packets.
fn kinds(rules: &[Value]) -> Vec<bool> {
    each_packet(&native(&ruleset("inet", "forward", "accept", rules)))
}

fn flags_in(right: &Value) -> Value {
    json!({"match": {"op": "in", "left": field("tcp", "flags"), "right": right}})
}

fn masked_flags(mask: &Value, right: &Value) -> Value {
    equal(&json!({"&": [field("tcp", "flags"), mask]}), right)
}

#[test]
fn rules_that_have_one_answer_for_a_flow_are_about_flows() {
    let source = field("ip", "saddr");
    for test in [
        json!({"counter": null}),
        equal(&field("tcp", "dport"), &json!({"set": [80, {"range": [8000, 8080]}]})),
        differs(&field("th", "sport"), &json!(53)),
        equal(&meta("l4proto"), &json!({"set": ["tcp", "udp"]})),
        state(&json!(["established", "related"])),
        equal(&json!({"ct": {"key": "direction"}}), &json!("reply")),
        equal(&json!({"&": [meta("mark"), 255]}), &json!(1)),
        equal(&source, &json!("@s")),
        equal(&source, &json!("@learnt")),
        equal(&source, &json!({"set": [{"elem": {"val": "10.1.20.1", "timeout": 60}}]})),
        equal(&field("icmp", "type"), &json!("echo-request")),
        flags_in(&json!("syn")),
        flags_in(&json!(["syn", "rst"])),
        masked_flags(&json!({"|": ["fin", "syn", "rst", "ack"]}), &json!("syn")),
        masked_flags(&json!({"|": [{"|": ["syn", "ack"]}, "rst"]}), &json!({"|": ["syn", "ack"]})),
        masked_flags(&json!(23), &json!(2)),
        json!({"ct count": {"val": 20, "inv": true}}),
        json!({"xt": {"type": "match", "name": "conntrack"}}),
    ] {
        assert_eq!(kinds(&[json!([test, {"drop": null}])]), [false], "{test}");
    }
    for effect in [
        json!({"log": {"prefix": "x"}}),
        json!({"reject": null}),
        json!({"dnat": {"addr": "10.1.15.3"}}),
        json!({"notrack": null}),
        json!({"set": {"op": "add", "elem": {"elem": {"val": source, "timeout": 60}}, "set": "@learnt"}}),
        json!({"mangle": {"key": {"meta": {"key": "nftrace"}}, "value": 1}}),
        json!({"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": {"rt": {"key": "mtu"}}}}),
        json!({"vmap": {"key": source, "data": {"set": [["10.1.20.1", {"drop": null}]]}}}),
        json!({"xt": {"type": "target", "name": "LOG"}}),
    ] {
        assert_eq!(kinds(&[json!([effect])]), [false], "{effect}");
    }
}

#[test]
fn rules_that_look_at_or_change_packets_are_about_packets() {
    let source = field("ip", "saddr");
    let limit = json!({"limit": {"rate": 3, "burst": 5, "per": "second", "inv": true}});
    let limited = json!({"elem": {"val": "10.1.20.1", "limit": {"rate": 3, "per": "second"}}});
    for test in [
        limit.clone(),
        json!({"quota": {"val": 3, "val_unit": "mbytes"}}),
        equal(&meta("length"), &json!(100)),
        json!({"match": {"op": ">", "left": meta("length"), "right": 100}}),
        equal(&meta("length"), &json!({"set": [{"range": [0, 99]}]})),
        equal(&meta("length"), &json!("@learnt")),
        differs(&field("ip", "dscp"), &json!("cs1")),
        equal(&field("ip", "ttl"), &json!(1)),
        equal(&json!({"payload": {"base": "th", "offset": 0, "len": 16}}), &json!(80)),
        equal(
            &json!({"concat": [source, field("ip", "id")]}),
            &json!({"set": [{"concat": ["10.1.20.1", 7]}]}),
        ),
        equal(&json!({"numgen": {"mode": "random", "mod": 2, "offset": 0}}), &json!(0)),
        json!({"match": {"op": ">", "left": {"ct": {"key": "bytes"}}, "right": 100}}),
        equal(&source, &json!("@unknown")),
        equal(&source, &json!({"set": [limited]})),
        flags_in(&json!("psh")),
        flags_in(&json!(["syn", "ack"])),
        masked_flags(&json!({"|": ["syn", "ack"]}), &json!("ack")),
        json!({"xt": {"type": "match", "name": "tcp"}}),
        json!({"xt": {"type": "match", "name": "statistic"}}),
    ] {
        assert_eq!(kinds(&[json!([test, {"drop": null}])]), [true], "{test}");
    }
    for effect in [
        json!({"mangle": {"key": field("ip", "dscp"), "value": "cs1"}}),
        json!({"mangle": {"key": meta("mark"), "value": 1}}),
        json!({"mangle": {"key": {"ct": {"key": "mark"}}, "value": 1}}),
        json!({"queue": null}),
        json!({"fwd": {"dev": "eth0"}}),
        json!({"set": {"op": "update", "elem": source, "set": "@learnt", "stmt": [limit]}}),
        json!({"set": {"op": "add", "elem": field("ip", "length"), "set": "@learnt"}}),
        json!({"vmap": {"key": meta("length"), "data": {"set": [[100, {"drop": null}]]}}}),
        json!({"vmap": {"key": source, "data": "@nowhere"}}),
        json!({"future": null}),
        json!({"xt": {"type": "target", "name": "DSCP"}}),
    ] {
        assert_eq!(kinds(&[json!([effect])]), [true], "{effect}");
    }
}

#[test]
fn what_comes_behind_what_parts_a_flow_is_about_packets() {
    let limit = json!({"limit": {"rate": 3, "per": "second"}});
    let accept = json!([limit, {"accept": null}]);
    let ports = json!([equal(&field("tcp", "dport"), &json!(80)), {"drop": null}]);
    assert_eq!(kinds(&[ports.clone(), accept.clone()]), [false]);
    assert_eq!(kinds(&[accept.clone(), ports]), [true]);
    let policy = ruleset("inet", "forward", "drop", &[accept]);
    assert_eq!(each_packet(&native(&policy)), [true]);
    // What is done before the limit is done to all, and yet it is one rule.
    let rule = json!([{"log": null}, limit, {"drop": null}]);
    assert_eq!(kinds(&[rule]), [true]);
    let jump = json!([limit, {"jump": {"target": "other"}}]);
    let inside = json!({"rule": {"family": "inet", "table": "fw", "chain": "other", "expr": [{"drop": null}]}});
    let mut text: Value =
        serde_json::from_str(&ruleset("inet", "forward", "accept", &[jump])).unwrap();
    text["nftables"].as_array_mut().unwrap().push(inside);
    assert_eq!(each_packet(&native(&text.to_string())), [true]);
}

#[test]
fn rules_about_others_do_not_concern() {
    let [from, source] = [meta("iifname"), field("ip", "saddr")];
    for test in [
        equal(&from, &json!("eth0")),
        equal(&from, &json!("eth*")),
        equal(&from, &json!("@others")),
        differs(&from, &json!({"set": ["docker0", "overlay.1"]})),
        equal(&source, &json!("192.168.0.1")),
        equal(&source, &json!("@empty")),
        differs(&source, &json!({"prefix": {"addr": "10.0.0.0", "len": 8}})),
        state(&json!("invalid")),
        equal(&json!({"ct": {"key": "state"}}), &json!({"set": ["invalid"]})),
        equal(&json!({"fib": {"result": "type", "flags": ["daddr"]}}), &json!("local")),
        equal(&meta("nfproto"), &json!("ipv6")),
        differs(&field("ip6", "saddr"), &json!("::1")),
        equal(
            &json!({"concat": [from, meta("oifname")]}),
            &json!({"set": [{"concat": ["docker0", "eth1"]}]}),
        ),
    ] {
        assert_eq!(dropping(std::slice::from_ref(&test)), [""; 0], "{test}");
    }
}

#[test]
fn verdicts_in_maps_are_followed() {
    let vmap = |key: Value, entries: Value| {
        let rules =
            [json!([{"vmap": {"key": key, "data": {"set": entries}}}]), json!([{"drop": null}])];
        texts(&native(&ruleset("ip", "forward", "accept", &rules)), &Scene::example()).len()
    };
    let accept = json!({"accept": null});
    assert_eq!(vmap(meta("iifname"), json!([["docker0", accept], ["overlay*", accept]])), 0);
    assert_eq!(vmap(meta("iifname"), json!([["docker0", accept]])), 1);
    assert_eq!(vmap(meta("iifname"), json!([["*", accept]])), 1);
    assert_eq!(
        vmap(meta("iifname"), json!([["eth0", {"drop": null}], ["docker0", {"drop": null}]])),
        2
    );
    let states = json!([["invalid", {"drop": null}], ["established", accept]]);
    let rule = json!([{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": states}}}]);
    let found = texts(&native(&ruleset("ip", "forward", "accept", &[rule])), &Scene::example());
    assert_eq!(found, [""; 0]);
    let rule = json!([{"vmap": {"key": meta("mark"), "data": "@nowhere"}}]);
    let found = texts(&native(&ruleset("ip", "forward", "accept", &[rule])), &Scene::example());
    assert_eq!(found, ["nftables ip fw c: meta mark vmap @nowhere"]);
}

#[test]
fn a_policy_counts_where_it_is_reached() {
    let accept = json!([equal(&meta("nfproto"), &json!("ipv4")), {"accept": null}]);
    let policy = ["nftables inet fw c: policy drop"];
    let found = |rules: &[Value]| {
        texts(&native(&ruleset("inet", "forward", "drop", rules)), &Scene::example())
    };
    assert_eq!(found(&[]), policy);
    assert_eq!(found(&[accept]), [""; 0]);
    assert_eq!(found(&[json!([{"jump": {"target": "other"}}])]), policy);
}

#[test]
fn an_effect_counts_though_the_rule_goes_on_to_ask_for_more() {
    let rule = json!([{"log": {"prefix": "seen"}}, equal(&meta("iifname"), &json!("eth0")), {"drop": null}]);
    let found = texts(&native(&ruleset("inet", "forward", "accept", &[rule])), &Scene::example());
    assert_eq!(found, ["nftables inet fw c: log prefix \"seen\" iifname \"eth0\" drop"]);
}

#[test]
fn chains_count_by_their_hook() {
    let drop = [json!([{"drop": null}])];
    let count = |family, hook| {
        texts(&native(&ruleset(family, hook, "accept", &drop)), &Scene::example()).len()
    };
    for hook in ["prerouting", "forward", "postrouting", "ingress"] {
        assert_eq!(count("inet", hook), 1, "{hook}");
    }
    for (family, hook) in
        [("inet", "input"), ("inet", "output"), ("ip6", "forward"), ("arp", "input")]
    {
        assert_eq!(count(family, hook), 0, "{family} {hook}");
    }
    for (family, hook) in
        [("bridge", "input"), ("bridge", "forward"), ("netdev", "ingress"), ("netdev", "egress")]
    {
        assert_eq!(count(family, hook), 1, "{family} {hook}");
    }
    let rule = [json!([equal(&field("ether", "type"), &json!("arp")), {"drop": null}])];
    assert_eq!(
        texts(&native(&ruleset("bridge", "forward", "accept", &rule)), &Scene::example()),
        [""; 0]
    );
    let translates = ruleset("ip", "postrouting", "accept", &[json!([{"masquerade": null}])]);
    let translates = translates.replace("\"type\":\"filter\"", "\"type\":\"nat\"");
    assert_eq!(texts(&native(&translates), &Scene::example()), [""; 0]);
}

#[test]
fn our_own_table_does_not_count() {
    let ours = ruleset("ip", "forward", "accept", &[json!([{"drop": null}])]);
    let ours = ours.replace("\"fw\"", "\"overlay.1\"");
    assert_eq!(texts(&native(&ours), &Scene::example()), [""; 0]);
}

#[test]
fn what_is_no_ruleset_counts() {
    for text in [
        "",
        "{}",
        "[",
        "{\"nftables\": 3}",
        "{\"nftables\": [{}]}",
        "{\"nftables\": [{\"rule\": {\"family\": \"ip\", \"table\": \"t\", \"chain\": \"c\"}}]}",
        "{\"nftables\": [{\"rule\": {\"family\": \"ip\"}}]}",
    ] {
        let found = texts(&native(text), &Scene::example());
        assert_eq!(found.len(), 1, "{text}");
        assert!(found[0].starts_with("nftables: the ruleset cannot be read: "));
        assert_eq!(each_packet(&native(text)), [true]);
    }
}

/// A table of `iptables-nft` as both tools show it, with one rule in FORWARD.
fn both(rule: &Value, line: &str) -> Sources {
    let text = ruleset("ip", "forward", "accept", std::slice::from_ref(rule));
    let text = text.replace("\"fw\"", "\"filter\"").replace("\"c\"", "\"FORWARD\"");
    let listing = format!("*filter\n:FORWARD ACCEPT [0:0]\n{line}\nCOMMIT\n");
    Sources { nft: Some(text), ..saved(&listing) }
}

#[test]
fn a_table_of_iptables_is_looked_at_once() {
    let counter = json!({"counter": {"packets": 0, "bytes": 0}});
    let rule = json!([{"xt": {"type": "match", "name": "conntrack"}}, counter, {"drop": null}]);
    let line = "-A FORWARD -m conntrack --ctstate NEW -j DROP";
    assert_eq!(texts(&both(&rule, line), &Scene::example()), [format!("iptables filter: {line}")]);
    let masked = equal(&json!({"&": [meta("mark"), 16384]}), &json!(16384));
    let counter = json!({"counter": {"packets": 0, "bytes": 0}});
    let rule = json!([masked, counter, {"drop": null}]);
    let line = "-A FORWARD -m mark --mark 0x4000/0x4000 -j DROP";
    assert_eq!(texts(&both(&rule, line), &Scene::example()), [format!("iptables filter: {line}")]);
    // A table of the older iptables is another one.
    let mut sources = both(&rule, line);
    let saved = sources.saved.remove(0);
    sources.saved.push(Saved { tool: "iptables-legacy", is_nft: false, ..saved });
    assert_eq!(texts(&sources, &Scene::example()).len(), 2);
}

/// `iptables-save` leaves out what it does not know, so that less seems to be asked, or less done.
#[test]
fn rules_that_iptables_cannot_show_are_read_from_nft() {
    let ports =
        json!([{"vmap": {"key": field("tcp", "dport"), "data": {"set": [[80, {"drop": null}]]}}}]);
    let found = texts(&both(&ports, "-A FORWARD -p tcp"), &Scene::example());
    assert_eq!(found, ["nftables ip filter FORWARD: tcp dport vmap { 80 : drop }"]);
    for more in [
        equal(&field("ip", "saddr"), &json!({"range": ["10.1.20.1", "10.1.20.9"]})),
        equal(&meta("mark"), &json!(3)),
        json!({"log": {"group": 0}}),
        equal(&meta("iifname"), &json!({"set": ["docker0", "eth1"]})),
        state(&json!("new")),
    ] {
        let rule = json!([more, {"counter": {"packets": 0, "bytes": 0}}, {"drop": null}]);
        let found = texts(&both(&rule, "-A FORWARD -i eth9 -j DROP"), &Scene::example());
        assert_eq!(found.len(), 1, "{more}");
        assert!(found[0].starts_with("nftables ip filter FORWARD: "));
    }
    let partly = "# Table `filter' contains incompatible base-chains, use 'nft' tool to list them.\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n";
    let rule = json!([{"counter": {"packets": 0, "bytes": 0}}, {"drop": null}]);
    let sources = Sources { nft: both(&rule, "").nft, ..saved(partly) };
    assert_eq!(texts(&sources, &Scene::example()), ["nftables ip filter FORWARD: drop"]);
}

#[test]
fn a_ruleset_of_any_scene_is_read() {
    for scene in scenes() {
        for listing in [DOCKER_29, KUBERNETES, FIREWALLD] {
            let found = texts(&native(listing), &scene);
            assert!(found.iter().all(|text| !text.contains('\n')));
        }
    }
}
