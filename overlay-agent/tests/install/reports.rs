//! What a host tells of itself to somebody else.

use overlay_lab::Lab;

use crate::support::{TOKEN, first, refusal};

#[test]
fn a_report_has_everything_but_what_opens_something() {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let one = first(&lab);
    one.write("/etc/default/overlay-agent", b"# OVERLAY_ETCD_PASSWORD=hunter2\n").unwrap();
    one.shell(&format!(
        "systemd-cat --identifier=overlay-agent cat {TOKEN} /etc/overlay/pki/*key.pem"
    ))
    .unwrap();
    one.run("overlay-agent", ["report", "/srv/report.tar"]).unwrap();
    let mode = one.run("stat", ["--format=%a", "/srv/report.tar"]).unwrap();
    assert_eq!(mode, "600");
    let names = one.run("tar", ["--list", "--file=/srv/report.tar"]).unwrap();
    for name in [
        "agent/status.json",
        "agent/metrics",
        "agent/doctor",
        "etcd/members",
        "etcd/leases",
        "host/links",
    ] {
        assert!(names.contains(name), "no {name} in {names}");
    }
    let text = |file: &str| {
        one.shell(&format!(
            "tar --extract --to-stdout --wildcards --file=/srv/report.tar '*/{file}'"
        ))
        .unwrap()
    };
    assert!(text("agent/status.json").contains("\"ready\": true"), "{}", text("agent/status.json"));
    assert!(text("agent/metrics").contains("overlay_build_info"), "{}", text("agent/metrics"));
    assert!(text("agent/doctor").contains("Nothing is wrong"), "{}", text("agent/doctor"));
    assert!(text("etcd/leases").contains("VtepMAC"), "{}", text("etcd/leases"));
    assert!(text("log/overlay-agent").contains("every known lease is programmed"));
    assert!(text("files/default").contains("(left out)"), "{}", text("files/default"));
    // Each line of a key, and the token's parts.
    let found = one.shell(
        "(grep --no-filename --invert-match -e ----- /etc/overlay/pki/*key.pem; \
         tr . '\\n' < /etc/overlay/join.token | tail -n +2; echo hunter2) > /srv/secrets && \
         test $(wc -l < /srv/secrets) -gt 8 && ! grep --fixed-strings --file=/srv/secrets /srv/report.tar",
    );
    found.unwrap();
    let (code, said) = refusal(&one, &["report", "/srv/report.tar"], "");
    assert_eq!(code, 73, "{said}");
}
