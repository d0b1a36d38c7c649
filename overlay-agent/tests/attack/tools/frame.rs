//! Frames, byte by byte: a builder that refuses nothing.

use std::net::Ipv4Addr;

pub(crate) type Mac = [u8; 6];

pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const ARP: u16 = 0x0806;
pub(crate) const UDP: u8 = 17;
pub(crate) const BROADCAST: Mac = [0xff; 6];
/// Header and payload of the longest frame of a wire of 1500 bytes.
pub(crate) const LONGEST: usize = 1514;
/// The overlay's UDP port.
pub(crate) const VXLAN_PORT: u16 = 8472;
/// The port that honest datagrams and forged ones name.
pub(crate) const PORT: u16 = 4000;

/// A VLAN tag in front of the `EtherType`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tag {
    pub(crate) protocol: u16,
    pub(crate) vid: u16,
}

pub(crate) fn ethernet(
    to: Mac,
    from: Mac,
    tags: &[Tag],
    ethertype: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = [to, from].concat();
    for tag in tags {
        frame.extend(tag.protocol.to_be_bytes());
        frame.extend(tag.vid.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 header to be.
#[derive(Clone, Debug)]
pub(crate) struct Ip {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    /// Flags and offset.
    pub(crate) fragment: u16,
    /// A multiple of four bytes, 40 at most.
    pub(crate) options: Vec<u8>,
}

/// The flag that says that more fragments follow.
pub(crate) const MORE: u16 = 0x2000;

impl Ip {
    pub(crate) const fn new(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> Self {
        Self { source, destination, protocol, ttl: 64, id: 1, fragment: 0, options: Vec::new() }
    }

    /// As many bytes of options that mean nothing.
    pub(crate) fn options(mut self, bytes: usize) -> Self {
        self.options = vec![1; bytes];
        self
    }

    pub(crate) const fn fragment(mut self, id: u16, field: u16) -> Self {
        self.id = id;
        self.fragment = field;
        self
    }

    /// Header and payload.
    pub(crate) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let length = 20 + self.options.len();
        let words = u8::try_from(length / 4).unwrap();
        let total = u16::try_from(length + payload.len()).unwrap();
        let mut header = vec![0x40 | words, 0];
        header.extend(total.to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol, 0, 0]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        header.extend(&self.options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(payload);
        header
    }
}

/// RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Without a checksum, which IPv4 allows.
pub(crate) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram = [from, to, length, 0].map(u16::to_be_bytes).concat();
    datagram.extend(payload);
    datagram
}

/// A UDP datagram between two addresses, to [`PORT`].
pub(crate) fn datagram(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    Ip::new(source, destination, UDP).packet(&udp(PORT, PORT, payload))
}

/// VXLAN header with our network's identifier, and an inner frame.
pub(crate) fn vxlan(inner: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0, 0, 0, 1, 0], inner].concat()
}

/// What ARP says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arp {
    /// 1 asks, 2 answers.
    pub(crate) operation: u16,
    pub(crate) sender: (Mac, Ipv4Addr),
    pub(crate) target: (Mac, Ipv4Addr),
}

impl Arp {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0, 1, 8, 0, 6, 4];
        bytes.extend(self.operation.to_be_bytes());
        for (mac, address) in [self.sender, self.target] {
            bytes.extend(mac);
            bytes.extend(address.octets());
        }
        bytes
    }
}
