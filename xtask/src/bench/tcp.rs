//! What the TCP of a network namespace has counted.

use std::ops::Add;

use anyhow::{Context as _, Result};
use overlay_lab::command::Cmd;

/// Segments since the namespace was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) sent: u64,
    pub(crate) sent_again: u64,
    /// Of those, what the other end said it had already (RFC 2883): nothing was lost. In segments, as those that are sent
    /// again: one such report (`TCPDSACKRecv`) may be about a whole super-packet.
    pub(crate) needless: u64,
}

impl Tcp {
    /// Reads it from `/proc/net/snmp` (RFC 4022: tcpOutSegs does not count what is sent again) and
    /// `/proc/net/netstat`. The command must be brought to where it is to run.
    pub(crate) fn read(bring: impl FnOnce(Cmd) -> Result<Cmd>) -> Result<Self> {
        let command = Cmd::new("cat").args(["/proc/net/snmp", "/proc/net/netstat"]);
        Self::parse(&bring(command)?.read()?)
    }

    fn parse(text: &str) -> Result<Self> {
        let find = |table: &str, wanted: &str| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(table));
            let (names, values) = lines.next().zip(lines.next())?;
            let position = names.split(' ').position(|name| name == wanted)?;
            values.split(' ').nth(position)?.parse::<u64>().ok()
        };
        let number = |table: &str, wanted: &str| {
            find(table, wanted).with_context(|| format!("no {table}{wanted} in {text}"))
        };
        Ok(Self {
            sent: number("Tcp: ", "OutSegs")?,
            sent_again: number("Tcp: ", "RetransSegs")?,
            needless: number("TcpExt: ", "TCPDSACKRecvSegs")?,
        })
    }

    /// What was counted after another reading.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            sent: self.sent.saturating_sub(before.sent),
            sent_again: self.sent_again.saturating_sub(before.sent_again),
            needless: self.needless.saturating_sub(before.needless),
        }
    }

    /// What was sent again and may have been lost.
    pub(crate) const fn needed(self) -> u64 {
        self.sent_again.saturating_sub(self.needless)
    }
}

impl Add for Tcp {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            sent_again: self.sent_again + other.sent_again,
            needless: self.needless + other.needless,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needless_is_counted_in_segments() {
        let text = "Tcp: InSegs OutSegs RetransSegs\nTcp: 5 1000 92\nTcpExt: TCPDSACKRecv TCPDSACKRecvSegs\n\
                    TcpExt: 2 90\n";
        let tcp = Tcp::parse(text).unwrap();
        assert_eq!(tcp, Tcp { sent: 1000, sent_again: 92, needless: 90 });
        assert_eq!(tcp.needed(), 2);
        assert_eq!((tcp + tcp).since(tcp), tcp);
        assert!(Tcp::parse("Tcp: OutSegs\nTcp: 1\n").is_err());
    }
}
