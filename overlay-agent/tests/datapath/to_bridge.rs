use std::sync::atomic::{AtomicU32, Ordering};

use aya::{
    maps::Array,
    programs::{TestRun as _, TestRunOptions},
};
use overlay_common::{
    Hook, Reason,
    tables::{STACK_STATE_MAP, StackState},
};

use crate::{
    packets::udp,
    world::{CONTAINER, Context, GATEWAY, REMOTE, World},
};

/// Of a container's answer from `port`.
fn answer(world: &mut World, port: u16) -> Reason {
    let mut packet = udp(CONTAINER, REMOTE, 53, b"answer");
    packet[34..36].copy_from_slice(&port.to_be_bytes());
    packet[36..38].copy_from_slice(&udp(REMOTE, CONTAINER, port, b"")[34..36]);
    world.run(Hook::FromContainer, &packet).reason
}

#[test]
fn a_flow_that_arrives_through_the_stack_leaves_through_it() {
    let mut world = World::new();
    let question = udp(REMOTE, CONTAINER, 53, b"question");
    assert_eq!(answer(&mut world, 53), Reason::Encapsulated);

    let outcome = world.run(Hook::ToBridge, &question);
    assert_eq!(outcome.reason, Reason::FromStack);
    assert_eq!(outcome.packet, question);
    assert_eq!(answer(&mut world, 53), Reason::StackFlow);
    assert_eq!(answer(&mut world, 54), Reason::Encapsulated, "another flow");
}

#[test]
fn everything_else_passes_unseen() {
    let mut world = World::new();
    let from_host = udp(GATEWAY, CONTAINER, 53, b"");
    assert_eq!(world.run(Hook::ToBridge, &from_host).reason, Reason::NotFromPeer);
    let mut arp = from_host.clone();
    arp[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(world.run(Hook::ToBridge, &arp).reason, Reason::NotIpv4);
    world.configure(|host| host.flags = 0);
    let question = udp(REMOTE, CONTAINER, 53, b"question");
    assert_eq!(world.run(Hook::ToBridge, &question).reason, Reason::FastPathOff);
}

/// Whether any flow ever left, and whether any ever arrived, is known by one value, which two processors may set at once. Of
/// whichever got lost, answers would take the fast path past who has to translate them back.
#[test]
fn of_flows_that_leave_and_arrive_at_once_neither_is_forgotten() {
    const ROUNDS: u16 = 20_000;
    let mut world = World::new();
    let programs = [Hook::ToTunnel, Hook::ToBridge].map(|hook| world.handle(hook));
    let mut state = Array::<_, StackState>::try_from(world.map(STACK_STATE_MAP)).unwrap();
    let go = AtomicU32::new(0);
    let done = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for (program, [from, to]) in programs.iter().zip([[CONTAINER, REMOTE], [REMOTE, CONTAINER]]) {
            let (go, done) = (&go, &done);
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    let packet = udp(from, to, round, b"");
                    while go.load(Ordering::Acquire) < u32::from(round) {
                        std::hint::spin_loop();
                    }
                    let context = Context { ifindex: 1, ..Context::default() }.bytes();
                    let options = TestRunOptions {
                        data_in: Some(&packet),
                        ctx_in: Some(&context),
                        ..TestRunOptions::new()
                    };
                    program.test_run(options).unwrap();
                    done.fetch_add(1, Ordering::Release);
                }
            });
        }
        for round in 1..=ROUNDS {
            state.set(0, StackState { left: 0, arrived: 0 }, 0).unwrap();
            go.store(u32::from(round), Ordering::Release);
            while done.load(Ordering::Acquire) < 2 * u32::from(round) {
                std::hint::spin_loop();
            }
            let found = state.get(&0, 0).unwrap();
            assert_eq!((found.left, found.arrived), (1, 1), "round {round}");
        }
    });
}
