use overlay_common::{Hook, Reason};

use crate::{
    packets::udp,
    world::{CONTAINER, GATEWAY, REMOTE, World},
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
