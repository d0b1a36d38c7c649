//! The server's end.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::{ECHO_PORT, Kind, LISTENING, PATIENCE, REQUEST, SINK_PORT, TCP_PORT};

/// Room for datagrams that wait to be counted: what gets lost got lost on the way, not here.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Answers on all ports until killed.
pub(super) fn serve(address: Ipv4Addr) -> Result<()> {
    let listener = TcpListener::bind((address, TCP_PORT))
        .with_context(|| format!("cannot listen on {address}:{TCP_PORT}"))?;
    let echo = bind(address, ECHO_PORT)?;
    let sink = bind(address, SINK_PORT)?;
    setsockopt(&sink, sockopt::RcvBufForce, &RECEIVE_BUFFER)
        .context("cannot enlarge the receive buffer, which takes CAP_NET_ADMIN")?;
    let received = Arc::new(AtomicU64::new(0));
    thread::spawn(move || echo_datagrams(&echo));
    let counter = Arc::clone(&received);
    thread::spawn(move || count_datagrams(&sink, &counter));
    println!("{LISTENING}");
    for stream in listener.incoming() {
        let stream = stream.context("cannot accept a connection")?;
        // A client that went away in the middle is its own problem: the next one is served.
        serve_connection(stream, &received).ok();
    }
    Ok(())
}

fn bind(address: Ipv4Addr, port: u16) -> Result<UdpSocket> {
    UdpSocket::bind((address, port)).with_context(|| format!("cannot bind {address}:{port}"))
}

fn serve_connection(mut stream: TcpStream, received: &Arc<AtomicU64>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    if kind[0] == Kind::Once as u8 {
        stream.write_all(&kind)?;
        // Until the client closes: who closes first keeps the port for a minute.
        stream.read(&mut kind).map(drop)
    } else if kind[0] == Kind::Echo as u8 {
        stream.set_nodelay(true)?;
        thread::spawn(move || echo_requests(stream));
        Ok(())
    } else {
        let received = Arc::clone(received);
        stream.set_nodelay(true)?;
        thread::spawn(move || tell_count(stream, &received));
        Ok(())
    }
}

fn echo_requests(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = [0; REQUEST];
    loop {
        stream.read_exact(&mut request)?;
        stream.write_all(&request)?;
    }
}

fn tell_count(mut stream: TcpStream, received: &AtomicU64) -> std::io::Result<()> {
    // It asks before and after what it measures, however long that takes.
    stream.set_read_timeout(None)?;
    let mut question = [0];
    loop {
        stream.read_exact(&mut question)?;
        stream.write_all(&received.load(Ordering::Relaxed).to_le_bytes())?;
    }
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut datagram = [0; REQUEST];
    loop {
        // Errors are those of earlier datagrams whose sender has gone.
        if let Ok((length, from)) = socket.recv_from(&mut datagram) {
            socket.send_to(&datagram[..length], from).ok();
        }
    }
}

fn count_datagrams(socket: &UdpSocket, received: &AtomicU64) {
    let mut datagram = [0; 2048];
    loop {
        if socket.recv(&mut datagram).is_ok() {
            received.fetch_add(1, Ordering::Relaxed);
        }
    }
}
