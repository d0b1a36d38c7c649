//! A whole Debian, unpacked once and kept: the lowest layer of every [`Machine`](super::Machine).

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::{command::Cmd, release, workspace};

/// The release that our users run.
const SUITE: &str = "bookworm";

/// What `debootstrap` needs to make a machine that boots.
const BASE: &str = "systemd,systemd-sysv,dbus,iproute2,ca-certificates";

/// What a Docker host has, with the services as Debian starts them, and all that our package depends on and
/// recommends: there is no mirror to be reached from a lab.
const PACKAGES: [&str; 10] = [
    "busybox-static",
    "docker.io",
    "etcd-client",
    "etcd-server",
    "ethtool",
    "iptables",
    "kmod",
    "ncat",
    "nftables",
    "procps",
];

/// The unpacked root. Whoever needs it first makes it; others wait.
pub(super) fn root() -> Result<PathBuf> {
    let folder = workspace::target_dir()?.join("debian");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file =
        fs::File::open(&folder).with_context(|| format!("cannot open {}", folder.display()))?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {}", folder.display()))?;
    let root = folder.join(SUITE);
    let stamp = folder.join(format!("{SUITE}.packages"));
    let wanted = format!("{BASE} {}\n", PACKAGES.join(" "));
    if root.is_dir() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(root);
    }
    println!("unpacking Debian {SUITE} to {} (two minutes or three)", root.display());
    remove(&root)?;
    let partial = folder.join(format!("{SUITE}.partial"));
    remove(&partial)?;
    Cmd::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={BASE}"), SUITE])
        .arg(&partial)
        .arg(release::mirror()?)
        .env("PATH", path_with_sbin())
        .no_deadline()
        .run()?;
    install(&partial)?;
    fs::rename(&partial, &root)
        .with_context(|| format!("cannot rename {} to {}", partial.display(), root.display()))?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(root)
}

/// Installs [`PACKAGES`] as on a machine whose services start at the next boot.
fn install(root: &Path) -> Result<()> {
    let policy = root.join("usr/sbin/policy-rc.d");
    let failed = || format!("cannot write {}", policy.display());
    fs::write(&policy, "#!/bin/sh\nexit 101\n").with_context(failed)?;
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o755)).with_context(failed)?;
    // With a mount of its own that ends with the command, whatever comes between.
    let script = format!(
        "mount -t proc proc /proc && apt-get install --yes --no-install-recommends {} && apt-get clean",
        PACKAGES.join(" ")
    );
    Cmd::new("chroot")
        .arg(root)
        .args(["sh", "-c", &script])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("PATH", path_with_sbin())
        .behind("unshare", ["--mount"])
        .no_deadline()
        .run()?;
    fs::remove_file(&policy).with_context(failed)
}

fn remove(root: &Path) -> Result<()> {
    match fs::remove_dir_all(root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", root.display()))
        }
        _ => Ok(()),
    }
}

/// A user's `PATH` may lack what `debootstrap` and `dpkg` call.
fn path_with_sbin() -> String {
    let path = env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin")
}
