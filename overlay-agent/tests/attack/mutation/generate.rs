//! Frames of which anything may be wrong: which one is told by a seed and a number, so that each can be made again.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::tools::{
    frame::{
        self, ARP, Arp, BROADCAST, IPV4, Ip, Mac, PORT, UDP, VXLAN_PORT, checksum, datagram,
        ethernet, udp, vxlan,
    },
    site::{
        ATTACKER, ATTACKER_MAC, GATEWAY, GATEWAY_MAC, HOST, HOST_MAC, HOST_VTEP, NOBODY, OUTLAW,
        OWNER, OWNER_MAC, PEER, PEER_MAC, PEER_VTEP, PORT_MAC, REMOTE, REMOTE_MAC,
        speaking_for_the_host,
    },
};

const DEFAULT_SEED: u64 = 0x5eed_0002;

/// What every frame carries at its end, before its number and what tells whether the number is whole.
const MARK: [u8; 4] = [0xa7, 0x7b, 0x5e, 0xed];
const MARKED: usize = 10;

fn check(number: u32) -> u16 {
    checksum(&number.to_be_bytes()) ^ 0x5a5a
}

/// xorshift64*: fast, repeatable.
pub(crate) struct Random(u64);

impl Random {
    /// The generator of one frame: numbers that follow each other must not look alike.
    pub(crate) const fn new(seed: u64, number: u64) -> Self {
        let mixed =
            (seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self((mixed ^ (mixed >> 31)) | 1)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        // The upper bits are the better ones.
        usize::try_from((self.next() >> 32) % end as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Where frames are sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Container,
    Wire,
    /// A virtual machine in a container, which says something about each frame.
    Machine,
}

/// The same frames for the same seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Generator {
    pub(crate) origin: Origin,
    pub(crate) seed: u64,
}

const ADDRESSES: [Ipv4Addr; 18] = [
    OWNER,
    OWNER,
    ATTACKER,
    REMOTE,
    GATEWAY,
    HOST,
    PEER,
    OUTLAW,
    NOBODY,
    Ipv4Addr::new(10, 1, 1, 0),
    Ipv4Addr::new(10, 1, 1, 77),
    Ipv4Addr::new(10, 1, 1, 255),
    Ipv4Addr::new(10, 1, 2, 1),
    Ipv4Addr::LOCALHOST,
    Ipv4Addr::UNSPECIFIED,
    Ipv4Addr::BROADCAST,
    Ipv4Addr::new(224, 0, 0, 1),
    Ipv4Addr::new(8, 8, 8, 8),
];

const MACS: [Mac; 11] = [
    OWNER_MAC,
    ATTACKER_MAC,
    REMOTE_MAC,
    GATEWAY_MAC,
    PORT_MAC,
    HOST_MAC,
    PEER_MAC,
    HOST_VTEP,
    PEER_VTEP,
    BROADCAST,
    [1, 0, 0x5e, 0, 0, 1],
];

const ETHERTYPES: [u16; 11] =
    [IPV4, IPV4, ARP, 0x86dd, 0x8100, 0x88a8, 0x9100, 0x8847, 0x8864, 0x88b5, 0x0040];

impl Generator {
    /// As the environment says, or always the same.
    pub(crate) fn new(origin: Origin) -> Self {
        Self { origin, seed: super::number("OVERLAY_ATTACK_SEED").unwrap_or(DEFAULT_SEED) }
    }

    /// What is handed to the kernel for the frame of this number.
    pub(crate) fn message(self, number: u32) -> Vec<u8> {
        LAST.fetch_max(number, Ordering::Relaxed);
        let frame = self.frame(number);
        if self.origin != Origin::Machine {
            return frame;
        }
        let mut random = Random::new(!self.seed, number.into());
        [about(&mut random), frame].concat()
    }

    /// The frame of this number.
    pub(crate) fn frame(self, number: u32) -> Vec<u8> {
        let mut random = Random::new(self.seed, number.into());
        let end = [&MARK[..], &number.to_be_bytes(), &check(number).to_be_bytes()].concat();
        let mut frame = match self.origin {
            Origin::Container => from_container(&mut random, &end),
            Origin::Wire => from_wire(&mut random, &end),
            Origin::Machine => from_machine(&mut random, &end),
        };
        let inner = inner_start(&frame);
        for _ in 0..random.pick(&[0, 1, 1, 1, 2, 2, 3, 4]) {
            // Inside or outside, where there is an inside.
            let start = inner.filter(|_| random.one_in(2)).unwrap_or(0);
            mutate(&mut random, &mut frame, start);
        }
        if !random.one_in(8) {
            mend_checksum(&mut frame, 14);
            if let Some(inner) = inner {
                mend_checksum(&mut frame, inner + 14);
            }
        }
        reshape(&mut random, &mut frame);
        // The shortest that the kernel sends is a header.
        let longest = if self.origin == Origin::Machine { 65_000 } else { frame::LONGEST };
        frame.resize(frame.len().clamp(14, longest), 0);
        frame
    }
}

fn from_container(random: &mut Random, end: &[u8]) -> Vec<u8> {
    let gateway = |packet: &[u8]| ethernet(GATEWAY_MAC, ATTACKER_MAC, &[], IPV4, packet);
    match random.below(12) {
        0 | 1 => gateway(&datagram(ATTACKER, REMOTE, end)),
        2 => gateway(&datagram(OWNER, REMOTE, end)),
        3 => gateway(&datagram(ATTACKER, GATEWAY, end)),
        4 => ethernet(OWNER_MAC, ATTACKER_MAC, &[], IPV4, &datagram(ATTACKER, OWNER, end)),
        5 => gateway(&datagram(ATTACKER, OWNER, end)),
        6 | 7 => {
            let payload = udp(PORT, VXLAN_PORT, &speaking_for_the_host(end));
            gateway(&Ip::new(ATTACKER, PEER, UDP).packet(&payload))
        }
        8 => {
            let inner = ethernet(HOST_VTEP, PEER_VTEP, &[], IPV4, &datagram(REMOTE, OWNER, end));
            let payload = udp(50_000, VXLAN_PORT, &vxlan(&inner));
            gateway(&Ip::new(PEER, HOST, UDP).packet(&payload))
        }
        9 => {
            // SYN, to a port that nobody listens on.
            let segment =
                [&[0x0f, 0xa0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0], end];
            gateway(&Ip::new(ATTACKER, REMOTE, 6).packet(&segment.concat()))
        }
        10 => {
            let mut echo = [&[8, 0, 0, 0, 0, 1, 0, 1], end].concat();
            let sum = checksum(&echo);
            echo[2..4].copy_from_slice(&sum.to_be_bytes());
            gateway(&Ip::new(ATTACKER, REMOTE, 1).packet(&echo))
        }
        _ => {
            let sender = (ATTACKER_MAC, random.pick(&[ATTACKER, OWNER, GATEWAY]));
            let arp = Arp { operation: random.pick(&[1, 2]), sender, target: ([0; 6], GATEWAY) };
            ethernet(BROADCAST, ATTACKER_MAC, &[], ARP, &[&arp.bytes(), end].concat())
        }
    }
}

fn from_wire(random: &mut Random, end: &[u8]) -> Vec<u8> {
    let wire = |packet: &[u8]| ethernet(HOST_MAC, PEER_MAC, &[], IPV4, packet);
    let outer = |source, inner: &[u8]| {
        let inner = ethernet(HOST_VTEP, PEER_VTEP, &[], IPV4, inner);
        wire(&Ip::new(source, HOST, UDP).packet(&udp(50_000, VXLAN_PORT, &vxlan(&inner))))
    };
    match random.below(10) {
        0..=4 => outer(PEER, &datagram(REMOTE, OWNER, end)),
        5 => outer(OUTLAW, &datagram(REMOTE, OWNER, end)),
        6 => outer(PEER, &datagram(random.pick(&[NOBODY, OWNER, ATTACKER]), OWNER, end)),
        7 => wire(&datagram(random.pick(&[NOBODY, REMOTE, ATTACKER]), OWNER, end)),
        8 => wire(&datagram(random.pick(&[OWNER, ATTACKER]), REMOTE, end)),
        _ => outer(PEER, &datagram(REMOTE, GATEWAY, end)),
    }
}

/// Who the machine is: nobody else has this MAC or address.
const MACHINE_MAC: Mac = [2, 0, 10, 1, 1, 5];
const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 5);

/// Large or small; the mark comes first, because a super-packet is cut up.
fn from_machine(random: &mut Random, end: &[u8]) -> Vec<u8> {
    let source = random.pick(&[MACHINE, MACHINE, MACHINE, OWNER, REMOTE]);
    let length = random.pick(&[0, 100, 1400, 1401, 3000, 20_000, 64_000]);
    let payload = [end, &vec![0; length]].concat();
    let (destination, to) =
        random.pick(&[(REMOTE, GATEWAY_MAC), (OWNER, OWNER_MAC), (GATEWAY, GATEWAY_MAC)]);
    let packet = match random.below(3) {
        0 => Ip::new(source, destination, UDP).packet(&udp(PORT, PORT, &payload)),
        1 => Ip::new(source, PEER, UDP).packet(&udp(PORT, VXLAN_PORT, &vxlan(&payload))),
        _ => {
            let header = [0x0f, 0xa0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 4, 0, 0, 0, 0, 0];
            Ip::new(source, destination, 6).packet(&[&header[..], &payload].concat())
        }
    };
    ethernet(to, MACHINE_MAC, &[], IPV4, &packet)
}

/// A header of virtio: flags, kind of segments, length of headers, size of segments, where a checksum begins and where
/// it goes.
fn about(random: &mut Random) -> Vec<u8> {
    let any = random.next().to_be_bytes();
    let word = |low: usize| u16::from_be_bytes([any[low], any[low + 1]]);
    let mut header =
        vec![random.pick(&[0, 1, 1, 1, 2, any[0]]), random.pick(&[0, 1, 1, 3, 4, 5, 0x81, any[1]])];
    header.extend(random.pick(&[0, 14, 42, 54, 66, word(2), 0xffff]).to_le_bytes());
    header.extend(random.pick(&[0, 8, 500, 1398, 1398, 1400, 1400, word(4), 0xffff]).to_le_bytes());
    header.extend(random.pick(&[34, 34, 34, 14, 0, word(6)]).to_le_bytes());
    header.extend(random.pick(&[16, 16, 6, 6, 0, word(0)]).to_le_bytes());
    header
}

/// Where the inner Ethernet header begins, in what was built here.
fn inner_start(frame: &[u8]) -> Option<usize> {
    (frame.len() > 64
        && frame[12..14] == IPV4.to_be_bytes()
        && frame[36..38] == VXLAN_PORT.to_be_bytes())
    .then_some(50)
}

/// Makes something wrong with the headers that begin at `start`; everything is where it was.
fn mutate(random: &mut Random, frame: &mut [u8], start: usize) {
    let ip = start + 14;
    let wrong: &[u8] = match random.below(18) {
        0 => &random.pick(&MACS),
        1 => return put(frame, start + 6, &random.pick(&MACS)),
        2 => return put(frame, start + 12, &random.pick(&ETHERTYPES).to_be_bytes()),
        3 => return put(frame, ip, &[random.byte()]),
        4 => return put(frame, ip, &[random.pick(&[0x40, 0x44, 0x46, 0x4f, 0x55, 0x65])]),
        5 => return put(frame, ip + 1, &[random.byte()]),
        6 => return put(frame, ip + 2, &[random.pick(&[0, 0, 1, 0xff]), random.byte()]),
        7 => return put(frame, ip + 6, &[random.byte(), random.pick(&[0, 1, 2, 0xff])]),
        8 => return put(frame, ip + 6, &[random.pick(&[0x20, 0x40, 0x80, 0]), 0]),
        9 => return put(frame, ip + 8, &[random.pick(&[0, 1, 2, 255])]),
        10 => return put(frame, ip + 9, &[random.pick(&[0, 1, 4, 6, 17, 41, 47, 50, 132, 255])]),
        11 | 12 => return put(frame, ip + 12, &random.pick(&ADDRESSES).octets()),
        13 => return put(frame, ip + 16, &random.pick(&ADDRESSES).octets()),
        14 => {
            let port = random.pick(&[VXLAN_PORT, PORT, 4789, 53, 0]);
            return put(frame, ip + 22, &port.to_be_bytes());
        }
        15 => return put(frame, ip + 24, &[random.byte(), random.byte(), random.byte()]),
        16 => return put(frame, ip + 28 + random.below(8), &[random.byte()]),
        _ => {
            // Anything but what tells us which frame it is.
            let at = random.below(frame.len() - MARKED);
            return put(frame, at, &[random.byte()]);
        }
    };
    put(frame, start, wrong);
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = frame.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Makes the checksum of an IPv4 header right, if there can be one.
fn mend_checksum(frame: &mut [u8], start: usize) {
    let Some(&first) = frame.get(start) else { return };
    let length = usize::from(first & 15) * 4;
    if length < 20 || frame.len() < start + length {
        return;
    }
    put(frame, start + 10, &[0, 0]);
    let sum = checksum(&frame[start..start + length]);
    put(frame, start + 10, &sum.to_be_bytes());
}

/// Moves things: options, tags, more bytes, fewer bytes.
fn reshape(random: &mut Random, frame: &mut Vec<u8>) {
    if random.one_in(5) && frame.len() > 34 && frame[14] == 0x45 {
        insert_options(random, frame);
    }
    if random.one_in(3) {
        for _ in 0..random.pick(&[1, 1, 1, 2, 2, 3, 5]) {
            let protocol = random.pick(&[0x8100_u16, 0x8100, 0x88a8, 0x9100]);
            let vid = random.pick(&[0_u16, 0, 0, 0xe000, 5]);
            let tag = [protocol.to_be_bytes(), vid.to_be_bytes()].concat();
            frame.splice(12..12, tag);
        }
    }
    match random.below(16) {
        0 => frame.truncate(14 + random.below(frame.len())),
        1 => {
            let at = random.below(frame.len());
            let more: Vec<u8> = (0..=random.below(12)).map(|_| random.byte()).collect();
            frame.splice(at..at, more);
        }
        2 => {
            let at = random.below(frame.len());
            frame.remove(at);
        }
        3 => frame.extend(vec![0; random.below(600)]),
        _ => {}
    }
}

/// Options behind the outer IPv4 header, with all lengths right.
fn insert_options(random: &mut Random, frame: &mut Vec<u8>) {
    let words = 1 + random.below(10);
    let mut options = vec![1; words * 4];
    match random.below(4) {
        // By way of another address, loosely or strictly.
        0 if words >= 2 => {
            options[1] = random.pick(&[0x83, 0x89]);
            options[2..4].copy_from_slice(&[7, 4]);
            options[4..8].copy_from_slice(&random.pick(&ADDRESSES).octets());
        }
        1 => options.iter_mut().for_each(|byte| *byte = random.byte()),
        _ => {}
    }
    let total = u16::from_be_bytes([frame[16], frame[17]])
        .wrapping_add(u16::try_from(options.len()).unwrap());
    frame[14] = 0x45 + u8::try_from(words).unwrap();
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame.splice(34..34, options);
    mend_checksum(frame, 14);
}

/// The number of a frame that has arrived, if it has it whole.
pub(crate) fn number_in(bytes: &[u8]) -> Option<u32> {
    let at = bytes.windows(MARK.len()).position(|window| window == MARK)?;
    let number = bytes.get(at + 4..at + 8)?;
    let number = u32::from_be_bytes(number.try_into().unwrap());
    (bytes.get(at + 8..at + 10)? == check(number).to_be_bytes()).then_some(number)
}

/// The last number that was given out.
static LAST: AtomicU32 = AtomicU32::new(0);

/// The same for a frame that we have sent: chance makes numbers, too.
pub(crate) fn sent_number_in(bytes: &[u8]) -> Option<u32> {
    number_in(bytes).filter(|&number| number <= LAST.load(Ordering::Relaxed))
}

/// As the corpus has it.
pub(crate) fn hex(frame: &[u8]) -> String {
    let lines = frame
        .chunks(32)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat());
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_frame_can_be_made_again() {
    for origin in [Origin::Container, Origin::Wire] {
        let generator = Generator { origin, seed: 7 };
        let whole = (0..1000).filter(|&number| {
            let frame = generator.frame(number);
            assert_eq!(frame, generator.frame(number));
            assert!((14..=frame::LONGEST).contains(&frame.len()));
            number_in(&frame) == Some(number)
        });
        // Some are cut off before.
        assert!(whole.count() > 800);
    }
}
