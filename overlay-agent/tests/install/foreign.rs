//! What somebody else has set up is named, and stays.

use overlay_lab::{Lab, Machine};

use crate::support::{boot, configuration, install, member, refusal, wait_until_fine};

/// `init` has to refuse with this code and these words, and to change nothing.
fn refused(machine: &Machine<'_>, args: &[&str], code: i32, words: &[&str]) {
    let before = configuration(machine);
    let (found, line) = refusal(machine, args, "");
    assert_eq!(found, code, "{line}");
    for word in words {
        assert!(line.contains(word), "{line} does not say {word}");
    }
    assert_eq!(configuration(machine), before);
}

#[test]
fn what_was_there_before_is_named_and_never_overwritten() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let one = boot(&lab, 0);
    install(&one);

    one.write("/etc/docker/daemon.json", b"{\"bip\": \"10.9.0.1/24\"}").unwrap();
    refused(&one, &["init"], 73, &["/etc/docker/daemon.json", "bip"]);
    one.write("/etc/docker/daemon.json", b"{}").unwrap();

    one.write("/etc/default/docker", b"DOCKER_OPTS=\"--mtu=9000\"\n").unwrap();
    refused(&one, &["init"], 73, &["/etc/default/docker", "--mtu"]);
    one.write("/etc/default/docker", b"DOCKER_OPTS=\"--log-level=warn\"\n").unwrap();

    one.shell("ETCDCTL_API=3 etcdctl put /somebody/elses key").unwrap();
    refused(&one, &["init"], 73, &["somebody uses this host's etcd", "--etcd-endpoints"]);
    one.shell("ETCDCTL_API=3 etcdctl del /somebody/elses").unwrap();

    one.write("/etc/default/etcd", b"ETCD_NAME=mine\n").unwrap();
    refused(&one, &["init"], 73, &["/etc/default/etcd", "ETCD_NAME"]);
    one.write("/etc/default/etcd", b"").unwrap();

    one.host()
        .ip(["link", "add", "theirs", "type", "vxlan", "id", "7", "dstport", "8472", "dev", "eth0"])
        .unwrap();
    refused(&one, &["init"], 69, &["8472", "theirs"]);
    one.host().ip(["link", "delete", "theirs"]).unwrap();

    refused(&one, &["init", "--network", "192.168.0.0/16"], 73, &["192.168.33.0/24", "eth0"]);
    refused(&one, &["init", "--network", "10.1.2.3/16"], 64, &["10.1.2.3"]);
    refused(&one, &["init", "--iface", "eth7"], 64, &["eth7"]);
    refused(&one, &["init", "--etcd-endpoints", "http://192.0.2.1:1"], 69, &["192.0.2.1"]);

    one.run("overlay-agent", ["init", "--network", "10.7.0.0/16"]).unwrap();
    assert!(wait_until_fine(&one).starts_with("10.7."));
    // What the operator had said to Docker still counts.
    let pid = one.main_pid("docker.service").unwrap();
    let command = one.run("cat", [format!("/proc/{pid}/cmdline")]).unwrap();
    assert!(command.contains("--log-level=warn"), "{command}");
    one.run("systemctl", ["restart", "docker.service"]).unwrap();
    let pid = one.main_pid("docker.service").unwrap();
    let command = one.run("cat", [format!("/proc/{pid}/cmdline")]).unwrap();
    assert_eq!(command.matches("--log-level=warn").count(), 1, "{command}");
    assert_eq!(command.matches("--bip=").count(), 1, "{command}");
    refused(&one, &["init", "--network", "10.8.0.0/16"], 73, &["10.7.0.0/16"]);
}

#[test]
fn an_etcd_that_exists_is_used_without_certificates_if_it_has_none() {
    let lab = Lab::builder().start().unwrap();
    let one = boot(&lab, 0);
    install(&one);
    let address = one.host().address();
    let settings = format!(
        "ETCD_LISTEN_CLIENT_URLS=http://{address}:2379\nETCD_ADVERTISE_CLIENT_URLS=http://{address}:2379\n"
    );
    one.write("/etc/default/etcd", settings.as_bytes()).unwrap();
    one.run("systemctl", ["restart", "etcd.service"]).unwrap();
    let endpoint = format!("http://{address}:2379");
    let said = one.run("overlay-agent", ["init", "--etcd-endpoints", &endpoint]).unwrap();
    assert!(!said.contains("BEGIN"), "{said}");
    wait_until_fine(&one);
    let two = member(&lab, 1, &one);
    wait_until_fine(&two);
    assert!(one.run("test", ["-e", "/etc/systemd/system/etcd.service.d"]).is_err());
    // Nobody's etcd is ours to stop.
    one.run("overlay-agent", ["leave", "--yes"]).unwrap();
    assert_eq!(one.property("etcd.service", "ActiveState").unwrap(), "active");
}

#[test]
fn without_certificates_a_lab_is_open_and_says_so() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let one = boot(&lab, 0);
    install(&one);
    let output = one.command("overlay-agent").unwrap().args(["init", "--no-tls"]).run().unwrap();
    assert!(output.stderr.contains("WARN --no-tls"), "{}", output.stderr);
    let bridge = wait_until_fine(&one);
    let leases =
        one.shell("ETCDCTL_API=3 etcdctl get --prefix /coreos.com/network/subnets/").unwrap();
    assert!(leases.contains("192.168.33.10"), "{leases}");

    // With etcd down, a second `init` does not know the network, and must not write another.
    one.run("systemctl", ["stop", "etcd.service"]).unwrap();
    one.run("overlay-agent", ["init", "--no-tls"]).unwrap();
    assert_eq!(wait_until_fine(&one), bridge);
    one.run("systemctl", ["stop", "etcd.service"]).unwrap();
    let (code, said) = refusal_with_notes(&one, &["init", "--no-tls", "--network", "10.9.0.0/16"]);
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("10.1.0.0/16"), "{said}");
}

/// As [`refusal`], where warnings go before.
fn refusal_with_notes(machine: &Machine<'_>, args: &[&str]) -> (i32, String) {
    let output = machine.command("overlay-agent").unwrap().args(args).output().unwrap();
    assert!(!output.status.success(), "{}", output.stdout);
    (output.status.code().unwrap(), output.stderr)
}
