//! {offloads on, wire imitated} × {fast path on, off} × {TCP 1 and 8 flows, UDP small and large, ICMP of
//! all kinds of sizes}: contents, and the counters that say which path it was.

use std::time::Duration;

use overlay_lab::Lab;

use crate::{
    overlay::Overlay,
    throughput::{file, transfer},
};

fn every_kind_of_traffic(imitate_wire: bool, fast_path: bool) {
    let overlay = Overlay::with(Lab::builder().imitate_wire(imitate_wire), |options| {
        options.fast_path(fast_path)
    });
    let fast = overlay.rise("from_container", "encapsulated");
    let slow = overlay.rise("to_tunnel", "tunnel_key_set");

    for streams in ["1", "8"] {
        let report = overlay.iperf(&["-t", "2", "-P", streams]);
        let moved = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
        assert!(moved > 0.3e9, "{streams} TCP streams move only {moved:.2e} bit/s");
    }
    for (length, rate) in [("64", "500K"), ("1400", "5M")] {
        let report = overlay.iperf(&["-t", "1", "-u", "-b", rate, "-l", length]);
        let sum = &report["end"]["sum"];
        let [lost, sent] = ["lost_packets", "packets"].map(|field| sum[field].as_u64().unwrap());
        assert!(sent > 100 && lost * 100 <= sent, "{lost} of {sent} lost at {length} bytes");
    }
    let [one, two] = overlay.pair();
    // A pattern in every packet: ping checks what comes back.
    for size in ["0", "1", "55", "56", "1000", "1421", "1422"] {
        one.command("ping")
            .args(["-n", "-c", "5", "-i", "0.01", "-W", "2", "-p", "a5c3", "-s", size])
            .arg(two.address().to_string())
            .deadline(Duration::from_secs(20))
            .run()
            .unwrap();
    }
    assert!(transfer(one, two, file()) == file(), "a file's contents");

    let (fast, slow) = (fast.of(&overlay), slow.of(&overlay));
    println!("wire imitated {imitate_wire}, fast path {fast_path}: {fast:?} fast, {slow:?} slow");
    for host in [0, 1] {
        let all = fast[host] + slow[host];
        assert!(all > 1000, "{all} packets");
        if fast_path {
            assert!(slow[host] * 1000 <= all, "{} of {all} took the slow path", slow[host]);
        } else {
            assert_eq!(fast[host], 0);
        }
    }
}

#[test]
fn with_offloads_by_the_fast_path() {
    every_kind_of_traffic(false, true);
}

#[test]
fn with_offloads_by_the_slow_path() {
    every_kind_of_traffic(false, false);
}

#[test]
fn on_an_imitated_wire_by_the_fast_path() {
    every_kind_of_traffic(true, true);
}

#[test]
fn on_an_imitated_wire_by_the_slow_path() {
    every_kind_of_traffic(true, false);
}
