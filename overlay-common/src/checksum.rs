//! The Internet checksum (RFC 1071) over IPv4 headers, and its incremental update (RFC 1624).
//!
//! Sums are taken over words as they lie in memory, which gives the sum as it lies in memory, in whatever
//! byte order (RFC 1071, section 2 (B)), and over as many bytes at a time as a word has (2 (C)).

use network_types::ip::Ipv4Hdr;

/// The 16-bit sum out of that of fewer than `2^15` words of 32 bits: with so few, the last line cannot carry.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[inline(always)]
const fn sum(header: &Ipv4Hdr) -> u64 {
    const fn word(bytes: [u8; 4]) -> u64 {
        u32::from_ne_bytes(bytes) as u64
    }
    let [length, id, fragment, check] = [header.tot_len, header.id, header.frags, header.check];
    word([header.vihl, header.tos, length[0], length[1]])
        + word([id[0], id[1], fragment[0], fragment[1]])
        + word([header.ttl, header.proto, check[0], check[1]])
        + word(header.src_addr)
        + word(header.dst_addr)
}

/// The checksum of a header without options whose checksum field is zero, in network order.
#[inline(always)]
pub const fn ipv4_header(header: &Ipv4Hdr) -> [u8; 2] {
    (!fold(sum(header))).to_ne_bytes()
}

/// Whether the checksum of a header without options is right.
#[inline(always)]
pub const fn is_valid(header: &Ipv4Hdr) -> bool {
    fold(sum(header)) == 0xffff
}

/// `check` after one 16-bit word that it covers changed from `from` to `to`; all in network order.
/// RFC 1624, equation 3.
#[inline(always)]
pub const fn update(check: [u8; 2], from: [u8; 2], to: [u8; 2]) -> [u8; 2] {
    const fn word(bytes: [u8; 2]) -> u16 {
        u16::from_ne_bytes(bytes)
    }
    let sum = !word(check) as u64 + !word(from) as u64 + word(to) as u64;
    (!fold(sum)).to_ne_bytes()
}

/// The header as a router sends it on: its TTL, which must not be 0, one less.
#[inline(always)]
pub const fn one_hop_on(header: &Ipv4Hdr) -> Ipv4Hdr {
    let ttl = header.ttl - 1;
    let check = update(header.check, [header.ttl, header.proto], [ttl, header.proto]);
    Ipv4Hdr { ttl, check, ..*header }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::test_support::ipv4;

    proptest! {
        #[test]
        fn a_header_with_its_checksum_is_valid_and_one_bit_off_is_not(
            src: [u8; 4], dst: [u8; 4], len: u16, ttl: u8, tos: u8, id: u16, flipped in 0_usize..16,
        ) {
            let mut header = ipv4(src, dst);
            header.tot_len = len.to_be_bytes();
            header.ttl = ttl;
            header.tos = tos;
            header.id = id.to_be_bytes();
            header.check = ipv4_header(&header);
            prop_assert!(is_valid(&header));
            header.id = (id ^ (1 << flipped)).to_be_bytes();
            prop_assert!(!is_valid(&header));
        }

        #[test]
        fn an_update_equals_a_recomputation(src: [u8; 4], dst: [u8; 4], ttl in 1_u8.., tos: u8) {
            let mut header = ipv4(src, dst);
            header.ttl = ttl;
            header.tos = tos;
            header.check = ipv4_header(&header);
            let check = update(header.check, [ttl, header.proto], [ttl - 1, header.proto]);
            header.ttl -= 1;
            header.check = check;
            prop_assert!(is_valid(&header));
        }
    }
}
