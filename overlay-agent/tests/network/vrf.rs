//! The routing rule for an uplink in a VRF, which needs no VRF to be seen.

use std::num::NonZeroU32;

use overlay_agent::kernel::{
    netlink::{Underlay, Vrf, connect, remove_vrf_rules},
    repairs,
};
use overlay_lab::Lab;

const PORT: u16 = 8472;

#[test]
fn the_rule_for_a_vrf_is_made_once_follows_and_goes() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let rules = || host.ip(["rule"]).unwrap();
    // As an agent that has just started.
    let follow = |table: Option<u32>, port: u16| {
        let before = repairs::count();
        let ifindex = NonZeroU32::MIN;
        let (vrf, source) = (table.map(|table| Vrf { ifindex, table }), host.address());
        let in_host = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime
                .block_on(async { Underlay::new(vrf).follow(&connect()?, vrf, source, port).await })
        };
        host.namespace().within(in_host).unwrap();
        repairs::count() - before
    };
    // Of the same priority, and nobody's business but its owner's.
    let others = "rule add priority 1000 from 192.0.2.7 lookup 7";
    host.ip(others.split(' ')).unwrap();
    let none = rules();

    for table in [17, 1700] {
        follow(Some(table), PORT);
        let made = rules();
        let source = host.address();
        let wanted = format!("from {source} ipproto udp dport {PORT} lookup {table} proto 111");
        let ours: Vec<_> = made.lines().filter(|line| line.contains("proto 111")).collect();
        assert!(matches!(ours[..], [rule] if rule.contains(&wanted)), "{made}");
        assert_eq!(follow(Some(table), PORT), 0, "it was there");
        assert_eq!(rules(), made);
    }
    follow(Some(17), PORT + 1);
    follow(None, PORT);
    let left = rules();
    assert_eq!(left.matches("proto 111").count(), 1, "another network's stays: {left}");

    let remove = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { remove_vrf_rules(&connect()?, |_| false).await })
    };
    assert_eq!(host.namespace().within(remove).unwrap(), 1);
    assert_eq!(rules(), none);
}
