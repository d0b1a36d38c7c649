//! etcd frozen, killed, restarted and cut off, with traffic flowing.

use std::time::Duration;

use xtask::lab::{Container, ETCD_PREFIX, Lab, NETWORK_CONFIG, eventually};

use crate::support::{SOON, options, wait_for_no_problem, wait_for_problem};

/// How long traffic flows: longer than all that is done to etcd meanwhile.
const SECONDS: u32 = 25;

/// Pings twenty times a second and returns what ping has to say at the end.
fn traffic(from: &Container, to: &Container) -> std::thread::JoinHandle<String> {
    let command = from
        .command("ping")
        .args(["-q", "-i", "0.05", "-W", "1", "-c", &(SECONDS * 20).to_string()])
        .arg(to.address().to_string())
        .deadline(Duration::from_mins(2));
    std::thread::spawn(move || command.output().unwrap().stdout)
}

#[test]
fn no_packet_is_lost_whatever_happens_to_etcd_and_everything_is_known_afterwards() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let mut etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let mut agents: Vec<_> =
        lab.hosts().iter().map(|host| host.start_agent(&options(&etcd)).unwrap()).collect();
    let containers: Vec<_> =
        lab.hosts().iter().map(|host| host.add_container("c").unwrap()).collect();
    eventually(SOON, "a first ping", || containers[0].ping(containers[1].address())).unwrap();
    let pings = traffic(&containers[0], &containers[1]);
    let before: Vec<_> = agents.iter().map(|agent| agent.status().unwrap()).collect();

    etcd.freeze().unwrap();
    containers[1].ping(containers[0].address()).unwrap();
    etcd.thaw().unwrap();
    etcd.process().kill().unwrap();
    for agent in &mut agents {
        wait_for_problem(agent, &["lost sight of the leases", "refused"]);
    }
    etcd.start_again().unwrap();
    for agent in &mut agents {
        wait_for_no_problem(agent, "lost sight");
    }
    // Somebody comes while nobody looks.
    etcd.stop().unwrap();
    wait_for_problem(&mut agents[0], &["lost sight of the leases"]);
    etcd.start_again().unwrap();
    let newcomer = r#"{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#;
    etcd.put(&format!("{ETCD_PREFIX}/subnets/10.1.250.0-24"), newcomer).unwrap();
    for agent in &mut agents {
        let newcomer = |status: &serde_json::Value| {
            anyhow::ensure!(status["peers"].as_array().map(Vec::len) == Some(2), "{status}");
            anyhow::ensure!(status["problems"] == serde_json::json!([]), "{status}");
            Ok(())
        };
        agent.wait_status(SOON, "the newcomer", newcomer).unwrap();
    }
    let said = pings.join().unwrap();
    assert!(said.contains(&format!("{} received, 0% packet loss", SECONDS * 20)), "{said}");
    for (agent, before) in agents.iter().zip(before) {
        assert_eq!(agent.status().unwrap()["lease"], before["lease"]);
    }
}

#[test]
fn a_released_lease_is_taken_again_by_the_host_that_runs() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let agents: Vec<_> =
        lab.hosts().iter().map(|host| host.start_agent(&options(&etcd)).unwrap()).collect();
    let lease = agents[1].status().unwrap()["lease"].clone();
    let subnet = lease["subnet"].as_str().unwrap();
    let release = lab.host(0).command(env!("CARGO_BIN_EXE_overlay-agent"));
    release.args(["lease", "release", subnet, "--etcd-endpoints", &etcd.endpoint()]).run().unwrap();
    let key = format!("{ETCD_PREFIX}/subnets/{}", subnet.replace('/', "-"));
    eventually(SOON, "the lease to be there again", || {
        anyhow::ensure!(etcd.get(&key)?.is_some(), "not yet");
        Ok(())
    })
    .unwrap();
    assert_eq!(agents[1].status().unwrap()["lease"], lease);
}
