//! What the kernel knows of the other end of a veth pair, in whatever network namespace that is.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, bail};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use overlay_common::MacAddr;

use super::PeerPlace;

/// A container's end of its cable: what the kernel has there, whatever the container sends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerEnd {
    /// The interface's MAC.
    pub mac: MacAddr,
    /// The interface's IPv4 addresses, in the kernel's order.
    pub addresses: Vec<Ipv4Addr>,
}

/// Asks about interfaces of other network namespaces, from this one (`IFA_TARGET_NETNSID`, Linux 4.20).
#[derive(Debug)]
pub struct Inspector {
    socket: Socket,
    sequence: u32,
}

impl Inspector {
    /// Opens a socket of its own: the kernel reads that attribute of a dump only where requests are checked
    /// strictly (`NETLINK_GET_STRICT_CHK`, Linux 4.20).
    pub fn new() -> Result<Self> {
        let open = || -> std::io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_netlink_get_strict_chk(true)?;
            Ok(socket)
        };
        let socket = open().context("opening a netlink socket for containers' interfaces")?;
        Ok(Self { socket, sequence: 0 })
    }

    /// What the kernel has at a place. The answer is there when the question is asked: nobody else is waited for.
    pub fn look(&mut self, place: PeerPlace) -> Result<PeerEnd> {
        let about = || format!("interface {} of namespace {}", place.ifindex, place.namespace);
        let mut end = PeerEnd::default();
        let mut link = LinkMessage::default();
        link.header.index = place.ifindex;
        link.attributes.push(LinkAttribute::IfNetnsId(place.namespace));
        for answer in self
            .ask(RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST)
            .with_context(|| format!("asking for {}", about()))?
        {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                let mac = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Address(bytes) => {
                        Some(MacAddr(bytes.as_slice().try_into().ok()?))
                    }
                    _ => None,
                });
                end.mac = mac.unwrap_or_default();
            }
        }
        let mut address = AddressMessage::default();
        address.header.family = AddressFamily::Inet;
        address.header.index = place.ifindex;
        address.attributes.push(AddressAttribute::TargetNetNsId(place.namespace));
        for answer in self
            .ask(RouteNetlinkMessage::GetAddress(address), NLM_F_REQUEST | NLM_F_DUMP)
            .with_context(|| format!("asking for the addresses of {}", about()))?
        {
            if let RouteNetlinkMessage::NewAddress(address) = answer {
                end.addresses.extend(address.attributes.iter().find_map(
                    |attribute| match attribute {
                        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                        _ => None,
                    },
                ));
            }
        }
        Ok(end)
    }

    fn ask(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message =
            NetlinkMessage::new(header, NetlinkPayload::<RouteNetlinkMessage>::from(question));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let many = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)?;
                let length = usize::try_from(answer.header.length)?.next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                // An earlier question may have ended before its answer.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io().into());
                    }
                    NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(answers),
                    NetlinkPayload::Overrun(_) => bail!("the answer did not fit the socket"),
                    _ => {}
                }
                if !many {
                    return Ok(answers);
                }
            }
        }
    }
}
