//! Which path packets take, and that each of them carries everything alone.

use crate::overlay::Overlay;

#[test]
fn containers_talk_by_the_fast_path() {
    let overlay = Overlay::new();
    let before = [0, 1].map(|host| {
        (
            overlay.packets(host, "from_container", "encapsulated"),
            overlay.packets(host, "from_uplink", "to_endpoint"),
        )
    });
    for _ in 0..10 {
        overlay.ping();
    }
    for host in [0, 1] {
        let sent = overlay.packets(host, "from_container", "encapsulated") - before[host].0;
        let received = overlay.packets(host, "from_uplink", "to_endpoint") - before[host].1;
        assert_eq!((sent, received), (10, 10), "host {host}");
        assert_eq!(overlay.packets(host, "to_tunnel", "tunnel_key_set"), 0);
    }
}
