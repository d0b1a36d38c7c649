//! The kernel's half: BPF programs, maps, pins and links.

mod attach;
mod counters;
mod loader;
mod pins;
mod tables;

pub use attach::{Attachment, Attachments};
pub use counters::{CounterRow, read_counters};
pub use loader::{Programs, pinned_abi_version};
pub use pins::PinPath;
pub use tables::{Changes, Tables, TypedMap};
