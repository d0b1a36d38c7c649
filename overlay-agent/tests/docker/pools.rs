//! Networks that Docker makes by itself, out of the host's subnet (`docker-opts --address-pools`).

use anyhow::{Result, ensure};
use ipnetwork::Ipv4Network;
use overlay_agent::address_pools::{AddressPools, PoolSize};
use overlay_lab::{AgentOptions, Docker, IMAGE, Lab, NETWORK_CONFIG, eventually};

use crate::{AGENT, SOON, start_agents, today};

fn network(docker: &Docker, arguments: &[&str]) -> String {
    docker.command(["network", "create"]).args(arguments).read().unwrap()
}

/// Starts a container in a network, and returns its address there.
fn sleeper(docker: &Docker, name: &str, network: &str) -> String {
    let of = format!("--network={network}");
    docker.command(["run", "--detach", "--name", name, &of, IMAGE, "sleep", "600"]).run().unwrap();
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    docker.command(["inspect", "--format", format, name]).read().unwrap().trim().to_owned()
}

fn ping(docker: &Docker, from: &str, to: &str) -> Result<String> {
    docker.exec(from, &["ping", "-c", "1", "-W", "2", to])
}

#[test]
fn networks_made_without_words_are_reached_from_the_other_host_and_kept_apart_on_their_own() {
    let lab = Lab::builder().start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let agents = start_agents(&lab, &AgentOptions::new(AGENT, &etcd));
    let mut dockers = Vec::new();
    for host in lab.hosts() {
        let options = host.docker_options_with(AGENT.as_ref(), &["--address-pools=27"]).unwrap();
        let mut docker = host.spawn_docker(&options).unwrap();
        docker.wait_ready().unwrap();
        dockers.push(docker);
    }
    let [one, two] = &dockers[..] else { panic!("two hosts") };
    for docker in [one, two] {
        network(docker, &["app"]);
        network(docker, &["db"]);
    }
    let names = ["bridge", "app", "db"];
    let here = names.map(|name| sleeper(one, &format!("c-{name}"), name));
    let there = names.map(|name| sleeper(two, &format!("c-{name}"), name));
    let subnet = lab.host(0).subnet().unwrap();
    for address in &here {
        let own = subnet.gateway.to_string();
        assert_eq!(address.rsplit_once('.').unwrap().0, own.rsplit_once('.').unwrap().0);
    }
    eventually(SOON, "every bridge to be served", || {
        let status = agents[0].status()?;
        ensure!(status["bridges"].as_array().map_or(0, Vec::len) == 3, "{status}");
        ensure!(status["endpoints"] == 3, "{status}");
        Ok(())
    })
    .unwrap();
    let before = agents[0].packets("from_container", "encapsulated").unwrap();
    for from in names.map(|name| format!("c-{name}")) {
        for to in &there {
            let what = format!("{from} to reach {to}");
            eventually(SOON, &what, || ping(one, &from, to)).unwrap();
        }
        for to in &here {
            eventually(SOON, "the way back", || ping(two, &from, to)).unwrap();
        }
    }
    assert!(agents[0].packets("from_container", "encapsulated").unwrap() >= before + 18);
    // Docker's isolation of the networks of one host.
    ping(one, "c-app", &here[2]).unwrap_err();
    ping(one, "c-db", &here[1]).unwrap_err();
    ping(one, "c-bridge", &here[1]).unwrap_err();
    ping(one, "c-app", &subnet.gateway.to_string()).unwrap();
    // What is removed is forgotten, and made again.
    one.command(["rm", "--force", "c-db"]).run().unwrap();
    one.command(["network", "rm", "db"]).run().unwrap();
    network(one, &["again"]);
    let again = sleeper(one, "c-again", "again");
    eventually(SOON, "a network that came later", || ping(two, "c-app", &again)).unwrap();
    ping(one, "c-app", &again).unwrap_err();
}

/// Its rules stand behind ours, where those of earlier versions stood in front.
#[test]
fn docker_of_today_keeps_its_networks_apart_and_the_internal_ones_closed() {
    let lab = Lab::builder().start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let agents = start_agents(&lab, &AgentOptions::new(AGENT, &etcd));
    let host = lab.host(0);
    let leased = host.subnet().unwrap();
    let subnet: Ipv4Network = leased.gateway_cidr().parse().unwrap();
    let parts = AddressPools::of(subnet, PoolSize::Length(27)).unwrap();
    let pools: Vec<_> = parts
        .pools
        .iter()
        .map(|pool| serde_json::json!({ "base": pool.to_string(), "size": parts.size }))
        .collect();
    let machine = today::boot_with(
        host,
        &serde_json::json!({
            "bip": format!("{}/{}", leased.gateway, parts.size), "mtu": leased.mtu, "default-address-pools": pools,
        }),
    );
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let start = |network: &str| {
        let (name, of) = (format!("c-{network}"), format!("--network={network}"));
        machine.docker(["run", "--detach", "--name", &name, &of, IMAGE, "sleep", "600"]).unwrap();
        machine.docker(["inspect", "--format", format, &name]).unwrap().trim().to_owned()
    };
    let served = |count: usize| {
        eventually(SOON, "every bridge to be served", || {
            let status = agents[0].status()?;
            ensure!(status["bridges"].as_array().map_or(0, Vec::len) == count, "{status}");
            ensure!(status["endpoints"] == count, "{status}");
            Ok(())
        })
        .unwrap();
    };
    let inside =
        |from: &str, to: &str| machine.docker(["exec", from, "ping", "-c", "1", "-W", "1", to]);
    machine.docker(["network", "create", "app"]).unwrap();
    let [own, app] = ["bridge", "app"].map(start);
    served(2);
    eventually(SOON, "our rules to stand in front of Docker's", || {
        let rules = host.command("iptables").args(["-S", "FORWARD"]).read()?;
        let place = |words: &str| rules.find(words);
        let in_front = place("overlay-1-network").zip(place("DOCKER-FORWARD"));
        ensure!(in_front.is_some_and(|(ours, dockers)| ours < dockers), "{rules}");
        Ok(())
    })
    .unwrap();
    inside("c-app", &leased.gateway.to_string()).unwrap();
    inside("c-app", &own).unwrap_err();
    inside("c-bridge", &app).unwrap_err();

    machine.docker(["network", "create", "--internal", "closed"]).unwrap();
    let closed = start("closed");
    served(3);
    let id = machine.docker(["network", "inspect", "--format", "{{.Id}}", "closed"]).unwrap();
    let closed_rule = format!("-o br-{} -j DROP", &id.trim()[..12]);
    let remote = lab.host(1).add_container("remote").unwrap();
    let ping = |to: &str| remote.command("ping").args(["-n", "-c5", "-i0.1", "-W1", to]).run();
    // That there is a closed one has netfilter asked about every flow, and the fast path carry it from then on.
    for open in [&own, &app] {
        let before = agents[0].packets("from_uplink", "to_endpoint").unwrap();
        eventually(SOON, "an open network to be reached", || {
            ping(open)?;
            let now = agents[0].packets("from_uplink", "to_endpoint")?;
            ensure!(now > before, "not by the fast path");
            Ok(())
        })
        .unwrap();
    }
    let concerns = agents[0].status().unwrap()["rules"]["concerns"].to_string();
    assert!(concerns.contains(&closed_rule), "{concerns}");
    for (from, to) in [("c-app", &own), ("c-bridge", &app), ("c-app", &closed), ("c-closed", &app)]
    {
        inside(from, to).unwrap_err();
    }
    inside("c-closed", &remote.address().to_string()).unwrap_err();
    // It could not answer; neither does it hear anything.
    let heard = || {
        let received = ["exec", "c-closed", "cat", "/sys/class/net/eth0/statistics/rx_packets"];
        machine.docker(received).unwrap().trim().parse::<u64>().unwrap()
    };
    let before = heard();
    for _ in 0..4 {
        ping(&closed).unwrap_err();
    }
    let after = heard();
    assert!(after < before + 20, "{before} before, {after} after");
}
