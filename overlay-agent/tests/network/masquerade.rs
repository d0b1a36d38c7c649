//! `--ip-masq`: who keeps their address and who gets the host's, and that the rules are put right again.

use std::net::Ipv4Addr;

use xtask::lab::{Capture, Container, Lab, Namespace, eventually};

use crate::overlay::{Overlay, SOON, network_of};

/// The source that `receiver` sees when `send` pings it.
fn source_seen(
    overlay: &Overlay,
    receiver: &Namespace,
    device: &str,
    send: impl FnOnce(),
) -> String {
    let filter = "icmp[icmptype] == icmp-echo";
    let mut capture = Capture::start(overlay.lab.ledger(), receiver, device, filter).unwrap();
    send();
    capture.stop().unwrap();
    let rows = capture.fields("icmp", &["ip.src"]).unwrap();
    rows.first().expect("a ping arrives")[0].clone()
}

fn ping(from: &Container, to: Ipv4Addr) {
    from.ping(to).unwrap();
}

#[test]
fn the_truth_table_of_ip_masq() {
    let overlay = Overlay::with(Lab::builder().hosts(3), |options| options.argument("--ip-masq"));
    let [one, two] = overlay.pair();
    let outside = overlay.lab.host(2);
    let hosts = [overlay.lab.host(0), overlay.lab.host(1)];
    // The third host is the outside: it knows the way to the first host's containers, as a router would.
    let subnet = format!("{}/24", network_of(one.address()));
    let via = hosts[0].address().to_string();
    outside.ip(["route", "add", &subnet, "via", &via]).unwrap();
    eventually(SOON, "the rules to be there", || {
        hosts[0].command("nft").args(["list", "table", "ip", "overlay.1"]).run().map(drop)
    })
    .unwrap();

    let seen = source_seen(&overlay, outside.namespace(), "eth0", || ping(one, outside.address()));
    assert_eq!(seen, hosts[0].address().to_string(), "container to the outside: masqueraded");
    let seen = source_seen(&overlay, two.namespace(), "eth0", || ping(one, two.address()));
    assert_eq!(seen, one.address().to_string(), "container to remote container: not");
    let seen = source_seen(&overlay, one.namespace(), "eth0", || {
        outside
            .command("ping")
            .args(["-n", "-c1", "-W2", &one.address().to_string()])
            .run()
            .unwrap();
    });
    assert_eq!(seen, outside.address().to_string(), "outside to local container: not");
    let seen = source_seen(&overlay, two.namespace(), "eth0", || {
        hosts[0]
            .command("ping")
            .args(["-n", "-c1", "-W2", "-I", &via, &two.address().to_string()])
            .run()
            .unwrap();
    });
    let own = network_of(one.address()).to_string();
    assert_eq!(seen, own, "host's own address to remote container: masqueraded");
}

#[test]
fn rules_that_somebody_removes_or_changes_come_back() {
    let overlay = Overlay::with(Lab::builder(), |options| {
        options.argument("--ip-masq").argument("--iptables-resync=1")
    });
    let host = overlay.lab.host(0);
    let list = || host.command("nft").args(["-s", "list", "table", "ip", "overlay.1"]).read();
    let rules = eventually(SOON, "the rules to be there", list).unwrap();
    assert_eq!(rules.matches("masquerade").count(), 2, "{rules}");
    for damage in [
        "delete table ip overlay.1",
        "flush chain ip overlay.1 postrouting",
        "insert rule ip overlay.1 postrouting accept",
    ] {
        host.command("nft").arg(damage).run().unwrap();
        eventually(SOON, "the rules to be as they were", || {
            let found = list()?;
            anyhow::ensure!(found == rules, "they are {found}");
            Ok(())
        })
        .unwrap();
    }
    host.command("iptables").args(["-F", "FORWARD"]).run().unwrap();
    eventually(SOON, "the forward rules to be back", || {
        let found = host.command("iptables").args(["-S", "FORWARD"]).read()?;
        anyhow::ensure!(found.matches("overlay.1").count() == 2, "there are {found}");
        Ok(())
    })
    .unwrap();
}
