//! Explicit congestion notification across the tunnel (RFC 6040): the two low bits of the IPv4 TOS.

const MASK: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;

/// The outer TOS for a packet whose inner TOS is `inner`: its ECN field, and no DSCP, as a kernel
/// VTEP sends (RFC 6040, section 4.1, normal mode).
#[inline(always)]
pub const fn encap(inner: u8) -> u8 {
    inner & MASK
}

/// The inner TOS after decapsulation, or `None` where the packet must be dropped because congestion
/// was marked and its sender would never learn of it (RFC 6040, section 4.2).
#[inline(always)]
pub const fn decap(outer: u8, inner: u8) -> Option<u8> {
    match (inner & MASK, outer & MASK) {
        (NOT_ECT, CE) => None,
        (ECT_0 | ECT_1, CE) => Some(inner | CE),
        (ECT_0, ECT_1) => Some((inner & !MASK) | ECT_1),
        _ => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decapsulation_follows_figure_4_of_rfc_6040() {
        const DROP: Option<u8> = None;
        let rows = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), DROP]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, expected) in rows {
            for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(expected) {
                assert_eq!(decap(outer, inner), expected, "inner {inner:02b}, outer {outer:02b}");
            }
        }
    }

    #[test]
    fn the_inner_dscp_stays_inside() {
        assert_eq!(encap(0b1011_1010), ECT_0);
        assert_eq!(decap(CE, 0b1011_1010), Some(0b1011_1011));
    }
}
