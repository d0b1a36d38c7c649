//! Whether two can talk: a connection that carries more than a packet each way, and datagrams of several sizes.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use overlay_lab::Namespace;

/// A lost SYN is sent again after a second.
const WITHIN: Duration = Duration::from_millis(2500);

/// Several segments, also of jumbo frames.
const BYTES: usize = 40_000;

/// Of datagrams: the last one fills a packet.
const SIZES: [usize; 2] = [64, 1300];

/// Fails with what did not come.
pub(super) fn talk(from: &Namespace, to: &Namespace, address: Ipv4Addr) -> Result<()> {
    let (listener, echo) =
        to.within(move || Ok((TcpListener::bind((address, 0))?, UdpSocket::bind((address, 0))?)))?;
    let (stream_to, datagrams_to) = (listener.local_addr()?, echo.local_addr()?);
    let servers = [
        thread::spawn(move || answer_stream(&listener)),
        thread::spawn(move || answer_datagrams(&echo)),
    ];
    let outcome = from.within(move || {
        exchange_datagrams(datagrams_to)?;
        exchange_stream(stream_to).context("a connection")
    });
    for server in servers {
        // What went wrong there is seen here.
        server.join().unwrap().ok();
    }
    outcome
}

fn answer_stream(listener: &TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + WITHIN;
    while Instant::now() < end {
        let Ok((mut stream, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(WITHIN))?;
        let mut heard = vec![0; BYTES];
        stream.read_exact(&mut heard)?;
        stream.write_all(&heard)?;
        return Ok(());
    }
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket) -> Result<()> {
    socket.set_read_timeout(Some(WITHIN))?;
    let mut datagram = [0; 2048];
    for _ in SIZES {
        let (length, from) = socket.recv_from(&mut datagram)?;
        socket.send_to(&datagram[..length], from)?;
    }
    Ok(())
}

fn exchange_datagrams(to: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(1200)))?;
    for size in SIZES {
        let context = || format!("a datagram of {size} bytes to {to}");
        socket.send_to(&vec![1; size], to).with_context(context)?;
        let mut answer = [0; 2048];
        let length = socket.recv(&mut answer).with_context(context)?;
        ensure!(length == size, "{length} of {size} bytes");
    }
    Ok(())
}

fn exchange_stream(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.set_write_timeout(Some(WITHIN))?;
    let mut answer = vec![0; BYTES];
    stream.write_all(&answer)?;
    stream.read_exact(&mut answer)?;
    stream.shutdown(Shutdown::Both).ok();
    Ok(())
}
