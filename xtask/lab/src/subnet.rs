//! `subnet.env`, as Docker's start-up and we read it.

use std::{fs, net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};

/// What the agent tells the host about its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasedSubnet {
    /// The whole overlay, `10.1.0.0/16`.
    pub network: String,
    /// The bridge's own address in the leased subnet, `10.1.5.1`.
    pub gateway: Ipv4Addr,
    /// Length of the leased subnet's prefix, 24.
    pub prefix_length: u8,
    /// The largest packet a container may send.
    pub mtu: u32,
    /// Whether the agent masquerades, so that Docker must not.
    pub ip_masq: bool,
}

impl LeasedSubnet {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not a subnet.env", path.display()))
    }

    /// Reads a text.
    pub fn parse(text: &str) -> Result<Self> {
        let value = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .with_context(|| format!("{name} is missing"))
        };
        let subnet = value("FLANNEL_SUBNET")?;
        let (gateway, prefix_length) = subnet
            .split_once('/')
            .with_context(|| format!("FLANNEL_SUBNET={subnet} has no prefix length"))?;
        Ok(Self {
            network: value("FLANNEL_NETWORK")?.to_owned(),
            gateway: gateway
                .parse()
                .with_context(|| format!("FLANNEL_SUBNET={subnet} is no address"))?,
            prefix_length: prefix_length
                .parse()
                .with_context(|| format!("FLANNEL_SUBNET={subnet} has no prefix length"))?,
            mtu: value("FLANNEL_MTU")?.parse().context("FLANNEL_MTU is no number")?,
            ip_masq: value("FLANNEL_IPMASQ")? == "true",
        })
    }

    /// The bridge's address with its prefix length, as `ip` and `--bip` take it.
    pub fn gateway_cidr(&self) -> String {
        format!("{}/{}", self.gateway, self.prefix_length)
    }

    /// The address of the container with this number; the first is 1, next to the bridge.
    pub fn container(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway.to_bits() + number)
    }

    /// The subnet itself, `10.1.5.0/24`.
    pub fn subnet(&self) -> String {
        let bits = u32::from(self.prefix_length.min(32));
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        let base = Ipv4Addr::from_bits(self.gateway.to_bits() & mask);
        format!("{base}/{}", self.prefix_length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.5.1/24\n\
                        FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

    #[test]
    fn what_the_agent_writes_is_read() {
        let env = LeasedSubnet::parse(TEXT).unwrap();
        assert_eq!(env.network, "10.1.0.0/16");
        assert_eq!(env.gateway_cidr(), "10.1.5.1/24");
        assert_eq!(env.subnet(), "10.1.5.0/24");
        assert_eq!(env.container(1).to_string(), "10.1.5.2");
        assert_eq!(env.mtu, 1450);
        assert!(!env.ip_masq);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = LeasedSubnet::parse("FLANNEL_SUBNET=10.1.5.1/24\n").unwrap_err();
        assert_eq!(error.to_string(), "FLANNEL_NETWORK is missing");
    }
}
