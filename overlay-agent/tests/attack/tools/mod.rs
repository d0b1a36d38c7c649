//! What the attacks are made with: frames, ways to send them, eyes that see what arrives, and the two hosts.

pub(crate) mod barrage;
pub(crate) mod frame;
pub(crate) mod kernel_log;
pub(crate) mod port;
pub(crate) mod ring;
pub(crate) mod site;
pub(crate) mod sniffer;
pub(crate) mod tally;
pub(crate) mod tap;
pub(crate) mod trial;
