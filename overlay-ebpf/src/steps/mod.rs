//! What hooks do to packets, one step per file.

mod decap;
mod deliver;
mod encap;
mod tunnel_key;

pub(crate) use decap::decap;
pub(crate) use deliver::{deliver, on_bridge, take_delivery_mark};
pub(crate) use encap::encap;
pub(crate) use tunnel_key::{set_tunnel_key, tunnel_source};
