//! Sending one attempt of a probe.

use std::{
    fs::File,
    io::{self, ErrorKind, Read as _, Write as _},
    mem::size_of_val,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd as _,
    path::Path,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use nix::{
    libc,
    sched::{CloneFlags, setns},
};
use socket2::{Domain, Socket, Type};

use super::{FAILED, Tag, packet};
use crate::shape::{Probe, Protocol};

/// How a connection ended.
pub(crate) type Outcome = (Tag, String);

/// Where something comes from, unspecified for what the kernel says, and goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) source: Ipv4Addr,
    pub(crate) to: SocketAddrV4,
}

impl Ends {
    fn bind(self, socket: &Socket, port: u16) -> io::Result<()> {
        socket.bind(&SocketAddrV4::new(self.source, port).into())
    }
}

/// Record route, with room for three.
const OPTIONS: [u8; 16] = [7, 15, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

type Sent = Vec<(Tag, io::Result<Option<Socket>>)>;

/// Runs a closure in a namespace of which only the path is at hand.
pub(crate) fn within<T: Send + 'static>(
    namespace: &Path,
    task: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let file =
        File::open(namespace).with_context(|| format!("cannot open {}", namespace.display()))?;
    let worker = thread::spawn(move || setns(file, CloneFlags::CLONE_NEWNET).map(|()| task()));
    worker
        .join()
        .map_err(|_panic| anyhow!("a sender panicked"))?
        .context("cannot enter a namespace")
}

/// Sends from the namespace that the thread is in.
pub(crate) fn send(
    probes: Vec<(Tag, Probe, Ends)>,
    window: Duration,
    outcomes: &mpsc::Sender<Outcome>,
) -> Sent {
    probes
        .into_iter()
        .map(|(tag, probe, ends)| {
            let sent = match probe.protocol {
                Protocol::Udp => datagram(tag, probe, ends).map(Some),
                Protocol::Icmp => echo(tag, probe, ends).map(Some),
                Protocol::Tcp => {
                    connection(tag, probe, ends, window, outcomes.clone()).map(|()| None)
                }
            };
            (tag, sent)
        })
        .collect()
}

fn datagram(tag: Tag, probe: Probe, ends: Ends) -> io::Result<Socket> {
    let socket = socket(probe, Type::DGRAM, 0)?;
    ends.bind(&socket, tag.port())?;
    socket.send_to(&packet::payload(tag, probe.size, probe.answer), &ends.to.into())?;
    Ok(socket)
}

fn echo(tag: Tag, probe: Probe, ends: Ends) -> io::Result<Socket> {
    let socket = socket(probe, Type::RAW, packet::number(Protocol::Icmp))?;
    ends.bind(&socket, 0)?;
    let to = SocketAddrV4::new(*ends.to.ip(), 0);
    socket.send_to(&packet::echo(tag, probe.size), &to.into())?;
    Ok(socket)
}

/// On a thread of its own: who connects waits.
fn connection(
    tag: Tag,
    probe: Probe,
    ends: Ends,
    window: Duration,
    outcomes: mpsc::Sender<Outcome>,
) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_ttl_v4(probe.ttl.into())?;
    socket.set_tos_v4(probe.tos.into())?;
    ends.bind(&socket, tag.port())?;
    thread::spawn(move || {
        let said = match talk(socket, probe, ends.to, window) {
            Ok(()) => "done".to_owned(),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => words(&error),
            Err(_) => FAILED.to_owned(),
        };
        // Nobody waits any more for what comes late.
        outcomes.send((tag, said)).ok();
    });
    Ok(())
}

fn talk(mut socket: Socket, probe: Probe, to: SocketAddrV4, window: Duration) -> io::Result<()> {
    socket.connect_timeout(&to.into(), window)?;
    socket.set_read_timeout(Some(window))?;
    socket.set_write_timeout(Some(window))?;
    let mut question = probe.size.to_be_bytes().to_vec();
    question.extend(probe.answer.to_be_bytes());
    question.resize(question.len() + usize::from(probe.size), 0xa5);
    socket.write_all(&question)?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    if answer.len() == usize::from(probe.answer) {
        Ok(())
    } else {
        Err(ErrorKind::UnexpectedEof.into())
    }
}

/// An error in words without a number.
pub(crate) fn words(error: &io::Error) -> String {
    error.kind().to_string()
}

fn socket(probe: Probe, kind: Type, protocol: u8) -> io::Result<Socket> {
    let protocol = (protocol != 0).then(|| i32::from(protocol).into());
    let socket = Socket::new(Domain::IPV4, kind, protocol)?;
    socket.set_ttl_v4(probe.ttl.into())?;
    socket.set_tos_v4(probe.tos.into())?;
    if probe.df {
        set_option(&socket, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_PROBE)?;
    } else {
        discover_nothing(&socket)?;
    }
    if probe.options {
        set_option(&socket, libc::IP_OPTIONS, &OPTIONS)?;
    }
    Ok(socket)
}

/// Neither DF, nor what was learned about a way by what was sent before.
pub(crate) fn discover_nothing(socket: &Socket) -> io::Result<()> {
    set_option(socket, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_INTERFACE)
}

fn set_option<T>(socket: &Socket, name: i32, value: &T) -> io::Result<()> {
    let length = u32::try_from(size_of_val(value)).unwrap();
    // SAFETY: the kernel reads as many bytes as it is told, which are those of `value`.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            name,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
