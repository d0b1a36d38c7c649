use core::fmt;

/// An IPv4 prefix in wire order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Any address inside, in network order.
    pub address: [u8; 4],
    /// Prefix length, 0 to 32.
    pub length: u8,
}

impl Prefix {
    /// The mask, as it lies in memory.
    #[inline(always)]
    const fn mask(self) -> u32 {
        // In 64 bits, a shift by 32 is nothing special.
        (u64::MAX.wrapping_shl(32_u32.wrapping_sub(self.length as u32)) as u32).to_be()
    }

    /// The network address.
    #[inline(always)]
    pub const fn masked(self) -> [u8; 4] {
        (u32::from_ne_bytes(self.address) & self.mask()).to_ne_bytes()
    }

    /// Whether `address` lies inside.
    #[inline(always)]
    pub const fn contains(self, address: [u8; 4]) -> bool {
        (u32::from_ne_bytes(address) ^ u32::from_ne_bytes(self.address)) & self.mask() == 0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.address;
        write!(out, "{a}.{b}.{c}.{d}/{}", self.length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_the_bits(address: [u8; 4], other: [u8; 4], length in 0_u8..=32) {
            let prefix = Prefix { address, length };
            let same = (0..u32::from(length)).all(|bit| {
                let probe = 1_u32 << (31 - bit);
                u32::from_be_bytes(address) & probe == u32::from_be_bytes(other) & probe
            });
            prop_assert_eq!(prefix.contains(other), same);
            prop_assert!(prefix.contains(prefix.masked()));
        }
    }
}
