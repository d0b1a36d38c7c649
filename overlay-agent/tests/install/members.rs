//! Three hosts with a share in etcd: each is lost for good and replaced, and all of them at once.

use anyhow::{Result, ensure};
use overlay_lab::{Container, Lab, Machine, UPLINK, eventually, stream::Stream};
use serde_json::Value;

use crate::{
    rotation::the_authority_is_made_another,
    support::{
        SOON, boot, configuration, container, copy_token, first, install, refusal, status, timed,
        wait_until_fine,
    },
};

const MEMBER_TOKEN: &str = "/etc/overlay/member.token";

fn copy_member_token(from: &Machine<'_>, to: &Machine<'_>) {
    let token = from.run("cat", [MEMBER_TOKEN]).unwrap();
    to.write("/srv/member.token", token.as_bytes()).unwrap();
    to.run("chmod", ["600", "/srv/member.token"]).unwrap();
}

/// A machine that is a member of both, the overlay and its etcd.
fn share<'lab>(lab: &'lab Lab, host: usize, first: &Machine<'_>) -> Machine<'lab> {
    let machine = boot(lab, host);
    install(&machine);
    copy_member_token(first, &machine);
    machine.run("overlay-agent", ["join", "--etcd", "/srv/member.token"]).unwrap();
    machine
}

fn cluster(machine: &Machine<'_>) -> Result<Value> {
    let command = machine.command("overlay-agent")?.args(["etcd", "status", "--output", "json"]);
    Ok(serde_json::from_str(&command.output()?.stdout)?)
}

fn wait_until_all_answer(machine: &Machine<'_>, count: usize) {
    eventually(SOON, &format!("{count} members of etcd answer"), || {
        let cluster = cluster(machine)?;
        let members = cluster["members"].as_array().map_or(0, Vec::len);
        ensure!(members == count && cluster["answering"] == count, "{cluster}");
        ensure!(
            cluster["members"]
                .as_array()
                .unwrap()
                .iter()
                .all(|member| member["is_learner"] == false),
            "{cluster}"
        );
        Ok(())
    })
    .unwrap();
}

fn leases(machine: &Machine<'_>) -> String {
    let all = machine.run("overlay-agent", ["lease", "list", "--output", "json"]).unwrap();
    let all: Value = serde_json::from_str(&all).unwrap();
    let all = all.as_array().unwrap_or_else(|| panic!("{all}"));
    let mut subnets: Vec<_> = all.iter().map(|lease| lease["subnet"].to_string()).collect();
    subnets.sort_unstable();
    subnets.join(" ")
}

/// What two hosts send each other meanwhile has to arrive.
struct Traffic(Vec<Stream>);

impl Traffic {
    fn between(one: &Container, two: &Container) -> Self {
        let start = |from, to| Stream::start(from, to, 7000).unwrap();
        Self(vec![start(one, two), start(two, one)])
    }

    fn stop(self, what: &str) {
        for stream in self.0 {
            let seen = stream.stop().unwrap();
            assert_eq!((seen.lost, seen.doubled), (0, 0), "{what}: {seen:?}");
        }
    }
}

#[test]
fn each_member_of_etcd_is_lost_for_good_and_replaced_and_all_at_once() {
    let lab = Lab::builder().hosts(6).start().unwrap();
    let mut machines = vec![first(&lab)];
    for host in [1, 2] {
        let machine = share(&lab, host, &machines[0]);
        machines.push(machine);
    }
    wait_until_all_answer(&machines[0], 3);
    let mut containers: Vec<_> = machines.iter().map(container).collect();
    for new in [3, 4, 5] {
        let mut dead = machines.remove(0);
        drop(containers.remove(0));
        let subnet = status(&dead).unwrap()["lease"]["subnet"].as_str().unwrap().to_owned();
        let traffic = Traffic::between(&containers[0], &containers[1]);
        dead.crash().unwrap();
        // The kernel of a machine that is gone answers nothing, either.
        dead.host().ip(["link", "set", UPLINK, "down"]).unwrap();
        let address = dead.host().address().to_string();
        eventually(SOON, "the others to have a leader, and to say what is lost", || {
            let command = machines[0].command("overlay-agent")?.args(["etcd", "status"]);
            let said = command.output()?;
            ensure!(said.status.code() == Some(1), "{said:?}");
            ensure!(said.stdout.contains("2 of 3 members answer: none may be lost"), "{said:?}");
            ensure!(said.stdout.contains("leading"), "{said:?}");
            Ok(())
        })
        .unwrap();
        let doctor = machines[1].command("overlay-agent").unwrap().arg("doctor").output().unwrap();
        assert!(doctor.stdout.contains("etcd remove overlay"), "{}", doctor.stdout);
        assert!(doctor.stdout.contains("none may be lost"), "{}", doctor.stdout);
        // Whichever member it is, it lets others in.
        machines[0].run("overlay-agent", ["init"]).unwrap();
        if new == 3 {
            let machine = boot(&lab, new);
            install(&machine);
            copy_token(&machines[0], &machine);
            machine.run("overlay-agent", ["join", "/srv/join.token"]).unwrap();
            copy_member_token(&machines[0], &machine);
            let replace = ["etcd", "replace", &address, "/srv/member.token", "--yes"];
            machine.run("overlay-agent", replace).unwrap();
            machines.push(machine);
        } else {
            machines[1].run("overlay-agent", ["etcd", "remove", &address, "--yes"]).unwrap();
            let machine = share(&lab, new, &machines[0]);
            machines.push(machine);
        }
        wait_until_all_answer(&machines[2], 3);
        machines[2].run("overlay-agent", ["lease", "release", &subnet]).unwrap();
        for machine in &machines {
            wait_until_fine(machine);
        }
        traffic.stop(&format!("{address} is lost and replaced"));
        containers.push(container(&machines[2]));
    }
    let traffic = Traffic::between(&containers[0], &containers[2]);
    let ((), took) = timed(|| the_authority_is_made_another(&machines));
    println!("the authority was made another in {took:?}");
    wait_until_all_answer(&machines[1], 3);
    traffic.stop("the authority is made another");
    all_are_lost_at_once(&machines, &containers);
}

fn all_are_lost_at_once(machines: &[Machine<'_>], containers: &[Container]) {
    let [one, two, three] = machines else { panic!("three machines") };
    let before = leases(one);
    let (code, said) = refusal(one, &["etcd", "restore", "/no/such/file"], "");
    assert_eq!(code, 66, "{said}");
    one.run("overlay-agent", ["etcd", "backup", "/srv/etcd.tar"]).unwrap();
    let (code, said) = refusal(one, &["etcd", "restore", "/srv/etcd.tar", "--yes"], "");
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("etcd works"), "{said}");

    let traffic = Traffic::between(&containers[0], &containers[2]);
    for machine in machines {
        machine
            .shell(
                "systemctl kill --signal=KILL etcd; systemctl stop etcd; \
                 rm -r /var/lib/etcd/overlay /etc/overlay/etcd.env /etc/overlay/pki/ca-key.pem",
            )
            .unwrap();
    }
    let (code, said) = refusal(two, &["etcd", "restore", "--yes"], "");
    assert_eq!(code, 66, "{said}");
    assert!(said.contains("was never the overlay's"), "{said}");
    one.shell("head --bytes=20000 /srv/etcd.tar > /srv/cut.tar").unwrap();
    let (code, said) = refusal(one, &["etcd", "restore", "/srv/cut.tar", "--yes"], "");
    assert_eq!(code, 65, "{said}");
    one.run("overlay-agent", ["etcd", "restore", "/srv/etcd.tar", "--yes"]).unwrap();
    one.run("overlay-agent", ["init"]).unwrap();
    for machine in [two, three] {
        copy_member_token(one, machine);
        machine.run("overlay-agent", ["etcd", "add", "/srv/member.token"]).unwrap();
    }
    wait_until_all_answer(three, 3);
    for machine in machines {
        wait_until_fine(machine);
    }
    assert_eq!(leases(three), before);

    // Two of three are gone, and the third has what none of the copies has.
    one.run(
        "overlay-agent",
        ["lease", "reserve", "10.1.200.0/24", "--public-ip", "192.168.33.200"],
    )
    .unwrap();
    let latest = leases(one);
    assert_ne!(latest, before);
    for machine in [two, three, one] {
        machine.run("systemctl", ["stop", "etcd"]).unwrap();
    }
    // No authority is made anew behind the hosts' backs.
    one.shell("mv /etc/overlay/pki/ca-key.pem /srv").unwrap();
    let (code, said) = refusal(one, &["etcd", "restore", "--yes"], "");
    assert_eq!(code, 66, "{said}");
    assert!(said.contains("ca-key.pem is gone"), "{said}");
    one.shell("mv /srv/ca-key.pem /etc/overlay/pki && cp /etc/overlay/pki/ca.pem /srv").unwrap();
    one.shell("echo another > /etc/overlay/pki/ca.pem").unwrap();
    let (code, said) = refusal(one, &["etcd", "restore", "/srv/etcd.tar", "--yes"], "");
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("another overlay"), "{said}");
    one.shell("cp /srv/ca.pem /etc/overlay/pki/ca.pem").unwrap();
    let status = one.command("overlay-agent").unwrap().args(["etcd", "status"]).output().unwrap();
    assert_eq!(status.status.code(), Some(69), "{status:?}");
    let said = one.run("overlay-agent", ["etcd", "restore", "--yes"]).unwrap();
    assert!(said.contains("/var/lib/etcd/overlay.before-"), "{said}");
    assert_eq!(leases(one), latest);
    traffic.stop("all are lost, and restored");
}

/// Two members, of which one leaves. What is done twice is done once.
#[test]
fn a_member_of_etcd_comes_twice_makes_copies_and_leaves() {
    let lab = Lab::builder().start().unwrap();
    let one = first(&lab);
    let two = boot(&lab, 1);
    install(&two);
    copy_token(&one, &two);
    let before = configuration(&two);
    let (code, said) = refusal(&two, &["join", "--etcd", "/srv/join.token"], "");
    assert_eq!(code, 65, "{said}");
    assert!(said.contains(MEMBER_TOKEN), "{said}");
    copy_member_token(&one, &two);
    let (code, said) = refusal(&two, &["etcd", "add", "/srv/member.token"], "");
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("join --etcd"), "{said}");
    // Nobody hears it knock, which is known before anything is changed.
    one.shell("iptables -I INPUT -p tcp --dport 2380 -j DROP").unwrap();
    let (code, said) = refusal(&two, &["join", "--etcd", "/srv/member.token"], "");
    assert_eq!(code, 69, "{said}");
    assert!(said.contains(":2380") && said.contains("firewall"), "{said}");
    assert!(configuration(&two) == before, "{said}");
    one.shell("iptables -D INPUT -p tcp --dport 2380 -j DROP").unwrap();
    // Nor does it hear anybody.
    two.shell("iptables -I INPUT -p tcp --dport 2380 -j DROP").unwrap();
    let (code, said) = refusal(&two, &["join", "--etcd", "/srv/member.token"], "");
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("TCP port 2380") && said.contains("iptables -I INPUT"), "{said}");
    assert!(configuration(&two) == before, "{said}");
    two.shell("iptables -D INPUT -p tcp --dport 2380 -j DROP").unwrap();

    let join = ["join", "--etcd", "/srv/member.token"];
    let said = two.run("overlay-agent", join).unwrap();
    assert!(said.contains("one of 2 members") && said.contains("take a third"), "{said}");
    wait_until_all_answer(&one, 2);
    let said = two.run("overlay-agent", join).unwrap();
    assert!(said.contains("Nothing had to be changed"), "{said}");
    // What is on the disk of a member is the cluster's, by whatever address the member is called.
    two.host().ip(["address", "add", "192.168.33.99/24", "dev", UPLINK]).unwrap();
    let (code, said) =
        refusal(&two, &["etcd", "add", "/srv/member.token", "--iface", "192.168.33.99"], "");
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("is etcd's member overlay-192.168.33.11 already"), "{said}");
    two.run("test", ["-e", "/var/lib/etcd/overlay/member"]).unwrap();
    two.host().ip(["address", "del", "192.168.33.99/24", "dev", UPLINK]).unwrap();

    let bridges = [&one, &two].map(wait_until_fine);
    let traffic = Traffic::between(&container(&one), &container(&two));
    for machine in [&one, &two] {
        machine.run("systemctl", ["is-active", "overlay-agent-backup.timer"]).unwrap();
        machine.run("systemctl", ["start", "overlay-agent-backup.service"]).unwrap();
        let copies = machine.shell("stat --format=%a:%n /var/lib/overlay/backups/*").unwrap();
        assert!(copies.starts_with("600:") && copies.lines().count() == 1, "{copies}");
    }
    traffic.stop("copies are made");

    one.run("overlay-agent", ["leave", "--yes"]).unwrap();
    wait_until_all_answer(&two, 1);
    assert!(one.run("test", ["-e", "/var/lib/etcd/overlay"]).is_err());
    assert!(!leases(&two).contains(&bridges[0].replace(".1/", ".0/")), "{}", leases(&two));
    assert_eq!(wait_until_fine(&two), bridges[1]);
    let (code, said) = refusal(&two, &["etcd", "remove", "192.168.33.11", "--yes"], "");
    assert_eq!(code, 73, "{said}");
    assert!(said.contains("only member"), "{said}");
}
