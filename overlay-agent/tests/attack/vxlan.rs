//! VXLAN from those who may not send it, and to addresses that are not the tunnel's.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use overlay_lab::{Namespace, UPLINK, eventually};

use crate::tools::{
    frame::{IPV4, Ip, PORT, UDP, VXLAN_PORT, checksum, datagram, ethernet, udp, vxlan},
    port::Port,
    site::{
        APP_GATEWAY_MAC, ATTACKER, HOST, HOST_MAC, HOST_VTEP, OUTLAW, OWNER, PEER, PEER_MAC,
        PEER_VTEP, REMOTE, REMOTE_MAC, SECOND_MAC, SOON, Site, from_peer, speaking_for_the_host,
        to_gateway,
    },
    trial::Trial,
};

const EACH: u64 = 3;

/// As any program sends it: by a plain socket.
fn by_socket(namespace: &Namespace, to: impl Into<SocketAddr>, payload: Vec<u8>) {
    let to = to.into();
    namespace
        .within(move || {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            for _ in 0..EACH {
                socket.send_to(&payload, to)?;
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn no_container_speaks_for_its_host_by_a_plain_socket() {
    let mut site = Site::new();
    site.masquerade();
    site.add_application_network();
    let second = Ipv4Addr::new(192, 168, 33, 111);
    site.peer().ip(["address", "add", &format!("{second}/24"), "dev", UPLINK]).unwrap();
    let mut trial = Trial::new(&site);
    let application = &site.others[0];
    let places = [("docker0", site.attacker.namespace()), ("another bridge", application)];
    for (place, namespace) in places {
        for (what, address) in [("the peer", PEER), ("the peer's second address", second)] {
            trial.refuses(&format!("VXLAN from {place} to {what}"), EACH, |marker| {
                by_socket(namespace, (address, VXLAN_PORT), speaking_for_the_host(&marker));
            });
        }
    }
    trial.finish();
}

/// Who leaves a mark by this must have been masqueraded by somebody.
#[test]
fn the_hosts_own_vxlan_is_not_what_is_refused() {
    let site = Site::new();
    site.masquerade();
    let mut trial = Trial::new(&site);
    // Other ports of a peer are nobody's business.
    trial.delivers("a container's datagram to a port of the peer's", |marker| {
        let to = SocketAddr::from((PEER, PORT));
        site.attacker
            .namespace()
            .within(move || Ok(UdpSocket::bind(("0.0.0.0", 0))?.send_to(&marker, to)?))
            .unwrap();
    });
    // What the host itself encapsulates leaves by the same way, and is the overlay's slow path.
    trial.delivers("a datagram that the stack encapsulates", |marker| {
        let packet = Ip::new(ATTACKER, REMOTE, UDP).options(4).packet(&udp(PORT, PORT, &marker));
        site.attacker_port().send(&to_gateway(&packet)).unwrap();
    });
    trial.finish();
}

/// A container that pretends to be the peer towards its own host.
#[test]
fn a_container_is_not_taken_for_the_peer_by_its_own_host() {
    let mut site = Site::new();
    site.add_application_network();
    site.masquerade();
    let mut trial = Trial::new(&site);
    let honest = |marker: [u8; 4]| {
        let inner = datagram(REMOTE, OWNER, &marker);
        vxlan(&ethernet(HOST_VTEP, PEER_VTEP, &[], IPV4, &inner))
    };
    let wire = site.wire_port();
    trial.delivers("the peer's own", |marker| {
        wire.send(&from_peer(&datagram(REMOTE, OWNER, &marker))).unwrap();
    });
    let application = Port::open(&site.others[0], "eth0");
    for destination in [HOST, Ipv4Addr::new(10, 1, 1, 1), Ipv4Addr::new(172, 18, 0, 1)] {
        let packet = |marker| {
            Ip::new(PEER, destination, UDP).packet(&udp(50_000, VXLAN_PORT, &honest(marker)))
        };
        trial.refuses(
            &format!("VXLAN as the peer from docker0 to {destination}"),
            EACH,
            |marker| {
                let frame = to_gateway(&packet(marker));
                (0..EACH).for_each(|_| site.attacker_port().send(&frame).unwrap());
            },
        );
        let what = format!("VXLAN as the peer from another bridge to {destination}");
        trial.refuses(&what, EACH, |marker| {
            let from = [2, 0, 172, 18, 0, 2];
            let frame = ethernet(APP_GATEWAY_MAC, from, &[], IPV4, &packet(marker));
            (0..EACH).for_each(|_| application.send(&frame).unwrap());
        });
    }
    trial.finish();
}

/// The kernel's socket listens on every address and on every interface.
#[test]
fn vxlan_is_taken_only_by_the_tunnels_address_and_interface() {
    let mut site = Site::new();
    site.add_outsider();
    let second = Ipv4Addr::new(192, 168, 33, 110);
    site.host().ip(["address", "add", &format!("{second}/24"), "dev", UPLINK]).unwrap();
    let mut trial = Trial::new(&site);
    let [wire, outside] = [site.wire_port(), Port::open(&site.others[0], "eth0")];
    let payload = |marker: [u8; 4]| {
        let inner = datagram(REMOTE, OWNER, &marker);
        udp(50_000, VXLAN_PORT, &vxlan(&ethernet(HOST_VTEP, PEER_VTEP, &[], IPV4, &inner)))
    };
    trial.delivers("VXLAN from the peer to the tunnel's address", |marker| {
        wire.send(&from_peer(&datagram(REMOTE, OWNER, &marker))).unwrap();
    });
    let others = [second, Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 1, 1, 1)];
    for destination in others {
        trial.refuses(&format!("VXLAN from the wire to {destination}"), EACH, |marker| {
            let packet = Ip::new(PEER, destination, UDP).packet(&payload(marker));
            let frame = ethernet(HOST_MAC, PEER_MAC, &[], IPV4, &packet);
            (0..EACH).for_each(|_| wire.send(&frame).unwrap());
        });
    }
    for rp_filter in ["0", "2"] {
        for interface in ["all", "eth1"] {
            let name = format!("net.ipv4.conf.{interface}.rp_filter");
            site.host().namespace().sysctl(&name, rp_filter).unwrap();
        }
        for destination in [HOST, second, Ipv4Addr::new(10, 99, 0, 1)] {
            let what = format!(
                "VXLAN as the peer by a second interface to {destination}, rp_filter {rp_filter}"
            );
            trial.refuses(&what, EACH, |marker| {
                let packet = Ip::new(PEER, destination, UDP).packet(&payload(marker));
                let frame = ethernet(SECOND_MAC, [2, 0, 10, 99, 0, 2], &[], IPV4, &packet);
                (0..EACH).for_each(|_| outside.send(&frame).unwrap());
            });
        }
    }
    trial.finish();
}

/// The tunnel's socket may listen to IPv6 too.
#[test]
fn vxlan_over_ipv6_carries_nothing() {
    let site = Site::new();
    let [host, peer, outlaw] = [0, 1, 2].map(|index| site.lab.host(index));
    let mut trial = Trial::new(&site);
    for (number, host) in [(10, host), (11, peer), (12, outlaw)] {
        host.namespace().sysctl("net.ipv6.conf.all.disable_ipv6", "0").unwrap();
        host.namespace().sysctl("net.ipv6.conf.eth0.disable_ipv6", "0").unwrap();
        host.namespace().sysctl("net.ipv6.conf.all.forwarding", "1").unwrap();
        let address = format!("fd00:33::{number}/64");
        host.ip(["-6", "address", "add", &address, "dev", UPLINK, "nodad"]).unwrap();
    }
    host.ip(["-6", "address", "add", "fd00:1::1/64", "dev", "docker0", "nodad"]).unwrap();
    let container = site.attacker.namespace();
    container.sysctl("net.ipv6.conf.eth0.disable_ipv6", "0").unwrap();
    container.ip(["-6", "address", "add", "fd00:1::3/64", "dev", "eth0", "nodad"]).unwrap();
    container.ip(["-6", "route", "add", "default", "via", "fd00:1::1"]).unwrap();
    peer.ip(["-6", "route", "add", "fd00:1::/64", "via", "fd00:33::10"]).unwrap();
    let address =
        |text: &str| SocketAddr::from((text.parse::<std::net::Ipv6Addr>().unwrap(), VXLAN_PORT));
    let by_ipv6 = |namespace: &Namespace, to: SocketAddr, payload: Vec<u8>| {
        namespace
            .within(move || {
                let socket = UdpSocket::bind("[::]:0")?;
                for _ in 0..EACH {
                    socket.send_to(&payload, to)?;
                }
                Ok(())
            })
            .unwrap();
    };
    eventually(SOON, "the peer to answer the container by IPv6", || {
        site.attacker.command("ping").args(["-6", "-c", "1", "-W", "2", "fd00:33::11"]).run()
    })
    .unwrap();
    trial.stops("VXLAN over IPv6 from a container to the peer", EACH, |marker| {
        by_ipv6(container, address("fd00:33::11"), speaking_for_the_host(&marker));
    });
    for (who, sender) in [("the peer", peer), ("the wire", outlaw)] {
        trial.stops(&format!("VXLAN over IPv6 from {who}"), EACH, |marker| {
            let inner = datagram(REMOTE, OWNER, &marker);
            let payload = vxlan(&ethernet(HOST_VTEP, PEER_VTEP, &[], IPV4, &inner));
            by_ipv6(sender.namespace(), address("fd00:33::10"), payload);
        });
    }
    trial.finish();
}

/// Switches send to everybody what they do not know the place of, and cards that are overheard take it.
#[test]
fn a_frame_for_another_hosts_mac_is_not_taken() {
    let site = Site::new();
    let port = site.wire_port();
    let mut trial = Trial::new(&site);
    for to in [[2, 0, 0, 0, 0, 99], REMOTE_MAC, HOST_VTEP] {
        trial.stops(&format!("the peer's VXLAN to {to:02x?}"), EACH, |marker| {
            let mut frame = from_peer(&datagram(REMOTE, OWNER, &marker));
            frame[..6].copy_from_slice(&to);
            (0..EACH).for_each(|_| port.send(&frame).unwrap());
        });
    }
    trial.finish();
}

/// What lies about its length or its content is dropped by the kernel, and so it is not the fast path's either.
#[test]
fn what_the_kernel_would_not_take_is_not_taken() {
    let site = Site::new();
    let port = site.wire_port();
    let mut trial = Trial::new(&site);
    for (what, at, field) in [
        ("a length of more than there is", 16, [0, 0xcb]),
        ("a length of less than there is", 16, [0, 0x4a]),
        ("a UDP length of more than there is", 38, [0, 0xcb]),
        ("a UDP length of less than there is", 38, [0, 0x24]),
        ("a UDP length of nothing", 38, [0, 0]),
        ("a wrong UDP checksum", 40, [0x12, 0x34]),
    ] {
        trial.stops(&format!("the peer's VXLAN with {what}"), EACH, |marker| {
            let mut frame = from_peer(&datagram(REMOTE, OWNER, &marker));
            frame[at..at + 2].copy_from_slice(&field);
            frame[24..26].copy_from_slice(&[0, 0]);
            let sum = checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            (0..EACH).for_each(|_| port.send(&frame).unwrap());
        });
    }
    trial.finish();
}

#[test]
fn what_the_wire_forges_is_refused() {
    let site = Site::new();
    let port = site.wire_port();
    let mut trial = Trial::new(&site);
    let outer = |source, destination: Ipv4Addr, payload: &[u8]| {
        let packet = Ip::new(source, destination, UDP).packet(&udp(50_000, VXLAN_PORT, payload));
        ethernet(HOST_MAC, PEER_MAC, &[], IPV4, &packet)
    };
    let tunnelled = |inner: &[u8]| vxlan(&ethernet(HOST_VTEP, PEER_VTEP, &[], IPV4, inner));
    let gateway = Ipv4Addr::new(10, 1, 1, 1);
    for (what, source, destination) in [
        ("a local container", ATTACKER, OWNER),
        ("the recipient itself", OWNER, OWNER),
        ("our gateway", gateway, OWNER),
        ("our host", HOST, OWNER),
        ("a stranger", OUTLAW, OWNER),
        ("loopback", Ipv4Addr::LOCALHOST, OWNER),
        ("everybody", Ipv4Addr::BROADCAST, OWNER),
        ("itself, to another host", REMOTE, HOST),
        ("itself, to loopback", REMOTE, Ipv4Addr::LOCALHOST),
        ("itself, to everybody", REMOTE, Ipv4Addr::BROADCAST),
        ("itself, to a group", REMOTE, Ipv4Addr::new(224, 0, 0, 1)),
        ("itself, back to the peer", REMOTE, REMOTE),
    ] {
        trial.refuses(&format!("the peer's VXLAN that speaks for {what}"), EACH, |marker| {
            let frame = outer(PEER, HOST, &tunnelled(&datagram(source, destination, &marker)));
            (0..EACH).for_each(|_| port.send(&frame).unwrap());
        });
    }
    trial.refuses("VXLAN from an address without a lease", EACH, |marker| {
        let frame = outer(OUTLAW, HOST, &tunnelled(&datagram(REMOTE, OWNER, &marker)));
        (0..EACH).for_each(|_| port.send(&frame).unwrap());
    });
    trial.refuses("VXLAN from our own address", EACH, |marker| {
        let frame = outer(HOST, HOST, &tunnelled(&datagram(ATTACKER, OWNER, &marker)));
        (0..EACH).for_each(|_| port.send(&frame).unwrap());
    });
    trial.finish();
}
