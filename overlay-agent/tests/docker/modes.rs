//! Networks that somebody makes with a host's subnet, in each of the ways in which Docker 28.5 connects one to the world.

use anyhow::ensure;
use overlay_lab::{AgentOptions, IMAGE, Lab, Machine, NETWORK_CONFIG, eventually};
use serde_json::json;

use crate::{
    AGENT, start_agents,
    today::{SOON, boot_with, greeter},
};

/// Those in which a container can be reached at all: one that is `isolated` has no way out of its bridge.
const MODES: [&str; 3] = ["nat", "nat-unprotected", "routed"];

/// Makes a network with the host's subnet.
fn make_network(machine: &Machine<'_>, mode: &str) {
    let subnet = machine.host().subnet().unwrap();
    machine
        .docker([
            "network".to_owned(),
            "create".to_owned(),
            format!("--subnet={}", subnet.subnet()),
            format!("--gateway={}", subnet.gateway),
            format!("--opt=com.docker.network.driver.mtu={}", subnet.mtu),
            format!("--opt=com.docker.network.bridge.gateway_mode_ipv4={mode}"),
            "overlay".to_owned(),
        ])
        .unwrap();
}

#[test]
fn containers_reach_each_other_in_every_gateway_mode() {
    let lab = Lab::builder().start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let options = AgentOptions::new(AGENT, &etcd);
    let mut agents = start_agents(&lab, &options);
    let elsewhere = json!({ "bip": "172.30.0.1/24" });
    let machines: Vec<_> = lab.hosts().iter().map(|host| boot_with(host, &elsewhere)).collect();
    machines[0].docker(["network", "create", "--subnet=172.31.0.0/24", "app"]).unwrap();
    for mode in MODES {
        for machine in &machines {
            make_network(machine, mode);
        }
        let published =
            greeter(&machines[0], "published", &["--network=overlay", "--publish=8080:80"]);
        let plain = greeter(&machines[0], "plain", &["--network=overlay"]);
        // Its answers leave it by the other network, through which its default route is.
        let format = "{{.NetworkSettings.Networks.overlay.IPAddress}}";
        greeter(&machines[0], "both", &["--network=app"]);
        machines[0].docker(["network", "connect", "overlay", "both"]).unwrap();
        let both = machines[0].docker(["inspect", "--format", format, "both"]).unwrap();
        let route = machines[0].docker(["exec", "both", "ip", "route", "show", "default"]).unwrap();
        assert!(route.contains("via 172.31.0.1"), "{route}");
        let client =
            ["run", "--detach", "--name=client", "--network=overlay", IMAGE, "sleep", "600"];
        machines[1].docker(client).unwrap();
        for fast_path in [true, false] {
            for agent in &mut agents {
                agent.stop().unwrap();
            }
            agents = start_agents(&lab, &options.clone().fast_path(fast_path));
            let path = if fast_path {
                ("from_uplink", "to_endpoint")
            } else {
                ("from_tunnel", "to_stack")
            };
            let before = agents[0].packets(path.0, path.1).unwrap();
            for address in [&published, &plain, &both] {
                let what = format!("{mode}, fast path {fast_path}: a greeting from {address}");
                eventually(SOON, &what, || {
                    let heard =
                        machines[1].docker(["exec", "client", "nc", "-w", "2", address, "80"])?;
                    ensure!(heard.contains("hello"), "{heard:?}");
                    Ok(())
                })
                .unwrap();
            }
            let after = agents[0].packets(path.0, path.1).unwrap();
            assert!(after > before, "{mode}: none by {path:?}");
            let status = agents[0].status().unwrap();
            assert_eq!(status["problems"], json!([]), "{mode}: {status}");
        }
        machines[0].docker(["rm", "--force", "published", "plain", "both"]).unwrap();
        machines[1].docker(["rm", "--force", "client"]).unwrap();
        for machine in &machines {
            machine.docker(["network", "rm", "overlay"]).unwrap();
        }
    }
}
