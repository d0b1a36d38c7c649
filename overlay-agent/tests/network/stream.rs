//! A numbered stream of datagrams, a thousand a second: what is lost, doubled, and how long it was silent.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use xtask::lab::Container;

const INTERVAL: Duration = Duration::from_millis(1);

/// A stream between two containers, one way.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<(u64, Seen)>,
}

/// What became of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) longest_gap: Duration,
}

impl Stream {
    pub(crate) fn start(from: &Container, to: &Container, port: u16) -> Self {
        let address: Ipv4Addr = to.address();
        let target = SocketAddr::from((address, port));
        let receiver = to
            .namespace()
            .within(move || {
                let socket = UdpSocket::bind(target)?;
                socket.set_read_timeout(Some(Duration::from_millis(500)))?;
                Ok(socket)
            })
            .unwrap();
        let sender = from
            .namespace()
            .within(move || {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(target)?;
                Ok(socket)
            })
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let sender = std::thread::spawn(move || {
            let mut due = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let number = count.fetch_add(1, Ordering::Relaxed);
                // Whatever fails here is lost, and counted as that.
                sender.send(&number.to_be_bytes()).ok();
                due += INTERVAL;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        let stopped = Arc::clone(&stop);
        let receiver = std::thread::spawn(move || receive(&receiver, &stopped));
        let stream = Self { stop, sent, sender, receiver };
        // What counts is what happens to a stream that flows.
        xtask::lab::eventually(Duration::from_secs(5), "the stream to flow", || {
            anyhow::ensure!(stream.sent.load(Ordering::Relaxed) > 50, "it does not");
            Ok(())
        })
        .unwrap();
        stream
    }

    pub(crate) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().unwrap();
        let (distinct, mut seen) = self.receiver.join().unwrap();
        seen.sent = self.sent.load(Ordering::Relaxed);
        seen.lost = seen.sent - distinct;
        seen
    }
}

/// Receives until the stream has been silent for half a second after its end. Returns how many different
/// numbers came.
fn receive(socket: &UdpSocket, stopped: &AtomicBool) -> (u64, Seen) {
    let mut numbers = std::collections::HashSet::new();
    let mut seen = Seen::default();
    let mut last = None::<Instant>;
    let mut datagram = [0; 16];
    loop {
        match socket.recv(&mut datagram) {
            Ok(8) => {
                let number = u64::from_be_bytes(datagram[..8].try_into().unwrap());
                if !numbers.insert(number) {
                    seen.doubled += 1;
                }
                let now = Instant::now();
                if let Some(last) = last.replace(now) {
                    seen.longest_gap = seen.longest_gap.max(now - last);
                }
            }
            Ok(_) => {}
            Err(_) if stopped.load(Ordering::Relaxed) => break,
            Err(_) => {}
        }
    }
    (numbers.len() as u64, seen)
}
