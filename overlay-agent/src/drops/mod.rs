//! Single packets that programs have dropped, or declined: from the ring in the kernel to whoever asks. The control loop knows
//! nothing of it.

mod interfaces;
mod keeper;
mod lines;
mod packet;
mod pcapng;

pub use keeper::{DropStream, Drops};
pub use lines::{DropCount, Line, Missed, Why};
pub use packet::{Ends, ToldPacket};
pub use pcapng::PacketFile;
