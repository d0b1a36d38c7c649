//! A virtual machine in a container: super-packets, and lies about their checksums and segments.

use overlay_lab::Namespace;

use super::{
    Books, Watch,
    generate::{Generator, Origin},
    run,
};
use crate::tools::{
    site::{OWNER, REMOTE, Site},
    tap::Tap,
};

/// The machine's cable into its container, and that one's into the host, on one bridge.
fn bridge(namespace: &Namespace) -> Tap {
    let tap = Tap::create(namespace);
    namespace.ip(["link", "add", "br0", "type", "bridge"]).unwrap();
    for device in ["eth0", "tap0"] {
        namespace.ip(["link", "set", device, "master", "br0", "up"]).unwrap();
    }
    // It shall believe nothing of what is said here: everything goes out.
    namespace
        .command("bridge")
        .args(["link", "set", "dev", "tap0", "learning", "off"])
        .run()
        .unwrap();
    namespace.ip(["link", "set", "br0", "up"]).unwrap();
    tap
}

fn hunt(site: &Site) {
    let generator = Generator::new(Origin::Machine);
    site.masquerade();
    let container = site.host().add_container("machine").unwrap();
    let tap = bridge(container.namespace());
    let watches = [
        Watch::container(site.owner.namespace(), OWNER, generator),
        Watch::container(site.remote.namespace(), REMOTE, generator),
        Watch::host(site, generator),
    ];
    let veths = [site.owner.veth(), site.attacker.veth(), container.veth()];
    let books = Books::open(site, "from_container", &veths);
    run(generator, &watches, &books, |frames| {
        frames.iter().filter(|frame| tap.send(frame).is_ok()).count()
    });
}

#[test]
fn super_packets_that_lie_about_themselves_reach_nobody() {
    hunt(&Site::new());
}

#[test]
fn super_packets_that_lie_about_themselves_reach_nobody_without_the_fast_path() {
    hunt(&Site::with(|options| options.fast_path(false)));
}
