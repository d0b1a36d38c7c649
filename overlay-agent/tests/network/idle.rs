//! Connections that say nothing for long, where rules are honoured and the host forgets connections as it is told to: those
//! survive that survive without us.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use xtask::lab::Lab;

use crate::overlay::{Overlay, SOON};

/// How many connections there are, half of which talk now and then. `OVERLAY_IDLE_CONNECTIONS` says of others.
const CONNECTIONS: usize = 1_000;

/// One port of the server's has so many clients: a client has one port for each.
const BY_PORT: usize = 25_000;

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

/// Everybody in turn, on ports from 7000 on.
fn connect(overlay: &Overlay, count: usize) -> Vec<Connection> {
    let [client, server] = overlay.pair();
    let ports = client.command("sysctl").args(["-qw", "net.ipv4.ip_local_port_range=8192 65535"]);
    ports.run().unwrap();
    let mut connections = Vec::with_capacity(count);
    for (port, first) in (7000..).zip((0..count).step_by(BY_PORT)) {
        let address = SocketAddr::from((server.address(), port));
        let listener = server.namespace().within(move || Ok(TcpListener::bind(address)?)).unwrap();
        let number = BY_PORT.min(count - first);
        let made = client.namespace().within(move || {
            let connect = |_| {
                let client = TcpStream::connect_timeout(&address, SOON)?;
                let (server, _) = listener.accept()?;
                client.set_nodelay(true)?;
                server.set_nonblocking(true)?;
                Ok(Connection { client, server })
            };
            (0..number).map(connect).collect::<anyhow::Result<Vec<_>>>()
        });
        connections.extend(made.unwrap());
    }
    connections
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
    let mut connections = connect(&overlay, count);
    let (silent, talking) = connections.split_at_mut(count / 2);
    assert_eq!([heard(silent), heard(talking)], [silent.len(), talking.len()], "at the beginning");
    let fast = overlay.rise("from_uplink", "to_endpoint");
    let hour = 2 * half_an_hour;
    let begun = Instant::now();
    for talk in 1..=TALKS {
        thread::sleep((begun + hour * talk / TALKS).saturating_duration_since(Instant::now()));
        if talk < TALKS {
            for connection in &mut *talking {
                // The first packet after a second of silence is the rules', the next the fast path's.
                connection.say();
                connection.say();
                connection.is_heard();
            }
        }
    }
    let heard = [heard(silent), heard(talking)];
    let [answers, questions] = fast.of(&overlay);
    let carried = answers + questions;
    assert_eq!(carried > 0, fast_path, "{carried} packets by the fast path");
    println!(
        "fast path {fast_path}, forgotten after {forgets_after:?} of {hour:?}: {heard:?} of {} and {} heard, {carried} packets by the fast path",
        silent.len(),
        talking.len(),
    );
    heard
}

#[test]
fn idle_connections_survive_an_hour_of_honoured_rules_as_without_us() {
    let count = std::env::var("OVERLAY_IDLE_CONNECTIONS")
        .map_or(CONNECTIONS, |number| number.parse().unwrap());
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let files = most.max(3 * count as u64);
    setrlimit(Resource::RLIMIT_NOFILE, files, files).unwrap();
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
