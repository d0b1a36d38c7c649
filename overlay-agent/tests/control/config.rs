//! A network config that changes while agents run.

use overlay_lab::{ETCD_PREFIX, Lab, NETWORK_CONFIG, eventually};

use crate::support::{
    SOON, options, problems, wait_for_log, wait_for_no_problem, wait_for_problem,
};

fn with_backend(fields: &str) -> String {
    let mut config: serde_json::Value = serde_json::from_str(NETWORK_CONFIG).unwrap();
    let fields: serde_json::Value = serde_json::from_str(fields).unwrap();
    for (name, value) in fields.as_object().unwrap() {
        config["Backend"][name] = value.clone();
    }
    config.to_string()
}

#[test]
fn another_mtu_takes_effect_at_once_and_traffic_goes_on() {
    let lab = Lab::builder().hosts(2).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let mut agents: Vec<_> =
        lab.hosts().iter().map(|host| host.start_agent(&options(&etcd)).unwrap()).collect();
    let containers: Vec<_> =
        lab.hosts().iter().map(|host| host.add_container("c").unwrap()).collect();
    eventually(SOON, "a first ping", || containers[0].ping(containers[1].address())).unwrap();

    etcd.put(&format!("{ETCD_PREFIX}/config"), &with_backend(r#"{"MTU":1400}"#)).unwrap();
    for (agent, host) in agents.iter_mut().zip(lab.hosts()) {
        let mtu = |status: &serde_json::Value| {
            anyhow::ensure!(status["mtu"] == 1350, "{}", status["mtu"]);
            anyhow::ensure!(status["peers"].as_array().map(Vec::len) == Some(1), "{status}");
            Ok(())
        };
        let status = agent.wait_status(SOON, "the new MTU", mtu).unwrap();
        let env = std::fs::read_to_string(host.subnet_file()).unwrap();
        assert!(env.contains("FLANNEL_MTU=1350\n"), "{env}");
        let links = host.ip(["-o", "link"]).unwrap();
        let device = status["tunnel"].as_str().unwrap();
        let line = links.lines().find(|line| line.contains(device)).unwrap();
        assert!(line.contains("mtu 1350"), "{line}");
    }
    containers[0].ping(containers[1].address()).unwrap();
}

#[test]
fn what_cannot_change_at_run_time_is_said_once_and_forgotten_when_it_is_taken_back() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(NETWORK_CONFIG).unwrap();
    let mut agent = lab.host(0).start_agent(&options(&etcd)).unwrap();
    let key = format!("{ETCD_PREFIX}/config");
    let before = agent.status().unwrap();

    etcd.put(&key, &with_backend(r#"{"VNI":77}"#)).unwrap();
    let status = wait_for_problem(&mut agent, &["Backend.VNI 1 becomes 77", "restart"]);
    for field in ["vni", "lease", "tunnel", "ready"] {
        assert_eq!(status[field], before[field], "{field}");
    }
    agent.status().unwrap();
    assert_eq!(agent.log().unwrap().matches("becomes 77").count(), 1);

    etcd.put(&key, "{").unwrap();
    let status = wait_for_problem(&mut agent, &["malformed", "last good one"]);
    assert!(!problems(&status).iter().any(|problem| problem.contains("becomes 77")), "{status}");
    etcd.delete(&key).unwrap();
    wait_for_problem(&mut agent, &["has been deleted"]);
    etcd.put(&key, NETWORK_CONFIG).unwrap();
    wait_for_no_problem(&mut agent, "the network config");
}

#[test]
fn a_config_that_does_not_allow_our_subnet_any_more_is_a_warning_in_time() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(r#"{"Network":"10.9.0.0/16","SubnetMin":"10.9.9.0","SubnetMax":"10.9.9.0","Backend":{"Type":"vxlan"}}"#).unwrap();
    let mut agent = lab.host(0).start_agent(&options(&etcd)).unwrap();
    let other = r#"{"Network":"10.9.0.0/16","SubnetMin":"10.9.10.0","SubnetMax":"10.9.10.0","Backend":{"Type":"vxlan"}}"#;
    etcd.put(&format!("{ETCD_PREFIX}/config"), other).unwrap();
    wait_for_problem(&mut agent, &["10.9.9.0/24", "at its next start"]);
    assert_eq!(agent.status().unwrap()["lease"]["subnet"], "10.9.9.0/24");
}

#[test]
fn a_host_whose_subnet_is_another_hosts_moves_and_answers_meanwhile() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let etcd = lab.start_etcd(r#"{"Network":"10.9.0.0/16","SubnetMin":"10.9.9.0","SubnetMax":"10.9.9.0","Backend":{"Type":"vxlan"}}"#).unwrap();
    let mut agent = lab.host(0).start_agent(&options(&etcd)).unwrap();
    let thief = r#"{"PublicIP":"192.0.2.9","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:09"}}"#;
    etcd.put(&format!("{ETCD_PREFIX}/subnets/10.9.9.0-24"), thief).unwrap();
    // There is no other subnet yet: it says so, and lives.
    let status = wait_for_problem(&mut agent, &["cannot take another subnet", "out of subnets"]);
    assert_eq!(status["lease"]["subnet"], "10.9.9.0/24");
    let wider = r#"{"Network":"10.9.0.0/16","SubnetMin":"10.9.9.0","SubnetMax":"10.9.10.0","Backend":{"Type":"vxlan"}}"#;
    etcd.put(&format!("{ETCD_PREFIX}/config"), wider).unwrap();
    agent
        .wait_status(SOON, "the other subnet", |status| {
            anyhow::ensure!(status["lease"]["subnet"] == "10.9.10.0/24", "{status}");
            Ok(())
        })
        .unwrap();
    wait_for_log(&agent, "this host has moved to another subnet: restart Docker");
    let env = std::fs::read_to_string(lab.host(0).subnet_file()).unwrap();
    assert!(env.contains("FLANNEL_SUBNET=10.9.10.1/24\n"), "{env}");
    let value = etcd.get(&format!("{ETCD_PREFIX}/subnets/10.9.9.0-24")).unwrap();
    assert_eq!(value.as_deref(), Some(thief), "nobody is robbed");
}
