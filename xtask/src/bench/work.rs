//! The work that is measured, and how.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use overlay_lab::{command::Cmd, statistics::as_float};
use serde::Serialize;
use serde_json::Value;

use super::worker;

/// Longer than any run: what does not end has failed.
const DEADLINE: Duration = Duration::from_secs(30);

/// The port of iperf3.
pub(super) const IPERF_PORT: &str = "5201";

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Work {
    /// One TCP stream
    #[value(name = "tcp-1")]
    #[serde(rename = "tcp-1")]
    Tcp1,
    /// Eight TCP streams at a time
    #[value(name = "tcp-8")]
    #[serde(rename = "tcp-8")]
    Tcp8,
    /// Request and response over one TCP connection
    TcpRr,
    /// Request and response as UDP datagrams
    UdpRr,
    /// A new TCP connection for each request
    Connect,
    /// UDP datagrams of 64 bytes in one direction
    #[value(name = "udp-64")]
    #[serde(rename = "udp-64")]
    Udp64,
    /// UDP datagrams of 1400 bytes in one direction
    #[value(name = "udp-1400")]
    #[serde(rename = "udp-1400")]
    Udp1400,
}

/// What is known about one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Quantity {
    /// Gbit/s received.
    Throughput,
    /// Median one-way time in µs: half of the time from request to response.
    Median,
    /// The one-way time in µs that 99 of 100 do not exceed.
    P99,
    /// Thousands per second: connections, datagrams received.
    Rate,
    /// Processor time of both ends: seconds per gigabyte, µs per request or datagram.
    Processor,
    /// The share of datagrams or requests that got lost, in per cent.
    Lost,
}

/// The quantities of one run.
pub(super) type Values = BTreeMap<Quantity, f64>;

impl Work {
    /// What a report calls it.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Tcp1 => "TCP, 1 stream",
            Self::Tcp8 => "TCP, 8 streams",
            Self::TcpRr => "TCP request/response",
            Self::UdpRr => "UDP request/response",
            Self::Connect => "TCP connections",
            Self::Udp64 => "UDP, 64 bytes",
            Self::Udp1400 => "UDP, 1400 bytes",
        }
    }

    /// What it measures, the most important first.
    pub(super) const fn quantities(self) -> &'static [Quantity] {
        match self {
            Self::Tcp1 | Self::Tcp8 => &[Quantity::Throughput, Quantity::Processor],
            Self::TcpRr | Self::UdpRr => &[Quantity::Median, Quantity::P99, Quantity::Processor],
            Self::Connect => &[Quantity::Rate, Quantity::Processor],
            Self::Udp64 | Self::Udp1400 => &[Quantity::Rate, Quantity::Processor, Quantity::Lost],
        }
    }

    /// The unit of one of them.
    pub(super) const fn unit(self, quantity: Quantity) -> &'static str {
        match quantity {
            Quantity::Throughput => "Gbit/s",
            Quantity::Median => "µs one way",
            Quantity::P99 => "µs, 99th percentile",
            Quantity::Rate => "thousand/s",
            Quantity::Processor => match self {
                Self::Tcp1 | Self::Tcp8 => "s of processor/GB",
                _ => "µs of processor each",
            },
            Quantity::Lost => "% lost",
        }
    }

    /// The client's command line, to be run in its namespace.
    pub(super) fn client(self, worker: &Cmd, to: &str, milliseconds: u64) -> Cmd {
        let of_worker = |role: &str| {
            worker.clone().args([role, to, "--milliseconds", &milliseconds.to_string()])
        };
        let iperf = |streams: &str| {
            let seconds = milliseconds.div_ceil(1000).to_string();
            Cmd::new("iperf3")
                .args(["--json", "--interval", "0", "--client", to, "--port", IPERF_PORT])
                .args(["--time", &seconds, "--parallel", streams])
        };
        let command = match self {
            Self::Tcp1 => iperf("1"),
            Self::Tcp8 => iperf("8"),
            Self::TcpRr => of_worker("tcp-requests"),
            Self::UdpRr => of_worker("udp-requests"),
            Self::Connect => of_worker("connect"),
            Self::Udp64 => of_worker("datagrams").args(["--bytes", "64"]),
            Self::Udp1400 => of_worker("datagrams").args(["--bytes", "1400"]),
        };
        command.deadline(DEADLINE)
    }

    /// What the client's output says, with the processor seconds that both ends used.
    pub(super) fn read(self, output: &str, processor_seconds: f64) -> Result<Values> {
        match self {
            Self::Tcp1 | Self::Tcp8 => read_iperf(output, processor_seconds),
            _ => {
                let report: worker::Report = serde_json::from_str(output)
                    .with_context(|| format!("the client printed no report: {output}"))?;
                self.read_report(&report, processor_seconds)
            }
        }
    }

    fn read_report(self, report: &worker::Report, processor_seconds: f64) -> Result<Values> {
        if report.done == 0 || report.seconds <= 0.0 {
            bail!("the client got nothing done: {report:?}");
        }
        let done = float(report.done);
        let one_way = |nanoseconds: u64| float(nanoseconds) / 2.0 / 1e3;
        // The client's warm-up costs what it costs later.
        let share = report.seconds / (report.seconds + worker::WARM_UP.as_secs_f64());
        let all = BTreeMap::from([
            (Quantity::Median, one_way(report.median_nanoseconds)),
            (Quantity::P99, one_way(report.p99_nanoseconds)),
            (Quantity::Rate, done / report.seconds / 1e3),
            (Quantity::Processor, processor_seconds * share / done * 1e6),
            (Quantity::Lost, float(report.lost) / (done + float(report.lost)) * 100.0),
        ]);
        Ok(all.into_iter().filter(|(quantity, _)| self.quantities().contains(quantity)).collect())
    }
}

fn read_iperf(output: &str, processor_seconds: f64) -> Result<Values> {
    let report: Value = serde_json::from_str(output)
        .with_context(|| format!("iperf3 printed no JSON: {output}"))?;
    let number = |pointer: &str| {
        report
            .pointer(pointer)
            .and_then(Value::as_f64)
            .with_context(|| format!("iperf3 reports no {pointer}: {report}"))
    };
    let rate = number("/end/sum_received/bits_per_second")?;
    let bytes = number("/end/sum_received/bytes")?;
    if bytes <= 0.0 {
        bail!("iperf3 moved nothing: {report}");
    }
    Ok(BTreeMap::from([
        (Quantity::Throughput, rate / 1e9),
        (Quantity::Processor, processor_seconds / (bytes / 1e9)),
    ]))
}

fn float(number: u64) -> f64 {
    usize::try_from(number).map_or(f64::INFINITY, as_float)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iperf_is_read_at_the_receiver() {
        let output = r#"{"end":{"sum_sent":{"bytes":9,"bits_per_second":9},
            "sum_received":{"bytes":1.25e9,"bits_per_second":1e10}}}"#;
        let values = Work::Tcp1.read(output, 2.5).unwrap();
        assert!((values[&Quantity::Throughput] - 10.0).abs() < 1e-9, "{values:?}");
        assert!((values[&Quantity::Processor] - 2.0).abs() < 1e-9, "{values:?}");
        let error = Work::Tcp1.read(r#"{"error":"unable to connect"}"#, 0.0).unwrap_err();
        assert!(error.to_string().contains("unable to connect"), "{error:#}");
    }

    #[test]
    fn a_worker_is_read_for_what_it_measures() {
        let output = r#"{"seconds":0.5,"done":50000,"lost":0,"median_nanoseconds":10000,"p99_nanoseconds":30000}"#;
        let values = Work::UdpRr.read(output, 0.55).unwrap();
        let expected =
            [(Quantity::Median, 5.0), (Quantity::P99, 15.0), (Quantity::Processor, 10.0)];
        assert_eq!(values.len(), expected.len());
        for (quantity, value) in expected {
            assert!((values[&quantity] - value).abs() < 1e-9, "{quantity:?}: {values:?}");
        }
        let report = worker::Report { seconds: 2.0, done: 300, lost: 100, ..Default::default() };
        let values = Work::Udp64.read_report(&report, 1.0).unwrap();
        assert!((values[&Quantity::Lost] - 25.0).abs() < 1e-9, "{values:?}");
        assert!((values[&Quantity::Rate] - 0.15).abs() < 1e-9, "{values:?}");
    }
}
