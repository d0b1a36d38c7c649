use std::sync::atomic::{AtomicU32, Ordering};

use aya::{
    maps::Array,
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
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
    const ROUNDS: u16 = 60_000;
    let mut world = World::new();
    let [leave, arrive] = [Hook::ToTunnel, Hook::ToBridge].map(|hook| world.handle(hook));
    let mut state = Array::<_, StackState>::try_from(world.map(STACK_STATE_MAP)).unwrap();
    let [begun, done] = [0, 0].map(AtomicU32::new);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            for round in 1..=ROUNDS {
                while begun.load(Ordering::Acquire) < u32::from(round) {
                    std::hint::spin_loop();
                }
                run(&leave, &udp(CONTAINER, REMOTE, round, b""));
                done.store(u32::from(round), Ordering::Release);
            }
        });
        let at_once = |round: u16| {
            let packet = udp(REMOTE, CONTAINER, round, b"");
            state.set(0, StackState { left: 0, arrived: 0 }, 0).unwrap();
            begun.store(u32::from(round), Ordering::Release);
            run(&arrive, &packet);
            while done.load(Ordering::Acquire) < u32::from(round) && !other.is_finished() {
                std::thread::yield_now();
            }
            let found = state.get(&0, 0).unwrap();
            (found.left, found.arrived) == (1, 1)
        };
        let lost = (1..=ROUNDS).map(at_once).position(|is_whole| !is_whole);
        // The other one waits for nobody any more.
        begun.store(u32::MAX, Ordering::Release);
        assert_eq!(lost, None, "so many rounds went well");
    });
}

/// Only that it runs: another thread's counters are nobody's here.
fn run(program: &SchedClassifier, packet: &[u8]) {
    let context = Context { ifindex: 1, ..Context::default() }.bytes();
    let options =
        TestRunOptions { data_in: Some(packet), ctx_in: Some(&context), ..TestRunOptions::new() };
    program.test_run(options).unwrap();
}
