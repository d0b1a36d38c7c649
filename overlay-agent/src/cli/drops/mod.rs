//! `overlay-agent drops`: single packets that the programs have dropped, or declined, each with the reason.

mod names;

use std::{ops::ControlFlow, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, builder::PossibleValuesParser};
use overlay_common::{Class, Reason};

use self::names::Names;
use crate::{
    admin::{DEFAULT_SOCKET, fetch_lines},
    drops::{DropCount, Line, Missed, PacketFile, Why},
    output::{OutputFormat, print},
};

/// Arguments of `drops`.
#[derive(Debug, Args)]
pub struct DropsArgs {
    /// Show packets as they come, until this is ended; otherwise those that were dropped last, and all counts
    #[arg(short, long)]
    pub follow: bool,

    /// Also packets that are left to the kernel, each with the reason
    #[arg(long, requires = "follow")]
    pub declined: bool,

    /// Only packets of this reason; may be repeated
    #[arg(long, value_name = "REASON", value_parser = reasons())]
    pub reason: Vec<String>,

    /// End after so many packets
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Also write them to this file, for Wireshark (pcapng), each with the reason as its comment
    #[arg(long, value_name = "FILE")]
    pub write: Option<PathBuf>,

    /// Where the running agent listens
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// How to answer; as JSON, a line for each
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    pub output: OutputFormat,
}

/// Names of reasons that a packet may be told of with.
fn reasons() -> PossibleValuesParser {
    let told = |reason: &&Reason| matches!(reason.class(), Class::Dropped | Class::Declined);
    let names: Vec<_> = Reason::ALL.iter().filter(told).map(|reason| reason.name()).collect();
    PossibleValuesParser::new(names)
}

/// Asks the running agent and prints what it tells.
pub async fn run(args: DropsArgs) -> Result<()> {
    let mut capture = args.write.as_deref().map(PacketFile::create).transpose()?;
    let path = match (args.follow, args.declined) {
        (false, _) => "/drops",
        (true, false) => "/drops/follow",
        (true, true) => "/drops/follow/declined",
    };
    let mut names = Names::new(args.socket.clone());
    let (mut shown, mut printed) = (0, false);
    let wanted = |reason: &String| args.reason.is_empty() || args.reason.contains(reason);
    fetch_lines(&args.socket, path, async |line| {
        let mut line: Line =
            serde_json::from_str(line).context("understanding the agent's answer")?;
        match &mut line {
            Line::Packet(packet) if wanted(&packet.reason) => {
                names.add_to(packet).await;
                if let Some(capture) = &mut capture {
                    capture.add(packet)?;
                }
                shown += 1;
            }
            Line::Missed(Missed { reason, .. }) | Line::Count(DropCount { reason, .. })
                if wanted(reason) => {}
            Line::Listening => {}
            Line::Packet(_) | Line::Missed(_) | Line::Count(_) => {
                return Ok(ControlFlow::Continue(()));
            }
        }
        printed = true;
        match args.output {
            OutputFormat::Text => print(to_text(&line) + "\n")?,
            OutputFormat::Json => {
                let json = serde_json::to_string(&line).context("cannot write JSON")?;
                print(json + "\n")?;
            }
        }
        let enough = args.count.is_some_and(|count| shown >= count);
        Ok(if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })
    .await?;
    if !printed && args.output == OutputFormat::Text {
        let of = if args.reason.is_empty() { "" } else { " of that reason" };
        print(format_args!("No packet{of} was dropped since the programs were loaded.\n"))?;
    }
    Ok(())
}

fn to_text(line: &Line) -> String {
    match line {
        Line::Listening => "Packets that are dropped from now on:".to_owned(),
        Line::Packet(packet) => packet.to_string(),
        Line::Missed(Missed { reason, packets, why: Why::Program }) => {
            format!("… and {packets} more of {reason}: more than are told of in a second")
        }
        Line::Missed(Missed { reason, packets, why: Why::Reader }) => {
            format!("… and {packets} more of {reason}, which came faster than they are read here")
        }
        Line::Count(DropCount { hook, reason, packets, why, .. }) => {
            format!("In all: {packets} by {hook}, {reason}: {why}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drops::{Ends, ToldPacket};

    #[test]
    fn lines_are_as_they_are_documented() {
        let packet = ToldPacket {
            time: "2026-11-28T03:04:05.678901Z".to_owned(),
            hook: "from_container".to_owned(),
            reason: "spoofed_source".to_owned(),
            class: "dropped".to_owned(),
            why: Reason::SpoofedSource.describe().to_owned(),
            interface: Some("veth1".to_owned()),
            length: 98,
            ends: Ends {
                protocol: Some("udp".to_owned()),
                source: Some([10, 1, 15, 9].into()),
                destination: Some([10, 1, 20, 2].into()),
                source_port: Some(4711),
                destination_port: Some(53),
            },
            container: Some("web".to_owned()),
            docker_network: Some("bridge".to_owned()),
            ..ToldPacket::default()
        };
        assert_eq!(
            to_text(&Line::Packet(Box::new(packet))),
            "03:04:05.678901Z dropped spoofed_source from_container on veth1 (container web, network bridge): udp \
             10.1.15.9:4711 > 10.1.20.2:53, 98 bytes: A container used another's address, or the stack one outside this \
             host's subnet."
        );
        let missed = Missed { reason: "wrong_vni".to_owned(), packets: 3, why: Why::Program };
        assert_eq!(
            to_text(&Line::Missed(missed)),
            "… and 3 more of wrong_vni: more than are told of in a second"
        );
    }
}
