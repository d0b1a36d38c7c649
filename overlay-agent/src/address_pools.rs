//! How a host's subnet is divided among the networks that its Docker makes: one piece for Docker's own bridge, the rest
//! as pools of pieces of the same size.

use std::str::FromStr;

use ipnetwork::Ipv4Network;

/// [`PoolSize::Usual`], on a command line.
pub const USUAL: &str = "usual";

/// Networks per host, Docker's own bridge among them, where nobody says how large they are.
const USUAL_BITS: u8 = 4;

/// The smallest network that is worth one: five containers beside the gateway.
pub const LONGEST: u8 = 29;

/// The smallest that is made where nobody says how large they are: 13 containers.
const LONGEST_USUAL: u8 = 28;

/// The prefix length of each network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolSize {
    /// The usual one.
    Usual,
    /// This.
    Length(u8),
}

/// No prefix length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the size of the networks must be a prefix length, 28 for example")]
pub struct InvalidPoolSize;

impl FromStr for PoolSize {
    type Err = InvalidPoolSize;

    fn from_str(text: &str) -> Result<Self, InvalidPoolSize> {
        match text {
            USUAL => Ok(Self::Usual),
            length => length.parse().map(Self::Length).map_err(|_invalid| InvalidPoolSize),
        }
    }
}

/// The parts of a host's subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPools {
    /// That of Docker's own bridge.
    pub own: Ipv4Network,
    /// The rest, the smallest first.
    pub pools: Vec<Ipv4Network>,
    /// The prefix length of each network.
    pub size: u8,
}

/// A subnet cannot be divided so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressPoolsError {
    /// There is no room for a second network.
    #[error(
        "the subnet {0} is too small for address pools: it holds {own} address{s} and each network of Docker's takes 8 at least; \
         choose a smaller SubnetLen in the network config (22 gives 15 networks of 61 containers beside Docker's own)",
        own = .0.size(),
        s = if .0.size() == 1 { "" } else { "es" }
    )]
    TooSmall(Ipv4Network),
    /// The networks that are asked for are none of its parts.
    #[error("networks of /{size} do not divide the subnet {subnet}: ask for {} to {LONGEST}", subnet.prefix() + 1)]
    Size {
        /// The subnet.
        subnet: Ipv4Network,
        /// The prefix length of the networks.
        size: u8,
    },
}

impl AddressPools {
    /// Divides a subnet into networks of this prefix length, or of the usual one.
    pub fn of(subnet: Ipv4Network, size: PoolSize) -> Result<Self, AddressPoolsError> {
        let length = subnet.prefix();
        if length >= LONGEST {
            return Err(AddressPoolsError::TooSmall(subnet));
        }
        let usual = (length + USUAL_BITS).min(LONGEST_USUAL).max(length + 1);
        let size = match size {
            PoolSize::Usual => usual,
            PoolSize::Length(size) => size,
        };
        if size <= length || size > LONGEST {
            return Err(AddressPoolsError::Size { subnet, size });
        }
        let part = |prefix: u8, first: u32| {
            Ipv4Network::new((subnet.network().to_bits() | first).into(), prefix)
        };
        let rest =
            (length + 1..=size).rev().filter_map(|prefix| part(prefix, 1 << (32 - prefix)).ok());
        let own = part(size, 0).map_err(|_invalid| AddressPoolsError::TooSmall(subnet))?;
        Ok(Self { own, pools: rest.collect(), size })
    }

    /// How many networks there can be beside Docker's own bridge's.
    pub fn networks(&self) -> u32 {
        self.pools.iter().map(|pool| 1 << (self.size - pool.prefix())).sum()
    }

    /// Options for dockerd.
    pub fn options(&self) -> String {
        let size = self.size;
        let option = |pool: &Ipv4Network| format!("--default-address-pool=base={pool},size={size}");
        self.pools.iter().map(option).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(subnet: &str, size: Option<u8>) -> Result<AddressPools, String> {
        AddressPools::of(subnet.parse().unwrap(), size.map_or(PoolSize::Usual, PoolSize::Length))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_parts_are_the_whole_subnet_once() {
        for (subnet, size) in
            [("10.1.15.0/24", None), ("10.1.16.0/20", Some(29)), ("10.1.15.128/25", Some(26))]
        {
            let whole: Ipv4Network = subnet.parse().unwrap();
            let parts = of(subnet, size).unwrap();
            let mut next = u32::from(whole.network());
            for part in [parts.own].iter().chain(&parts.pools) {
                assert_eq!(u32::from(part.network()), next, "{parts:?}");
                next += part.size();
            }
            assert_eq!(next, u32::from(whole.network()) + whole.size());
            assert_eq!(parts.own.prefix(), parts.size);
            assert_eq!((parts.networks() + 1) * (1 << (32 - parts.size)), whole.size());
        }
    }

    #[test]
    fn a_usual_subnet_holds_fifteen_networks_and_dockers_own() {
        let parts = of("10.1.15.0/24", None).unwrap();
        assert_eq!((parts.size, parts.networks()), (28, 15));
        assert_eq!(
            parts.options(),
            "--default-address-pool=base=10.1.15.16/28,size=28 --default-address-pool=base=10.1.15.32/27,size=28 \
             --default-address-pool=base=10.1.15.64/26,size=28 --default-address-pool=base=10.1.15.128/25,size=28"
        );
        assert_eq!(of("10.1.16.0/20", None).unwrap().size, 24);
    }

    #[test]
    fn what_cannot_be_divided_says_why() {
        let said = of("10.1.15.8/29", None).unwrap_err();
        assert!(said.contains("10.1.15.8/29 is too small for address pools"), "{said}");
        assert_eq!(of("10.1.15.0/28", None).unwrap().size, 29);
        for size in [24, 30, 40] {
            let said = of("10.1.15.0/24", Some(size)).unwrap_err();
            assert!(said.ends_with("ask for 25 to 29"), "{said}");
        }
    }
}
