//! A million garbled VXLAN packets: none reaches a container, the kernel does not complain, and the
//! counters add up to exactly what was sent.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use overlay_lab::{Capture, eventually};

use crate::overlay::{Overlay, SOON};

const PACKETS: usize = 1_000_000;

/// xorshift64*: fast, repeatable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

/// What must be right for a packet to be let in, and so what a mutation may spoil: the offset in the UDP
/// payload, and the bits that count.
const GUARDED: [(usize, u8); 21] = [
    // The flag that says that there is an identifier, and the identifier.
    (0, 0x08),
    (4, 0xff),
    (5, 0xff),
    (6, 0xff),
    // Inner destination MAC and EtherType.
    (8, 0xff),
    (9, 0xff),
    (10, 0xff),
    (11, 0xff),
    (12, 0xff),
    (13, 0xff),
    (20, 0xff),
    (21, 0xff),
    // IP version; the network parts of source and destination.
    (22, 0xf0),
    (34, 0xff),
    (35, 0xff),
    (36, 0xff),
    (38, 0xff),
    (39, 0xff),
    (40, 0xff),
    // The high bytes of the length, which then is more than there is.
    (24, 0xc0),
    (24, 0xe0),
];

#[test]
fn a_million_garbled_packets_are_refused_and_counted() {
    let overlay = Overlay::new();
    let status = overlay.agents[0].status().unwrap();
    let mac: overlay_common::MacAddr =
        status["lease"]["vtep_mac"].as_str().unwrap().parse().unwrap();
    let [receiver, sender] = overlay.pair();
    let mut honest = vec![8, 0, 0, 0, 0, 0, 1, 0];
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], mac.0)
        .ipv4(sender.address().octets(), receiver.address().octets(), 63)
        .udp(4000, 4000)
        .write(&mut honest, &[0; 64])
        .unwrap();
    let mut capture = Capture::start(
        overlay.lab.ledger(),
        receiver.namespace(),
        "eth0",
        "inbound and ip and udp and not broadcast and not multicast",
    )
    .unwrap();
    let warnings = kernel_warnings();
    let before = refused(&overlay);
    let target: Ipv4Addr = overlay.lab.host(0).address();
    overlay
        .lab
        .host(1)
        .namespace()
        .within(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(SocketAddr::from((target, 8472)))?;
            let mut random = Random(0x5eed_0001);
            for number in 0..PACKETS {
                let mut packet = honest.clone();
                // Anything anywhere, and at least one thing that must not be let through.
                for _ in 0..random.below(4) {
                    let at = random.below(packet.len());
                    packet[at] = random.next().to_le_bytes()[7];
                }
                if random.below(8) == 0 {
                    // Shorter than it says: what it says must not have been garbled to fit.
                    packet[24..26].copy_from_slice(&honest[24..26]);
                    packet.truncate(random.below(58));
                } else {
                    let (at, bits) = GUARDED[random.below(GUARDED.len())];
                    let wrong = random.next().to_le_bytes()[6] & bits;
                    let wrong = if wrong == 0 { bits } else { wrong };
                    packet[at] = (honest[at] & bits) ^ wrong | (packet[at] & !bits);
                }
                socket.send(&packet)?;
                // Let the other side breathe: what its queue loses, no program counts.
                if number % 64 == 0 {
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
            Ok(())
        })
        .unwrap();
    eventually(SOON, "every packet to be counted", || {
        let refused = refused(&overlay) - before;
        anyhow::ensure!(refused == PACKETS as u64, "{refused} are");
        Ok(())
    })
    .unwrap();
    capture.stop().unwrap();
    let arrived = capture.fields("udp", &["ip.src", "ip.dst"]).unwrap();
    assert!(arrived.is_empty(), "{} arrived: {:?}", arrived.len(), arrived.first());
    assert_eq!(kernel_warnings(), warnings, "the kernel complains");
    overlay.ping();
}

/// Packets that the first host's programs dropped as they came in.
fn refused(overlay: &Overlay) -> u64 {
    let status = overlay.agents[0].status().unwrap();
    let counters = status["counters"].as_array().unwrap();
    counters
        .iter()
        .filter(|counter| counter["class"] == "dropped")
        .filter(|counter| counter["hook"] == "from_uplink" || counter["hook"] == "from_tunnel")
        .map(|counter| counter["packets"].as_u64().unwrap())
        .sum()
}

/// How often the kernel has printed a stack trace or a warning.
fn kernel_warnings() -> usize {
    let log = overlay_lab::command::Cmd::new("dmesg").read().unwrap();
    ["WARNING:", "BUG:", "Call Trace"].iter().map(|word| log.matches(word).count()).sum()
}
