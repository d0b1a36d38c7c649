use std::{future::pending, io, time::Duration};

use anyhow::{Context, Result};
use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, TokioSocket, protocols::NETLINK_NETFILTER,
};
use tokio::time::sleep;

/// Multicast group of everything that happens to nftables rules, `iptables-nft`'s among them
/// (`NFNLGRP_NFTABLES`, include/uapi/linux/netfilter/nfnetlink.h).
const NFNLGRP_NFTABLES: u32 = 7;

/// A change is mostly one of many, all of which are to be seen in one look.
const SETTLE: Duration = Duration::from_millis(100);

/// Tells when anybody, we ourselves included, has changed rules of nftables in this network namespace.
pub(super) struct RulesetEvents(Option<TokioSocket>);

impl RulesetEvents {
    /// Where the kernel does not tell, there are no changes: the caller looks now and then all the same.
    pub(super) fn subscribe() -> Self {
        let socket = subscribe().inspect_err(|error| {
            tracing::info!("rules of the firewall are looked at now and then only: {error:#}");
        });
        Self(socket.ok())
    }

    /// Returns after a change, with time for what comes with it. When it is cancelled, the caller has to look:
    /// that there was a change is forgotten.
    pub(super) async fn next(&mut self) {
        let Some(socket) = &mut self.0 else { return pending().await };
        let mut outcome = socket.recv_from_full().await.map(drop);
        if outcome.is_ok() {
            sleep(SETTLE).await;
            outcome = drain(socket);
        }
        match outcome {
            Ok(()) => {}
            // More has happened than the socket could hold.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
            Err(error) => {
                tracing::warn!(%error, "changes of the firewall's rules are not told any more");
                self.0 = None;
            }
        }
    }
}

fn subscribe() -> Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER).context("opening a netlink socket")?;
    socket.socket_mut().bind_auto().context("binding a netlink socket")?;
    socket
        .socket_mut()
        .add_membership(NFNLGRP_NFTABLES)
        .context("subscribing to changes of nftables")?;
    Ok(socket)
}

/// What the messages say is for a look to find out.
fn drain(socket: &TokioSocket) -> io::Result<()> {
    loop {
        match socket.socket_ref().recv_from_full() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
