//! Sockets in every namespace of a world: they see what arrives, and answer.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    cmsg_space,
    errno::Errno,
    libc::in_pktinfo,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
        sockopt,
    },
};
use overlay_lab::Namespace;
use socket2::{Domain, Socket, Type};

use super::{
    Arrival, Complaint, Fates, Tag,
    packet::{self, Meaning, Packet},
    sender::{self, Ends, Outcome},
};
use crate::shape::{PORT, Place, Probe, Protocol};

/// As much as keeps a round's packets while a busy machine does not let us look.
const BUFFER: usize = 4 << 20;

/// Of all namespaces of a world.
#[derive(Debug)]
pub(crate) struct Ears {
    places: BTreeMap<Place, Ear>,
    /// How what was sent by threads of its own ended.
    outcomes: (mpsc::Sender<Outcome>, mpsc::Receiver<Outcome>),
    /// Where probes come from and go to.
    ends: BTreeMap<u16, Ends>,
}

#[derive(Debug)]
struct Ear {
    namespace: PathBuf,
    /// See every packet that the stack takes as its own: UDP, TCP, ICMP.
    raw: [Socket; 3],
    datagrams: OwnedFd,
    connections: TcpListener,
}

impl Ears {
    pub(crate) fn new() -> Self {
        Self { places: BTreeMap::new(), outcomes: mpsc::channel(), ends: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, place: Place, namespace: &Namespace) -> Result<()> {
        let path = namespace.path();
        let ear = namespace.within(move || Ear::open(path))?;
        self.places.insert(place, ear);
        Ok(())
    }

    pub(crate) fn remove(&mut self, place: Place) {
        self.places.remove(&place);
    }

    pub(crate) fn has(&self, place: Place) -> bool {
        self.places.contains_key(&place)
    }

    /// Where a probe comes from, unspecified for what the kernel says, and goes to.
    pub(crate) fn aim(&mut self, probe: u16, source: Ipv4Addr, (target, port): (Ipv4Addr, u16)) {
        let to = SocketAddrV4::new(target, port);
        self.ends.insert(probe, Ends { source, to });
    }

    /// Sends one attempt of each probe. What it returns keeps their ports open for answers.
    pub(crate) fn send(
        &self,
        probes: &[(u16, Probe)],
        attempt: u8,
        window: Duration,
        fates: &mut Fates,
    ) -> Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        for (place, ear) in &self.places {
            let own: Vec<_> = probes
                .iter()
                .filter(|(_, probe)| probe.from == *place)
                .map(|(number, probe)| (Tag { probe: *number, attempt }, *probe, self.ends[number]))
                .collect();
            if own.is_empty() {
                continue;
            }
            let outcomes = self.outcomes.0.clone();
            let path = ear.namespace.clone();
            let sent = sender::within(&path, move || sender::send(own, window, &outcomes))?;
            for (tag, outcome) in sent {
                match outcome {
                    Ok(socket) => sockets.extend(socket),
                    Err(error) => {
                        fates.entry(tag).or_default().said = Some(sender::words(&error));
                    }
                }
            }
        }
        Ok(sockets)
    }

    /// Takes in what has arrived, or arrives within a while; says whether there was anything.
    pub(crate) fn listen(&mut self, within: Duration, fates: &mut Fates) -> Result<bool> {
        let mut files = Vec::new();
        for ear in self.places.values() {
            files.extend(
                ear.raw.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)),
            );
            files.push(PollFd::new(ear.datagrams.as_fd(), PollFlags::POLLIN));
            files.push(PollFd::new(ear.connections.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut files, PollTimeout::try_from(within)?) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("waiting for packets"),
        }
        let ready: Vec<bool> = files.iter().map(|file| file.any().unwrap_or(true)).collect();
        let mut found = false;
        for ((place, ear), ready) in self.places.iter().zip(ready.chunks(5)) {
            for (socket, ready) in ear.raw.iter().zip(ready) {
                if *ready {
                    found |= observe(*place, socket, fates)?;
                }
            }
            if ready[3] {
                found |= answer_datagrams(&ear.datagrams)?;
            }
            if ready[4] {
                found |= answer_connections(&ear.connections)?;
            }
        }
        while let Ok((tag, said)) = self.outcomes.1.try_recv() {
            found = true;
            fates.entry(tag).or_default().said = Some(said);
        }
        Ok(found)
    }
}

impl Ear {
    fn open(namespace: PathBuf) -> Result<Self> {
        let raw = |protocol| {
            let number = i32::from(packet::number(protocol));
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(number.into()))?;
            socket.set_nonblocking(true)?;
            socket.set_recv_buffer_size(BUFFER)?;
            Ok::<_, io::Error>(socket)
        };
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT);
        let datagrams = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        datagrams.set_recv_buffer_size(BUFFER)?;
        datagrams.set_nonblocking(true)?;
        setsockopt(&datagrams, sockopt::Ipv4PacketInfo, &true)?;
        sender::discover_nothing(&datagrams)?;
        datagrams.bind(&any.into())?;
        let connections = TcpListener::bind(any)?;
        connections.set_nonblocking(true)?;
        Ok(Self {
            namespace,
            raw: [raw(Protocol::Udp)?, raw(Protocol::Tcp)?, raw(Protocol::Icmp)?],
            datagrams: datagrams.into(),
            connections,
        })
    }
}

/// Writes down what is there to be read.
fn observe(place: Place, mut socket: &Socket, fates: &mut Fates) -> Result<bool> {
    let mut found = false;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = match socket.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(found),
            Err(error) => return Err(error).context("reading packets"),
        };
        let Some(packet) = Packet::parse(&buffer[..length]) else { continue };
        let Some(meaning) = packet::meaning(&packet) else { continue };
        found = true;
        let arrival = |port_kept| Arrival {
            place,
            source: packet.source,
            port_kept,
            destination: packet.destination,
            ttl: packet.ttl,
            tos: packet.tos,
            df: packet.df,
            options: packet.options.to_vec(),
        };
        match meaning {
            Meaning::Question(tag, port_kept) => {
                fates.entry(tag).or_default().arrived.insert(arrival(port_kept));
            }
            Meaning::Answer(tag) => {
                fates.entry(tag).or_default().answered.insert(arrival(true));
            }
            Meaning::Complaint(tag, kind, code, mtu) => {
                let complaint = Complaint { place, from: packet.source, kind, code, mtu };
                fates.entry(tag).or_default().complaints.insert(complaint);
            }
        }
    }
}

/// From the address that was asked, as servers should.
fn answer_datagrams(socket: &OwnedFd) -> Result<bool> {
    let mut found = false;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut control = cmsg_space!(in_pktinfo);
        let mut vectors = [IoSliceMut::new(&mut buffer)];
        let received = recvmsg::<SockaddrIn>(
            socket.as_raw_fd(),
            &mut vectors,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        );
        let (length, sender, asked) = match received {
            Ok(message) => {
                let asked = message.cmsgs()?.find_map(|control| match control {
                    ControlMessageOwned::Ipv4PacketInfo(info) => Some(info),
                    _ => None,
                });
                (message.bytes, message.address, asked)
            }
            Err(Errno::EAGAIN) => return Ok(found),
            // An error that came back for an answer.
            Err(_) => continue,
        };
        found = true;
        let (Some(sender), Some(mut asked)) = (sender, asked) else { continue };
        asked.ipi_ifindex = 0;
        asked.ipi_spec_dst = asked.ipi_addr;
        let question = &buffer[..length];
        let mut answer = question.to_vec();
        answer.resize(packet::wanted_answer(question), 0x5a);
        let control = [ControlMessage::Ipv4PacketInfo(&asked)];
        // Nobody is told if it cannot be sent: then no answer comes, which is what counts.
        sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&answer)],
            &control,
            MsgFlags::MSG_DONTWAIT,
            Some(&sender),
        )
        .ok();
    }
}

fn answer_connections(listener: &TcpListener) -> Result<bool> {
    let mut found = false;
    loop {
        match listener.accept() {
            Ok((connection, _)) => {
                found = true;
                thread::spawn(move || serve(connection).ok());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(found),
            Err(error) => return Err(error).context("accepting a connection"),
        }
    }
}

/// Reads as much as the first bytes announce, and answers with as much as they ask for.
fn serve(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut sizes = [0; 4];
    connection.read_exact(&mut sizes)?;
    let [size, answer] = [[sizes[0], sizes[1]], [sizes[2], sizes[3]]]
        .map(|bytes| usize::from(u16::from_be_bytes(bytes)));
    let mut rest = vec![0; size];
    connection.read_exact(&mut rest)?;
    connection.write_all(&vec![0x5a; answer])
}
