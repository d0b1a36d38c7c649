//! Nothing forged reaches a container, by either path, and each refusal rises its own counter by one.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use socket2::{Domain, Socket, Type};

use overlay_common::MacAddr;
use overlay_lab::{Capture, Lab, UPLINK};

use crate::{
    kernels::tun_uplinks,
    overlay::{Overlay, SOON, peers_file},
};

/// Marks our packets in captures.
const PAYLOAD: &[u8] = b"forged by the trust test";

/// What a forged VXLAN packet says.
#[derive(Clone, Copy)]
struct Forgery {
    /// Outer source: an address of the second host.
    outer_source: Ipv4Addr,
    flags: u8,
    vni: u32,
    inner_mac: MacAddr,
    source: Ipv4Addr,
    destination: Ipv4Addr,
}

impl Forgery {
    /// What the second host's container may send to the first's.
    fn honest(overlay: &Overlay) -> Self {
        let status = overlay.agents[0].status().unwrap();
        Self {
            outer_source: overlay.lab.host(1).address(),
            flags: 8,
            vni: 1,
            inner_mac: status["lease"]["vtep_mac"].as_str().unwrap().parse().unwrap(),
            source: overlay.containers[1].address(),
            destination: overlay.containers[0].address(),
        }
    }

    /// VXLAN header, inner Ethernet, IPv4 and UDP, and `padding` bytes.
    fn bytes(self, padding: usize) -> Vec<u8> {
        let mut bytes = vec![self.flags, 0, 0, 0];
        bytes.extend((self.vni << 8).to_be_bytes());
        let payload = [PAYLOAD, &vec![0; padding]].concat();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 9, 9], self.inner_mac.0)
            .ipv4(self.source.octets(), self.destination.octets(), 63)
            .udp(4000, 4000)
            .write(&mut bytes, &payload)
            .unwrap();
        bytes
    }
}

/// Sends from the second host to the first's VXLAN port.
fn send(overlay: &Overlay, from: Ipv4Addr, bytes: Vec<u8>) {
    send_to(overlay, from, overlay.lab.host(0).address(), bytes);
}

fn send_to(overlay: &Overlay, from: Ipv4Addr, to: Ipv4Addr, bytes: Vec<u8>) {
    let to = SocketAddr::from((to, 8472));
    overlay
        .lab
        .host(1)
        .namespace()
        .within(move || {
            UdpSocket::bind((from, 0))?.send_to(&bytes, to)?;
            Ok(())
        })
        .unwrap();
}

/// Sends each forgery, padded by `padding`, and expects `hook` on the first host to count it under its
/// name; then sends an honest packet, which is the only one to arrive.
fn refuses(overlay: &Overlay, hook: &str, padding: usize) {
    let stranger = Ipv4Addr::new(192, 168, 33, 99);
    overlay
        .lab
        .host(1)
        .ip(["address", "replace", &format!("{stranger}/24"), "dev", UPLINK])
        .unwrap();
    let honest = Forgery::honest(overlay);
    let foreign = Ipv4Addr::new(10, 1, 199, 7);
    let forgeries = [
        ("unknown_vtep", Forgery { outer_source: stranger, ..honest }),
        ("wrong_vni", Forgery { vni: 2, ..honest }),
        ("foreign_inner_source", Forgery { source: foreign, ..honest }),
        ("foreign_inner_source", Forgery { source: honest.destination, ..honest }),
        ("foreign_inner_destination", Forgery { destination: foreign, ..honest }),
        (
            "foreign_inner_destination",
            Forgery { destination: overlay.lab.host(0).address(), ..honest },
        ),
        ("wrong_inner_mac", Forgery { inner_mac: MacAddr([2, 0, 0, 0, 0, 99]), ..honest }),
    ];
    let container = &overlay.containers[0];
    let mut capture =
        Capture::start(overlay.lab.ledger(), container.namespace(), "eth0", "udp port 4000")
            .unwrap();
    for (reason, forgery) in forgeries {
        let refused = overlay.rise(hook, reason);
        send(overlay, forgery.outer_source, forgery.bytes(padding));
        overlay_lab::eventually(SOON, &format!("{hook} to count {reason}"), || {
            let refused = refused.of(overlay)[0];
            anyhow::ensure!(refused == 1, "it counts {refused}");
            Ok(())
        })
        .unwrap();
    }
    send(overlay, honest.outer_source, honest.bytes(padding));
    overlay_lab::eventually(SOON, "the honest packet to arrive", || {
        let arrived = capture.fields("udp", &["ip.src"])?;
        anyhow::ensure!(!arrived.is_empty(), "nothing has");
        Ok(())
    })
    .unwrap();
    capture.stop().unwrap();
    let arrived = capture.fields("udp && !icmp", &["ip.src", "ip.dst"]).unwrap();
    let expected = vec![honest.source.to_string(), honest.destination.to_string()];
    assert_eq!(arrived, [expected], "only the honest packet");
}

#[test]
fn forged_packets_are_refused_on_the_uplink_with_the_fast_path_on() {
    refuses(&Overlay::new(), "from_uplink", 0);
}

#[test]
fn forged_packets_are_refused_on_the_uplink_with_the_fast_path_off() {
    let overlay = Overlay::with(Lab::builder(), |options| options.fast_path(false));
    refuses(&overlay, "from_uplink", 0);
}

#[test]
fn forged_packets_in_outer_fragments_are_refused_behind_the_kernels_device() {
    let overlay = Overlay::with(Lab::builder().mtu(9000), |options| options);
    // The wire carries 9,000 bytes and the sender cuts at 1,500: the uplink's program sees fragments.
    let sender = overlay.lab.host(1);
    let receiver = overlay.lab.host(0).address().to_string();
    sender.ip(["route", "add", &receiver, "dev", UPLINK, "mtu", "lock", "1500"]).unwrap();
    let fragments = overlay.rise("from_uplink", "fragment");
    refuses(&overlay, "from_tunnel", 4000);
    assert!(fragments.of(&overlay)[0] > 10);
}

/// The kernel's socket listens on every address of the host.
#[test]
fn vxlan_for_another_address_of_the_host_is_refused() {
    let overlay = Overlay::new();
    let second = Ipv4Addr::new(192, 168, 33, 200);
    overlay.lab.host(0).ip(["address", "add", &format!("{second}/24"), "dev", UPLINK]).unwrap();
    let refused = overlay.rise("from_tunnel", "wrong_vtep_address");
    let delivered = overlay.rise("from_tunnel", "to_endpoint");
    let honest = Forgery::honest(&overlay);
    send_to(&overlay, honest.outer_source, second, honest.bytes(0));
    overlay_lab::eventually(SOON, "the packet to be refused", || {
        anyhow::ensure!(refused.of(&overlay)[0] == 1, "it is not");
        Ok(())
    })
    .unwrap();
    assert_eq!(delivered.of(&overlay)[0], 0);
}

#[test]
fn a_container_cannot_speak_for_its_host() {
    let overlay = Overlay::new();
    // As Docker masquerades what containers send to the underlay.
    overlay
        .lab
        .host(1)
        .command("iptables")
        .args(["-t", "nat", "-A", "POSTROUTING", "-o", UPLINK, "-j", "MASQUERADE"])
        .run()
        .unwrap();
    let refused = overlay.rise("from_container", "container_vxlan");
    let honest = Forgery::honest(&overlay);
    let to = SocketAddr::from((overlay.lab.host(0).address(), 8472));
    let bytes = honest.bytes(0);
    let arrived = overlay.rise("from_uplink", "to_endpoint");
    overlay.containers[1]
        .namespace()
        .within(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(&bytes, to)?;
            Ok(())
        })
        .unwrap();
    overlay_lab::eventually(SOON, "the container's packet to be refused", || {
        anyhow::ensure!(refused.of(&overlay)[1] == 1, "it is not");
        Ok(())
    })
    .unwrap();
    assert_eq!(arrived.of(&overlay)[0], 0);
}

/// Bytes 12 and 13 of an IP packet are its source's: one from 8.0.69.0 is, byte for byte, a frame with another IP packet
/// in it.
#[test]
fn without_ethernet_headers_no_packet_passes_for_a_frame() {
    let lab = Lab::builder().start().unwrap();
    let _wire = tun_uplinks(&lab);
    let options = peers_file(&lab).argument("--iface=up0");
    let overlay = Overlay::on(lab, None, options);
    let [to, peer] = [0, 1].map(|number| overlay.lab.host(number).address());

    // The packet's own header, of which the kernel fills in the rest.
    let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    bytes.extend([Ipv4Addr::new(8, 0, 69, 0), to].map(|address| address.octets()).concat());
    // From its fifteenth byte on a second one, from the peer: what is left of that, UDP, VXLAN of another network.
    bytes.extend([0, 0, 64, 17, 0, 0]);
    bytes.extend([peer, to].map(|address| address.octets()).concat());
    bytes.extend([[0x12, 0x34], 8472_u16.to_be_bytes(), [0, 100], [0, 0]].concat());
    bytes.extend([8, 0, 0, 0, 0, 0, 99, 0]);
    bytes.resize(200, 0);

    let [left, refused] = ["tagged", "wrong_vni"].map(|reason| overlay.rise("from_uplink", reason));
    let sent = move || {
        // 255: nobody's protocol, which receives nothing.
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(255.into()))?;
        socket.set_header_included_v4(true)?;
        Ok(socket.send_to(&bytes, &SocketAddr::from((to, 0)).into())?)
    };
    overlay.lab.host(1).namespace().within(sent).unwrap();
    overlay_lab::eventually(SOON, "the packet to be left to the kernel", || {
        let seen = [&left, &refused].map(|counter| counter.of(&overlay)[0]);
        anyhow::ensure!(seen == [1, 0], "left to the kernel, read as a frame: {seen:?}");
        Ok(())
    })
    .unwrap();
}
