//! The kernel has something to say all the time.

use std::{
    fs,
    time::{Duration, Instant},
};

use overlay_lab::eventually;

use crate::overlay::{Overlay, SOON};

/// What the kernel says without end must not keep from the loop what is due: its looks at everything, its watchdog, questions.
#[test]
fn events_without_end_keep_neither_verifications_nor_containers_waiting() {
    let overlay = Overlay::new();
    let host = overlay.lab.host(0);
    let batch = host.directory().join("batch");
    let lines = ["add", "del"].map(|verb| format!("address {verb} 198.18.0.1/32 dev lo\n"));
    fs::write(&batch, lines.concat().repeat(20_000)).unwrap();
    let storm = format!("while ip -batch {}; do :; done", batch.display());
    let verifications = || overlay.agents[0].status().unwrap()["verifications"].as_u64().unwrap();
    std::thread::scope(|scope| {
        let storm =
            scope.spawn(|| host.command("timeout").args(["10", "sh", "-c", &storm]).output());
        let before = verifications();
        let start = Instant::now();
        let container = host.add_container("late").unwrap();
        eventually(SOON, "a container that comes meanwhile to talk", || {
            container.ping(overlay.pair()[1].address())
        })
        .unwrap();
        std::thread::sleep(Duration::from_secs(5));
        let looks = verifications() - before;
        let rate = f64::from(u32::try_from(looks).unwrap()) / start.elapsed().as_secs_f64();
        assert!(!storm.is_finished(), "the events have ended before the test");
        println!("{rate:.1} verifications a second");
        // Four, where nothing else is to be done.
        assert!(rate > 1.0, "{rate:.1} verifications a second");
    });
}
