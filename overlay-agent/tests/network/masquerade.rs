//! `--ip-masq`: who keeps their address and who gets the host's, and that the rules are put right again.

use std::net::Ipv4Addr;

use overlay_lab::{BRIDGE, Capture, Container, Lab, Namespace, eventually};

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
    let rows = capture.fields("ip", &["ip.src"]).unwrap();
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
    // Made once before Docker's bridge is there, and once more.
    let rules = eventually(SOON, "the rules to name the bridge", || {
        let found = list()?;
        anyhow::ensure!(found.contains(BRIDGE), "they are {found}");
        Ok(found)
    })
    .unwrap();
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

/// Docker masquerades whatever leaves a container's subnet by another device than its bridge, and firewalld whatever
/// leaves by a device of such a zone; the fast path never asks them, but a fragment, say, takes the stack. It would
/// come from another address than the rest of its flow.
#[test]
fn nobody_masquerades_inside_the_overlay() {
    for fast_path in [true, false] {
        let overlay = Overlay::with(Lab::builder(), |options| options.fast_path(fast_path));
        let [one, two] = overlay.pair();
        for (host, container) in overlay.lab.hosts().iter().zip(overlay.pair()) {
            let docker = format!(
                "-t nat -A POSTROUTING -s {}/24 ! -o docker0 -j MASQUERADE",
                network_of(container.address())
            );
            host.command("iptables").args(docker.split(' ')).run().unwrap();
            host.command("nft")
                .arg(
                    "add table ip zone; add chain ip zone post { type nat hook postrouting priority srcnat + 10; }; \
                     add rule ip zone post oifname { \"overlay.1\", \"docker0\" } masquerade",
                )
                .run()
                .unwrap();
        }
        eventually(SOON, "our rules to be there", || {
            for host in overlay.lab.hosts() {
                host.command("nft").args(["list", "table", "ip", "overlay.1"]).run()?;
            }
            Ok(())
        })
        .unwrap();
        for size in ["56", "1423", "4000"] {
            for (from, to) in [(one, two), (two, one)] {
                let seen = source_seen(&overlay, to.namespace(), "eth0", || {
                    let target = to.address().to_string();
                    from.command("ping")
                        .args(["-n", "-c1", "-W2", "-s", size, &target])
                        .run()
                        .unwrap();
                });
                assert_eq!(seen, from.address().to_string(), "{size} bytes, fast path {fast_path}");
            }
        }
        let host = overlay.lab.host(0);
        drop(overlay.agents);
        let removed = host.clean_up(env!("CARGO_BIN_EXE_overlay-agent")).unwrap();
        assert!(removed.contains("firewall"), "{removed}");
        host.command("nft").args(["list", "table", "ip", "overlay.1"]).run().unwrap_err();
    }
}

/// As flannel accepts by address: Docker without rules of its own, or a firewall that forwards nothing by itself.
#[test]
fn containers_keep_the_outside_where_forwarding_is_refused() {
    let overlay = Overlay::with(Lab::builder().hosts(3), |options| options.argument("--ip-masq"));
    let [one, two] = overlay.pair();
    for host in overlay.lab.hosts() {
        host.command("iptables").args(["-P", "FORWARD", "DROP"]).run().unwrap();
    }
    let outside = overlay.lab.host(2).address();
    eventually(SOON, "the outside to be reached", || one.ping(outside)).unwrap();
    ping(one, two.address());
    let host = overlay.lab.host(0);
    let rules = || host.command("iptables").args(["-S", "FORWARD"]).read().unwrap();
    let own = host.subnet().unwrap().subnet();
    // What is from and for containers here may go from bridge to bridge, which is not ours to let through.
    for ends in [format!("-s 10.1.0.0/16 ! -d {own}"), format!("! -s {own} -d 10.1.0.0/16")] {
        let rule = format!("-A FORWARD {ends} -m comment --comment overlay-1-network -j ACCEPT");
        assert!(rules().lines().any(|line| line == rule), "{}", rules());
    }
    drop(overlay.agents);
    host.clean_up(env!("CARGO_BIN_EXE_overlay-agent")).unwrap();
    assert!(!rules().contains("overlay"), "{}", rules());
}
