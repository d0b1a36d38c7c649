//! Who answers an ICMP echo of some size.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::kernel::icmp;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_millis(400);
/// One lost packet says nothing.
const ATTEMPTS: u16 = 3;

/// Whom to ask, and from where.
#[derive(Clone, Copy)]
pub(super) struct Probe {
    /// The VRF that the peer is in, if it is in one.
    pub(super) vrf: Option<NonZeroU32>,
    pub(super) peer: Ipv4Addr,
    pub(super) from: Ipv4Addr,
}

impl Probe {
    /// Whether the peer answers a packet of `size` bytes, IP header and all, that must not be cut.
    pub(super) async fn answers(self, size: u16) -> Result<bool> {
        tokio::task::spawn_blocking(move || {
            for attempt in 0..ATTEMPTS {
                if answers_once(self, size, attempt)? {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
        .context("a probe has ended")?
    }
}

fn answers_once(probe: Probe, size: u16, sequence: u16) -> Result<bool> {
    let Probe { vrf, peer, from } = probe;
    let failed = || format!("cannot probe {peer}");
    let mut socket = icmp::socket(vrf).with_context(failed)?;
    socket.connect(&SocketAddr::new(peer.into(), 0).into()).with_context(failed)?;
    let identifier: u16 = rand::random();
    if socket.write(&icmp::echo_request(peer, from, size, identifier, sequence)).is_err() {
        // Larger than our own interface takes, or no way there.
        return Ok(false);
    }
    let start = Instant::now();
    let mut answer = vec![0_u8; usize::from(u16::MAX)];
    while let Some(left) = WITHIN.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left)).with_context(failed)?;
        match socket.read(&mut answer) {
            Ok(length) if icmp::is_echo_reply(&answer[..length], identifier, sequence) => {
                return Ok(true);
            }
            Ok(_) => {}
            // Time is over; or somebody on the way says that it is too large, or that nobody is there.
            Err(_) => break,
        }
    }
    Ok(false)
}
