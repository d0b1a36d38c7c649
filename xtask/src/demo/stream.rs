//! How fast a TCP stream is, and what became of the segments that it sent again.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use overlay_lab::{Docker, Lab, Process, command::Cmd, eventually};
use serde_json::Value;

use crate::bench::Tcp;

/// Two containers that a stream runs between.
pub(super) struct Ends<'lab> {
    pub(super) lab: &'lab Lab,
    /// The hosts' daemons: the sender's, and the receiver's.
    pub(super) daemons: [&'lab Docker; 2],
    /// What both containers are called.
    pub(super) name: &'static str,
    /// The receiver's address.
    pub(super) to: Ipv4Addr,
}

/// What was measured.
struct Stream {
    bits_per_second: f64,
    congestion_control: String,
    /// The sender's.
    segments: Tcp,
    /// By all devices on the way.
    dropped: u64,
}

/// Measures one, and returns the lines that tell of it.
pub(super) fn measure(ends: &Ends<'_>, seconds: u32) -> Result<Vec<String>> {
    let [sender, _] = ends.daemons;
    let tcp = || Tcp::read(|command| sender.in_network_of(ends.name, command));
    let before = (tcp()?, ends.dropped()?);
    let report = ends.iperf(seconds)?;
    let after = (tcp()?, ends.dropped()?);
    let bits_per_second = report
        .pointer("/end/sum_received/bits_per_second")
        .and_then(Value::as_f64)
        .with_context(|| format!("iperf3 reports no rate: {report}"))?;
    let congestion_control =
        report.pointer("/end/sender_tcp_congestion").and_then(Value::as_str).unwrap_or("unknown");
    let stream = Stream {
        bits_per_second,
        congestion_control: congestion_control.to_owned(),
        segments: after.0.since(before.0),
        dropped: after.1.saturating_sub(before.1),
    };
    Ok(stream.lines())
}

impl Ends<'_> {
    /// The machine's iperf3 in the containers' networks: it is linked with libraries that the image does not have.
    fn iperf(&self, seconds: u32) -> Result<Value> {
        let [sender, receiver] = self.daemons;
        let server = Cmd::new("iperf3").args(["--server", "--one-off", "--forceflush"]);
        let server = receiver.in_network_of(self.name, server)?;
        let log = self.lab.directory().join("iperf3.log");
        let mut server = Process::spawn(self.lab.ledger(), "iperf3", &server, &log)?;
        eventually(Duration::from_secs(5), "iperf3 listens", || {
            server.check_running()?;
            ensure!(server.log()?.contains("listening"), "it has not said so yet");
            Ok(())
        })?;
        let client = Cmd::new("iperf3")
            .args(["--json", "--client", &self.to.to_string(), "--time", &seconds.to_string()])
            .deadline(Duration::from_secs(u64::from(seconds) + 30));
        let report = sender.in_network_of(self.name, client)?.read()?;
        serde_json::from_str(&report).context("iperf3 printed no JSON")
    }

    /// What all devices have dropped so far: the containers', the hosts' and the wire's.
    fn dropped(&self) -> Result<u64> {
        let show = || Cmd::new("ip").args(["-statistics", "-json", "link", "show"]);
        let mut commands: Vec<Cmd> =
            self.lab.hosts().iter().map(|host| host.namespace().wrap(show())).collect();
        commands.push(self.lab.wire().switch().wrap(show()));
        for daemon in self.daemons {
            commands.push(daemon.in_network_of(self.name, show())?);
        }
        commands.iter().map(|command| dropped_in(&command.read()?)).sum()
    }
}

/// The sum over the devices that `ip` shows.
fn dropped_in(shown: &str) -> Result<u64> {
    let links: Vec<Value> =
        serde_json::from_str(shown).with_context(|| format!("`ip` printed no list: {shown}"))?;
    let of = |link: &Value, way: &str| {
        link["stats64"][way]["dropped"]
            .as_u64()
            .with_context(|| format!("`ip` does not say what a device has dropped: {link}"))
    };
    links.iter().map(|link| Ok(of(link, "rx")? + of(link, "tx")?)).sum()
}

impl Stream {
    fn lines(&self) -> Vec<String> {
        let Tcp { sent_again, needless, .. } = self.segments;
        let mut lines = vec![format!(
            "{:.2} Gbit/s, one TCP stream ({}), {sent_again} segments sent again",
            self.bits_per_second / 1e9,
            self.congestion_control
        )];
        if sent_again > 0 {
            lines.push(format!(
                "  {needless} of them had arrived before (D-SACK); all devices together dropped {}",
                self.dropped
            ));
        }
        if needless > 0 {
            lines.push(
                "  A sender that runs on two cores overtakes itself in its veth: docs/performance.md"
                    .to_owned(),
            );
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(sent_again: u64, needless: u64) -> Vec<String> {
        let segments = Tcp { sent: 1_000_000, sent_again, needless };
        let congestion_control = "cubic".to_owned();
        Stream { bits_per_second: 2.4e10, congestion_control, segments, dropped: 3 }.lines()
    }

    #[test]
    fn what_is_sent_again_is_explained() {
        assert_eq!(lines(0, 0), ["24.00 Gbit/s, one TCP stream (cubic), 0 segments sent again"]);
        let lost = lines(5, 0);
        assert_eq!(lost.len(), 2);
        assert!(lost[1].starts_with("  0 of them had arrived before"), "{lost:?}");
        assert!(lost[1].ends_with("dropped 3"), "{lost:?}");
        assert_eq!(lines(700, 690).len(), 3);
    }

    #[test]
    fn drops_of_all_devices_and_both_ways_are_summed() {
        let link =
            |rx, tx| serde_json::json!({"stats64": {"rx": {"dropped": rx}, "tx": {"dropped": tx}}});
        let shown = serde_json::json!([link(1, 2), link(30, 40)]).to_string();
        assert_eq!(dropped_in(&shown).unwrap(), 73);
        let error = dropped_in("[{}]").unwrap_err().to_string();
        assert_eq!(error, "`ip` does not say what a device has dropped: {}");
    }
}
