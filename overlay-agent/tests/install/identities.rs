//! Hosts that etcd tells from each other: what each may do, for how long, and how one is shut out.

use std::time::{Duration, Instant};

use anyhow::ensure;
use overlay_lab::{Container, Lab, Machine, eventually, stream::Stream};

use crate::{
    rotation::one_is_left_behind,
    support::{
        SOON, boot, container, copy_token, first, install, member, refusal, status, wait_until_fine,
    },
};

/// For how many seconds short-lived certificates are watched; an hour, now and then, by hand.
const WATCHED_FOR: &str = "OVERLAY_WATCH_RENEWALS";
const WATCHED: Duration = Duration::from_secs(30);
/// For how long they are made meanwhile.
const SHORT: Duration = Duration::from_secs(16);

const CERTIFICATE: &str = "/etc/overlay/pki/client.pem";

/// What `etcdctl` says to whoever has what this machine has.
fn etcdctl(machine: &Machine<'_>, first: &Machine<'_>, line: &str) -> (bool, String) {
    let command = format!(
        "ETCDCTL_API=3 etcdctl --command-timeout=5s --endpoints=https://{}:2379 --cacert=/etc/overlay/pki/ca.pem \
         --cert={CERTIFICATE} --key=/etc/overlay/pki/client-key.pem {line}",
        first.host().address()
    );
    let output = machine.command("sh").unwrap().args(["-c", &command]).output().unwrap();
    (output.status.success(), format!("{}{}", output.stdout, output.stderr))
}

fn assert_denied(machine: &Machine<'_>, first: &Machine<'_>, line: &str) {
    let (done, said) = etcdctl(machine, first, line);
    assert!(!done && said.contains("permission denied"), "{line}: {said}");
}

fn ends(machine: &Machine<'_>) -> String {
    machine.run("openssl", ["x509", "-noout", "-enddate", "-in", CERTIFICATE]).unwrap()
}

#[test]
fn a_host_has_what_is_its_own_for_as_long_as_it_is_not_expelled() {
    let lab = Lab::builder().hosts(3).start().unwrap();
    let one = first(&lab);
    let two = member(&lab, 1, &one);
    let short = SHORT.as_secs().to_string();
    let arguments = ["init", "--token-once", "--certificate-lifetime", &short];
    one.run("overlay-agent", arguments).unwrap();
    let three = comes_twice_by_a_token_that_is_good_once(&lab, &one);
    for machine in [&one, &two, &three] {
        wait_until_fine(machine);
    }
    let containers = [&one, &two, &three].map(container);
    let streams = [
        Stream::start(&containers[0], &containers[1], 7000).unwrap(),
        Stream::start(&containers[1], &containers[2], 7000).unwrap(),
    ];
    let [between, to_thief] = streams;

    its_certificate_is_made_anew(&three);
    one.run("overlay-agent", ["init", "--certificate-lifetime", "31536000"]).unwrap();
    assert_eq!(to_thief.stop().unwrap().lost, 0, "while certificates were made anew");
    it_may_do_what_is_its_own(&one, &two, &three);
    it_is_expelled(&one, &two, &three, &containers);
    let seen = between.stop().unwrap();
    assert_eq!((seen.lost, seen.doubled), (0, 0), "{seen:?}");

    // It comes again, as another one.
    three.run("overlay-agent", ["leave", "--yes"]).unwrap();
    one.run("overlay-agent", ["init"]).unwrap();
    copy_token(&one, &three);
    three.run("overlay-agent", ["join", "/srv/join.token"]).unwrap();
    wait_until_fine(&three);
    let left = one.run("overlay-agent", ["hosts"]).unwrap();
    assert_eq!(left.lines().count(), 3, "{left}");
    three.run("overlay-agent", ["leave", "--yes"]).unwrap();
    let left = one.run("overlay-agent", ["hosts"]).unwrap();
    assert_eq!(left.lines().count(), 2, "{left}");

    a_host_of_an_earlier_version_gets_its_own(&one, &two);
    two.run("overlay-agent", ["leave", "--yes"]).unwrap();
    one.run("overlay-agent", ["init"]).unwrap();
    for count in 0..2 {
        copy_token(&one, &two);
        two.run("overlay-agent", ["join", "/srv/join.token"]).unwrap();
        wait_until_fine(&two);
        if count == 0 {
            one_is_left_behind(&one, &two);
            let (code, said) = refusal(&two, &["join", "/srv/join.token"], "");
            assert!(code == 69 && said.contains("a new one"), "{code}: {said}");
            two.run("overlay-agent", ["leave", "--yes"]).unwrap();
            one.run("overlay-agent", ["init"]).unwrap();
        }
    }
}

/// A question that nobody answered in time is answered later, and is no other one when it is asked again.
fn comes_twice_by_a_token_that_is_good_once<'lab>(
    lab: &'lab Lab,
    first: &Machine<'_>,
) -> Machine<'lab> {
    let machine = boot(lab, 2);
    install(&machine);
    copy_token(first, &machine);
    first.run("systemctl", ["stop", "overlay-agent"]).unwrap();
    let (code, said) = refusal(&machine, &["join", "/srv/join.token"], "");
    assert_eq!(code, 69, "{said}");
    assert!(said.contains("no host with a share in etcd has answered"), "{said}");
    first.run("systemctl", ["start", "overlay-agent"]).unwrap();
    eventually(SOON, "the question is answered", || {
        let known = first.run("overlay-agent", ["hosts"])?;
        ensure!(known.lines().count() == 3, "{known}");
        Ok(())
    })
    .unwrap();
    machine.run("overlay-agent", ["join", "/srv/join.token"]).unwrap();
    let known = first.run("overlay-agent", ["hosts"]).unwrap();
    assert_eq!(known.lines().count(), 3, "{known}");
    machine
}

fn its_certificate_is_made_anew(machine: &Machine<'_>) {
    let given = std::env::var(WATCHED_FOR).ok().map(|text| text.parse().unwrap());
    let watched = given.map_or(WATCHED, Duration::from_secs);
    let begun = Instant::now();
    let mut seen = vec![ends(machine)];
    while begun.elapsed() < watched {
        eventually(SHORT, "the next certificate", || {
            let now = ends(machine);
            ensure!(Some(&now) != seen.last(), "it is still {now}");
            seen.push(now);
            Ok(())
        })
        .unwrap();
        let status = status(machine).unwrap();
        assert_eq!(status["problems"], serde_json::json!([]));
    }
    println!("{} certificates in {:?}", seen.len(), begun.elapsed());
    assert!(seen.len() as u64 > watched.as_secs() / SHORT.as_secs(), "{seen:?}");
}

fn it_may_do_what_is_its_own(one: &Machine<'_>, two: &Machine<'_>, thief: &Machine<'_>) {
    let prefix = "/coreos.com/network";
    let subnet = status(two).unwrap()["lease"]["subnet"].as_str().unwrap().replace('/', "-");
    let theirs = format!("{prefix}/subnets/{subnet}");
    assert_denied(thief, one, &format!("put {theirs} stolen"));
    assert_denied(thief, one, &format!("del {theirs}"));
    assert_denied(thief, one, &format!("put {prefix}/subnets/10.1.250.0-24 x"));
    assert_denied(thief, one, &format!("put {prefix}/config x"));
    for dir in ["/", &format!("{prefix}/join/"), &format!("{prefix}/authority/")] {
        assert_denied(thief, one, &format!("get --prefix {dir}"));
    }
    let (read, said) = etcdctl(thief, one, &format!("get --prefix {prefix}/subnets/"));
    assert!(read && said.contains(&theirs), "{said}");
    // What is decided for all is decided elsewhere.
    for arguments in [&["hosts"][..], &["expel", "two", "--yes"]] {
        let (code, said) = refusal(thief, arguments, "");
        assert_eq!(code, 77, "{said}");
    }
    let network = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#;
    let (code, said) = refusal(thief, &["config", "set", "--force", "-"], network);
    assert!(code == 77 && said.contains("a share in etcd"), "{code}: {said}");
    let (code, said) = refusal(one, &["expel", "nobody", "--yes"], "");
    assert_eq!(code, 66, "{said}");
    let address = one.host().address().to_string();
    let (code, said) = refusal(one, &["expel", &address, "--yes"], "");
    assert_eq!(code, 73, "{said}");
}

fn it_is_expelled(
    one: &Machine<'_>,
    two: &Machine<'_>,
    thief: &Machine<'_>,
    containers: &[Container; 3],
) {
    let address = thief.host().address().to_string();
    let said = one.run("overlay-agent", ["expel", &address, "--dry-run"]).unwrap();
    assert!(said.contains("Nothing was changed"), "{said}");
    wait_until_fine(thief);
    containers[2].ping(containers[1].address()).unwrap();
    // Somebody who listens hears nothing more.
    thief
        .shell(&format!(
            "ETCDCTL_API=3 systemd-run --unit=listener etcdctl --endpoints=https://{}:2379 --cacert=/etc/overlay/pki/ca.pem \
             --cert={CERTIFICATE} --key=/etc/overlay/pki/client-key.pem watch --prefix /coreos.com/network/subnets/",
            one.host().address()
        ))
        .unwrap();
    let listens = format!(
        "ss --no-header --tcp --numeric state established dst {} | grep -c :2379",
        one.host().address()
    );
    eventually(SOON, "somebody listens", || {
        let count: u32 = thief.shell(&listens)?.trim().parse()?;
        ensure!(count >= 2, "{count} connections");
        Ok(())
    })
    .unwrap();
    let begun = Instant::now();
    one.run("overlay-agent", ["expel", &address, "--yes"]).unwrap();
    println!("expel took {:?}", begun.elapsed());
    assert_denied(thief, one, "get /coreos.com/network/config");
    println!("denied after {:?}", begun.elapsed());
    let lost = containers[2].ping(containers[1].address());
    assert!(lost.is_err(), "its containers are still heard");
    let before = two.run("overlay-agent", ["status"]).unwrap();
    assert!(!before.contains(&address), "{before}");
    // A lease that changes now is no news for whoever listens there.
    let reserve = ["lease", "reserve", "10.1.251.0/24", "--public-ip", "192.168.33.251"];
    one.run("overlay-agent", reserve).unwrap();
    one.run("overlay-agent", ["lease", "release", "10.1.251.0/24"]).unwrap();
    let heard = thief.journal("listener.service", 1000).unwrap();
    assert!(!heard.contains("10.1.251.0"), "{heard}");
    // Neither with the token of before.
    let (code, said) = refusal(thief, &["join", "/srv/join.token"], "");
    assert!(code == 69 || code == 73, "{code}: {said}");
    let doctor = thief.command("overlay-agent").unwrap().arg("doctor").output().unwrap();
    assert!(doctor.stdout.contains("does not know this host any more"), "{}", doctor.stdout);
    wait_until_fine(two);
}

/// Before hosts had certificates of their own, all had one, which was in etcd.
fn a_host_of_an_earlier_version_gets_its_own(one: &Machine<'_>, two: &Machine<'_>) {
    one.shell(
        "cd /etc/overlay/pki && echo extendedKeyUsage=clientAuth > /srv/client.ext && openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out /srv/shared-key.pem && \
         openssl req -new -key /srv/shared-key.pem -subj '/CN=overlay host' -out /srv/shared.csr && \
         openssl x509 -req -in /srv/shared.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -CAserial /srv/serial -extfile /srv/client.ext -days 9 -out /srv/shared.pem && \
         ETCDCTL_API=3 etcdctl --endpoints=https://127.0.0.1:2379 --cacert=ca.pem --cert=root.pem --key=root-key.pem \
         put /coreos.com/network/join/client '{}'",
    )
    .unwrap();
    for (from, to) in [
        ("/srv/shared.pem", CERTIFICATE),
        ("/srv/shared-key.pem", "/etc/overlay/pki/client-key.pem"),
    ] {
        let text = one.run("cat", [from]).unwrap();
        two.write(to, text.as_bytes()).unwrap();
    }
    one.run("overlay-agent", ["init"]).unwrap();
    assert!(etcdctl(two, one, "get /coreos.com/network/config").0);
    two.run("systemctl", ["restart", "overlay-agent"]).unwrap();
    eventually(SOON, "a certificate of its own", || {
        let name = two.run("openssl", ["x509", "-noout", "-subject", "-in", CERTIFICATE])?;
        ensure!(name.contains("overlay-host/"), "it is {name}");
        Ok(())
    })
    .unwrap();
    one.run("overlay-agent", ["expel", "--shared-certificate", "--yes"]).unwrap();
    wait_until_fine(two);
    two.write(CERTIFICATE, one.run("cat", ["/srv/shared.pem"]).unwrap().as_bytes()).unwrap();
    let key = one.run("cat", ["/srv/shared-key.pem"]).unwrap();
    two.write("/etc/overlay/pki/client-key.pem", key.as_bytes()).unwrap();
    assert_denied(two, one, "get /coreos.com/network/config");
}
