//! The authority is made another on real machines, after its key was stolen.

use anyhow::ensure;
use overlay_lab::{Machine, eventually};

use crate::support::{SOON, refusal, status, wait_until_fine};

const NEXT: &str = "/etc/overlay/pki/next-authority.pem";

/// Takes the authority's key away, and makes whoever has it root in etcd.
fn steal(machine: &Machine<'_>) {
    machine
        .shell(
            "mkdir -p /srv/stolen && cd /srv/stolen && cp /etc/overlay/pki/ca.pem /etc/overlay/pki/ca-key.pem . && \
             echo extendedKeyUsage=clientAuth > client.ext && \
             openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out key.pem && \
             openssl req -new -key key.pem -subj /CN=root -out root.csr && \
             openssl x509 -req -in root.csr -CA ca.pem -CAkey ca-key.pem -set_serial 7 -extfile client.ext -days 9 -out root.pem",
        )
        .unwrap();
}

/// Whether the etcd of another machine lets him in, and what is said.
fn thief_is_let_in(thief: &Machine<'_>, etcd: &Machine<'_>) -> (bool, String) {
    let line = format!(
        "ETCDCTL_API=3 etcdctl --command-timeout=5s --endpoints=https://{}:2379 --cacert=/etc/overlay/pki/ca.pem \
         --cert=/srv/stolen/root.pem --key=/srv/stolen/key.pem get --prefix /coreos.com/network/authority/",
        etcd.host().address()
    );
    let output = thief.command("sh").unwrap().args(["-c", &line]).output().unwrap();
    (output.status.success(), format!("{}{}", output.stdout, output.stderr))
}

/// Whatever else is wrong: that is why he is not let in.
fn assert_shut_out(thief: &Machine<'_>, etcd: &Machine<'_>) {
    let (is_in, said) = thief_is_let_in(thief, etcd);
    assert!(!is_in, "{said}");
    let log = etcd.journal("etcd.service", 50).unwrap();
    assert!(log.contains("certificate signed by unknown authority"), "{said}: {log}");
}

/// Begins or goes on with it, and is killed as soon as this is said.
fn interrupt(machine: &Machine<'_>, unit: &str, after: &str) {
    let run = ["--unit", unit, "overlay-agent", "authority", "rotate", "--yes"];
    machine.run("systemd-run", run).unwrap();
    eventually(SOON, &format!("somebody hears «{after}»"), || {
        let heard = machine.journal(&format!("{unit}.service"), 100)?;
        ensure!(heard.contains(after), "{heard}");
        Ok(())
    })
    .unwrap();
    machine.run("systemctl", ["kill", "--signal=KILL", unit]).unwrap();
}

/// Of three machines with a share in etcd, of which the last has been in wrong hands.
pub(crate) fn the_authority_is_made_another(machines: &[Machine<'_>]) {
    let [one, two, thief] = machines else { panic!("three machines") };
    steal(thief);
    assert!(thief_is_let_in(thief, one).0);
    let plan = one.run("overlay-agent", ["authority", "rotate", "--dry-run"]).unwrap();
    assert!(plan.contains("3 hosts") && plan.contains("Nothing was changed"), "{plan}");

    interrupt(one, "rotate-1", "it has not the new authority's key");
    let (code, said) = refusal(one, &["init"], "");
    assert!(code == 73 && said.contains("authority rotate"), "{code}: {said}");
    let half =
        one.command("overlay-agent").unwrap().args(["authority", "status"]).output().unwrap();
    assert_eq!(half.status.code(), Some(1), "{half:?}");
    assert!(half.stdout.contains("is being made another"), "{half:?}");
    let next = one.run("cat", [NEXT]).unwrap();
    for machine in [two, thief] {
        machine.write("/srv/next.pem", next.as_bytes()).unwrap();
        machine.run("overlay-agent", ["authority", "adopt", "/srv/next.pem"]).unwrap();
    }
    interrupt(one, "rotate-2", "to have a certificate of the new authority");
    let doctor = one.command("overlay-agent").unwrap().arg("doctor").output().unwrap();
    assert!(doctor.stdout.contains("overlay-agent authority rotate"), "{}", doctor.stdout);
    // Any of them goes on with it.
    let said = two.run("overlay-agent", ["authority", "rotate", "--yes"]).unwrap();
    assert!(said.contains("all trust the new authority alone"), "{said}");

    for machine in machines {
        assert_shut_out(thief, machine);
        let left = machine.shell("ls /etc/overlay/pki; ls /etc/overlay").unwrap();
        assert!(!left.contains("next") && !left.contains(".token"), "{left}");
        wait_until_fine(machine);
        let trusted = machine.run("cat", ["/etc/overlay/pki/ca.pem"]).unwrap();
        assert!(next.starts_with(&trusted), "{trusted}");
    }
    let well = one.run("overlay-agent", ["authority", "status"]).unwrap();
    assert!(well.contains("is good for"), "{well}");
}

/// Where etcd is on one machine alone, with one that was off meanwhile.
pub(crate) fn one_is_left_behind(one: &Machine<'_>, off: &Machine<'_>) {
    off.run("systemctl", ["stop", "overlay-agent"]).unwrap();
    steal(one);
    let address = off.host().address().to_string();
    let rotate = ["authority", "rotate", "--yes", "--without", &address];
    one.run("overlay-agent", rotate).unwrap();
    assert_shut_out(one, one);
    off.run("systemctl", ["start", "--no-block", "overlay-agent"]).unwrap();
    eventually(SOON, "what to do is said", || {
        let said = status(off)?["problems"].to_string();
        ensure!(said.contains("another authority"), "{said}");
        Ok(())
    })
    .unwrap();
    let doctor = off.command("overlay-agent").unwrap().arg("doctor").output().unwrap();
    assert!(doctor.stdout.contains("and join with a new token"), "{}", doctor.stdout);
}
