//! The one binary, in whatever it comes.

use std::{fs, path::Path};

use overlay_lab::command::Cmd;

use crate::{ARCHS, file, folder};

#[test]
fn checksums_are_of_all_that_is_there_and_verify() {
    Cmd::new("sha256sum")
        .args(["--check", "--strict", "SHA256SUMS"])
        .directory(folder())
        .run()
        .unwrap();
    let sums = fs::read_to_string(file("SHA256SUMS")).unwrap();
    let mut named: Vec<_> = sums.lines().map(|line| line.split_once("  ").unwrap().1).collect();
    named.push("SHA256SUMS");
    named.sort_unstable();
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut there: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    there.sort_unstable();
    assert_eq!(named, there);
}

#[test]
fn the_tarball_runs_in_a_root_with_busybox_alone() {
    let root = tempfile::tempdir().unwrap();
    unpack_tarball(root.path(), "amd64");
    fs::create_dir(root.path().join("bin")).unwrap();
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).unwrap();
    let inside = |words: &[&str]| Cmd::new("chroot").arg(root.path()).args(words).read().unwrap();
    inside(&["/bin/busybox", "--install", "-s", "/bin"]);
    inside(&["/bin/sh", "-c", "/overlay-agent-*/install.sh"]);
    let said = inside(&["/usr/local/bin/overlay-agent", "--version"]);
    assert_eq!(said, format!("overlay-agent {}", env!("CARGO_PKG_VERSION")));
    let help = inside(&["/usr/local/bin/overlay-agent", "run", "--help"]);
    assert!(help.contains("--etcd-endpoints"), "{help}");
    // There is nothing to leave.
    inside(&["/bin/sh", "/usr/local/share/overlay-agent/uninstall.sh"]);
    let left = inside(&["/bin/find", "/usr/local", "-type", "f"]);
    assert_eq!(left, "");
}

#[test]
fn every_format_of_a_processor_has_the_same_program_which_asks_for_no_library() {
    for (debian, kernel) in ARCHS {
        let root = tempfile::tempdir().unwrap();
        let [deb, rpm, tarball] = ["deb", "rpm", "tarball"].map(|name| root.path().join(name));
        Cmd::new("dpkg-deb")
            .arg("--extract")
            .arg(file(&format!("_{debian}.deb")))
            .arg(&deb)
            .run()
            .unwrap();
        fs::create_dir(&rpm).unwrap();
        let unpack =
            format!("rpm2cpio {} | busybox cpio -i -d", file(&format!(".{kernel}.rpm")).display());
        Cmd::new("sh").args(["-c", &unpack]).directory(&rpm).run().unwrap();
        fs::create_dir(&tarball).unwrap();
        unpack_tarball(&tarball, debian);
        let folder = fs::read_dir(&tarball).unwrap().next().unwrap().unwrap().path();
        let program = fs::read(deb.join("usr/bin/overlay-agent")).unwrap();
        assert!(program == fs::read(rpm.join("usr/bin/overlay-agent")).unwrap(), "{kernel}.rpm");
        assert!(program == fs::read(folder.join("bin/overlay-agent")).unwrap(), "{debian}.tar.gz");

        let headers = Cmd::new("readelf")
            .args(["--wide", "--file-header", "--program-headers", "--dynamic"])
            .arg(deb.join("usr/bin/overlay-agent"))
            .read()
            .unwrap();
        let machine = if kernel == "x86_64" { "X86-64" } else { "AArch64" };
        assert!(headers.contains(machine), "{headers}");
        assert!(!headers.contains("INTERP") && !headers.contains("(NEEDED)"), "{headers}");
    }
}

fn unpack_tarball(into: &Path, arch: &str) {
    let archive = file(&format!("-linux-{arch}.tar.gz"));
    Cmd::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(into)
        .run()
        .unwrap();
}
