//! `overlay-agent drops`: every packet that is dropped is shown, or counted as not shown.

use std::{
    net::{SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use overlay_lab::{Process, command::Cmd, eventually};
use serde_json::Value;

use crate::overlay::{Overlay, SOON};

const REFUSED: &str = "container_vxlan";

/// For what takes some seconds: a line of what was missed comes once in a second.
const LATER: Duration = Duration::from_secs(30);

impl Overlay {
    /// `drops` on the first host.
    fn drops(&self, arguments: &[&str]) -> Cmd {
        let host = self.lab.host(0);
        let command = host.command(self.options.binary()).arg("drops");
        command.arg("--socket").arg(host.agent_socket().to_str().unwrap()).args(arguments)
    }

    /// The same, going on; it has begun to listen.
    fn follow_drops(&self, arguments: &[&str], log: &Path) -> Process {
        let command = self.drops(&[&["--follow"], arguments].concat()).no_deadline();
        let drops = Process::spawn(self.lab.ledger(), "drops --follow", &command, log).unwrap();
        eventually(SOON, "somebody to listen", || {
            ensure!(!drops.log()?.is_empty(), "nothing is said yet");
            Ok(())
        })
        .unwrap();
        drops
    }

    /// The first host's container sends so many datagrams that could speak for its host.
    fn send_vxlan(&self, packets: usize) {
        let to = SocketAddr::from((self.lab.host(1).address(), 8472));
        let send = move || {
            let socket = UdpSocket::bind("0.0.0.0:4711")?;
            for _ in 0..packets {
                socket.send_to(&[8, 0, 0, 0, 0, 0, 1, 0], to)?;
            }
            Ok(())
        };
        self.containers[0].namespace().within(send).unwrap();
    }
}

/// Packets in lines of their own, and packets that are told to be in none.
fn sums(log: &str) -> (u64, u64) {
    let (mut shown, mut missed) = (0, 0);
    for line in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        match line["kind"].as_str() {
            Some("packet") => shown += 1,
            Some("missed") => missed += line["packets"].as_u64().unwrap(),
            _ => {}
        }
    }
    (shown, missed)
}

#[test]
fn a_packet_that_is_dropped_is_shown_with_its_reason_afterwards_and_to_who_follows() {
    let overlay = Overlay::new();
    let nothing = overlay.drops(&["--reason", REFUSED]).read().unwrap();
    assert_eq!(nothing, "No packet of that reason was dropped since the programs were loaded.");
    let folder = overlay.lab.host(0).directory();
    let capture = folder.join("drops.pcapng");
    let arguments = ["--count", "2", "--write", capture.to_str().unwrap()];
    let mut followed = overlay.follow_drops(&arguments, &folder.join("followed.log"));
    overlay.send_vxlan(2);
    let ended = eventually(SOON, "both packets to be shown", || {
        followed.exit_status()?.ok_or_else(|| anyhow::anyhow!("it goes on"))
    });
    assert!(ended.unwrap().success(), "{}", followed.log_tail(20));

    let other = overlay.lab.host(1).address();
    let (container, veth) = (overlay.containers[0].address(), overlay.containers[0].veth());
    let expected = format!(
        " dropped {REFUSED} from_container on {veth}: udp {container}:4711 > {other}:8472, 50 bytes, from "
    );
    let log = followed.log().unwrap();
    let packets = || log.lines().filter(|line| line.contains(&expected));
    assert_eq!(packets().count(), 2, "{log}");
    assert!(packets().all(|line| line.contains(&format!("peer {other}"))), "{log}");

    let afterwards = overlay.drops(&["--output", "json", "--reason", REFUSED]).read().unwrap();
    let lines: Vec<Value> =
        afterwards.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kept: Vec<_> = lines.iter().filter(|line| line["kind"] == "packet").collect();
    assert_eq!(kept.len(), 2, "{afterwards}");
    assert_eq!(kept[0]["source"], container.to_string());
    assert_eq!(kept[0]["interface"], veth);
    let counted = lines.iter().find(|line| line["kind"] == "count").unwrap();
    assert_eq!((&counted["hook"], &counted["packets"]), (&"from_container".into(), &2.into()));
    let others = overlay.drops(&["--output", "json", "--reason", "wrong_vni"]).read().unwrap();
    assert_eq!(others, "", "other reasons were not asked for");

    let mode = capture.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "packets are nobody else's to read");
    let read =
        ["-r", capture.to_str().unwrap(), "-T", "fields", "-e", "frame.comment", "-e", "ip.src"];
    let read = overlay.lab.host(0).command("tshark").args(read).read().unwrap();
    let told = format!("dropped {REFUSED} at from_container: ");
    let frames: Vec<_> = read.lines().filter(|line| line.starts_with(&told)).collect();
    assert_eq!(frames.len(), 2, "{read}");
    assert!(frames.iter().all(|frame| frame.ends_with(&container.to_string())), "{read}");
}

#[test]
fn of_a_flood_of_drops_each_is_shown_or_counted_and_the_agent_has_little_to_do() {
    const FLOOD: usize = 200_000;
    let mut overlay = Overlay::new();
    let log = overlay.lab.host(0).directory().join("flood.log");
    let followed = overlay.follow_drops(&["--output", "json"], &log);
    let counted = overlay.rise("from_container", REFUSED);
    overlay.send_vxlan(FLOOD);
    let flood = u64::try_from(FLOOD).unwrap();
    eventually(LATER, "all of them to be shown or counted", || {
        let (shown, missed) = sums(&followed.log()?);
        ensure!(shown + missed == flood, "{shown} are shown, {missed} are counted");
        ensure!(shown >= 1000 && missed > 0, "{shown} are shown, {missed} are counted");
        Ok(())
    })
    .unwrap();
    assert_eq!(counted.of(&overlay)[0], flood);
    drop(followed);

    // Without anybody who follows, ten of them in a second for each processor are work for the agent.
    let pid = overlay.agents[0].process().pid();
    let busy = || {
        let stat = procfs::process::Process::new(pid).unwrap().stat().unwrap();
        Duration::from_millis((stat.utime + stat.stime) * 1000 / procfs::ticks_per_second())
    };
    let (begin, before) = (Instant::now(), busy());
    overlay.send_vxlan(FLOOD);
    let (took, worked) = (begin.elapsed(), busy().saturating_sub(before));
    assert!(worked < took / 4, "of {took:?}, the agent has worked for {worked:?}");
    assert_eq!(counted.of(&overlay)[0], 2 * flood);
}

#[test]
fn declined_packets_are_shown_to_who_asks_and_to_nobody_afterwards() {
    let overlay = Overlay::with(overlay_lab::Lab::builder(), |options| options.fast_path(false));
    let folder = overlay.lab.host(0).directory();
    let drops = overlay.follow_drops(&[], &folder.join("drops.log"));
    let mut all =
        overlay.follow_drops(&["--declined", "--output", "json"], &folder.join("all.log"));
    let container = &overlay.containers[0];
    container.ping(overlay.containers[1].address()).unwrap();
    eventually(SOON, "declined packets to be shown", || {
        let log = all.log()?;
        let declined = log.lines().any(|line| {
            line.contains("\"declined\"") && line.contains("fast_path_off") && line.contains("icmp")
        });
        ensure!(declined, "there are none");
        Ok(())
    })
    .unwrap();
    assert!(!drops.log().unwrap().contains("fast_path_off"), "the other has not asked for these");
    // Who follows is killed; the programs go back to what they told of before.
    all.kill().unwrap();
    let watched = || {
        let map = overlay.lab.host(0).pins().join("drops_watch");
        let dump = overlay.lab.host(0).command("bpftool").args(["-j", "map", "dump", "pinned"]);
        dump.arg(map.to_str().unwrap()).read()
    };
    eventually(SOON, "declined packets to be asked for by nobody", || {
        let dump: Value = serde_json::from_str(&watched()?)?;
        let asked = &dump[0]["formatted"]["value"]["declined"];
        ensure!(asked == 0, "they are: {dump}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_agent_that_is_killed_and_comes_back_tells_of_drops_again() {
    let mut overlay = Overlay::new();
    let folder = overlay.lab.host(0).directory().to_owned();
    let mut followed = overlay.follow_drops(&[], &folder.join("first.log"));
    overlay.agents[0].kill().unwrap();
    let ended = eventually(SOON, "the answer to end", || {
        followed.exit_status()?.ok_or_else(|| anyhow::anyhow!("it goes on"))
    });
    assert!(!ended.unwrap().success(), "{}", followed.log_tail(20));
    // Told of in the ring, where the next agent finds it.
    overlay.send_vxlan(1);
    overlay.agents[0] = overlay.lab.host(0).start_agent(&overlay.options).unwrap();
    eventually(SOON, "the packet to be shown", || {
        let shown = overlay.drops(&["--output", "json"]).read()?;
        ensure!(sums(&shown) == (1, 0), "{shown}");
        Ok(())
    })
    .unwrap();
}
