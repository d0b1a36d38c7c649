//! The image, in a Docker of today.

use std::{fs, time::Duration};

use anyhow::ensure;
use overlay_lab::{Lab, Machine, debian::FORKY, eventually};
use serde_json::Value;

use crate::{ARCHS, file};

const SOON: Duration = Duration::from_mins(1);

#[test]
fn docker_loads_the_image_and_runs_an_agent_of_the_host_from_it() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let host = lab.host(0);
    let mut machine = Machine::lay_out(host, &FORKY).unwrap();
    machine.write("/srv/image.tar", &fs::read(file(".oci.tar")).unwrap()).unwrap();
    machine.switch_on().unwrap();
    eventually(SOON, "Docker to answer", || machine.docker(["version"])).unwrap();

    let loaded = machine.docker(["load", "--input", "/srv/image.tar"]).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    for (arch, _) in ARCHS {
        let name = format!("overlay-agent:{version}-{arch}");
        assert!(loaded.contains(&name), "{loaded}");
        let format =
            "{{.Architecture}} {{index .Config.Labels \"org.opencontainers.image.version\"}}";
        let said = machine.docker(["inspect", "--format", format, &name]).unwrap();
        assert_eq!(said, format!("{arch} {version}"));
    }
    let image = format!("overlay-agent:{version}-amd64");
    let said = machine.docker(["run", "--rm", &image, "--version"]).unwrap();
    assert_eq!(said, format!("overlay-agent {version}"));

    // As docs/install.md says.
    let peers = format!(
        "network = \"10.5.0.0/16\"\n[[host]]\npublic-ip = \"{}\"\nsubnet = \"10.5.1.0/24\"\n",
        host.address()
    );
    machine.write("/etc/overlay/peers.toml", peers.as_bytes()).unwrap();
    let run = "docker run --detach --name overlay-agent --restart always --privileged --network host --pid host \
               --volume /sys/fs/bpf:/sys/fs/bpf --volume /run:/run --volume /var/lib/overlay:/var/lib/overlay \
               --volume /etc/overlay:/etc/overlay";
    machine.shell(&format!("{run} {image} run --peers /etc/overlay/peers.toml")).unwrap();
    // In Docker's place.
    machine.shell("ip link add br0 up type bridge && ip address add 10.5.1.1/24 dev br0").unwrap();
    let status = eventually(SOON, "the agent is ready", || {
        let status = machine.docker([
            "exec",
            "overlay-agent",
            "/usr/bin/overlay-agent",
            "status",
            "--output",
            "json",
        ]);
        let status: Value = serde_json::from_str(&status?)?;
        ensure!(
            status["ready"] == true && status["problems"] == Value::Array(Vec::new()),
            "{status}"
        );
        Ok(status)
    })
    .unwrap();
    assert_eq!(status["rules"]["mode"], "honour", "{status}");
    let subnet = machine.run("cat", ["/run/flannel/subnet.env"]).unwrap();
    assert!(subnet.contains("FLANNEL_SUBNET=10.5.1.1/24"), "{subnet}");
}

/// Whoever pushes it to a registry, or runs it with containerd or podman, gets the one for his processor.
#[test]
fn the_index_has_an_image_for_each_processor() {
    let folder = tempfile::tempdir().unwrap();
    overlay_lab::command::Cmd::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(file(".oci.tar"))
        .arg("--directory")
        .arg(folder.path())
        .run()
        .unwrap();
    let read = |path: &str| -> Value {
        serde_json::from_slice(&fs::read(folder.path().join(path)).unwrap()).unwrap()
    };
    let blob = |of: &Value| {
        let digest = of["digest"].as_str().unwrap().replace(':', "/");
        read(&format!("blobs/{digest}"))
    };
    assert_eq!(read("oci-layout")["imageLayoutVersion"], "1.0.0");
    let root = read("index.json");
    let index = blob(&root["manifests"][0]);
    let manifests = index["manifests"].as_array().unwrap();
    let archs: Vec<_> = manifests.iter().map(|one| &one["platform"]["architecture"]).collect();
    assert_eq!(archs, ["amd64", "arm64"]);
    for manifest in manifests {
        let config = blob(&blob(manifest)["config"]);
        assert_eq!(config["architecture"], manifest["platform"]["architecture"]);
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/overlay-agent");
    }
}
