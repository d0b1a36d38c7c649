//! The agent dies at every step of its start: traffic goes on, and the next start leaves nothing stale.
#![cfg(debug_assertions)]

use overlay_lab::{ETCD_PREFIX, stream::Stream};

use crate::{
    damage::{self, Target},
    overlay::{Overlay, SOON},
};

/// `overlay_agent::fail::point` names them, in this order where nothing of ours is there yet.
const POINTS: [&str; 29] = [
    "pin path",
    "network config",
    "uplink",
    "lease",
    "programs",
    "device created",
    "device up",
    "address",
    "route",
    "settings",
    "endpoints",
    "dataplane",
    "subnet file",
    "vteps",
    "peers",
    "from_uplink",
    "to_tunnel",
    "from_tunnel",
    "from_bridge",
    "to_bridge",
    "from_container",
    "map peers",
    "map vteps",
    "map endpoints",
    "map counters",
    "map config",
    "pins",
    "leftovers",
    "ready",
];

/// Only reached where the device or the pins are not there yet.
fn needs_nothing_there(point: &str) -> bool {
    point == "device created" || point.starts_with("map ")
}

/// Starts an agent that is to die at `point`.
fn crash(overlay: &mut Overlay, point: &str) {
    let options = overlay.options.clone().environment(overlay_agent::fail::VARIABLE, point);
    let mut agent = overlay.lab.host(0).spawn_agent(&options).unwrap();
    overlay_lab::eventually(SOON, &format!("the agent to die at {point}"), || {
        anyhow::ensure!(agent.process().exit_status()?.is_some(), "{}", agent.log()?);
        Ok(())
    })
    .unwrap();
}

fn leases(overlay: &Overlay) -> Vec<(String, String)> {
    overlay.etcd().list(&format!("{ETCD_PREFIX}/subnets")).unwrap()
}

/// For each point: `before`, crash there, start, and look at everything.
fn die_and_start(overlay: &mut Overlay, point: &str, before: impl FnOnce(&mut Overlay)) {
    let healthy = damage::healthy(&target(overlay)).unwrap();
    let leased = leases(overlay);
    overlay.agents[0].kill().unwrap();
    before(overlay);
    crash(overlay, point);
    overlay.agents[0] = overlay.lab.host(0).start_agent(&overlay.options).unwrap();
    let (on, agent) = (target(overlay), &overlay.agents[0]);
    damage::mended(&on, agent, &healthy, SOON, &format!("death at {point}")).unwrap();
    assert_eq!(leases(overlay), leased, "death at {point}");
    let devices = overlay.lab.host(0).ip(["-brief", "link", "show", "type", "vxlan"]).unwrap();
    assert_eq!(devices.lines().count(), 1, "death at {point}: {devices}");
}

fn target(overlay: &Overlay) -> Target<'_> {
    let [container, _] = overlay.pair();
    Target { host: overlay.lab.host(0), container, peer: overlay.lab.host(1) }
}

#[test]
fn dying_at_any_step_of_a_restart_loses_nothing() {
    let mut overlay = Overlay::new();
    let [one, two] = overlay.pair();
    let streams =
        [Stream::start(one, two, 7001), Stream::start(two, one, 7002)].map(Result::unwrap);
    for point in POINTS.into_iter().filter(|point| !needs_nothing_there(point)) {
        die_and_start(&mut overlay, point, |_| {});
    }
    for stream in streams {
        let seen = stream.stop().unwrap();
        println!("{seen:?}");
        assert_eq!((seen.lost, seen.doubled), (0, 0), "{seen:?}");
    }
}

#[test]
fn dying_at_any_step_of_the_first_start_leaves_nothing_stale() {
    let mut overlay = Overlay::new();
    for point in POINTS {
        die_and_start(&mut overlay, point, |overlay| {
            let host = overlay.lab.host(0);
            // But not the lease.
            host.clean_up(env!("CARGO_BIN_EXE_overlay-agent")).unwrap();
        });
    }
}
