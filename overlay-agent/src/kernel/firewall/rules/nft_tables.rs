//! Which tables nftables has, by the kernel's own account: on a host without `nft` nobody else says so.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETTABLE` (include/uapi/linux/netfilter/nfnetlink.h and `nf_tables.h` there).
const NFT_MSG_GETTABLE: u16 = (10 << 8) | 1;
/// What says a table's name (`enum nft_table_attributes`).
const NFTA_TABLE_NAME: u16 = 1;
/// The ends of a dump (include/uapi/linux/netlink.h).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// The length of `struct nfgenmsg`, of which the first byte is the family.
const NFGENMSG: usize = 4;
/// The length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// All tables as `nft` writes them, family and name, but for those of IPv6 and of ARP. A kernel without nftables has none.
///
/// # Errors
/// Where the kernel does not answer.
pub(super) fn list() -> io::Result<Vec<String>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let mut request = [0; HEADER + NFGENMSG];
    let mut header = NetlinkBuffer::new(&mut request[..]);
    header.set_length(20);
    header.set_message_type(NFT_MSG_GETTABLE);
    header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    socket.send(&request, 0)?;
    let mut tables = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
            if matches!(message.message_type(), NLMSG_ERROR | NLMSG_DONE) {
                return Ok(tables);
            }
            tables.extend(table(message.payload()));
            let length = usize::try_from(message.length()).unwrap_or(rest.len());
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The table that a message is about.
fn table(message: &[u8]) -> Option<String> {
    let family = match message.first()? {
        1 => "inet",
        2 => "ip",
        5 => "netdev",
        7 => "bridge",
        _ => return None,
    };
    let mut rest = message.get(NFGENMSG..)?;
    loop {
        let (length, kind) = rest.split_first_chunk::<4>().map(|([a, b, c, d], _)| {
            (usize::from(u16::from_ne_bytes([*a, *b])), u16::from_ne_bytes([*c, *d]))
        })?;
        if kind == NFTA_TABLE_NAME {
            let name = rest.get(4..length)?;
            let name = String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name));
            return Some(format!("{family} {name}"));
        }
        // At least the header: otherwise it would never end.
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_named_by_its_family_and_name_whatever_is_before_them() {
        let flags = [8, 0, 2, 0, 0, 0, 0, 0];
        let name = [9, 0, 1, 0, b'l', b'o', b'c', b'k', 0, 0, 0, 0];
        let message = |family| [&[family, 0, 0, 0][..], &flags, &name].concat();
        assert_eq!(table(&message(2)).as_deref(), Some("ip lock"));
        assert_eq!(table(&message(1)).as_deref(), Some("inet lock"));
        assert_eq!(table(&message(10)), None, "IPv6");
        for length in 0..message(2).len() - 4 {
            assert_eq!(table(&message(2)[..length]), None, "{length}");
        }
        assert_eq!(table(&[2, 0, 0, 0, 0, 0, 2, 0]), None, "an attribute without a length");
    }
}
