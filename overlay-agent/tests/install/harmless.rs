//! No command ends what others run, or deletes what others use, unless somebody has said so.

use anyhow::ensure;
use overlay_lab::{IMAGE, Lab, Machine, eventually};

use crate::support::{
    SOON, boot, configuration, copy_token, first, install, member, move_to, refusal, status, timed,
    wait_until_fine,
};

/// With a restart policy, without any, and one that removes itself.
const CONTAINERS: [(&str, &str); 3] =
    [("web", "--restart=always"), ("job", "--restart=no"), ("once", "--rm")];

fn run_containers(machine: &Machine<'_>) {
    machine.import_image().unwrap();
    for (name, policy) in CONTAINERS {
        let run = ["run", "--detach", policy, "--stop-timeout=1", "--name", name, IMAGE];
        machine.docker(run.into_iter().chain(["sleep", "3600"])).unwrap();
    }
}

fn running(machine: &Machine<'_>) -> Vec<String> {
    let names = machine.docker(["ps", "--format", "{{.Names}}"]).unwrap();
    let mut names: Vec<_> = names.lines().map(str::to_owned).collect();
    names.sort_unstable();
    names
}

#[test]
fn containers_are_told_of_before_they_end_and_run_again_after() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let one = boot(&lab, 0);
    install(&one);
    run_containers(&one);
    let before = configuration(&one);
    // A host that is no member needs no second overlay.
    let doctor = one.command("overlay-agent").unwrap().arg("doctor").output().unwrap();
    assert_eq!(doctor.status.code(), Some(1), "{doctor:?}");
    assert!(doctor.stdout.contains("no member of an overlay"), "{doctor:?}");
    assert_eq!(doctor.stdout.matches("mend:").count(), 1, "{doctor:?}");
    let unchanged = |what: &str| {
        assert_eq!(configuration(&one), before, "{what}");
        assert_eq!(running(&one), ["job", "once", "web"], "{what}");
    };

    let (code, said) = refusal(&one, &["init"], "");
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("--yes"), "{said}");
    unchanged("nobody answers");
    let said = one.command("overlay-agent").unwrap().arg("init").input("n\n").read().unwrap();
    for (name, _) in CONTAINERS {
        assert!(said.contains(&format!("\n  {name} (")), "{said}");
    }
    assert!(said.ends_with("Nothing was changed."), "{said}");
    unchanged("the answer is no");
    let said = one.run("overlay-agent", ["init", "--dry-run"]).unwrap();
    assert!(said.contains("set up this host's etcd") && said.contains("once ("), "{said}");
    unchanged("it was only asked about");

    let said = one.run("overlay-agent", ["init", "--yes"]).unwrap();
    assert!(said.contains("runs job again"), "{said}");
    wait_until_fine(&one);
    assert_eq!(running(&one), ["job", "web"], "{said}");
    // Nothing ends any more, so nothing is asked.
    let said = one.run("overlay-agent", ["init"]).unwrap();
    assert!(said.contains("Nothing had to be changed"), "{said}");

    one.run("overlay-agent", ["leave", "--keep", "--dry-run"]).unwrap();
    one.run("test", ["!", "-e", "/var/lib/overlay/etcd-users"]).unwrap();
    let said = one.run("overlay-agent", ["leave", "--dry-run"]).unwrap();
    assert!(said.contains("remove this host's etcd") && said.contains("job ("), "{said}");
    wait_until_fine(&one);
    one.shell("apt-get remove --yes overlay-agent").unwrap();
    assert_eq!(running(&one), ["job", "web"], "the package is removed");
    install(&one);
    one.run("overlay-agent", ["init", "--yes"]).unwrap();
    one.run("overlay-agent", ["leave", "--yes"]).unwrap();
    assert_eq!(running(&one), ["job", "web"], "this host has left");

    one.write("/etc/default/overlay-agent", b"OVERLAY_PUBLIC_IP=nonsense\n").unwrap();
    let ((code, said), took) = timed(|| {
        let output =
            one.command("overlay-agent").unwrap().args(["init", "--yes"]).output().unwrap();
        (output.status.code().unwrap(), output.stderr)
    });
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("does not stay up") && said.contains("nonsense"), "{said}");
    assert!(took < SOON, "what is wrong is told after {took:?}");
}

/// Of an etcd that does not answer nobody knows who uses it.
#[test]
fn a_store_that_others_use_outlives_its_hosts_address_leaving_and_purging() {
    let lab = Lab::builder().start().unwrap();
    let one = first(&lab);
    let two = member(&lab, 1, &one);
    let bridges = [&one, &two].map(wait_until_fine);

    one.run("systemctl", ["stop", "etcd"]).unwrap();
    let (code, said) = refusal(&one, &["leave", "--yes"], "");
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("not known") && said.contains("--delete-etcd"), "{said}");
    one.run("test", ["-e", "/var/lib/etcd/overlay/member"]).unwrap();
    one.run("test", ["-e", "/etc/overlay/pki/ca-key.pem"]).unwrap();

    // It cannot listen at the old address, either.
    move_to(&one, "192.168.33.77/24");
    let said = one.run("overlay-agent", ["init"]).unwrap();
    assert!(said.contains("https://192.168.33.77:2379"), "{said}");
    assert_eq!(wait_until_fine(&one), bridges[0]);
    copy_token(&one, &two);
    two.run("overlay-agent", ["join", "/srv/join.token"]).unwrap();
    assert_eq!(wait_until_fine(&two), bridges[1]);
    eventually(SOON, "each to know the other's address", || {
        let status = status(&two)?;
        let peers = status["peers"].to_string();
        ensure!(peers.contains("192.168.33.77"), "{peers}");
        Ok(())
    })
    .unwrap();

    let said = one.shell("apt-get purge --yes overlay-agent 2>&1").unwrap();
    assert!(said.contains("other hosts may use this host's etcd"), "{said}");
    let leases = two.run("overlay-agent", ["lease", "list"]).unwrap();
    assert!(leases.contains("2 in all"), "{leases}");
    // Once they have left, whoever says so gets rid of it.
    install(&one);
    two.run("overlay-agent", ["leave", "--yes"]).unwrap();
    one.run("overlay-agent", ["leave", "--yes"]).unwrap();
    assert!(one.run("test", ["-e", "/var/lib/etcd/overlay"]).is_err());
}
