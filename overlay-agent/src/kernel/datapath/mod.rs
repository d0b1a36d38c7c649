//! The kernel's half: BPF programs, maps, pins and links.

mod attach;
mod counters;
mod drop_ring;
mod features;
mod loader;
mod others;
mod pins;
mod readings;
mod settings;
mod tables;

pub use attach::{Attachment, Attachments, Mechanism, remove_filters};
pub use counters::{CounterRow, read_counters};
pub use drop_ring::{ByReason, DropRing, DropWatch, monotonic};
pub use features::{Features, Missing};
pub use loader::{Programs, pinned_abi_version};
pub use others::{OtherAgents, other_agents};
pub use pins::{DEFAULT_PIN_PATH, PinPath};
pub use readings::{Contents, MapFill, Readings};
pub use settings::Settings;
pub use tables::{MapChanges, Maps, TypedMap};
