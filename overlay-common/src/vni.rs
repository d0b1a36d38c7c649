use core::fmt;

/// A VXLAN network identifier: 24 bits (RFC 7348, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vni(u32);

/// The number does not fit the 24 bits of a VNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidVni(pub u32);

impl fmt::Display for InvalidVni {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "VNI {} is larger than {}, the largest that 24 bits hold", self.0, Vni::MAX.0)
    }
}

impl core::error::Error for InvalidVni {}

impl Vni {
    /// The largest identifier.
    pub const MAX: Self = Self(0x00ff_ffff);

    /// Checks that `value` fits 24 bits.
    pub const fn new(value: u32) -> Result<Self, InvalidVni> {
        if value <= Self::MAX.0 { Ok(Self(value)) } else { Err(InvalidVni(value)) }
    }

    /// The identifier as a number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_24_bits_are_accepted() {
        assert_eq!(Vni::new(0x00ff_ffff), Ok(Vni::MAX));
        assert_eq!(Vni::new(0x0100_0000), Err(InvalidVni(0x0100_0000)));
    }
}
