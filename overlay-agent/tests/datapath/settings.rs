use std::thread;

use aya::{TestRun as _, TestRunOptions};
use overlay_common::{Hook, tables::HostConfig};

use crate::{
    packets::{parse, udp},
    world::{CONTAINER, Context, REMOTE, World},
};

/// Settings of which every field that an outer header shows is made of one byte.
fn made_of(byte: u8, settings: HostConfig) -> HostConfig {
    HostConfig {
        uplink_address: [byte; 4],
        vtep_mac: [byte; 6],
        port: u16::from_ne_bytes([byte; 2]),
        vni: u32::from_be_bytes([0, byte, byte, byte]),
        ..settings
    }
}

/// The kernel overwrites an entry of an array while programs read it.
#[test]
fn no_packet_meets_half_of_what_is_changed() {
    const PACKETS: usize = 200_000;
    let mut world = World::new();
    let packet = udp(CONTAINER, REMOTE, 53, b"hello");
    let context = Context { ifindex: 1, ..Context::default() }.bytes();
    let World { programs, tables, .. } = &mut world;
    let program = programs.get(Hook::FromContainer).unwrap();
    let settings = tables.settings.get().unwrap();
    let table = &mut tables.settings;
    table.set(made_of(1, settings)).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = [0; 2];
            for _ in 0..PACKETS {
                let mut out = vec![0; packet.len() + 256];
                let options = TestRunOptions {
                    data_in: Some(&packet),
                    data_out: Some(&mut out),
                    ctx_in: Some(&context),
                    ..TestRunOptions::new()
                };
                let result = program.test_run(options).unwrap();
                let outer = parse(&out[..result.data_size_out as usize]);
                let byte = outer.source[0];
                assert_eq!(outer.source, [byte; 4]);
                assert_eq!(outer.port.to_ne_bytes(), [byte; 2]);
                assert_eq!(outer.header[4..7], [byte; 3]);
                assert_eq!(outer.inner[6..12], [byte; 6]);
                seen[usize::from(byte) - 1] += 1;
            }
            seen
        });
        let mut changes = 0;
        while !reader.is_finished() {
            for byte in [2, 1] {
                table.set(made_of(byte, settings)).unwrap();
                changes += 1;
            }
        }
        let seen = reader.join().unwrap();
        assert!(changes > 10 && seen.iter().all(|packets| *packets > 100), "{changes}, {seen:?}");
    });
}
