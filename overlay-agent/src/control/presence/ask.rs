use std::{
    io,
    mem::MaybeUninit,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    num::NonZeroU32,
};

use anyhow::{Context as _, Result};
use overlay_common::{MacAddr, echo};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::Asker;
use crate::kernel::icmp;

/// Answers that are heard in one turn: whoever floods us keeps the agent from nothing.
const HEARD: usize = 512;

/// The sockets that ask. None ever waits.
#[derive(Debug)]
pub(super) struct Questions {
    asker: Asker,
    vxlan: UdpSocket,
    /// There once somebody has to be asked like that: they hear every echo of this host.
    icmp: Option<Echoes>,
    identifier: u16,
}

/// Where echoes are sent and heard: in the uplink's VRF, if it is in one, those past the overlay.
#[derive(Debug)]
struct Echoes {
    in_vrf: Option<Socket>,
    of_host: Socket,
}

impl Echoes {
    fn open(vrf: Option<NonZeroU32>) -> Result<Self> {
        let open = |vrf| -> io::Result<Socket> {
            let socket = icmp::socket(vrf)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let open = |vrf| open(vrf).context("opening a socket for ICMP");
        Ok(Self { in_vrf: vrf.map(|vrf| open(Some(vrf))).transpose()?, of_host: open(None)? })
    }
}

impl Questions {
    pub(super) fn new(asker: Asker) -> Result<Self> {
        let from = asker.uplink_address;
        let open = || -> io::Result<UdpSocket> {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            socket.bind_device_by_index_v4(asker.vrf)?;
            socket.bind(&SocketAddr::from((from, 0)).into())?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        };
        let vxlan = open().with_context(|| format!("opening a UDP socket at {from}"))?;
        Ok(Self { asker, vxlan, icmp: None, identifier: rand::random() })
    }

    /// Asks a peer through the overlay. Whether that can be sent at all, its silence will tell.
    pub(super) fn ask(&self, peer: Ipv4Addr, vtep: MacAddr, nonce: u64) {
        let Asker { vni, vtep_mac, port, .. } = self.asker;
        let question = echo::question(vni, vtep, vtep_mac, nonce);
        if let Err(error) = self.vxlan.send_to(&question, (peer, port)) {
            tracing::debug!(%peer, "asking a peer whether it is there: {error}");
        }
    }

    /// Who has answered, and to what.
    pub(super) fn answers(&self) -> Vec<(Ipv4Addr, u64)> {
        let mut answers = Vec::new();
        let mut answer = [0; echo::LENGTH];
        for _ in 0..HEARD {
            match self.vxlan.recv_from(&mut answer) {
                Ok((length, SocketAddr::V4(from))) if from.port() == self.asker.port => {
                    answers.extend(echo::nonce(&answer[..length]).map(|nonce| (*from.ip(), nonce)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // From somebody else; or somebody says that nobody is there.
                Ok(_) | Err(_) => {}
            }
        }
        answers
    }

    /// Sends an ICMP echo to a peer past the overlay, and one to its VTEP's address through it.
    pub(super) fn ask_by_icmp(&mut self, peer: Ipv4Addr, vtep: Ipv4Addr) -> Result<()> {
        let Asker { uplink_address, vtep_address, vrf, .. } = self.asker;
        let Echoes { in_vrf, of_host } = match &self.icmp {
            Some(echoes) => echoes,
            None => self.icmp.insert(Echoes::open(vrf)?),
        };
        let past = in_vrf.as_ref().unwrap_or(of_host);
        for (socket, peer, from) in [(past, peer, uplink_address), (of_host, vtep, vtep_address)] {
            let request = icmp::echo_request(peer, from, icmp::SMALLEST, self.identifier, 0);
            let to = SockAddr::from(SocketAddr::from((peer, 0)));
            if let Err(error) = socket.send_to(&request, &to) {
                tracing::debug!(%peer, "asking a peer by ICMP: {error}");
            }
        }
        Ok(())
    }

    /// Who has answered an ICMP echo of ours.
    pub(super) fn echoes(&self) -> Result<Vec<Ipv4Addr>> {
        let mut echoes = Vec::new();
        let Some(Echoes { in_vrf, of_host }) = &self.icmp else { return Ok(echoes) };
        for socket in in_vrf.iter().chain([of_host]) {
            self.hear_echoes(socket, &mut echoes)?;
        }
        Ok(echoes)
    }

    fn hear_echoes(&self, socket: &Socket, echoes: &mut Vec<Ipv4Addr>) -> Result<()> {
        for _ in 0..HEARD {
            let mut packet = [MaybeUninit::new(0); 64];
            match socket.recv_from(&mut packet) {
                Ok((length, from)) => {
                    let packet: Vec<u8> = packet[..length]
                        .iter()
                        // SAFETY: each was made of a zero, and the kernel only writes more of them.
                        .map(|byte| unsafe { byte.assume_init() })
                        .collect();
                    if icmp::is_echo_reply(&packet, self.identifier, 0) {
                        echoes.extend(from.as_socket_ipv4().map(|from| *from.ip()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("hearing ICMP echoes"),
            }
        }
        Ok(())
    }
}
