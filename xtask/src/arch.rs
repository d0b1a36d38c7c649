//! The processors that releases are for, and what everybody calls them.

use std::{env::consts, fmt};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

/// A processor, by Debian's name, which is also Docker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    /// AMD's and Intel's.
    Amd64,
    /// ARM's, of 64 bits.
    Arm64,
}

impl Arch {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// This machine's.
    pub(crate) fn of_this_machine() -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|arch| arch.kernel_name() == consts::ARCH)
            .with_context(|| format!("there are no releases for {}", consts::ARCH))
    }

    /// As Debian and Docker call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As `uname -m`, QEMU and rpm call it.
    pub(crate) const fn kernel_name(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// Rust's target whose programs need no library of the system.
    pub(crate) const fn static_target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// What compiles C for that target, the parts of TLS.
    pub(crate) const fn c_compiler(self) -> &'static str {
        match self {
            Self::Amd64 => "musl-gcc",
            Self::Arm64 => "aarch64-linux-gnu-gcc",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}
