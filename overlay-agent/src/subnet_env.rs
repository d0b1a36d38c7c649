//! `subnet.env`: how Docker, and whoever starts it, learns this host's subnet and MTU.

use std::{
    fs::{DirBuilder, Permissions},
    io::{self, Write as _},
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::Context as _;
use ipnetwork::Ipv4Network;

use crate::dotenv;

/// Where flannel has it.
pub const DEFAULT_PATH: &str = "/run/flannel/subnet.env";

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The whole overlay.
    pub network: Ipv4Network,
    /// This host's part of it.
    pub subnet: Ipv4Network,
    /// What a container's interface may send.
    pub mtu: u16,
    /// Whether the agent masquerades, and so Docker should not.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// The text of the file, byte for byte as flannel writes it.
    pub fn encode(&self) -> String {
        let Self { network, subnet, mtu, ip_masq } = self;
        let bridge = bridge_address(*subnet);
        let len = subnet.prefix();
        format!(
            "FLANNEL_NETWORK={network}\n\
             FLANNEL_SUBNET={bridge}/{len}\n\
             FLANNEL_MTU={mtu}\n\
             FLANNEL_IPMASQ={ip_masq}\n"
        )
    }

    /// Replaces the file at `path` in one step, so that no reader ever finds half of it.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        replace(path, self.encode().as_bytes())
            .with_context(|| format!("cannot write the subnet file {}", path.display()))
    }
}

/// The address that a bridge of `subnet` gets: its first one for a host.
pub fn bridge_address(subnet: Ipv4Network) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) | 1)
}

/// The subnet that an earlier run wrote to `path`.
///
/// `None` if there is none: no file, no assignment, or more than one subnet, which only a mode of
/// flannel that we do not have writes.
pub fn read_subnet(path: &Path) -> anyhow::Result<Option<Ipv4Network>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(parse_subnet(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(error).with_context(|| format!("cannot read the subnet file {}", path.display()))
        }
    }
}

/// The subnet in the text of a subnet file.
fn parse_subnet(text: &str) -> Option<Ipv4Network> {
    // As in a shell, the last assignment counts.
    let (_, value) =
        dotenv::assignments(text).filter(|(name, _)| *name == "FLANNEL_SUBNET").last()?;
    let (address, len) = value.split_once('/')?;
    let bridge = Ipv4Network::new(address.parse().ok()?, len.parse().ok()?).ok()?;
    Ipv4Network::new(bridge.network(), bridge.prefix()).ok()
}

/// Writes a file beside `path` and renames it into place.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    // A name that nobody can guess, made only if it is not there: the directory may be others', too.
    let mut file = tempfile::Builder::new().prefix(&hidden).tempfile_in(dir)?;
    // Not left to the umask: other users' scripts read the file.
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> SubnetEnv {
        SubnetEnv {
            network: "10.5.0.0/16".parse().unwrap(),
            subnet: "10.5.52.0/24".parse().unwrap(),
            mtu: 1450,
            ip_masq: false,
        }
    }

    #[test]
    fn the_text_is_flannels_byte_for_byte() {
        assert_eq!(
            example().encode(),
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\n\
             FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        );
    }

    #[test]
    fn writing_makes_the_directory_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/flannel/subnet.env");
        for mtu in [1450, 8950] {
            let env = SubnetEnv { mtu, ..example() };
            env.write(&path).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), env.encode());
        }
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o644);
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        assert_eq!(path.parent().unwrap().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_link_that_was_laid_beside_the_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "untouched").unwrap();
        // The name that could be guessed once: that of the process.
        let guessed = dir.path().join(format!(".subnet.env.{}", std::process::id()));
        std::os::unix::fs::symlink(&victim, &guessed).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        example().write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "untouched");
        assert!(path.symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn a_failed_write_names_the_file_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        std::fs::create_dir(&path).unwrap();
        let error = format!("{:#}", example().write(&path).unwrap_err());
        assert!(error.starts_with("cannot write the subnet file "), "{error}");
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_file_of_an_earlier_run_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        assert_eq!(read_subnet(&path).unwrap(), None);
        example().write(&path).unwrap();
        assert_eq!(read_subnet(&path).unwrap(), Some(example().subnet));
    }

    #[test]
    fn only_one_subnet_is_of_use() {
        for (text, expected) in [
            ("FLANNEL_SUBNET=\"10.5.52.1/24\" # mine\n", Some("10.5.52.0/24")),
            ("FLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_SUBNET=10.5.2.1/24\n", Some("10.5.2.0/24")),
            ("FLANNEL_SUBNET=10.5.1.1/24,10.5.2.1/24\n", None),
            ("FLANNEL_SUBNET=10.5.1.1\n", None),
            ("FLANNEL_SUBNET=fd00::1/64\n", None),
            ("FLANNEL_NETWORK=10.5.0.0/16\n", None),
            ("", None),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(parse_subnet(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bits: u32, len in 1_u8..=30, mtu: u16, ip_masq: bool) {
            let host = Ipv4Network::new(bits.into(), len).unwrap();
            let subnet = Ipv4Network::new(host.network(), len).unwrap();
            let env = SubnetEnv { network: subnet, subnet, mtu, ip_masq };
            prop_assert_eq!(parse_subnet(&env.encode()), Some(subnet));
        }
    }
}
