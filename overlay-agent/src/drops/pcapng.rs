use std::{
    borrow::Cow,
    collections::HashMap,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use overlay_common::tables::DROP_BYTES;
use pcap_file::{
    DataLink,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::ToldPacket;

/// Timestamps are in units of 10⁻⁹ s (pcapng, `if_tsresol`).
const NANOSECONDS: u8 = 9;

/// A capture file for Wireshark (pcapng): each packet with its reason as a comment.
pub struct PacketFile {
    path: PathBuf,
    writer: PcapNgWriter<File>,
    interfaces: HashMap<(String, bool), u32>,
}

impl PacketFile {
    /// A new file, for its owner alone: packets are somebody's. One that is there is replaced.
    pub fn create(path: &Path) -> Result<Self> {
        let place = || format!("writing packets to {}", path.display());
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(path).with_context(place)?;
        let writer = PcapNgWriter::new(file).with_context(place)?;
        Ok(Self { path: path.to_owned(), writer, interfaces: HashMap::new() })
    }

    /// Adds a packet.
    pub fn add(&mut self, packet: &ToldPacket) -> Result<()> {
        let written = self.write(packet);
        written.with_context(|| format!("writing a packet to {}", self.path.display()))
    }

    fn write(&mut self, packet: &ToldPacket) -> Result<()> {
        let interface = self.interface(packet)?;
        let time = OffsetDateTime::parse(&packet.time, &Rfc3339).context("reading the time")?;
        let since = time - OffsetDateTime::UNIX_EPOCH;
        let comment =
            format!("{} {} at {}: {}", packet.class, packet.reason, packet.hook, packet.why);
        let block = EnhancedPacketBlock {
            interface_id: interface,
            timestamp: Duration::try_from(since).unwrap_or_default(),
            original_len: packet.length,
            data: Cow::Owned(packet.packet()),
            options: vec![EnhancedPacketOption::Comment(Cow::Owned(comment))],
        };
        self.writer.write_pcapng_block(block)?;
        Ok(())
    }

    fn interface(&mut self, packet: &ToldPacket) -> Result<u32> {
        let name = packet.interface.clone().unwrap_or_default();
        let next = u32::try_from(self.interfaces.len()).context("counting interfaces")?;
        let key = (name.clone(), packet.ethernet);
        if let Some(known) = self.interfaces.get(&key) {
            return Ok(*known);
        }
        self.writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: if packet.ethernet { DataLink::ETHERNET } else { DataLink::RAW },
            snaplen: u32::try_from(DROP_BYTES).unwrap_or_default(),
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(name)),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        })?;
        self.interfaces.insert(key, next);
        Ok(next)
    }
}

impl std::fmt::Debug for PacketFile {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("PacketFile(…)")
    }
}
