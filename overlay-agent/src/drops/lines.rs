use overlay_common::Reason;
use serde::{Deserialize, Serialize};

use super::ToldPacket;
use crate::kernel::datapath::CounterRow;

/// What the agent answers of drops, a line of JSON each. The form is stable: fields are added, not renamed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Line {
    /// From now on, every packet is in a line of its own or counted as missed.
    Listening,
    /// A packet.
    Packet(Box<ToldPacket>),
    /// Packets that are in no line.
    Missed(Missed),
    /// How many packets were dropped altogether.
    Count(DropCount),
}

/// Packets of one reason that were asked for and that are in no line.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Missed {
    /// Their reason.
    pub reason: String,
    /// How many.
    pub packets: u64,
    /// Where they were left out.
    pub why: Why,
}

/// Where packets are left out.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// In the program: there were more of the reason in a second than it tells of, or the ring was full.
    Program,
    /// On the way to whoever asks, who reads too slowly.
    Reader,
}

impl Missed {
    /// Of a count; `None` where it is 0.
    pub(super) fn of(reason: Reason, packets: u64, why: Why) -> Option<Self> {
        (packets > 0).then(|| Self { reason: reason.name().to_owned(), packets, why })
    }
}

/// How many packets a program has dropped for one reason, since the maps were made.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct DropCount {
    /// The program.
    pub hook: String,
    /// The reason.
    pub reason: String,
    /// How many. An aggregate (GRO, GSO) counts once.
    pub packets: u64,
    /// How many bytes, Ethernet headers included.
    pub bytes: u64,
    /// The reason, in a sentence.
    pub why: String,
}

impl From<CounterRow> for DropCount {
    fn from(row: CounterRow) -> Self {
        Self {
            hook: row.hook.name().to_owned(),
            reason: row.reason.name().to_owned(),
            packets: row.packets,
            bytes: row.bytes,
            why: row.reason.describe().to_owned(),
        }
    }
}
