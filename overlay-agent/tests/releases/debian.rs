//! The Debian package on every release of Debian that has a kernel for it, installed and run by its unit.

use std::{fs, time::Duration};

use anyhow::ensure;
use overlay_lab::{
    Lab, Machine,
    debian::{BOOKWORM, Distribution, FORKY, TRIXIE},
    eventually,
};
use serde_json::Value;

use crate::file;

#[test]
fn bookworm_has_an_agent_that_is_ready() {
    is_ready_on(&BOOKWORM, "bookworm");
}

#[test]
fn trixie_has_an_agent_that_is_ready() {
    is_ready_on(&TRIXIE, "trixie");
}

#[test]
fn forky_has_an_agent_that_is_ready() {
    is_ready_on(&FORKY, "forky");
}

fn is_ready_on(distribution: &Distribution, codename: &str) {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let mut machine = Machine::lay_out(host, distribution).unwrap();
    machine.write("/srv/overlay-agent.deb", &fs::read(file("_amd64.deb")).unwrap()).unwrap();
    let peers = format!(
        "network = \"10.5.0.0/16\"\n[[host]]\npublic-ip = \"{}\"\nsubnet = \"10.5.1.0/24\"\n",
        host.address()
    );
    machine.write("/etc/overlay/peers.toml", peers.as_bytes()).unwrap();
    machine.switch_on().unwrap();
    let release = machine.run("cat", ["/etc/os-release"]).unwrap();
    assert!(release.contains(&format!("VERSION_CODENAME={codename}\n")), "{release}");

    let install = "DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends";
    machine.shell(&format!("{install} /srv/overlay-agent.deb")).unwrap();
    let said = machine.run("overlay-agent", ["--version"]).unwrap();
    assert_eq!(said, format!("overlay-agent {}", env!("CARGO_PKG_VERSION")));
    let settings = b"OVERLAY_PEERS=/etc/overlay/peers.toml\n";
    machine.write("/etc/default/overlay-agent", settings).unwrap();
    machine.run("systemctl", ["start", "overlay-agent"]).unwrap();
    // In Docker's place.
    let bridge = "ip link add br0 up type bridge && ip address add 10.5.1.1/24 dev br0";
    machine.shell(bridge).unwrap();
    eventually(Duration::from_secs(30), "the agent is ready", || {
        let command = machine.command("overlay-agent")?.args(["status", "--output", "json"]);
        let output = command.output()?;
        let status: Value = serde_json::from_str(&output.stdout)?;
        ensure!(
            status["ready"] == true && status["problems"] == Value::Array(Vec::new()),
            "{status}"
        );
        Ok(())
    })
    .unwrap();
    let subnet = machine.run("cat", ["/run/flannel/subnet.env"]).unwrap();
    assert!(subnet.contains("FLANNEL_SUBNET=10.5.1.1/24"), "{subnet}");
    machine.shell("apt-get purge --yes overlay-agent").unwrap();
    assert!(machine.run("test", ["-e", "/usr/bin/overlay-agent"]).is_err());
}
