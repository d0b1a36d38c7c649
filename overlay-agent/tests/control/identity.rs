//! By what a host is known, and what becomes of its key: as operators see it.

use std::{
    fs,
    time::{Duration, Instant},
};

use overlay_lab::{ETCD_PREFIX, Lab, NETWORK_CONFIG, eventually};

use crate::support::{SOON, options, problems, wait_for_log, wait_for_problem};

fn key(subnet: &str) -> String {
    format!("{ETCD_PREFIX}/subnets/{}", subnet.replace('/', "-"))
}

#[test]
fn a_damaged_key_is_put_right_within_a_second_and_told() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let mut agent = lab.host(0).start_agent(&options(&etcd)).unwrap();
    let subnet = agent.status().unwrap()["lease"]["subnet"].as_str().unwrap().to_owned();
    let key = key(&subnet);
    let right = etcd.get(&key).unwrap();
    etcd.put(&key, "nonsense").unwrap();
    let start = Instant::now();
    eventually(Duration::from_secs(1), "our key to be right", || {
        anyhow::ensure!(etcd.get(&key)? == right);
        Ok(())
    })
    .unwrap();
    println!("put right within {:?}", start.elapsed());
    wait_for_problem(&mut agent, &["Somebody wrote to", &key, "not valid JSON"]);
    let log = agent.log().unwrap();
    assert_eq!(log.lines().filter(|line| line.contains("Somebody wrote to")).count(), 1, "{log}");

    etcd.delete(&key).unwrap();
    wait_for_problem(&mut agent, &[&subnet, "was lost, and is ours again"]);
    assert_eq!(etcd.get(&key).unwrap(), right);

    // By a restart, too.
    agent.stop().unwrap();
    etcd.put(&key, " ").unwrap();
    let mut agent = lab.host(0).start_agent(&options(&etcd)).unwrap();
    assert_eq!(agent.status().unwrap()["lease"]["subnet"], subnet.as_str());
    assert_eq!(etcd.get(&key).unwrap(), right);
    wait_for_problem(&mut agent, &["Somebody wrote to", &key]);
}

#[test]
fn a_copied_state_file_is_told_by_name_and_costs_the_host_that_lives_nothing() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let [one, two] = [lab.host(0), lab.host(1)];
    let mut first = one.start_agent(&options(&etcd)).unwrap();
    let lease = first.status().unwrap()["lease"].clone();
    let state = fs::read_to_string(one.state_file()).unwrap();
    let uplink = |state: &str| {
        let line = state.lines().find(|line| line.starts_with("OVERLAY_UPLINK_MAC=")).unwrap();
        line.to_owned()
    };
    // A copied disk, in another machine.
    fs::write(two.state_file(), &state).unwrap();
    let mut second = two.start_agent(&options(&etcd)).unwrap();
    wait_for_log(&second, "is not this host's");
    assert_ne!(second.status().unwrap()["lease"]["vtep_mac"], lease["vtep_mac"]);
    second.stop().unwrap();
    two.clean_up(env!("CARGO_BIN_EXE_overlay-agent")).unwrap();
    let own = second_lease(&etcd, two.address());
    etcd.delete(&own).unwrap();

    // The same as if its uplink had the same MAC, too.
    let theirs = fs::read_to_string(two.state_file()).unwrap();
    fs::write(two.state_file(), state.replace(&uplink(&state), &uplink(&theirs))).unwrap();
    let mut second = two.start_agent(&options(&etcd)).unwrap();
    wait_for_problem(&mut second, &[&one.address().to_string(), "this host is a copy of it"]);
    let said =
        wait_for_problem(&mut first, &[&two.address().to_string(), "copy of this host's identity"]);
    assert_eq!(said["lease"], lease, "{:?}", problems(&said));
    let copy = second.status().unwrap()["lease"].clone();
    assert!(copy["subnet"] != lease["subnet"] && copy["vtep_mac"] != lease["vtep_mac"], "{copy}");
    eventually(SOON, "the copy to be another host at its next start", || {
        let state = fs::read_to_string(two.state_file())?;
        anyhow::ensure!(state.contains(copy["vtep_mac"].as_str().unwrap()), "{state}");
        Ok(())
    })
    .unwrap();
}

/// The key of the lease of the host with this address.
fn second_lease(etcd: &overlay_lab::Etcd, address: std::net::Ipv4Addr) -> String {
    let leases = etcd.list(&format!("{ETCD_PREFIX}/subnets")).unwrap();
    let text = address.to_string();
    leases.into_iter().find(|(_, value)| value.contains(&text)).unwrap().0
}
