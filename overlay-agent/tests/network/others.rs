//! Hosts as people have them: addresses, routes and rules of their own beside the overlay's.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;
use overlay_lab::{AgentOptions, ETCD_PREFIX, Host, Lab, NETWORK_CONFIG, UPLINK, eventually};

use crate::{
    direct,
    overlay::{Overlay, SOON, network_of, peers_file},
};

/// flannel routes subnets that are leased; in a network as wide as 10.0.0.0/8, a name server or etcd may well be
/// among the addresses that are not.
#[test]
fn an_address_in_no_lease_is_the_hosts_own_business() {
    let overlay =
        Overlay::with(Lab::builder().hosts(3), |options| options.argument("--ip-masq=false"));
    let [one, two] = overlay.pair();
    let [host, outside] = [overlay.lab.host(0), overlay.lab.host(2)];
    outside.ip(["address", "add", "10.1.250.2/32", "dev", "lo"]).unwrap();
    let gateway = outside.address().to_string();
    let ping = |address: &str| host.command("ping").args(["-n", "-c1", "-W2", address]).run();
    ping("10.1.250.2").unwrap_err();
    host.ip(["route", "add", "default", "via", &gateway]).unwrap();
    ping("10.1.250.2").unwrap();
    let masquerade = format!(
        "-t nat -A POSTROUTING -s {}/24 ! -o docker0 -j MASQUERADE",
        network_of(one.address())
    );
    host.command("iptables").args(masquerade.split(' ')).run().unwrap();
    one.ping("10.1.250.2".parse().unwrap()).unwrap();
    one.ping(two.address()).unwrap();

    // In no lease, and nobody's: an answer, and no silence.
    host.ip(["route", "del", "default"]).unwrap();
    let address = "10.1.251.7";
    let said = one.command("ping").args(["-n", "-c1", "-W2", address]).output().unwrap();
    assert!(said.stdout.contains("Unreachable"), "{said:?}");
}

#[test]
fn leased_subnets_are_routed_and_nothing_else() {
    let overlay = Overlay::new();
    let [one, two] = overlay.pair();
    let [mine, theirs] =
        [one, two].map(|container| format!("{}/24", network_of(container.address())));
    let host = overlay.lab.host(0);
    let routes = || host.ip(["route", "show", "proto", "111"]).unwrap();
    let source = network_of(one.address());
    let route =
        |subnet: &str| format!("{subnet} via 169.254.1.1 dev overlay.1 src {source} onlink");
    let wait_for = |wanted: &[String]| {
        eventually(SOON, "the routes", || {
            let found: Vec<_> = routes().lines().map(|line| line.trim_end().to_owned()).collect();
            anyhow::ensure!(found == wanted, "{found:?}, not {wanted:?}");
            Ok(())
        })
        .unwrap();
    };
    wait_for(&[route(&theirs)]);
    let key = format!("{ETCD_PREFIX}/subnets/10.1.200.0-24");
    let value = r#"{"PublicIP":"192.168.33.99","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;
    overlay.etcd().put(&key, value).unwrap();
    let mut wanted = vec![route(&theirs), route("10.1.200.0/24")];
    wanted.sort_by_key(|route| route.split('.').nth(2).and_then(|third| third.parse::<u8>().ok()));
    wait_for(&wanted);
    overlay.etcd().delete(&key).unwrap();
    wait_for(&[route(&theirs)]);
    assert!(!routes().contains(&mine));

    // What an earlier version has made goes, what somebody removes comes back, also with the device.
    host.ip(["route", "add", "10.1.0.0/16", "via", "169.254.1.1", "dev", "overlay.1", "onlink"])
        .unwrap();
    host.ip(["route", "del", &theirs]).unwrap();
    eventually(SOON, "the earlier version's route to be gone", || {
        let all = host.ip(["route"])?;
        anyhow::ensure!(!all.contains("10.1.0.0/16"), "{all}");
        Ok(())
    })
    .unwrap();
    wait_for(&[route(&theirs)]);
    host.ip(["link", "del", "overlay.1"]).unwrap();
    wait_for(&[route(&theirs)]);
    overlay.ping();
}

#[test]
fn another_ones_route_to_a_leased_subnet_is_left_alone_and_named() {
    let mut overlay = Overlay::with(Lab::builder().hosts(3), |options| options);
    let subnet = format!("{}/24", network_of(overlay.containers[1].address()));
    let via = overlay.lab.host(2).address().to_string();
    let host = overlay.lab.host(0);
    host.ip(["route", "replace", &subnet, "via", &via, "dev", UPLINK]).unwrap();
    let theirs = || {
        let routes = host.ip(["route", "show", &subnet]).unwrap();
        assert!(routes.contains(&via) && !routes.contains("overlay.1"), "{routes}");
    };
    overlay.agents[0]
        .wait_status(SOON, "the other's route to be named", |status| {
            let text = status.to_string();
            anyhow::ensure!(text.contains("somebody else's") && text.contains(&subnet), "{text}");
            Ok(())
        })
        .unwrap();
    theirs();
    host.ip(["route", "del", &subnet]).unwrap();
    overlay.agents[0]
        .wait_status(SOON, "all to be well", |status| {
            let text = status.to_string();
            anyhow::ensure!(!text.contains("somebody else's"), "{text}");
            Ok(())
        })
        .unwrap();
    let routes = host.ip(["route", "show", &subnet]).unwrap();
    assert!(routes.contains("overlay.1"), "{routes}");
}

/// As flannel's device has it for `local`; peers drop what comes from an address that no lease has.
#[test]
fn outer_packets_come_from_the_public_address_of_several() {
    const SECOND: &str = "192.168.33.110";
    let lab = Lab::builder().start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let options = AgentOptions::new(env!("CARGO_BIN_EXE_overlay-agent"), &etcd);
    let [one, two] = [0, 1].map(|index| lab.host(index));
    one.ip(["address", "add", &format!("{SECOND}/24"), "dev", UPLINK]).unwrap();
    for fast_path in [true, false] {
        let of_one = options.clone().fast_path(fast_path).any_address();
        let of_one = of_one.argument(&format!("--public-ip={SECOND}"));
        let agents = [
            one.start_agent(&of_one).unwrap(),
            two.start_agent(&options.clone().fast_path(fast_path)).unwrap(),
        ];
        let name = format!("c{}", u8::from(fast_path));
        let containers = [one, two].map(|host| host.add_container(&name).unwrap());
        eventually(SOON, "containers to be reachable", || {
            containers[0].ping(containers[1].address())?;
            containers[1].ping(containers[0].address())
        })
        .unwrap();
        let mut wire = two.capture("udp port 8472").unwrap();
        containers[0].ping(containers[1].address()).unwrap();
        let target = containers[1].address().to_string();
        one.command("ping").args(["-n", "-c1", "-W2", &target]).run().unwrap();
        wire.stop().unwrap();
        let sources = wire.fields("icmp.type == 8", &["ip.src"]).unwrap();
        assert!(sources.len() >= 2, "{sources:?}");
        for row in sources {
            assert!(row[0].starts_with(SECOND), "{row:?}, fast path {fast_path}");
        }
        drop(agents);
    }
}

/// The kernel checks return paths where distributions tell it to, by the route back and the address of the answer.
#[test]
fn direct_routing_works_where_return_paths_are_checked() {
    let overlay = Overlay::new();
    for host in overlay.lab.hosts() {
        for interface in ["all", "default", UPLINK, "docker0", "overlay.1"] {
            let setting = format!("net/ipv4/conf/{interface}/rp_filter=1");
            host.command("sysctl").args(["-q", "-w", &setting]).run().unwrap();
        }
    }
    direct::switch_on(&overlay);
    let [one, two] = overlay.pair();
    let host = overlay.lab.host(0);
    let ping_from_host =
        |address: String| host.command("ping").args(["-n", "-c1", "-W2", &address]).run().map(drop);
    eventually(SOON, "the peers' routes to be direct", || {
        for (on, to) in overlay.lab.hosts().iter().zip([two, one]) {
            let routes = on.ip(["route", "show", &format!("{}/24", network_of(to.address()))])?;
            anyhow::ensure!(routes.contains("dev eth0"), "{routes}");
        }
        Ok(())
    })
    .unwrap();
    ping_from_host(two.address().to_string()).unwrap();
    ping_from_host(network_of(two.address()).to_string()).unwrap();
    one.ping(network_of(two.address())).unwrap();
    // More than one packet carries: by the stack, both ways.
    one.command("ping")
        .args(["-n", "-c1", "-W2", "-s", "4000", &two.address().to_string()])
        .run()
        .unwrap();
    overlay.ping();
    drop(overlay.agents);
    host.clean_up(env!("CARGO_BIN_EXE_overlay-agent")).unwrap();
    let left = host.ip(["route", "show", "proto", "111"]).unwrap();
    assert_eq!(left.trim(), "");
}

/// As the kernel routes it, whatever the uplink is.
#[test]
fn a_peer_behind_another_interface_is_reached_by_that() {
    let overlay = Overlay::new();
    let [one, two] = overlay.pair();
    let [host, peer] = [0, 1].map(|index| overlay.lab.host(index));
    let there = peer.namespace().name();
    let veth = ["link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", there];
    host.ip(veth).unwrap();
    for (on, address) in [(host, "172.20.0.1/24"), (peer, "172.20.0.2/24")] {
        on.ip(["address", "add", address, "dev", "eth1"]).unwrap();
        on.ip(["link", "set", "eth1", "up"]).unwrap();
    }
    let ways = [(host, peer.address(), "172.20.0.2"), (peer, host.address(), "172.20.0.1")];
    for (on, to, via) in ways {
        on.ip(["route", "add", &to.to_string(), "via", via, "dev", "eth1"]).unwrap();
    }
    let elsewhere = overlay.rise("from_container", "other_way");
    eventually(SOON, "the way to be known", || {
        one.ping(two.address())?;
        two.ping(one.address())?;
        anyhow::ensure!(elsewhere.of(&overlay).iter().all(|packets| *packets > 0), "not yet");
        Ok(())
    })
    .unwrap();
    let mut uplink = host.capture("udp port 8472").unwrap();
    one.ping(two.address()).unwrap();
    two.ping(one.address()).unwrap();
    uplink.stop().unwrap();
    assert_eq!(uplink.fields("udp", &["frame.number"]).unwrap(), Vec::<Vec<String>>::new());

    for (on, to, _) in ways {
        on.ip(["route", "del", &to.to_string()]).unwrap();
    }
    let encapsulated = overlay.rise("from_container", "encapsulated");
    eventually(SOON, "the fast path again", || {
        overlay.ping();
        anyhow::ensure!(encapsulated.of(&overlay).iter().all(|packets| *packets > 0), "not yet");
        Ok(())
    })
    .unwrap();
}

/// With rules of the host's own, its main table does not tell where packets go.
#[test]
fn rules_are_followed_at_once() {
    let overlay = Overlay::with(Lab::builder().hosts(3), |options| options);
    let [host, peer, router] = [0, 1, 2].map(|index| overlay.lab.host(index));
    for setting in ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0"] {
        router.command("sysctl").args(["-q", "-w", setting]).run().unwrap();
    }
    let setting = "net/ipv4/conf/eth0/send_redirects=0";
    router.command("sysctl").args(["-q", "-w", setting]).run().unwrap();
    let (to, via) = (peer.address().to_string(), router.address().to_string());
    host.ip(["route", "add", "default", "via", &via, "dev", UPLINK, "table", "100"]).unwrap();
    let ours = format!("udp port 8472 and src {}", host.address());
    let seen_by_router = || {
        let mut capture = router.capture(&ours).unwrap();
        overlay.ping();
        capture.stop().unwrap();
        !capture.fields("udp", &["frame.number"]).unwrap().is_empty()
    };
    assert!(!seen_by_router());
    host.ip(["rule", "add", "to", &to, "lookup", "100"]).unwrap();
    eventually(Duration::from_secs(2), "the rule's way", || {
        anyhow::ensure!(seen_by_router(), "the old one");
        Ok(())
    })
    .unwrap();
    let fast = overlay.rise("from_container", "encapsulated");
    overlay.ping();
    assert!(fast.of(&overlay)[0] > 0, "by the uplink still");
    host.ip(["rule", "del", "to", &to, "lookup", "100"]).unwrap();
    eventually(Duration::from_secs(2), "the main table's way", || {
        anyhow::ensure!(!seen_by_router(), "the rule's");
        Ok(())
    })
    .unwrap();
}

/// A rule may go by protocol and port, which the outer packets have: found by `cargo xtask test world`.
#[test]
fn rules_about_the_port_of_the_tunnel_are_followed() {
    let overlay = Overlay::new();
    let [one, two] = overlay.pair();
    let host = overlay.lab.host(0);
    overlay.ping();
    let rule = "ipproto udp dport 8472 prohibit";
    let change = |verb: &str| {
        host.ip(["rule", verb].into_iter().chain(rule.split(' '))).unwrap();
    };
    change("add");
    eventually(SOON, "nothing to leave any more", || {
        anyhow::ensure!(one.ping(two.address()).is_err(), "it still does");
        Ok(())
    })
    .unwrap();
    change("del");
    eventually(SOON, "the way to be free again", || one.ping(two.address())).unwrap();
}

/// With `br_netfilter`, which Docker loads, what a container sends to a neighbour's published port is translated on the
/// bridge, and is never the host's: found by `cargo xtask test world`.
#[test]
fn a_neighbours_published_port_is_reached_where_bridges_ask_netfilter() {
    let overlay = Overlay::new();
    let one = &overlay.containers[0];
    let host = overlay.lab.host(0);
    let neighbour = host.add_container("neighbour").unwrap();
    let setting = "net.bridge.bridge-nf-call-iptables=1";
    if !host.command("sysctl").args(["-q", "-w", setting]).output().unwrap().status.success() {
        println!("this kernel's bridges ask nobody");
        return;
    }
    let publish = format!(
        "-t nat -A PREROUTING -p icmp -d {} -j DNAT --to-destination {}",
        host.address(),
        one.address()
    );
    host.command("iptables").args(publish.split(' ')).run().unwrap();
    eventually(SOON, "the neighbour's published port", || neighbour.ping(host.address())).unwrap();
}

/// The network config of somebody who has counted their own hosts among the overlay's addresses.
#[test]
fn no_subnet_is_taken_over_a_network_that_the_host_is_in() {
    let lab = Lab::builder().start().unwrap();
    // Three subnets: that of the wire in the middle.
    let config = r#"{"Network":"192.168.32.0/22","SubnetLen":24,"SubnetMin":"192.168.32.0","SubnetMax":"192.168.34.0","Backend":{"Type":"vxlan"}}"#;
    let etcd = lab.start_etcd(config).unwrap();
    let options = AgentOptions::new(env!("CARGO_BIN_EXE_overlay-agent"), &etcd);
    let mut agents: Vec<_> =
        lab.hosts().iter().map(|host| host.start_agent(&options).unwrap()).collect();
    let subnets = agents.iter().map(|agent| agent.status().unwrap()["lease"]["subnet"].to_string());
    let mut subnets: Vec<_> = subnets.collect();
    subnets.sort();
    assert_eq!(subnets, ["\"192.168.32.0/24\"", "\"192.168.34.0/24\""]);
    for agent in &mut agents {
        agent
            .wait_status(SOON, "such a config to be named", |status| {
                let problems = status["problems"].to_string();
                let named = problems.contains("192.168.32.0/22 and 192.168.33.");
                anyhow::ensure!(named, "{problems}");
                Ok(())
            })
            .unwrap();
    }
}

/// W7: while the agent does not read, routes come and go until the kernel has no more room to tell of them; in their
/// midst, the way to the peer becomes another.
#[test]
fn a_route_that_changes_while_the_kernel_has_no_room_to_tell_is_followed() {
    let mut overlay = Overlay::with(Lab::builder().hosts(3), |options| options);
    let way = format!("{}/32 via {}", overlay.lab.host(1).address(), overlay.lab.host(2).address());
    overlay.ping();
    overlay.agents[0].process().signal(Signal::SIGSTOP).unwrap();
    let host = overlay.lab.host(0);
    let churn = |verb| {
        let lines: Vec<_> = (0..2000)
            .map(|n| format!("route {verb} 198.18.{}.{}/32 dev {UPLINK}", n / 250, n % 250))
            .collect();
        let text = lines.join("\n") + "\n";
        host.command("ip").args(["-batch", "-"]).input(text).run().unwrap();
    };
    let lost = lost_messages(host);
    eventually(SOON, "messages to be lost", || {
        churn("add");
        churn("del");
        anyhow::ensure!(lost_messages(host) > lost, "none is");
        Ok(())
    })
    .unwrap();
    host.command("ip").args(["route", "add"]).args(way.split(' ')).run().unwrap();
    churn("add");
    churn("del");
    overlay.agents[0].process().signal(Signal::SIGCONT).unwrap();
    let sent = overlay.rise("from_container", "encapsulated");
    eventually(SOON, "packets to go by the router", || {
        let before = forwarded(overlay.lab.host(2));
        overlay.containers[0].ping(overlay.containers[1].address())?;
        anyhow::ensure!(forwarded(overlay.lab.host(2)) > before, "they do not");
        Ok(())
    })
    .unwrap();
    assert!(sent.of(&overlay)[0] > 0, "by the fast path");
}

/// As a host has that takes part in BGP. Nobody asks for the whole table, neither idle nor because one of them changes.
#[test]
fn two_hundred_thousand_routes_cost_next_to_nothing() {
    const ROUTES: u32 = 200_000;
    let lab = Lab::builder().start().unwrap();
    let lines = (0..ROUTES).map(|number| {
        let [_, high, middle, low] = number.to_be_bytes();
        format!("route add 100.{}.{middle}.{low}/32 dev {UPLINK}\n", 64 + high)
    });
    let lines: String = lines.collect();
    lab.host(0).command("ip").args(["-batch", "-"]).input(lines).run().unwrap();
    let options = peers_file(&lab);
    let mut overlay = Overlay::on(lab, None, options);
    let pids = [0, 1].map(|host| overlay.agents[host].process().pid());
    let host = overlay.lab.host(0);
    let shares = || {
        let period = Duration::from_secs(4);
        let before = pids.map(ticks);
        std::thread::sleep(period);
        let after = pids.map(ticks);
        [0, 1].map(|host| f64::from(after[host] - before[host]) / 100.0 / period.as_secs_f64())
    };
    // Containers have just come: an interface more or less may change any route.
    let idle = || {
        let [many, few] = shares();
        anyhow::ensure!(many < few + 0.1, "{many:.3} of a core, {few:.3} without those routes");
        Ok((many, few))
    };
    let (many, few) = eventually(SOON * 3, "an idle agent", idle).unwrap();
    let changing = std::thread::scope(|scope| {
        let shares = scope.spawn(shares);
        for verb in ["add", "del"].into_iter().cycle().take(20) {
            host.ip(["route", verb, "198.18.0.1/32", "dev", UPLINK]).unwrap();
            std::thread::sleep(Duration::from_millis(200));
        }
        shares.join().unwrap()[0]
    });
    println!(
        "{ROUTES} routes: {many:.3} of a core, {changing:.3} while one changes five times a second; \
         without them: {few:.3}"
    );
    // To read the table once a second alone would be more.
    assert!(changing < few + 0.1, "{changing:.3} of a core, {few:.3} without those routes");

    // And the one that matters among them is followed.
    let peer = overlay.lab.host(1).address().to_string();
    host.ip(["route", "add", "blackhole", &peer]).unwrap();
    let [one, two] = overlay.pair();
    eventually(SOON, "the peer to be out of reach", || {
        anyhow::ensure!(one.ping(two.address()).is_err(), "still reached");
        Ok(())
    })
    .unwrap();
    host.ip(["route", "del", "blackhole", &peer]).unwrap();
    eventually(SOON, "the peer to be back", || one.ping(two.address())).unwrap();
}

/// What a process has used so far, in hundredths of a second (`USER_HZ`).
fn ticks(pid: i32) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    [11, 12].map(|field| fields[field].parse::<u32>().unwrap()).iter().sum()
}

/// Such a route matters to nobody when it is made.
#[test]
fn a_route_that_is_older_than_the_peer_it_leads_to_counts() {
    let overlay = Overlay::new();
    let (host, router) = (overlay.lab.host(0), overlay.lab.host(1).address());
    let looks = |count| {
        let number = || overlay.agents[0].status().unwrap()["verifications"].as_u64().unwrap();
        let before = number();
        eventually(SOON, "the agent to look", || {
            anyhow::ensure!(number() >= before + count, "{} looks", number() - before);
            Ok(())
        })
        .unwrap();
    };
    // Containers that have just come are a reason to look at everything.
    looks(12);
    host.ip(["route", "add", "198.18.7.0/24", "via", &router.to_string()]).unwrap();
    looks(4);
    let key = format!("{ETCD_PREFIX}/subnets/10.1.200.0-24");
    let value = r#"{"PublicIP":"198.18.7.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;
    overlay.etcd().put(&key, value).unwrap();
    let pin = host.pins().join("peers");
    eventually(SOON, "the peer to be reached by the router", || {
        let dump =
            host.command("bpftool").args(["-j", "map", "dump", "pinned"]).arg(&pin).read()?;
        let dump: serde_json::Value = serde_json::from_str(&dump)?;
        let entries = dump.as_array().into_iter().flatten();
        let mut values = entries.map(|entry| &entry["formatted"]["value"]);
        let peer = values.find(|peer| peer["public_address"] == serde_json::json!([198, 18, 7, 9]));
        let next_hop = peer.map(|peer| peer["next_hop"].clone());
        anyhow::ensure!(next_hop == Some(serde_json::json!(router.octets())), "{dump}");
        Ok(())
    })
    .unwrap();
}

/// How many messages of the kernel's the sockets on a host have had no room for.
fn lost_messages(host: &Host) -> u64 {
    let sockets = read_on(host, "/proc/thread-self/net/netlink");
    let drops = sockets.lines().skip(1).filter_map(|line| line.split_whitespace().nth(8));
    drops.map(|drops| drops.parse::<u64>().unwrap()).sum()
}

/// How many packets a host has forwarded.
fn forwarded(host: &Host) -> u64 {
    let snmp = read_on(host, "/proc/thread-self/net/snmp");
    // A line of names, then one of numbers.
    let line = snmp.lines().filter(|line| line.starts_with("Ip:")).nth(1).unwrap();
    line.split(' ').nth(6).unwrap().parse().unwrap()
}

fn read_on(host: &Host, file: &'static str) -> String {
    host.namespace().within(move || Ok(fs::read_to_string(file)?)).unwrap()
}
