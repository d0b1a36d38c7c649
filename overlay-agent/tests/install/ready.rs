//! From the package to containers that talk.

use std::time::Duration;

use xtask::lab::Lab;

use crate::support::{
    SERVICES, boot, check_order, configuration, copy_token, install, listen, refusal, say_hello,
    timed, token, wait_until_fine,
};

#[test]
fn two_machines_are_ready_with_one_line_each() {
    let lab = Lab::builder().start().unwrap();
    let [one, two] = [0, 1].map(|host| boot(&lab, host));

    let ((), one_installed) = timed(|| install(&one));
    for unit in ["overlay-agent.service"] {
        assert_eq!(
            one.property(unit, "ActiveState").unwrap(),
            "inactive",
            "installing starts nothing"
        );
    }
    let (said, one_ready) = timed(|| one.run("overlay-agent", ["init"]).unwrap());
    // What is printed is what the other host is told.
    let line =
        said.lines().find_map(|line| line.trim().strip_prefix("overlay-agent join ")).unwrap();
    assert_eq!(line, token(&one));
    assert_eq!(one.run("stat", ["-c", "%a", crate::support::TOKEN]).unwrap(), "600");

    let ((), two_installed) = timed(|| install(&two));
    copy_token(&one, &two);
    let (_, two_ready) = timed(|| two.run("overlay-agent", ["join", "/root/join.token"]).unwrap());
    println!(
        "\n{:<16} {:>14} {:>14} {:>16}\n{:<16} {:>12.1} s {:>12.1} s {:>14.1} s\n{:<16} {:>12.1} s {:>12.1} s {:>14.1} s\n",
        "MACHINE",
        "apt install",
        "init or join",
        "install to ready",
        "first",
        one_installed.as_secs_f64(),
        one_ready.as_secs_f64(),
        (one_installed + one_ready).as_secs_f64(),
        "second",
        two_installed.as_secs_f64(),
        two_ready.as_secs_f64(),
        (two_installed + two_ready).as_secs_f64(),
    );
    assert!(one_installed + one_ready < Duration::from_secs(20));
    assert!(two_installed + two_ready < Duration::from_secs(10));

    for machine in [&one, &two] {
        wait_until_fine(machine);
        for unit in &SERVICES[1..] {
            assert_eq!(machine.run("systemctl", ["is-enabled", unit]).unwrap(), "enabled");
        }
    }
    listen(&one, "listener");
    two.import_image().unwrap();
    say_hello(&two, &one, "listener");

    again_changes_nothing(&one, &["init"]);
    again_changes_nothing(&two, &["join", "/root/join.token"]);
    strangers_are_kept_out(&one);
    hardened(&one);
}

fn again_changes_nothing(machine: &xtask::lab::Machine<'_>, args: &[&str]) {
    let before = configuration(machine);
    let said = machine.run("overlay-agent", args).unwrap();
    assert!(said.contains("Nothing had to be changed."), "{said}");
    assert_eq!(configuration(machine), before);
    check_order(machine).unwrap();
}

/// Whoever has no certificate of the authority's can neither read nor write.
fn strangers_are_kept_out(one: &xtask::lab::Machine<'_>) {
    let endpoint = format!("https://{}:2379", one.host().address());
    let etcdctl = |credentials: &[&str], args: &[&str]| {
        one.command("env")
            .unwrap()
            .args(["ETCDCTL_API=3", "etcdctl", "--command-timeout=3s", "--endpoints", &endpoint])
            .args(credentials)
            .args(args)
            .output()
            .unwrap()
    };
    let ca = ["--cacert", "/etc/overlay/pki/ca.pem"];
    let own = [
        &ca[..],
        &["--cert", "/etc/overlay/pki/client.pem", "--key", "/etc/overlay/pki/client-key.pem"],
    ]
    .concat();
    one.shell(
        "cd /root && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
         -subj /CN=stranger -keyout stranger-key.pem -out stranger.pem",
    )
    .unwrap();
    let stranger =
        [&ca[..], &["--cert", "/root/stranger.pem", "--key", "/root/stranger-key.pem"]].concat();
    let get = ["get", "--prefix", "/coreos.com/network"];
    let put = ["put", "/coreos.com/network/subnets/10.1.1.0-24", "{}"];
    for args in [&get[..], &put] {
        for credentials in [&[][..], &ca, &stranger] {
            let output = etcdctl(credentials, args);
            assert!(!output.status.success(), "{credentials:?} {args:?}: {}", output.stdout);
        }
    }
    let output = etcdctl(&own, &get);
    assert!(output.stdout.contains("/subnets/"), "{output:?}");
    let plain = one.shell("ETCDCTL_API=3 etcdctl --command-timeout=3s get --prefix /");
    assert!(plain.is_err(), "without TLS: {plain:?}");
}

fn hardened(machine: &xtask::lab::Machine<'_>) {
    let said = machine.run("systemd-analyze", ["security", "overlay-agent.service"]).unwrap();
    let line = said.lines().find(|line| line.contains("Overall exposure level")).unwrap();
    let level: f64 = line
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no level in {line}"));
    println!("systemd-analyze security: {level}");
    assert!(level < 4.0, "{line}");
}

/// The third one gets its line by standard input, is interrupted twice, and goes on.
#[test]
fn a_third_machine_that_was_interrupted_goes_on() {
    let lab = Lab::builder().hosts(3).start().unwrap();
    let one = crate::support::first(&lab);
    let two = crate::support::member(&lab, 1, &one);
    let three = boot(&lab, 2);
    install(&three);
    let line = token(&one);
    for script in ["sleep 0.3", "sleep 2"] {
        let interrupted = format!("overlay-agent join - & {script}; kill -9 $!; wait $!");
        three
            .command("sh")
            .unwrap()
            .args(["-c", &interrupted])
            .input(line.clone())
            .output()
            .unwrap();
    }
    let join = three.command("overlay-agent").unwrap().args(["join", "-"]).input(line);
    join.run().unwrap();
    for machine in [&one, &two, &three] {
        wait_until_fine(machine);
    }
    listen(&three, "listener");
    for machine in [&one, &two] {
        machine.import_image().unwrap();
        say_hello(machine, &three, "listener");
    }
    let (code, said) = refusal(&three, &["init"], "");
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("member"), "{said}");
}
