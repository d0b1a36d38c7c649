//! Undoing it, step by step until nothing is left.

use overlay_lab::{Lab, Machine, eventually};

use crate::support::{SOON, boot, first, install, member, refusal, wait_until_fine};

/// Where Docker's bridge is on a machine that nobody has told anything.
const DOCKERS_OWN: &str = "172.17.0.1/16";

#[test]
fn hosts_leave_one_by_one_and_purging_the_package_leaves_nothing() {
    let lab = Lab::builder().start().unwrap();
    let one = boot(&lab, 0);
    let before = files(&one);
    install(&one);
    one.run("overlay-agent", ["init"]).unwrap();
    let two = member(&lab, 1, &one);

    let (code, said) = refusal(&one, &["leave", "--yes"], "");
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("they have to leave first"), "{said}");
    wait_until_fine(&one);

    // Whoever does not say yes has not said it.
    let said = two.command("overlay-agent").unwrap().arg("leave").input("n\n").read().unwrap();
    assert!(said.ends_with("Nothing was changed."), "{said}");
    wait_until_fine(&two);

    let said = two.command("overlay-agent").unwrap().arg("leave").input("y\n").read().unwrap();
    assert!(said.contains("is given back"), "{said}");
    is_a_stranger(&two);
    let leases = one.run("overlay-agent", ["lease", "list"]).unwrap();
    assert!(leases.contains("1 in all"), "{leases}");
    let again = two.run("overlay-agent", ["leave", "--yes"]).unwrap();
    assert!(again.contains("Nothing had to be changed"), "{again}");

    one.run("overlay-agent", ["leave", "--yes"]).unwrap();
    is_a_stranger(&one);
    assert_eq!(one.shell("ETCDCTL_API=3 etcdctl get --prefix /").unwrap(), "", "etcd is as it was");

    one.shell("apt-get purge --yes overlay-agent").unwrap();
    assert_eq!(files(&one), before);
}

#[test]
fn a_package_that_is_removed_takes_everything_along_but_its_configuration() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let one = first(&lab);
    let bridge = wait_until_fine(&one);
    one.shell("apt-get remove --yes overlay-agent").unwrap();
    is_out_of_the_kernel(&one);
    one.run("test", ["-e", "/etc/overlay/agent.env"]).unwrap();
    // It comes back as it was.
    install(&one);
    one.run("overlay-agent", ["init"]).unwrap();
    assert_eq!(wait_until_fine(&one), bridge);

    // Without leaving first, and without its etcd for certificates that are gone.
    one.shell("apt-get purge --yes overlay-agent").unwrap();
    is_out_of_the_kernel(&one);
    for path in
        ["/etc/overlay", "/etc/default/overlay-agent", "/var/lib/etcd/overlay", "/run/overlay"]
    {
        assert!(one.run("test", ["-e", path]).is_err(), "{path} is still there");
    }
}

fn is_a_stranger(machine: &Machine<'_>) {
    is_out_of_the_kernel(machine);
    assert!(machine.run("test", ["-e", "/etc/overlay"]).is_err());
    let enabled = machine.command("systemctl").unwrap().args(["is-enabled", "overlay-agent"]);
    assert_eq!(enabled.output().unwrap().stdout.trim(), "disabled");
}

pub(crate) fn is_out_of_the_kernel(machine: &Machine<'_>) {
    eventually(SOON, "Docker is back on its own bridge", || {
        let bridge = machine.addresses("docker0")?;
        anyhow::ensure!(bridge.contains(DOCKERS_OWN), "{bridge}");
        Ok(())
    })
    .unwrap();
    let links = machine.host().ip(["-brief", "link", "show"]).unwrap();
    assert!(!links.contains("overlay."), "{links}");
    let routes = machine.host().ip(["route", "show"]).unwrap();
    assert!(!routes.contains("10.1.0.0"), "{routes}");
    assert_eq!(machine.run("ls", ["/sys/fs/bpf"]).unwrap(), "");
    assert!(machine.run("test", ["-e", "/run/flannel/subnet.env"]).is_err());
    let rules = machine.run("iptables", ["-S", "FORWARD"]).unwrap();
    assert!(!rules.contains("overlay"), "{rules}");
}

/// Every file where a package or a service leaves something, except what runs write all the time.
fn files(machine: &Machine<'_>) -> String {
    machine
        .shell(
            "find /etc /usr /opt /srv /var/lib/etcd /run/systemd/system -xdev ! -path '*/member/*' \
             ! -path '/etc/*-' ! -path '*/__pycache__*' ! -path /usr | sort",
        )
        .unwrap()
}
