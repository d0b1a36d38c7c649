//! What an independent eye sees on the wire and in the maps.

use overlay_lab::{Capture, Lab, UPLINK};

use crate::overlay::Overlay;

const FIELDS: [&str; 15] = [
    "ip.src",
    "ip.dst",
    "udp.dstport",
    "vxlan.vni",
    "vxlan.flags",
    "eth.src",
    "eth.dst",
    "ip.ttl",
    "ip.len",
    "frame.len",
    "udp.length",
    "ip.checksum.status",
    "udp.checksum.status",
    "tcp.checksum.status",
    "ip.flags.df",
];

#[test]
fn tshark_finds_correct_vxlan() {
    let overlay = Overlay::with(Lab::builder().imitate_wire(true), |options| options);
    // Otherwise a veth passes checksums on unfilled: the kernel has to fill in those of inner packets.
    for host in overlay.lab.hosts() {
        host.command("ethtool").args(["-K", UPLINK, "tx", "off"]).run().unwrap();
    }
    let host = overlay.lab.host(0);
    let mut capture =
        Capture::start(overlay.lab.ledger(), host.namespace(), UPLINK, "udp port 8472").unwrap();
    overlay.ping();
    overlay.iperf(&["-n", "200K"]);
    capture.stop().unwrap();

    let status = [0, 1].map(|host| overlay.agents[host].status().unwrap());
    let mac = |host: usize| status[host]["lease"]["vtep_mac"].as_str().unwrap().to_owned();
    let address = |host: usize| overlay.lab.host(host).address().to_string();
    let inner = |host: usize| overlay.containers[host].address().to_string();
    let rows = capture.fields("vxlan", &FIELDS).unwrap();
    assert!(rows.len() > 20, "{} packets", rows.len());
    let mut seen = [0, 0];
    for row in rows {
        let [
            sources,
            destinations,
            ports,
            vni,
            flags,
            eth_sources,
            eth_destinations,
            ttls,
            lengths,
            frame,
            udp_lengths,
            ip_checksums,
            udp_checksums,
            tcp_checksums,
            dont_fragment,
        ] = <[String; 15]>::try_from(row).unwrap();
        let from = usize::from(sources.starts_with(&address(1)));
        let to = 1 - from;
        seen[from] += 1;
        assert_eq!(sources, format!("{},{}", address(from), inner(from)));
        assert_eq!(destinations, format!("{},{}", address(to), inner(to)));
        assert_eq!((ports.as_str(), vni.as_str(), flags.as_str()), ("8472", "1", "0x0800"));
        let second = |both: &str| both.split(',').nth(1).unwrap().to_owned();
        assert_eq!(second(&eth_sources), mac(from));
        assert_eq!(second(&eth_destinations), mac(to));
        assert_eq!(ttls, "64,63", "outer TTL, inner TTL one less than the container's 64");
        let frame: u32 = frame.parse().unwrap();
        assert_eq!(lengths, format!("{},{}", frame - 14, frame - 64));
        assert!(udp_lengths.starts_with(&(frame - 34).to_string()), "{udp_lengths}");
        // 0 is bad, 1 good, 2 not checked: the outer UDP checksum is left out.
        assert_eq!(ip_checksums, "1,1");
        assert!(!udp_checksums.contains('0') && !tcp_checksums.contains('0'));
        assert!(dont_fragment.starts_with("False") || dont_fragment.starts_with('0'));
    }
    assert!(seen[0] > 5 && seen[1] > 5, "both directions: {seen:?}");
}

#[test]
fn bpftool_prints_peers_with_names_and_readable_addresses() {
    let overlay = Overlay::new();
    let peers = overlay.lab.host(0).pins().join("peers");
    let text = overlay
        .lab
        .host(0)
        .command("bpftool")
        .args(["map", "dump", "pinned"])
        .arg(&peers)
        .read()
        .unwrap();
    let compact: String = text.split_whitespace().collect();
    let list = |bytes: &[u8]| {
        let numbers: Vec<_> = bytes.iter().map(u8::to_string).collect();
        numbers.join(",")
    };
    let subnet = crate::overlay::network_of(overlay.containers[1].address());
    let public = overlay.lab.host(1).address();
    for expected in [
        format!("\"subnet\":[{}]", list(&subnet.octets())),
        "\"prefix_length\":24".to_owned(),
        format!("\"public_address\":[{}]", list(&public.octets())),
        "\"vtep_mac\":".to_owned(),
    ] {
        assert!(compact.contains(&expected), "no {expected} in {text}");
    }
}
