//! `BPF_PROG_TEST_RUN` cannot give a packet a tunnel key, so what `from_tunnel` accepts is shown by the
//! network layer; its decisions are tested in overlay-common.

use overlay_common::{Hook, Reason};

use crate::{
    packets::udp,
    world::{CONTAINER, REMOTE, World},
};

#[test]
fn a_packet_that_came_through_no_tunnel_is_refused() {
    let mut world = World::new();
    let packet = udp(REMOTE, CONTAINER, 53, b"hello");
    assert_eq!(world.run(Hook::FromTunnel, &packet).reason, Reason::UnknownVtep);
    world.configure(|host| host.abi_version = 0);
    assert_eq!(world.run(Hook::FromTunnel, &packet).reason, Reason::NotConfigured);
}
