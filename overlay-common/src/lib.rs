//! What both sides of the overlay agree on: the layout of every BPF map, and every decision that
//! needs no kernel to be made.
//!
//! Addresses and MACs are byte arrays in network order; every other integer is in host order unless
//! its name or its docs say otherwise.
#![cfg_attr(not(test), no_std)]
#![expect(
    clippy::inline_always,
    reason = "a BPF program is one function: calls cost stack and registers"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths are bounded by the packet; `try_from` would cost a branch per packet"
)]

mod abi;
pub mod checksum;
pub mod decide;
pub mod echo;
pub mod ecn;
pub mod encap;
pub mod feature;
mod mac;
pub mod packet;
mod prefix;
pub mod tables;
mod verdict;
mod vni;

pub use feature::{Feature, Need};
pub use mac::{MacAddr, ParseMacError};
pub use prefix::Prefix;
pub use verdict::{Class, Hook, Reason};
pub use vni::{InvalidVni, Vni};
