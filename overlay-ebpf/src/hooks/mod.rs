//! One file per attach point, each a list of steps.

mod from_bridge;
mod from_container;
mod from_interface;
mod from_tunnel;
mod from_uplink;
mod to_bridge;
mod to_tunnel;
mod to_wire;
