//! The host's links, addresses and routes, and its containers' ends of cables: what is there, and the few things we add.

mod blackhole;
pub mod dump;
mod lease_routes;
mod observe;
mod peer_namespace;
mod routes;
mod tunnel;
mod vrf;
mod watch;

pub use blackhole::{Blackhole, remove_blackholes};
pub use dump::main_table;
pub use lease_routes::{LeaseRoute, LeaseRoutes, remove as remove_lease_routes};
pub use observe::{KernelState, Link, LinkKind, PeerPlace, observe};
pub use peer_namespace::{Inspector, PeerEnd};
pub use routes::{NextHop, Routes, way_to};
pub use tunnel::{Tunnel, TunnelSpec, check_port, ensure_tunnel, flannel_name, tunnel_name};
pub use vrf::{Underlay, Vrf, remove_vrf_rules};
pub use watch::{ChangedRoutes, KernelEvents, changes};

use anyhow::{Context, Result};
use rtnetlink::Handle;

/// Opens a netlink connection, driven by a task of its own for as long as the handle lives.
pub fn connect() -> Result<Handle> {
    let (connection, handle, _) =
        rtnetlink::new_connection().context("opening a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}
