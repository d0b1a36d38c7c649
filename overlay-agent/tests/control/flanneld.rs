//! Command lines and environments as flanneld has them.

use std::time::Duration;

use overlay_lab::{ETCD_PREFIX, Etcd, Host, Lab, NETWORK_CONFIG, UPLINK, eventually};

use crate::support::{SOON, options, options_for, wait_for_log};

const AGENT: &str = env!("CARGO_BIN_EXE_overlay-agent");

#[test]
fn what_flanneld_starts_with_starts_and_what_has_no_effect_is_said_once() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let endpoint = etcd.endpoint().replace("http://", "HTTP://");
    let mut options = options_for(&format!("{endpoint}/, http://127.0.0.1:1"))
        .environment("FLANNELD_SUBNET_LEASE_RENEW_MARGIN", "bogus")
        .environment("FLANNELD_PUBLIC_IPV6", "");
    let line = "--v 5 -v=0 -ip-masq --ip-masq=false -kube-subnet-mgr=false -vmodule=main=3 \
                --kube-api-url http://k8s -kubeconfig-file /nope --set-node-network-unavailable \
                -etcd-cafile=/nope -etcd-username me -etcd-password -x- -iptables-resync=0x1 \
                -iptables-forward-rules=0 foo --iface=nowhere";
    for word in line.split(' ') {
        options = options.argument(word);
    }
    let agent = lab.host(0).start_agent(&options).unwrap();
    let said = [
        "environment variable FLANNELD_SUBNET_LEASE_RENEW_MARGIN: invalid value 'bogus'",
        "--kube-api-url, --kubeconfig-file, --set-node-network-unavailable have no effect",
        "--vmodule has no effect",
        "\"foo\" is no flag: it is ignored, and the 1 after it",
        "authentication is off",
    ];
    for said in said {
        wait_for_log(&agent, said);
        assert_eq!(agent.log().unwrap().matches(said).count(), 1, "{said}");
    }
    let env = std::fs::read_to_string(lab.host(0).subnet_file()).unwrap();
    assert!(env.contains("FLANNEL_IPMASQ=false\n"), "{env}");
}

/// Runs the agent, which must end as for any bad flag, with one line of error that has `words`.
fn refuses(host: &Host, etcd: &Etcd, flags: &[&str], words: &str) {
    let output = host
        .command(AGENT)
        .args(["run", "--etcd-endpoints", &etcd.endpoint(), "--pin-path"])
        .arg(host.pins())
        .arg("--subnet-file")
        .arg(host.subnet_file())
        .arg("--socket")
        .arg(host.agent_socket())
        .args(flags)
        .deadline(Duration::from_secs(20))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64), "{flags:?}: {}", output.stderr);
    let errors = output.stderr.lines().filter(|line| line.starts_with("error:"));
    let errors: Vec<_> = errors.collect();
    assert!(matches!(errors[..], [line] if line.contains(words)), "{flags:?}: {}", output.stderr);
}

#[test]
fn what_flanneld_refuses_is_refused_in_one_line() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let host = lab.host(0);
    refuses(host, &etcd, &["--kube-subnet-mgr"], "--kube-subnet-mgr is not supported");
    refuses(host, &etcd, &["--subnet-lease-renew-margin=1440"], "is not in 1..=1439");
    refuses(host, &etcd, &["--ip-masq=maybe"], "it must be true or false");
    for flag in ["-iface=lo", "-iface=127.0.0.1", "-iface-regex=^lo$"] {
        refuses(host, &etcd, &[flag], "other hosts cannot reach lo at a loopback address");
    }
}

fn blackholes(host: &Host) -> String {
    host.ip(["route", "show", "type", "blackhole"]).unwrap()
}

#[test]
fn the_blackhole_route_stands_behind_the_bridge_is_kept_and_goes_with_its_flag() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let with_flag = options(&etcd).argument("-ip-blackhole-route");
    let mut agents: Vec<_> =
        lab.hosts().iter().map(|host| host.start_agent(&with_flag).unwrap()).collect();
    let host = lab.host(0);
    let subnet = agents[0].status().unwrap()["lease"]["subnet"].as_str().unwrap().to_owned();
    let is_there = || {
        let routes = blackholes(host);
        anyhow::ensure!(routes.contains(&format!("blackhole {subnet} ")), "{routes:?}");
        Ok(())
    };
    let is_gone = || {
        let routes = blackholes(host);
        anyhow::ensure!(routes.trim().is_empty(), "{routes}");
        Ok(())
    };
    eventually(SOON, "the blackhole route", is_there).unwrap();
    // It is there before the bridge is, and takes nothing from it.
    let containers: Vec<_> =
        lab.hosts().iter().map(|host| host.add_container("c").unwrap()).collect();
    let [one, other] = &containers[..] else { panic!("two containers") };
    let neighbour = host.add_container("d").unwrap();
    let reach_each_other = || {
        eventually(SOON, "a ping", || one.ping(other.address())).unwrap();
        other.ping(one.address()).unwrap();
        one.ping(neighbour.address()).unwrap();
        host.command("ping")
            .args(["-n", "-c", "1", "-W", "2", &one.address().to_string()])
            .run()
            .unwrap();
    };
    reach_each_other();

    host.ip(["route", "del", "blackhole", &subnet]).unwrap();
    eventually(SOON, "the blackhole route to be back", is_there).unwrap();
    reach_each_other();

    // Without the bridge, nothing leaves for the subnet.
    host.ip(["link", "set", "docker0", "down"]).unwrap();
    let way = host.command("ip").args(["route", "get", &one.address().to_string()]).output();
    assert!(!way.unwrap().status.success());
    host.ip(["link", "set", "docker0", "up"]).unwrap();
    reach_each_other();

    agents[0].stop().unwrap();
    is_there().unwrap();
    let mut agent = host.start_agent(&options(&etcd)).unwrap();
    eventually(SOON, "no blackhole route without the flag", is_gone).unwrap();
    agent.stop().unwrap();

    host.start_agent(&with_flag).unwrap().stop().unwrap();
    is_there().unwrap();
    // Somebody else's stays.
    host.ip(["route", "add", "blackhole", "203.0.113.0/24"]).unwrap();
    let said = host.clean_up(AGENT).unwrap();
    assert!(said.contains(&format!("blackhole route for {subnet}")), "{said}");
    assert_eq!(blackholes(host).trim(), "blackhole 203.0.113.0/24");
    assert!(host.ip(["link", "show", UPLINK]).is_ok());
}

#[test]
fn the_blackhole_route_moves_with_the_subnet() {
    let config = |last: u8| {
        format!(
            r#"{{"Network":"10.9.0.0/16","SubnetMin":"10.9.9.0","SubnetMax":"10.9.{last}.0","Backend":{{"Type":"vxlan"}}}}"#
        )
    };
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(&config(9)).unwrap();
    let host = lab.host(0);
    let _agent = host.start_agent(&options(&etcd).argument("--ip-blackhole-route")).unwrap();
    let only = |subnet: &str| {
        let routes = blackholes(host);
        let is_only = routes.lines().count() == 1 && routes.contains(subnet);
        anyhow::ensure!(is_only, "not only {subnet}: {routes}");
        Ok(())
    };
    eventually(SOON, "the route of the first subnet", || only("10.9.9.0/24")).unwrap();
    etcd.put(&format!("{ETCD_PREFIX}/config"), &config(10)).unwrap();
    let thief = r#"{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#;
    etcd.put(&format!("{ETCD_PREFIX}/subnets/10.9.9.0-24"), thief).unwrap();
    eventually(SOON, "the route of the second subnet", || only("10.9.10.0/24")).unwrap();
}
