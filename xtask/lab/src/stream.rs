//! A numbered stream of datagrams, a thousand a second (fewer where machines are slow by nature): what is lost,
//! doubled, and how long it was silent.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use crate::{Container, eventually, wait::patience};

const INTERVAL: Duration = Duration::from_millis(1);

/// In bytes, of which a small datagram takes some 800: enough for seconds in which a busy machine does not let
/// the receiver run. What a full socket drops, the network has not lost.
const RECEIVE_BUFFER: usize = 8 << 20;

/// A stream between two containers, one way.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<(u64, Seen)>>,
}

/// What became of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Datagrams sent.
    pub sent: u64,
    /// Those that never came.
    pub lost: u64,
    /// Those that came more than once, counting the repetitions.
    pub doubled: u64,
    /// The longest time between one that came and the next.
    pub longest_gap: Duration,
}

impl Stream {
    /// Starts one that is received on `port`, and returns once it flows.
    pub fn start(from: &Container, to: &Container, port: u16) -> Result<Self> {
        let address: Ipv4Addr = to.address();
        let target = SocketAddr::from((address, port));
        let receiver = to.namespace().within(move || {
            let socket = UdpSocket::bind(target)?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)?;
            Ok(socket)
        })?;
        let sender = from.namespace().within(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(target)?;
            Ok(socket)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let sender = std::thread::spawn(move || {
            let interval = INTERVAL * patience();
            let mut due = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let number = count.fetch_add(1, Ordering::Relaxed);
                // Whatever fails here is lost, and counted as that.
                sender.send(&number.to_be_bytes()).ok();
                due += interval;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        let stopped = Arc::clone(&stop);
        let receiver = std::thread::spawn(move || receive(&receiver, &stopped));
        let stream = Self { stop, sent, sender: Some(sender), receiver: Some(receiver) };
        // What counts is what happens to a stream that flows.
        eventually(Duration::from_secs(5), "the stream to flow", || {
            ensure!(stream.sent.load(Ordering::Relaxed) > 50, "it does not");
            Ok(())
        })?;
        Ok(stream)
    }

    /// Ends it, and says what became of it.
    pub fn stop(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let threads = self.sender.take().zip(self.receiver.take());
        let (sender, receiver) = threads.context("the stream was stopped before")?;
        sender.join().map_err(|_panic| anyhow!("the sender of a stream panicked"))?;
        let (distinct, mut seen) =
            receiver.join().map_err(|_panic| anyhow!("the receiver of a stream panicked"))?;
        seen.sent = self.sent.load(Ordering::Relaxed);
        seen.lost = seen.sent.saturating_sub(distinct);
        Ok(seen)
    }
}

impl Drop for Stream {
    /// Its threads end by themselves.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Receives until the stream has been silent for half a second after its end. Returns how many different
/// numbers came.
fn receive(socket: &UdpSocket, stopped: &AtomicBool) -> (u64, Seen) {
    let mut numbers = std::collections::HashSet::new();
    let mut seen = Seen::default();
    let mut last = None::<Instant>;
    let mut number = [0; 8];
    loop {
        match socket.recv(&mut number) {
            Ok(8) => {
                let number = u64::from_be_bytes(number);
                if !numbers.insert(number) {
                    seen.doubled += 1;
                }
                let now = Instant::now();
                if let Some(last) = last.replace(now) {
                    seen.longest_gap = seen.longest_gap.max(now - last);
                }
            }
            Err(_) if stopped.load(Ordering::Relaxed) => break,
            Ok(_) | Err(_) => {}
        }
    }
    (numbers.len() as u64, seen)
}
