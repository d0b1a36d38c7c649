//! From the package to containers that talk.

use std::time::Duration;

use overlay_lab::{Lab, Machine};

use crate::support::{
    SERVICES, TOKEN, boot, check_order, configuration, copy_token, install, listen, member,
    refusal, say_hello, timed, token, wait_until_fine,
};

/// What the README tells its readers to type: the host, and the command.
fn quickstart() -> Vec<(&'static str, &'static str)> {
    include_str!("../../../README.md")
        .lines()
        .filter_map(|line| line.split_once("# "))
        .filter(|(host, _)| ["one", "two"].contains(host))
        .collect()
}

#[test]
fn two_machines_are_ready_with_the_readmes_lines() {
    let lab = Lab::builder().start().unwrap();
    let [one, two] = [0, 1].map(|host| boot(&lab, host));
    let mut table = Vec::new();
    for (host, line) in quickstart() {
        if line.starts_with("scp ") {
            copy_token(&one, &two);
            continue;
        }
        let machine = if host == "one" { &one } else { &two };
        let (said, time) = timed(|| machine.shell(&format!("cd /srv && {line}")).unwrap());
        println!("{host:<4} {line:<40} {:>5.1} s", time.as_secs_f64());
        table.push((host, time));
        if line.starts_with("apt ") {
            let state = machine.property("overlay-agent.service", "ActiveState").unwrap();
            assert_eq!(state, "inactive", "installing starts nothing");
        }
        if line.ends_with(" init") {
            writes_the_file_for_others(&one, &said);
        }
        if line.contains(" join ") {
            let answers = format!("{} answers at UDP port 8472", one.host().address());
            assert!(said.contains(&answers), "{said}");
        }
    }
    for (host, limit) in [("one", 20), ("two", 10)] {
        let times = table.iter().filter(|(name, _)| *name == host).map(|(_, time)| *time);
        let all: Duration = times.sum();
        println!("{host:<4} {:<40} {:>5.1} s", "from package to ready", all.as_secs_f64());
        assert!(all < Duration::from_secs(limit), "{host}: {all:?}");
    }

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
    again_changes_nothing(&two, &["join", "/srv/join.token"]);
    strangers_are_kept_out(&one);
    hardened(&one);
}

/// The other host is told by a file that only root reads: what is printed is in logs and on screens.
fn writes_the_file_for_others(one: &Machine<'_>, said: &str) {
    assert!(said.contains(TOKEN) && !said.contains(&token(one)), "{said}");
    assert_eq!(one.run("stat", ["-c", "%a", TOKEN]).unwrap(), "600");
}

fn again_changes_nothing(machine: &Machine<'_>, args: &[&str]) {
    let before = configuration(machine);
    let said = machine.run("overlay-agent", args).unwrap();
    assert!(said.contains("Nothing had to be changed."), "{said}");
    assert_eq!(configuration(machine), before);
    check_order(machine).unwrap();
}

/// Whoever has no certificate of the authority's can neither read nor write.
fn strangers_are_kept_out(one: &Machine<'_>) {
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
    let root = [
        &ca[..],
        &["--cert", "/etc/overlay/pki/root.pem", "--key", "/etc/overlay/pki/root-key.pem"],
    ]
    .concat();
    one.shell(
        "cd /srv && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
         -subj /CN=stranger -keyout stranger-key.pem -out stranger.pem",
    )
    .unwrap();
    let stranger =
        [&ca[..], &["--cert", "/srv/stranger.pem", "--key", "/srv/stranger-key.pem"]].concat();
    let get = ["get", "--prefix", "/coreos.com/network"];
    let put = ["put", "/coreos.com/network/subnets/10.1.1.0-24", "{}"];
    for args in [&get[..], &put] {
        for credentials in [&[][..], &ca, &stranger] {
            let output = etcdctl(credentials, args);
            assert!(!output.status.success(), "{credentials:?} {args:?}: {}", output.stdout);
        }
    }
    let output = etcdctl(&own, &["get", "--prefix", "/coreos.com/network/subnets/"]);
    assert!(output.stdout.contains("/subnets/"), "{output:?}");
    // A host's own opens its own.
    for args in [&get[..], &put, &["put", "/coreos.com/network/config", "{}"]] {
        let output = etcdctl(&own, args);
        assert!(output.stderr.contains("permission denied"), "{args:?}: {output:?}");
    }
    let output = etcdctl(&root, &get);
    assert!(output.stdout.contains("/subnets/"), "{output:?}");
    let plain = one.shell("ETCDCTL_API=3 etcdctl --command-timeout=3s get --prefix /");
    assert!(plain.is_err(), "without TLS: {plain:?}");
}

fn hardened(machine: &Machine<'_>) {
    let said = machine.run("systemd-analyze", ["security", "overlay-agent.service"]).unwrap();
    let line = said.lines().find(|line| line.contains("Overall exposure level")).unwrap();
    let level: f64 = line
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .unwrap_or_else(|| panic!("no level in {line}"));
    println!("systemd-analyze security: {level}");
    assert!(level < 4.0, "{line}");
}

/// However far it had come, by whatever time.
fn interrupt(machine: &Machine<'_>, arguments: &str, input: &str) {
    for seconds in [0.2, 0.7, 1.5] {
        // Standard input is not that of a shell's job unless it is said so.
        let line = format!(
            "exec 3<&0; overlay-agent {arguments} <&3 & sleep {seconds}; kill -9 $! 2>/dev/null; wait $!"
        );
        machine.command("sh").unwrap().args(["-c", &line]).input(input).output().unwrap();
    }
}

/// The third one gets its line by standard input.
#[test]
fn machines_that_were_interrupted_go_on() {
    let lab = Lab::builder().hosts(3).start().unwrap();
    let one = boot(&lab, 0);
    install(&one);
    interrupt(&one, "init", "");
    one.run("overlay-agent", ["init"]).unwrap();
    let two = member(&lab, 1, &one);
    let three = boot(&lab, 2);
    install(&three);
    let line = token(&one);
    interrupt(&three, "join -", &line);
    three.command("overlay-agent").unwrap().args(["join", "-"]).input(line).run().unwrap();
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
