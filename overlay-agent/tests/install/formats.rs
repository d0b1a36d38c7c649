//! Hosts without dpkg: the package of Red Hat's kind, and the tarball, keep what Debian's promises.

use overlay_lab::{IMAGE, Lab, Machine};

use crate::{
    leave::is_out_of_the_kernel,
    support::{SERVICES, boot, copy_release, wait_until_fine},
};

/// How something is installed and removed.
struct Format {
    kind: &'static str,
    /// Also over an earlier one.
    install: &'static str,
    remove: &'static str,
    /// Where the program is then.
    program: &'static str,
}

/// Whoever lists the files finds them all, and none that is not there.
const RPM: Format = Format {
    kind: ".rpm",
    // Debian's packages are not in its database.
    install: "rpm --upgrade --replacepkgs --nodeps /srv/overlay-agent.rpm && rpm --verify --nodeps --noconfig overlay-agent",
    remove: "rpm --erase overlay-agent",
    program: "/usr/bin/overlay-agent",
};

const TARBALL: Format = Format {
    kind: ".tar.gz",
    install: "tar --extract --file /srv/overlay-agent.tar.gz --directory /srv && /srv/overlay-agent-*/install.sh",
    remove: "/usr/local/share/overlay-agent/uninstall.sh",
    program: "/usr/local/bin/overlay-agent",
};

#[test]
fn an_rpm_starts_nothing_restarts_the_agent_alone_and_ends_no_container() {
    is_installed_and_removed(&RPM);
}

#[test]
fn a_tarball_starts_nothing_restarts_the_agent_alone_and_ends_no_container() {
    is_installed_and_removed(&TARBALL);
}

fn is_installed_and_removed(format: &Format) {
    let lab = Lab::builder().hosts(1).start().unwrap();
    let one = boot(&lab, 0);
    copy_release(&one, format.kind);
    let before = files(&one);
    one.shell(format.install).unwrap();
    one.run(format.program, ["--version"]).unwrap();
    assert_eq!(one.property(SERVICES[1], "ActiveState").unwrap(), "inactive");
    assert_eq!(one.property(SERVICES[1], "UnitFileState").unwrap(), "disabled");
    one.write("/etc/default/overlay-agent", b"OVERLAY_PEER_TIMEOUT=31\n").unwrap();

    one.run("overlay-agent", ["init"]).unwrap();
    let bridge = wait_until_fine(&one);
    let pid = one.main_pid(SERVICES[1]).unwrap();
    assert_eq!(one.run("readlink", [format!("/proc/{pid}/exe")]).unwrap(), format.program);
    one.import_image().unwrap();
    one.docker(["run", "--detach", "--name", "job", IMAGE, "sleep", "3600"]).unwrap();
    let docker = one.main_pid(SERVICES[2]).unwrap();

    one.shell(format.install).unwrap();
    assert_eq!(wait_until_fine(&one), bridge);
    assert_ne!(one.main_pid(SERVICES[1]).unwrap(), pid, "the agent is the old one");
    assert_eq!(one.main_pid(SERVICES[2]).unwrap(), docker, "Docker was started anew");
    let settings = one.run("cat", ["/etc/default/overlay-agent"]).unwrap();
    assert_eq!(settings, "OVERLAY_PEER_TIMEOUT=31", "settings are kept");

    one.shell(format.remove).unwrap();
    is_out_of_the_kernel(&one);
    assert_eq!(one.docker(["ps", "--format", "{{.Names}}"]).unwrap(), "job");
    one.run("test", ["-e", "/etc/overlay/agent.env"]).unwrap();
    assert_eq!(files(&one), before, "something is left");
    // It comes back as it was.
    one.shell(format.install).unwrap();
    one.run("overlay-agent", ["init", "--yes"]).unwrap();
    assert_eq!(wait_until_fine(&one), bridge);
}

/// All that is installed.
fn files(machine: &Machine<'_>) -> String {
    machine.shell("find /usr -not -type d | grep -v __pycache__ | sort").unwrap()
}
