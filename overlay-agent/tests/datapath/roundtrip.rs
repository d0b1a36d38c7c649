use overlay_common::{Hook, Reason};
use proptest::prelude::*;

use crate::{
    packets::{Wire, ipv4_of, parse, patch, udp, vxlan},
    world::{CONTAINER, REMOTE, World},
};

/// What one side encapsulates, the other decapsulates to the same packet with a TTL one lower; an
/// independent parser agrees with the headers in between.
#[test]
fn any_packet_comes_out_as_it_went_in() {
    let world = std::cell::RefCell::new(World::new());
    let packets = (
        prop::collection::vec(any::<u8>(), 0..1422),
        1_u8..=254,
        2_u8..=255,
        any::<u8>(),
        any::<u16>(),
    );
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&packets, |(payload, host, ttl, tos, port)| {
            let to = [10, 1, 20, host];
            let mut sent = udp(CONTAINER, to, port, &payload);
            patch(&mut sent, 1, tos);
            patch(&mut sent, 8, ttl);
            let outcome = world.borrow_mut().run(Hook::FromContainer, &sent);
            prop_assert_eq!(outcome.reason, Reason::Encapsulated);
            let outer = parse(&outcome.packet);
            prop_assert_eq!(outer.ecn, tos & 3);
            prop_assert_eq!(ipv4_of(&outer.inner).time_to_live, ttl - 1);
            prop_assert_eq!(&outer.inner[34..], &sent[34..]);

            // The same packet on its way back, so that one world can play both hosts.
            let mut answer = udp(REMOTE, CONTAINER, port, &payload);
            patch(&mut answer, 1, tos);
            let wire = Wire { tos: tos & 3, ..Wire::default() };
            let back = world.borrow_mut().run(Hook::FromUplink, &vxlan(wire, &answer));
            prop_assert_eq!(back.reason, Reason::ToEndpoint);
            prop_assert_eq!(&back.packet[14..], &answer[14..]);
            Ok(())
        })
        .unwrap();
}
