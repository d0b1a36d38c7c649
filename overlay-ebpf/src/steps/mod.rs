//! What hooks do to packets, one step per file.

mod decap;
mod deliver;
mod echo;
mod encap;
mod fib;
mod send;
mod tell;
mod tunnel_key;

pub(crate) use decap::{SHRINK, decap};
pub(crate) use deliver::{bridge_of, deliver};
pub(crate) use echo::echo;
pub(crate) use encap::{GROW, encap};
pub(crate) use fib::{is_on_link, reaches, reaches_by};
pub(crate) use send::{one_hop_on, send};
pub(crate) use tell::tell;
pub(crate) use tunnel_key::{set_tunnel_key, tunnel_source};
