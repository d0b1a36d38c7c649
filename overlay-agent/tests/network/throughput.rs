//! Bulk traffic arrives, whole and fast, on a wire that carries aggregates and on one that does not.
//! How fast exactly is for the benchmark to say: here, a stall or a dead fast path is what counts.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
};

use overlay_lab::{Container, Lab};

use crate::overlay::Overlay;

fn tcp_runs_without_a_stall(imitate_wire: bool) {
    let overlay = Overlay::with(Lab::builder().imitate_wire(imitate_wire), |options| options);
    let report = overlay.iperf(&["-t", "20"]);
    let moved = report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap();
    println!("{:.2} Gbit/s, wire imitated: {imitate_wire}", moved / 1e9);
    assert!(moved > 1e9, "only {moved:.2e} bit/s");
    for interval in report["intervals"].as_array().unwrap() {
        let moved = interval["sum"]["bits_per_second"].as_f64().unwrap();
        assert!(moved > 0.1e9, "a second with only {moved:.2e} bit/s: {interval}");
    }
    // Everything but a few first packets took the fast path, both ways.
    let fast = overlay.packets("from_container", "encapsulated");
    let slow = overlay.packets("to_tunnel", "tunnel_key_set");
    assert!(slow[0] * 1000 < fast[0] && slow[1] * 1000 < fast[1], "{slow:?} of {fast:?}");
    let fast = overlay.packets("from_uplink", "to_endpoint");
    let slow = overlay.packets("from_uplink", "aggregate");
    assert!(slow[0] * 1000 < fast[0] && slow[1] * 1000 < fast[1], "{slow:?} of {fast:?}");
}

#[test]
fn tcp_runs_without_a_stall_with_offloads() {
    tcp_runs_without_a_stall(false);
}

#[test]
fn tcp_runs_without_a_stall_on_an_imitated_wire() {
    tcp_runs_without_a_stall(true);
}

#[test]
fn udp_of_every_kind_arrives() {
    for imitate_wire in [false, true] {
        let overlay = Overlay::with(Lab::builder().imitate_wire(imitate_wire), |options| options);
        // The last one is fragmented by the container: it takes the slow path.
        for (length, rate) in [("64", "500K"), ("1400", "5M"), ("4000", "5M")] {
            let report = overlay.iperf(&["-t", "1", "-u", "-b", rate, "-l", length]);
            let sum = &report["end"]["sum"];
            let [lost, sent] =
                ["lost_packets", "packets"].map(|field| sum[field].as_u64().unwrap());
            assert!(sent > 100 && lost * 100 <= sent, "{lost} of {sent} lost at {length} bytes");
        }
    }
}

/// Sends `bytes` from one container to the other and returns what arrived.
pub(crate) fn transfer(from: &Container, to: &Container, bytes: Vec<u8>) -> Vec<u8> {
    const PORT: u16 = 5555;
    let address: Ipv4Addr = to.address();
    let listener = to.namespace().within(move || Ok(TcpListener::bind((address, PORT))?)).unwrap();
    let receiving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        received
    });
    from.namespace()
        .within(move || {
            let mut stream = TcpStream::connect_timeout(
                &SocketAddr::from((address, PORT)),
                crate::overlay::SOON,
            )
            .unwrap();
            stream.write_all(&bytes)?;
            Ok(())
        })
        .unwrap();
    receiving.join().unwrap()
}

/// A mebibyte that no compression, padding or repetition could fake.
pub(crate) fn file() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(1 << 20)
    .collect()
}

#[test]
fn a_file_arrives_unchanged_both_ways() {
    for imitate_wire in [false, true] {
        let overlay = Overlay::with(Lab::builder().imitate_wire(imitate_wire), |options| options);
        let file = file();
        let [one, two] = overlay.pair();
        // Equal bytes: more than an equal SHA-256.
        assert!(transfer(one, two, file.clone()) == file, "one to two");
        assert!(transfer(two, one, file.clone()) == file, "two to one");
    }
}

#[test]
fn a_ping_of_every_size_is_answered() {
    let overlay = Overlay::new();
    let [client, server] = overlay.pair();
    let largest = overlay.lab.host(0).subnet().unwrap().mtu - 28;
    let encapsulated = overlay.rise("from_container", "encapsulated");
    let script = format!(
        "for size in $(seq 0 {largest}); do \
           ping -n -q -c1 -W2 -s $size -M do {} >/dev/null || {{ echo $size; exit 1; }}; \
         done",
        server.address()
    );
    client
        .command("sh")
        .args(["-c", &script])
        .deadline(std::time::Duration::from_mins(1))
        .run()
        .unwrap();
    assert_eq!(encapsulated.of(&overlay)[0], u64::from(largest) + 1);
}
