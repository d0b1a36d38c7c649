//! Connections that say nothing for long, where rules are honoured and the host forgets connections as it is told to: those
//! survive that survive without us.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns, unshare};
use overlay_lab::{Container, Lab, namespace_path};

use crate::overlay::{Overlay, SOON};

/// How many connections there are, half of which talk now and then. `OVERLAY_IDLE_CONNECTIONS` says of others.
const CONNECTIONS: usize = 1_000;

/// So many have a thread: two files for each are as many as a process may have open where nobody has raised that.
const CROWD: usize = 8_000;

/// The kernel forgets connections after five days by default, operators of busy hosts after half an hour. So much does half an
/// hour last here for a thousand connections; whoever talks does so eight times in an hour.
const HALF_AN_HOUR: Duration = Duration::from_secs(4);
const TALKS: u32 = 8;

struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn say(&mut self) {
        // Whoever is not heard any more may be told so.
        self.client.write_all(&[7]).ok();
    }

    fn is_heard(&mut self) -> bool {
        match self.server.read(&mut [0; 64]) {
            Ok(bytes) => bytes > 0,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(_) => false,
        }
    }
}

#[derive(Clone, Copy)]
enum Task {
    Talk,
    /// To say something, and to count who is heard.
    Hear,
}

/// Connections to one port, in a thread that has its own files.
struct Crowd {
    tasks: Sender<Task>,
    /// How many are there, and then how many are heard, whenever that is asked.
    counts: Receiver<usize>,
}

impl Crowd {
    fn gather(client: PathBuf, server: PathBuf, address: SocketAddr, count: usize) -> Self {
        let (tasks, to_do) = channel();
        let (done, counts) = channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_FILES).unwrap();
            let enter =
                |place| setns(File::open(place).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            enter(server);
            let listener = TcpListener::bind(address).unwrap();
            enter(client);
            let connect = |_| {
                let client = TcpStream::connect_timeout(&address, SOON).unwrap();
                let (server, _) = listener.accept().unwrap();
                client.set_nodelay(true).unwrap();
                server.set_nonblocking(true).unwrap();
                Connection { client, server }
            };
            let mut connections: Vec<_> = (0..count).map(connect).collect();
            done.send(connections.len()).unwrap();
            while let Ok(task) = to_do.recv() {
                let count = match task {
                    Task::Talk => talk(&mut connections),
                    Task::Hear => heard(&mut connections),
                };
                done.send(count).unwrap();
            }
        });
        Self { tasks, counts }
    }
}

/// Has all of them do something at once. Returns the sum of what they count.
fn all(crowds: &[Crowd], task: Task) -> usize {
    for crowd in crowds {
        crowd.tasks.send(task).unwrap();
    }
    crowds.iter().map(|crowd| crowd.counts.recv().unwrap()).sum()
}

/// So many connections, of crowds one after the other, on ports from `port` on.
fn connect([client, server]: [&Container; 2], port: u16, count: usize) -> Vec<Crowd> {
    let gather = |(port, first): (u16, usize)| {
        let [client, server] = [client, server].map(|end| namespace_path(end.namespace().name()));
        (client, server, port, CROWD.min(count - first))
    };
    let crowds = (port..).zip((0..count).step_by(CROWD)).map(gather);
    crowds
        .map(|(from, to, port, count)| {
            let crowd = Crowd::gather(from, to, SocketAddr::from((server.address(), port)), count);
            assert_eq!(crowd.counts.recv(), Ok(count));
            crowd
        })
        .collect()
}

/// The first packet after a second of silence is the rules', the next the fast path's.
fn talk(connections: &mut [Connection]) -> usize {
    for connection in &mut *connections {
        connection.say();
        connection.say();
        connection.is_heard();
    }
    connections.len()
}

/// Has all of them say something, and counts who is heard within a while.
fn heard(connections: &mut [Connection]) -> usize {
    for connection in connections.iter_mut() {
        connection.say();
    }
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut silent: Vec<_> = connections.iter_mut().collect();
    let all = silent.len();
    while !silent.is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
        silent.retain_mut(|connection| !connection.is_heard());
    }
    all - silent.len()
}

/// Rules that let in what is new or known, and nothing that connection tracking does not know.
fn firewall(overlay: &Overlay, forgets_after: Duration) {
    let rules = "table inet operator { chain forward { type filter hook forward priority 0; policy drop; \
        ct state established,related,new accept; }; }";
    let established =
        format!("net.netfilter.nf_conntrack_tcp_timeout_established={}", forgets_after.as_secs());
    for host in overlay.lab.hosts() {
        host.command("nft").arg(rules).run().unwrap();
        let sysctls = ["net.netfilter.nf_conntrack_tcp_loose=0", established.as_str()];
        host.command("sysctl").arg("-qw").args(sysctls).run().unwrap();
    }
}

/// How many of the silent and of those that talk are heard after an hour.
fn after_an_hour(
    fast_path: bool,
    count: usize,
    half_an_hour: Duration,
    forgets_after: Duration,
) -> [usize; 2] {
    let overlay = Overlay::with(Lab::builder(), |options| {
        options
            .argument("--rules=honour")
            .argument(&format!("--fast-path={}", if fast_path { "on" } else { "off" }))
    });
    firewall(&overlay, forgets_after);
    overlay.ping();
    let half = count / 2;
    let silent = connect(overlay.pair(), 7000, half);
    let talking = connect(overlay.pair(), 8000, count - half);
    assert_eq!([all(&silent, Task::Hear), all(&talking, Task::Hear)], [half, count - half]);
    let fast = overlay.rise("from_uplink", "to_endpoint");
    let hour = 2 * half_an_hour;
    let begun = Instant::now();
    for turn in 1..=TALKS {
        thread::sleep((begun + hour * turn / TALKS).saturating_duration_since(Instant::now()));
        if turn < TALKS {
            all(&talking, Task::Talk);
        }
    }
    // Waiting for those that are not heard takes time, in which others would be forgotten.
    let talking = all(&talking, Task::Hear);
    let heard = [all(&silent, Task::Hear), talking];
    let [answers, questions] = fast.of(&overlay);
    let carried = answers + questions;
    let said = (count - half) as u64 * u64::from(TALKS - 1);
    let is_as_told = if fast_path { carried >= said } else { carried == 0 };
    assert!(is_as_told, "{carried} packets by the fast path, of {said} times something was said");
    println!(
        "fast path {fast_path}, forgotten after {forgets_after:?} of {hour:?}: {heard:?} of {} and {} heard, {carried} packets by the fast path",
        half,
        count - half,
    );
    heard
}

#[test]
fn idle_connections_survive_an_hour_of_honoured_rules_as_without_us() {
    let count = std::env::var("OVERLAY_IDLE_CONNECTIONS")
        .map_or(CONNECTIONS, |number| number.parse().unwrap());
    let half_an_hour = HALF_AN_HOUR + Duration::from_millis(count as u64 / 5);
    let five_days = half_an_hour * 240;
    let half = count / 2;
    for fast_path in [true, false] {
        let survivors = after_an_hour(fast_path, count, half_an_hour, half_an_hour);
        assert_eq!(
            survivors,
            [0, count - half],
            "forgotten after half an hour, fast path {fast_path}"
        );
    }
    let survivors = after_an_hour(true, count, half_an_hour, five_days);
    assert_eq!(survivors, [half, count - half], "forgotten after five days");
}
