//! Services that die, machines that are switched off, an etcd that is away.

use anyhow::ensure;
use overlay_lab::{Lab, Machine, eventually};

use crate::support::{
    SERVICES, SOON, check_order, first, listen, member, say_hello, status, wait_for_unit,
    wait_until_fine,
};

#[test]
fn whatever_is_killed_comes_back() {
    let lab = Lab::builder().start().unwrap();
    let one = first(&lab);
    let two = member(&lab, 1, &one);
    let bridge = wait_until_fine(&one);
    listen(&one, "listener");
    two.import_image().unwrap();
    let pins = || one.shell("ls /sys/fs/bpf/overlay /sys/fs/bpf/overlay/links").unwrap();
    let pinned = pins();
    for unit in SERVICES {
        let pid = one.main_pid(unit).unwrap();
        one.run("kill", ["-9", &pid.to_string()]).unwrap();
        if unit == "overlay-agent.service" {
            assert_eq!(pins(), pinned, "what is pinned outlives the agent");
        }
        eventually(SOON, &format!("{unit} comes back"), || {
            let new = one.main_pid(unit)?;
            ensure!(new != pid, "it is still the old one");
            ensure!(one.property(unit, "ActiveState")? == "active", "it is not active yet");
            Ok(())
        })
        .unwrap();
        assert_eq!(wait_until_fine(&one), bridge, "after {unit} was killed");
        say_hello(&two, &one, "listener");
    }
    an_upgrade_restarts_the_agent_alone(&two);
}

fn an_upgrade_restarts_the_agent_alone(machine: &Machine<'_>) {
    let bridge = wait_until_fine(machine);
    let [agent, docker] = [SERVICES[1], SERVICES[2]].map(|unit| machine.main_pid(unit).unwrap());
    machine.run("dpkg", ["--install", "/srv/overlay-agent.deb"]).unwrap();
    assert_eq!(wait_until_fine(machine), bridge);
    assert_ne!(machine.main_pid(SERVICES[1]).unwrap(), agent);
    assert_eq!(machine.main_pid(SERVICES[2]).unwrap(), docker);
}

#[test]
fn a_machine_that_was_off_has_its_subnet_and_its_containers_again() {
    let lab = Lab::builder().start().unwrap();
    let mut one = first(&lab);
    let mut two = member(&lab, 1, &one);
    let bridges = [&one, &two].map(wait_until_fine);
    listen(&one, "listener");
    listen(&two, "listener");

    two.switch_off().unwrap();
    two.switch_on().unwrap();
    assert_eq!(wait_until_fine(&two), bridges[1], "a restart in good order");
    say_hello(&one, &two, "listener");

    one.crash().unwrap();
    one.switch_on().unwrap();
    assert_eq!(wait_until_fine(&one), bridges[0], "the host with etcd, after its plug was pulled");
    say_hello(&two, &one, "listener");

    etcd_is_down_at_boot(&one, &mut two, &bridges[1]);
    say_hello(&one, &two, "listener");
}

/// The agent waits for a while, says so, and goes on with what it knew last; Docker starts on the same bridge.
fn etcd_is_down_at_boot(one: &Machine<'_>, two: &mut Machine<'_>, bridge: &str) {
    one.run("systemctl", ["stop", "etcd.service"]).unwrap();
    two.crash().unwrap();
    two.switch_on().unwrap();
    eventually(SOON, "the agent says what it waits for", || {
        let status = status(two)?;
        ensure!(status["waiting_for"] == "the network config", "{status}");
        Ok(())
    })
    .unwrap();
    wait_for_unit(two, "containerd.service");
    wait_for_unit(two, "docker.service");
    assert_eq!(check_order(two).unwrap(), bridge);
    let problems = status(two).unwrap()["problems"].to_string();
    assert!(problems.contains("knew last"), "{problems}");
    say_hello(one, two, "listener");
    // What runs, runs on.
    check_order(one).unwrap();
    one.run("systemctl", ["start", "etcd.service"]).unwrap();
    assert_eq!(wait_until_fine(two), bridge, "with nothing done by hand");
}
