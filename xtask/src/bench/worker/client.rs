//! The client's end.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};

use super::{ECHO_PORT, Kind, PATIENCE, REQUEST, Report, SINK_PORT, TCP_PORT, WARM_UP};
use overlay_lab::statistics::quantile;

/// How many datagrams are sent before the receiver gets its turn, where both share a core.
const BURST: u32 = 32;

/// How long an answer to a datagram may take before it counts as lost.
const LOST_AFTER: Duration = Duration::from_millis(100);

/// Whom to talk to, and how long.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Target {
    /// The server's address
    to: Ipv4Addr,
    /// How long
    #[arg(long)]
    milliseconds: u64,
}

impl Target {
    fn open(&self, kind: Kind) -> Result<TcpStream> {
        let address = SocketAddr::from((self.to, TCP_PORT));
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_read_timeout(Some(PATIENCE)).context("cannot set a timeout")?;
        stream.set_nodelay(true).context("cannot set TCP_NODELAY")?;
        stream.write_all(&[kind as u8]).with_context(|| format!("{address} hangs up"))?;
        Ok(stream)
    }

    fn datagram_socket(&self, port: u16) -> Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot bind a socket")?;
        socket
            .connect((self.to, port))
            .with_context(|| format!("cannot reach {}:{port}", self.to))?;
        Ok(socket)
    }

    const fn duration(&self) -> Duration {
        Duration::from_millis(self.milliseconds)
    }
}

/// Connects, says one byte, hears one, and closes by a reset, so that no port waits for a minute.
pub(super) fn connect(target: &Target) -> Result<Report> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    timed(target, || {
        let mut stream = target.open(Kind::Once)?;
        let mut answer = [0];
        stream.read_exact(&mut answer).context("no answer over a new connection")?;
        setsockopt(&stream, sockopt::Linger, &linger).context("cannot set SO_LINGER")?;
        Ok(true)
    })
}

/// One request after the other over one connection.
pub(super) fn tcp_requests(target: &Target) -> Result<Report> {
    let mut stream = target.open(Kind::Echo)?;
    let mut message = [7; REQUEST];
    timed(target, || {
        stream.write_all(&message).context("cannot send a request")?;
        stream.read_exact(&mut message).context("a request got no response")?;
        Ok(true)
    })
}

/// One datagram after the other.
pub(super) fn udp_requests(target: &Target) -> Result<Report> {
    let socket = target.datagram_socket(ECHO_PORT)?;
    socket.set_read_timeout(Some(LOST_AFTER)).context("cannot set a timeout")?;
    let mut message = [7; REQUEST];
    timed(target, || {
        socket.send(&message).context("cannot send a datagram")?;
        match socket.recv(&mut message) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).context("cannot receive a datagram"),
        }
    })
}

/// Repeats something that says whether it worked, and times each.
fn timed(target: &Target, mut once: impl FnMut() -> Result<bool>) -> Result<Report> {
    let warm_up = Instant::now();
    while warm_up.elapsed() < WARM_UP {
        once()?;
    }
    // Room for all, so that no copying falls into the measurement.
    let room = usize::try_from(target.milliseconds).unwrap_or(0) * 300;
    let mut times: Vec<u64> = Vec::with_capacity(room);
    let mut lost = 0;
    let start = Instant::now();
    let mut before = start;
    while before - start < target.duration() {
        let worked = once()?;
        let now = Instant::now();
        if worked {
            times.push(u64::try_from((now - before).as_nanos()).unwrap_or(u64::MAX));
        } else {
            lost += 1;
        }
        before = now;
    }
    times.sort_unstable();
    Ok(Report {
        seconds: (before - start).as_secs_f64(),
        done: times.len() as u64,
        lost,
        median_nanoseconds: quantile(&times, 0.5).context("not one request was answered")?,
        p99_nanoseconds: quantile(&times, 0.99).context("not one request was answered")?,
    })
}

/// Sends as fast as the receiver gets its turn, and asks it how many arrived.
pub(super) fn datagrams(target: &Target, bytes: usize) -> Result<Report> {
    let mut control = target.open(Kind::Count)?;
    let socket = target.datagram_socket(SINK_PORT)?;
    let datagram = vec![7; bytes];
    send_for(WARM_UP, &socket, &datagram)?;
    let mut ask = || -> Result<(u64, Instant)> {
        let mut answer = [0; 8];
        control.write_all(&[0]).context("the receiver hangs up")?;
        control.read_exact(&mut answer).context("the receiver does not say its count")?;
        Ok((u64::from_le_bytes(answer), Instant::now()))
    };
    let (before, start) = ask()?;
    let sent = send_for(target.duration(), &socket, &datagram)?;
    let (after, end) = ask()?;
    let done = after.saturating_sub(before);
    ensure!(done > 0, "none of {sent} datagrams arrived");
    let seconds = (end - start).as_secs_f64();
    Ok(Report { seconds, done, lost: sent.saturating_sub(done), ..Report::default() })
}

fn send_for(duration: Duration, socket: &UdpSocket, datagram: &[u8]) -> Result<u64> {
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < duration {
        for _ in 0..BURST {
            match socket.send(datagram) {
                Ok(_) => sent += 1,
                // The queue of a device is full: the receiver needs its turn.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => break,
                Err(error) => return Err(error).context("cannot send a datagram"),
            }
        }
        thread::yield_now();
    }
    Ok(sent)
}
