//! What both sides of the overlay agree on: the layout of every BPF map, and every decision that
//! needs no kernel to be made.
//!
//! Addresses and MACs are byte arrays in network order; every other integer is in host order unless
//! its name or its docs say otherwise.
#![cfg_attr(not(test), no_std)]

mod mac;
mod vni;

pub use mac::{MacAddr, ParseMacError};
pub use vni::{InvalidVni, Vni};
