//! Whether a host is there, asked through the overlay: a VXLAN packet whose inner frame carries a question, which the
//! other host's program on the uplink sends back as it is. No firewall there has a say, and no agent has to run.

use crate::{
    MacAddr, Vni,
    encap::VXLAN_LENGTH,
    packet::{ETHERNET_LENGTH, MAC_LENGTH},
};

/// «Local Experimental `EtherType` 1» (IEEE 802): hosts that do not know the question drop it.
pub const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// By which ours are told from others' experiments: the first bytes behind the inner Ethernet header.
pub const MAGIC: [u8; 8] = *b"overlay?";

/// Length of a question's datagram, in bytes.
pub const LENGTH: usize = NONCE + 8;

const MAGIC_OFFSET: usize = VXLAN_LENGTH + ETHERNET_LENGTH;
const NONCE: usize = MAGIC_OFFSET + MAGIC.len();

/// The datagram, from the VXLAN header on (RFC 7348), that asks the host with the VTEP `to`. Its answer has the same
/// `nonce`.
pub fn question(vni: Vni, to: MacAddr, from: MacAddr, nonce: u64) -> [u8; LENGTH] {
    let mut datagram = [0; LENGTH];
    datagram[0] = 1 << 3;
    datagram[4..7].copy_from_slice(&vni.get().to_be_bytes()[1..]);
    let ethernet = &mut datagram[VXLAN_LENGTH..];
    ethernet[..MAC_LENGTH].copy_from_slice(&to.0);
    ethernet[MAC_LENGTH..2 * MAC_LENGTH].copy_from_slice(&from.0);
    ethernet[2 * MAC_LENGTH..ETHERNET_LENGTH].copy_from_slice(&ETHERTYPE);
    datagram[MAGIC_OFFSET..NONCE].copy_from_slice(&MAGIC);
    datagram[NONCE..].copy_from_slice(&nonce.to_be_bytes());
    datagram
}

/// The nonce of an answer; none where it is no answer.
pub fn nonce(answer: &[u8]) -> Option<u64> {
    let (_, magic_and_nonce) = answer.split_at_checked(MAGIC_OFFSET)?;
    let nonce = magic_and_nonce.strip_prefix(&MAGIC)?;
    Some(u64::from_be_bytes(nonce.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_known_by_its_nonce() {
        let datagram = question(Vni::MAX, MacAddr([1; 6]), MacAddr([2; 6]), 7);
        assert_eq!(nonce(&datagram), Some(7));
        assert_eq!(nonce(&datagram[..LENGTH - 1]), None);
        let mut other = datagram;
        other[MAGIC_OFFSET] ^= 1;
        assert_eq!(nonce(&other), None);
    }
}
