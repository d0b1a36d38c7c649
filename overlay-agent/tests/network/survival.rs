//! Containers notice nothing of what happens to the agent, and the agent mends what happens to the kernel.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use overlay_lab::{AgentOptions, ETCD_PREFIX, Lab, UPLINK, eventually, stream::Stream};

use crate::{
    damage::{self, MENDED, Target},
    overlay::{Overlay, SOON},
};

/// Streams both ways; nothing may be lost or doubled while `act` happens.
pub(crate) fn nothing_is_lost(overlay: &mut Overlay, what: &str, act: impl FnOnce(&mut Overlay)) {
    let [one, two] = overlay.pair();
    let streams =
        [Stream::start(one, two, 7001), Stream::start(two, one, 7002)].map(Result::unwrap);
    act(overlay);
    for stream in streams {
        let seen = stream.stop().unwrap();
        println!("{what}: {seen:?}");
        assert_eq!((seen.lost, seen.doubled), (0, 0), "{what}: {seen:?}");
    }
}

#[test]
fn stopping_killing_and_starting_the_agent_loses_nothing() {
    let mut overlay = Overlay::new();
    let leases = overlay.etcd().list(&format!("{ETCD_PREFIX}/subnets")).unwrap();
    nothing_is_lost(&mut overlay, "stop", |overlay| overlay.agents[0].stop().unwrap());
    nothing_is_lost(&mut overlay, "start", |overlay| {
        overlay.agents[0] = overlay.lab.host(0).start_agent(&overlay.options).unwrap();
    });
    nothing_is_lost(&mut overlay, "kill -9 and start", |overlay| {
        overlay.agents[0].kill().unwrap();
        overlay.agents[0] = overlay.lab.host(0).start_agent(&overlay.options).unwrap();
    });
    let after = overlay.etcd().list(&format!("{ETCD_PREFIX}/subnets")).unwrap();
    assert_eq!(leases, after, "the same leases: subnets and MACs");
    overlay.settle();
}

#[test]
fn losing_etcd_loses_nothing() {
    let mut overlay = Overlay::new();
    nothing_is_lost(&mut overlay, "etcd away", |overlay| {
        let etcd = overlay.etcd.as_mut().unwrap();
        etcd.stop().unwrap();
        etcd.start_again().unwrap();
    });
    overlay.settle();
}

#[test]
fn maps_of_another_version_are_replaced_without_a_gap() {
    let mut overlay = Overlay::new();
    overlay.agents[0].stop().unwrap();
    overlay.lab.host(0).pretend_other_abi().unwrap();
    nothing_is_lost(&mut overlay, "upgrade to another version of the maps", |overlay| {
        overlay.agents[0] = overlay.lab.host(0).start_agent(&overlay.options).unwrap();
    });
    overlay.settle();
    let log = overlay.agents[0].log().unwrap();
    assert!(log.contains("another version"), "{log}");
}

/// Whatever somebody removes or changes is right again within a second, and a ping goes through.
#[test]
fn damage_is_mended_within_a_second() {
    let overlay = Overlay::new();
    let [container, other] = overlay.pair();
    let host = overlay.lab.host(0);
    let target = Target { host, container, peer: overlay.lab.host(1) };
    // Neighbours are found again by whoever speaks.
    let streams = [Stream::start(container, other, 7001), Stream::start(other, container, 7002)]
        .map(Result::unwrap);
    let healthy = damage::healthy(&target).unwrap();
    for act in &damage::ACTS {
        (act.does)(&target).unwrap();
        damage::mended(&target, &overlay.agents[0], &healthy, MENDED, act.what).unwrap();
        eventually(SOON, &format!("{}: a ping to go through", act.what), || {
            container.ping(other.address())
        })
        .unwrap();
    }
    for stream in streams {
        println!("{:?}", stream.stop().unwrap());
    }
}

/// The look four times a second may come before the news that an interface is gone; its links must go all the same.
#[test]
fn an_interface_that_goes_unnoticed_leaves_no_link_behind() {
    let mut overlay = Overlay::new();
    let healthy = {
        let host = overlay.lab.host(0);
        let target = Target { host, container: &overlay.containers[0], peer: overlay.lab.host(1) };
        damage::healthy(&target).unwrap()
    };
    for round in 0..8 {
        // When it wakes up, both are due, and chance says which it sees first.
        overlay.agents[0].process().signal(Signal::SIGSTOP).unwrap();
        let host = overlay.lab.host(0);
        host.ip(["link", "del", "overlay.1"]).unwrap();
        std::thread::sleep(Duration::from_millis(700));
        overlay.agents[0].process().signal(Signal::SIGCONT).unwrap();
        let target = Target { host, container: &overlay.containers[0], peer: overlay.lab.host(1) };
        let what = format!("round {round}, the device is deleted");
        damage::mended(&target, &overlay.agents[0], &healthy, SOON, &what).unwrap();
    }
}

/// A search path on which `iptables` does `first` before what it always does.
fn in_front_of_iptables(directory: &Path, first: &str) -> String {
    instead_of("iptables", directory, &format!("{first}\nPATH=${{PATH#*:}} exec iptables \"$@\""))
}

/// A search path on which a program is this script.
fn instead_of(program: &str, directory: &Path, script: &str) -> String {
    let text = format!("#!/bin/sh\n{script}\n");
    let script = directory.join(program);
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", directory.display(), std::env::var("PATH").unwrap())
}

/// They wait for each other's lock, or for a machine that is busy.
#[test]
fn a_program_of_the_firewall_that_hangs_delays_nothing_else() {
    let slow = tempfile::tempdir().unwrap();
    let hangs = slow.path().join("hangs");
    let path = in_front_of_iptables(slow.path(), &format!("[ -e {} ] && sleep 5", hangs.display()));
    let overlay = Overlay::with(Lab::builder(), |options| {
        options.environment("PATH", &path).argument("--iptables-resync=1")
    });
    let host = overlay.lab.host(0);
    let target = Target { host, container: &overlay.containers[0], peer: overlay.lab.host(1) };
    let healthy = damage::healthy(&target).unwrap();
    let act = damage::ACTS.iter().find(|act| act.what == "a peer is deleted").unwrap();
    std::fs::write(&hangs, "").unwrap();
    for _ in 0..5 {
        (act.does)(&target).unwrap();
        damage::mended(&target, &overlay.agents[0], &healthy, MENDED, act.what).unwrap();
    }
}

/// Between the moment in which the rules are made and that in which the agent looks at them.
#[test]
fn rules_that_somebody_removes_while_they_are_made_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let once = folder.path().join("once");
    let nft = format!(
        "PATH=${{PATH#*:}}\nnft \"$@\" || exit\n[ \"$1\" = -f ] && [ -e {once} ] || exit 0\nrm {once}\n\
         nft flush chain ip overlay.1 inside",
        once = once.display()
    );
    let path = instead_of("nft", folder.path(), &nft);
    let mut overlay = Overlay::with(Lab::builder(), |options| options.environment("PATH", &path));
    overlay.agents[1].stop().unwrap();
    let host = overlay.lab.host(0);
    let rules = || host.command("nft").args(["list", "chain", "ip", "overlay.1", "inside"]).read();
    let all = rules().unwrap().matches("snat").count();
    assert!(all > 0);
    std::fs::write(&once, "").unwrap();
    host.command("nft").args(["delete table ip overlay.1"]).run().unwrap();
    eventually(SOON, "the rules to be made, cut and back", || {
        anyhow::ensure!(!once.exists(), "they were not made");
        let found = rules()?;
        anyhow::ensure!(found.matches("snat").count() == all, "{found}");
        Ok(())
    })
    .unwrap();
}

/// Whoever looks whenever something changes must not take its own repairs for a reason to go on for ever.
#[test]
fn the_firewall_is_looked_at_when_it_changes_and_otherwise_seldom() {
    let logged = tempfile::tempdir().unwrap();
    let log = logged.path().join("log");
    let path = in_front_of_iptables(logged.path(), &format!("echo \"$*\" >>{}", log.display()));
    let mut overlay = Overlay::with(Lab::builder(), |options| {
        options.environment("PATH", &path).argument("--iptables-resync=3600")
    });
    // One agent of the two writes the log.
    overlay.agents[1].stop().unwrap();
    let looks = || {
        let calls = std::fs::read_to_string(&log).unwrap_or_default();
        calls.lines().filter(|call| call.contains("-S FORWARD")).count()
    };
    let agent = &overlay.agents[0];
    let time_goes_by = || {
        let verifications = || agent.status().unwrap()["verifications"].as_u64().unwrap();
        let before = verifications();
        eventually(SOON, "three seconds to pass", || {
            anyhow::ensure!(verifications() >= before + 12, "they have not");
            Ok(())
        })
        .unwrap();
    };
    time_goes_by();
    let before = looks();
    assert!(before > 0);
    time_goes_by();
    assert_eq!(looks(), before, "nobody has touched it");

    let host = overlay.lab.host(0);
    host.command("iptables").args(["-w", "-F", "FORWARD"]).run().unwrap();
    eventually(MENDED, "the rules to be back", || {
        let rules = host.command("iptables").args(["-w", "-S", "FORWARD"]).read()?;
        anyhow::ensure!(rules.matches("overlay.1").count() == 2, "{rules}");
        Ok(())
    })
    .unwrap();
    time_goes_by();
    // One that mends each of two parts and looks at what came of it, one for what that has changed, and one for a change
    // that came in two parts.
    assert!((before + 1..=before + 5).contains(&looks()), "{before} before, {} after", looks());
}

#[test]
fn rules_that_change_without_pause_are_looked_at_with_pauses() {
    let slow = tempfile::tempdir().unwrap();
    let log = slow.path().join("log");
    let path =
        in_front_of_iptables(slow.path(), &format!("echo \"$*\" >>{}; sleep 0.1", log.display()));
    let mut overlay = Overlay::with(Lab::builder(), |options| options.environment("PATH", &path));
    overlay.agents[1].stop().unwrap();
    let changes = |seconds: u64| {
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until {
            overlay
                .lab
                .host(0)
                .command("nft")
                .args(["add table churn; delete table churn"])
                .run()
                .unwrap();
        }
    };
    // What is left of the start, whose repairs change rules too.
    changes(2);
    let calls = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
    let before = calls();
    changes(5);
    // Of five seconds, the tenths in which it runs; one look may have begun before and one may end after.
    let running = calls() - before;
    assert!(running >= 3, "it does look: {running}");
    assert!(running <= 10 + 3 * 2, "a fifth of the time is ten tenths: {running}");
}

/// As DHCP may do: the subnet stays, and peers send to the new address as soon as etcd has told them.
#[test]
fn a_host_that_gets_another_address_keeps_its_subnet_and_its_containers() {
    let mut overlay = Overlay::with(Lab::builder(), AgentOptions::any_address);
    let before = overlay.agents[1].status().unwrap()["lease"].clone();
    let host = overlay.lab.host(1);
    host.ip(["address", "del", &format!("{}/24", host.address()), "dev", UPLINK]).unwrap();
    overlay.agents[1]
        .wait_status(SOON, "the loss to be told", |status| {
            let problems = status["problems"].to_string();
            anyhow::ensure!(problems.contains("eth0 has lost its address"), "{problems}");
            Ok(())
        })
        .unwrap();
    host.ip(["address", "add", "192.168.33.111/24", "dev", UPLINK]).unwrap();
    eventually(SOON, "the lease to name the new address", || {
        let lease = overlay.agents[1].status()?["lease"].clone();
        anyhow::ensure!(lease["public_ip"] == "192.168.33.111", "{lease}");
        anyhow::ensure!(lease["subnet"] == before["subnet"], "{lease}");
        anyhow::ensure!(lease["vtep_mac"] == before["vtep_mac"], "{lease}");
        let peers = overlay.agents[0].status()?["peers"].clone();
        anyhow::ensure!(peers[0]["public_ip"] == "192.168.33.111", "{peers}");
        Ok(())
    })
    .unwrap();
    let [one, two] = overlay.pair();
    one.ping(two.address()).unwrap();
    two.ping(one.address()).unwrap();
    let [to, from] = [("from_container", "encapsulated"), ("from_uplink", "to_endpoint")]
        .map(|(hook, reason)| overlay.rise(hook, reason));
    overlay.ping();
    assert!(to.of(&overlay)[1] > 0 && from.of(&overlay)[1] > 0, "by the fast path");
    let leases = overlay.etcd().list(&format!("{ETCD_PREFIX}/subnets")).unwrap();
    assert_eq!(leases.len(), 2, "{leases:?}");
    let log = overlay.agents[1].log().unwrap();
    assert!(!log.contains("our subnet was taken"), "{log}");
}

/// A reboot takes the device and the subnet file along, DHCP gives another address, and that was a dead host's,
/// whose lease is still there.
#[test]
fn a_host_that_reboots_with_a_dead_hosts_address_keeps_its_subnet_and_is_reached() {
    let mut overlay = Overlay::with(Lab::builder(), AgentOptions::any_address);
    let lease = overlay.agents[1].status().unwrap()["lease"].clone();
    overlay.agents[1].stop().unwrap();
    let host = overlay.lab.host(1);
    let removed = host.clean_up(env!("CARGO_BIN_EXE_overlay-agent")).unwrap();
    assert!(removed.contains("overlay.1") && !host.subnet_file().exists(), "{removed}");
    host.ip(["address", "del", &format!("{}/24", host.address()), "dev", UPLINK]).unwrap();
    host.ip(["address", "add", "192.168.33.111/24", "dev", UPLINK]).unwrap();
    // One that sorts before ours and one after, as alive in etcd as any.
    for dead in ["10.1.0.0-24", "10.1.255.0-24"] {
        let granted = overlay.etcd().ctl(["lease", "grant", "86400"]).read().unwrap();
        let id = granted.split(' ').nth(1).unwrap().to_owned();
        let value = r#"{"PublicIP":"192.168.33.111","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}}"#;
        let key = format!("{ETCD_PREFIX}/subnets/{dead}");
        overlay.etcd().ctl(["put", &format!("--lease={id}"), &key, value]).run().unwrap();
    }
    overlay.agents[1] = host.start_agent(&overlay.options).unwrap();
    let now = overlay.agents[1].status().unwrap()["lease"].clone();
    assert_eq!((&now["subnet"], &now["vtep_mac"]), (&lease["subnet"], &lease["vtep_mac"]), "{now}");
    assert_eq!(now["public_ip"], "192.168.33.111");
    let [one, two] = overlay.pair();
    eventually(SOON, "containers to reach each other", || {
        one.ping(two.address())?;
        two.ping(one.address())
    })
    .unwrap();
}

/// As after a power cut that takes the host with etcd, too: a host goes on with what it knew, as one does that loses
/// etcd while it runs.
#[test]
fn a_host_that_reboots_while_etcd_is_away_starts_on_what_it_knew_last() {
    let mut overlay = Overlay::new();
    let [own, other] = [1, 0].map(|agent| overlay.agents[agent].status().unwrap()["lease"].clone());
    let host = overlay.lab.host(1);
    let known = host.state_file().with_file_name("last-known.json");
    let peer = other["subnet"].as_str().unwrap();
    eventually(Duration::from_secs(30), "what is known to be on disk", || {
        let text = std::fs::read_to_string(&known)?;
        anyhow::ensure!(text.contains(peer), "{text}");
        Ok(())
    })
    .unwrap();
    overlay.agents[1].stop().unwrap();
    let removed = host.clean_up(env!("CARGO_BIN_EXE_overlay-agent")).unwrap();
    assert!(removed.contains("overlay.1"), "{removed}");
    overlay.etcd.as_mut().unwrap().stop().unwrap();

    let soon = overlay.options.clone().argument("--start-without-etcd=2");
    overlay.agents[1] = overlay.lab.host(1).start_agent(&soon).unwrap();
    let log = overlay.agents[1].log().unwrap();
    assert!(log.contains("etcd has not answered for 2 s"), "{log}");
    let is_as_it_was = |status: &serde_json::Value| {
        for field in ["subnet", "vtep_mac", "public_ip"] {
            assert_eq!(status["lease"][field], own[field], "{status}");
        }
    };
    let status = overlay.agents[1].status().unwrap();
    is_as_it_was(&status);
    assert!(status["problems"].to_string().contains("knew last"), "{}", status["problems"]);
    let [one, two] = overlay.pair();
    eventually(SOON, "containers to reach each other", || {
        one.ping(two.address())?;
        two.ping(one.address())
    })
    .unwrap();
    let carried = overlay.rise("from_container", "encapsulated");
    overlay.ping();
    assert!(carried.of(&overlay).iter().all(|packets| *packets > 0), "by the fast path");

    // The config that etcd has now is another.
    let etcd = overlay.etcd.as_mut().unwrap();
    etcd.start_again().unwrap();
    let config = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    etcd.put(&format!("{ETCD_PREFIX}/config"), config).unwrap();
    eventually(Duration::from_secs(30), "etcd to confirm the lease", || {
        let status = overlay.agents[1].status()?;
        anyhow::ensure!(status["problems"] == serde_json::json!([]), "{}", status["problems"]);
        Ok(())
    })
    .unwrap();
    is_as_it_was(&overlay.agents[1].status().unwrap());
    let routed = overlay.rise("from_container", "routed");
    eventually(SOON, "the config of now to be followed", || {
        overlay.containers[1].ping(overlay.containers[0].address())?;
        anyhow::ensure!(routed.of(&overlay)[1] > 0, "still encapsulated");
        Ok(())
    })
    .unwrap();
}

#[test]
fn cleanup_gives_the_lease_back_if_told_so() {
    let Overlay { mut agents, etcd, lab, .. } = Overlay::new();
    let etcd = etcd.unwrap();
    let host = lab.host(0);
    let others = agents[1].status().unwrap()["lease"]["subnet"].as_str().unwrap().to_owned();
    agents[0].stop().unwrap();
    let output = host
        .command(env!("CARGO_BIN_EXE_overlay-agent"))
        .args(["cleanup", "--lease", "--etcd-endpoints", &etcd.endpoint(), "--pin-path"])
        .arg(host.pins())
        .arg("--subnet-file")
        .arg(host.subnet_file())
        .arg("--socket")
        .arg(host.agent_socket())
        .read()
        .unwrap();
    assert!(output.contains("from etcd") && output.contains("overlay.1"), "{output}");
    let leases = etcd.list(&format!("{ETCD_PREFIX}/subnets")).unwrap();
    let keys: Vec<_> = leases.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, [format!("{ETCD_PREFIX}/subnets/{}", others.replace('/', "-"))]);
}

#[test]
fn an_agent_that_is_told_so_cleans_up_when_it_stops() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(overlay_lab::NETWORK_CONFIG).unwrap();
    let options = overlay_lab::AgentOptions::new(env!("CARGO_BIN_EXE_overlay-agent"), &etcd)
        .argument("--on-exit=cleanup");
    let host = lab.host(0);
    let mut agent = host.start_agent(&options).unwrap();
    assert!(host.ip(["-brief", "link"]).unwrap().contains("overlay.1"));
    agent.process().signal(Signal::SIGTERM).unwrap();
    agent.stop().unwrap();
    assert!(!host.ip(["-brief", "link"]).unwrap().contains("overlay.1"));
    assert!(!host.pins().exists() && !host.subnet_file().exists());
}

#[test]
fn flannel_is_replaced_in_place() {
    let overlay = Overlay::new();
    // Back to a host that flannel has just left: its device with the lease's MAC, its lease in etcd.
    let status = overlay.agents[0].status().unwrap();
    let mac = status["lease"]["vtep_mac"].as_str().unwrap().to_owned();
    let subnet = status["lease"]["subnet"].as_str().unwrap().to_owned();
    let Overlay { mut agents, containers, options, lab, etcd } = overlay;
    let etcd = etcd.unwrap();
    let leases = etcd.list(&format!("{ETCD_PREFIX}/subnets")).unwrap();
    agents[0].stop().unwrap();
    let host = lab.host(0);
    let cleanup = host
        .command(env!("CARGO_BIN_EXE_overlay-agent"))
        .args(["cleanup", "--pin-path"])
        .arg(host.pins());
    cleanup.run().unwrap();
    let add = format!(
        "link add flannel.1 address {mac} mtu 1450 type vxlan id 1 dev {UPLINK} local {} dstport 8472 nolearning",
        host.address()
    );
    host.ip(add.split(' ')).unwrap();
    host.ip(["link", "set", "flannel.1", "up"]).unwrap();
    let refused = options.command(host).deadline(Duration::from_secs(20)).output().unwrap();
    assert_eq!(refused.status.code(), Some(69), "not without being told: {}", refused.stderr);

    let _agent = host.start_agent(&options.argument("--replace-flannel")).unwrap();
    eventually(Duration::from_secs(1), "containers to be reachable", || {
        containers[1].ping(containers[0].address())
    })
    .unwrap();
    assert!(!host.ip(["-brief", "link"]).unwrap().contains("flannel.1"));
    assert_eq!(host.subnet().unwrap().subnet(), subnet);
    assert_eq!(
        etcd.list(&format!("{ETCD_PREFIX}/subnets")).unwrap(),
        leases,
        "peers see no change"
    );
}
