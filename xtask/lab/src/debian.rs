//! A whole Debian, unpacked once and kept: the lowest layer of every [`Machine`](crate::Machine).

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::{command::Cmd, release, workspace};

/// A release, and what a machine of it has.
#[derive(Debug)]
pub struct Distribution {
    suite: &'static str,
    /// What a Docker host has, with the services as Debian starts them.
    packages: &'static [&'static str],
    /// Services of these that start only when somebody says so.
    off: &'static [&'static str],
}

/// What our users run: Docker 20.10, and all that our package depends on and recommends, because there is no
/// mirror to be reached from a lab.
pub const BOOKWORM: Distribution = Distribution {
    suite: "bookworm",
    packages: &[
        "busybox-static",
        "docker.io",
        "etcd-client",
        "etcd-server",
        "ethtool",
        "firewalld",
        "iptables",
        "kmod",
        "ncat",
        "nftables",
        "procps",
        "rpm",
        "ufw",
    ],
    // ufw is off until `ufw enable`.
    off: &["firewalld.service"],
};

/// The release between the others.
pub const TRIXIE: Distribution = Distribution {
    suite: "trixie",
    packages: &["iptables", "kmod", "nftables", "procps"],
    off: &[],
};

/// Docker as it is today: 28.5.
pub const FORKY: Distribution = Distribution {
    suite: "forky",
    packages: &["docker.io", "docker-cli", "iptables", "kmod", "nftables", "procps"],
    off: &[],
};

/// What `debootstrap` needs to make a machine that boots.
const BASE: &str = "systemd,systemd-sysv,dbus,iproute2,ca-certificates";

/// How any release of Debian is unpacked, also one that this `debootstrap` does not know yet.
const SCRIPT: &str = "/usr/share/debootstrap/scripts/sid";

/// The unpacked root. Whoever needs it first makes it; others wait.
pub(crate) fn root(of: &Distribution) -> Result<PathBuf> {
    let Distribution { suite, packages, .. } = of;
    let folder = workspace::target_dir()?.join("debian");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file =
        fs::File::open(&folder).with_context(|| format!("cannot open {}", folder.display()))?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {}", folder.display()))?;
    let root = folder.join(suite);
    let stamp = folder.join(format!("{suite}.packages"));
    let wanted = format!("{BASE} {}\n", packages.join(" "));
    if root.is_dir() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(root);
    }
    println!("unpacking Debian {suite} to {} (two minutes or three)", root.display());
    remove(&root)?;
    let partial = folder.join(format!("{suite}.partial"));
    remove(&partial)?;
    Cmd::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={BASE}"), suite])
        .arg(&partial)
        .arg(release::mirror()?)
        .arg(SCRIPT)
        .env("PATH", path_with_sbin())
        .no_deadline()
        .run()?;
    install(&partial, of)?;
    fs::rename(&partial, &root)
        .with_context(|| format!("cannot rename {} to {}", partial.display(), root.display()))?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(root)
}

/// Installs packages as on a machine whose services start at the next boot.
fn install(root: &Path, of: &Distribution) -> Result<()> {
    let policy = root.join("usr/sbin/policy-rc.d");
    let failed = || format!("cannot write {}", policy.display());
    fs::write(&policy, "#!/bin/sh\nexit 101\n").with_context(failed)?;
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o755)).with_context(failed)?;
    // With a mount of its own that ends with the command, whatever comes between.
    let mut steps = vec![
        "mount -t proc proc /proc".to_owned(),
        format!("apt-get install --yes --no-install-recommends {}", of.packages.join(" ")),
        "apt-get clean".to_owned(),
    ];
    steps.extend(of.off.iter().map(|unit| format!("systemctl disable {unit}")));
    Cmd::new("chroot")
        .arg(root)
        .args(["sh", "-c", &steps.join(" && ")])
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
