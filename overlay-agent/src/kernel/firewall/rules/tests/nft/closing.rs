use super::*;

#[test]
fn what_a_device_refuses_need_not_be_the_overlays() {
    let all = [json!([{"drop": null}])];
    let of_device = native(&ruleset("netdev", "ingress", "accept", &all));
    assert!(!texts(&of_device, &Scene::example()).is_empty());
    assert_eq!(refusals(&of_device), [""; 0]);
    assert!(!refusals(&native(&ruleset("inet", "forward", "accept", &all))).is_empty());
}

/// What drops VXLAN's port in `input`, on the uplink, or in `output`.
#[test]
fn a_closed_port_is_found() {
    let closed = |hook, policy, rules: &[Value]| {
        let closed = closing(&native(&ruleset("inet", hook, policy, rules)));
        assert!(closed.iter().all(|rule| rule.starts_with("nftables inet fw c: ")), "{closed:?}");
        closed.len()
    };
    let drop = || json!({"drop": null});
    let port = |port: Value| equal(&field("udp", "dport"), &port);
    for test in [
        port(json!(8472)),
        port(json!({"set": [53, {"range": [8000, 9000]}]})),
        differs(&field("udp", "dport"), &json!(53)),
        equal(&meta("l4proto"), &json!("udp")),
        equal(&field("ip", "protocol"), &json!(17)),
        differs(&meta("iifname"), &json!("lo")),
        json!({"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}}),
    ] {
        assert_eq!(closed("input", "accept", &[json!([test, drop()])]), 1, "{test}");
    }
    for test in [
        port(json!(53)),
        equal(&field("tcp", "dport"), &json!(8472)),
        differs(&field("tcp", "dport"), &json!(22)),
        equal(&meta("l4proto"), &json!({"set": ["icmp", "tcp"]})),
        equal(&meta("iifname"), &json!("lo")),
        equal(&field("ip", "saddr"), &json!("192.0.2.1")),
        state(&json!(["established", "related"])),
    ] {
        assert_eq!(closed("input", "accept", &[json!([test, drop()])]), 0, "{test}");
    }
    assert_eq!(closed("output", "accept", &[json!([port(json!(8472)), drop()])]), 1);
    let accepts = [json!([state(&json!(["established", "related"])), {"accept": null}])];
    assert_eq!(closed("input", "drop", &accepts), 1);
    assert_eq!(closed("input", "drop", &[json!([port(json!(8472)), {"accept": null}])]), 0);
    assert_eq!(closed("forward", "drop", &[]), 0);
}

#[test]
fn a_port_that_is_closed_on_the_uplink_is_found() {
    let rule = json!([equal(&field("udp", "dport"), &json!(8472)), {"drop": null}]);
    for (devices, is_closed) in
        [(r#"device "eth0""#, true), ("devices = { eth1, eth0 }", true), ("device lo", false)]
    {
        let of_devices = format!(
            "table netdev fw {{\n\tchain c {{\n\t\ttype filter hook ingress {devices} priority filter; policy accept;\n\
             \t\tudp dport 8472 drop\n\t}}\n}}\n"
        );
        let nft = ruleset("netdev", "ingress", "accept", std::slice::from_ref(&rule));
        let sources =
            Sources { nft: Some(nft), of_devices: Some(of_devices), ..Sources::default() };
        assert_eq!(closing(&sources).len(), usize::from(is_closed), "{devices}");
        // Of other devices it is not known what they are for.
        assert_eq!(each_packet(&sources).len(), usize::from(is_closed), "{devices}");
    }
}
