//! Which source addresses containers may use, as the operator has decided.

use std::net::Ipv4Addr;

use clap::ValueEnum;
use overlay_common::tables::HostConfig;

/// How closely containers' source addresses are looked at. Wherever a container's packets go, another's MAC is never
/// let through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Strictness {
    /// A container uses no address but those of its own interface
    Strict,
    /// A container uses no address that is another's: of a container here, of the host, of a peer's subnet
    #[default]
    Port,
    /// A container uses any address
    Off,
}

/// The operator's decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceCheck {
    /// For all containers.
    pub strictness: Strictness,
    /// Containers that may use any source address, by an address of their own.
    pub exempt: Vec<Ipv4Addr>,
}

impl SourceCheck {
    /// The bits of [`HostConfig::flags`] that say so.
    pub const fn flags(&self) -> u32 {
        match self.strictness {
            Strictness::Strict => HostConfig::SOURCE_STRICT,
            Strictness::Port => 0,
            Strictness::Off => HostConfig::SOURCE_ANY,
        }
    }

    /// What is not as careful as it could be, for `status`; none where nothing was decided.
    pub fn describe(&self) -> Option<String> {
        let exempt: Vec<_> = self.exempt.iter().map(ToString::to_string).collect();
        match self.strictness {
            Strictness::Off => Some("off: containers may use any source address".to_owned()),
            _ if !exempt.is_empty() => {
                Some(format!("off for the containers with {}", exempt.join(", ")))
            }
            Strictness::Strict => {
                Some("strict: containers use their own addresses only".to_owned())
            }
            Strictness::Port => None,
        }
    }
}
