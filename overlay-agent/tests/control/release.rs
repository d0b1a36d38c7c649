//! A lease that is taken away from a host that runs.

use overlay_lab::{ETCD_PREFIX, Lab, NETWORK_CONFIG, eventually};

use crate::support::{SOON, options};

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
