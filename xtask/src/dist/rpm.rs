//! The package of Fedora, RHEL and openSUSE, without their tools.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rpm::{BuildConfig, CompressionWithLevel, Dependency, FileOptions, PackageBuilder, Scriptlet};

use super::{
    PACKAGE, VERSION,
    tree::{self, Effort},
};
use crate::arch::Arch;

/// What the agent cannot do without; the Debian package depends on the same.
const REQUIRES: [&str; 2] = ["iptables", "nftables"];

/// What people and reports use, by the names that the distributions have for it.
const RECOMMENDS: [&str; 3] = ["iproute", "iproute2", "ethtool"];

/// Packages the files of a release.
pub(super) fn pack(
    arch: Arch,
    files: &[tree::File],
    time: u64,
    effort: Effort,
    output: &Path,
) -> Result<PathBuf> {
    let path = output.join(format!("{PACKAGE}-{VERSION}-1.{}.rpm", arch.kernel_name()));
    let time = u32::try_from(time).context("a version of a time that rpm cannot write")?;
    let config = BuildConfig::v4()
        .source_date(time)
        .compression(CompressionWithLevel::Gzip(effort.0.into()))
        .reserved_space(None);
    let licence = "(Apache-2.0 OR MIT) AND GPL-2.0-only";
    let summary = "Overlay network for containers, carried by eBPF programs";
    let mut package = PackageBuilder::new(PACKAGE, VERSION, licence, arch.kernel_name(), summary);
    package
        .using_config(config)
        .release("1")
        .description(
            "Every host leases a subnet in etcd, and any container reaches any other by its address. Packets are\n\
             carried by VXLAN, in eBPF programs that go past the hosts' network stacks. A drop-in for flannel's etcd\n\
             and vxlan mode: same keys, same subnet.env, same frames on the wire, same flags.",
        )
        .post_install_script(scriptlet("post")?)
        .pre_uninstall_script(scriptlet("preun")?)
        .post_uninstall_script(scriptlet("postun")?);
    for name in REQUIRES {
        package.requires(Dependency::any(name));
    }
    for name in RECOMMENDS {
        package.recommends(Dependency::any(name));
    }
    for folder in ["doc/overlay-agent", "doc/overlay-agent/examples", "licenses/overlay-agent"] {
        package
            .with_dir_entry(FileOptions::dir(format!("/usr/share/{folder}")).permissions(0o755))?;
    }
    for file in files {
        let path = Path::new("/").join(&file.path);
        let name = path.to_str().context("a path that is not text")?;
        let options = FileOptions::new(name).permissions(file.mode);
        let options = if path.starts_with("/etc") {
            options.config().noreplace()
        } else if path.starts_with("/usr/share/doc") || path.starts_with("/usr/share/man") {
            options.doc()
        } else {
            options
        };
        package.with_file_contents(read(&file.source)?, options)?;
    }
    for name in tree::LICENCES {
        let options = FileOptions::new(format!("/usr/share/licenses/overlay-agent/{name}"));
        package
            .with_file_contents(read(&tree::ours(name))?, options.permissions(0o644).license())?;
    }
    package
        .build()
        .and_then(|package| package.write_file(&path))
        .with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

fn scriptlet(name: &str) -> Result<Scriptlet> {
    let path = tree::ours(&format!("packaging/rpm/{name}.sh"));
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Scriptlet::new(text).prog(vec!["/bin/sh"]))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
