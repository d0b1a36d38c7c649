//! Everything that explains a failure, on standard error.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    command::{Cmd, tail},
    ledger::{HostRecord, Record},
    namespace,
};

/// How much of a log is shown.
const LOG_LINES: usize = 40;

/// How much of a map is shown.
const MAP_LINES: usize = 40;

/// Prints links, addresses, routes, neighbours, programs, maps and logs of a lab.
pub fn dump(record: &Record) {
    eprintln!("──── state of lab {} ────", record.name);
    for host in &record.hosts {
        dump_host(host);
    }
    for log in logs(&record.directory) {
        let text = fs::read(&log).unwrap_or_default();
        section(&format!("the end of {}", log.display()));
        eprintln!("{}", tail(&String::from_utf8_lossy(&text), LOG_LINES));
    }
    eprintln!("──── end of lab {} ────", record.name);
}

fn dump_host(host: &HostRecord) {
    let inside = namespace::path(&host.namespace);
    for args in [
        &["-details", "-statistics", "link"][..],
        &["-brief", "address"],
        &["route"],
        &["neighbour"],
    ] {
        show(&host.name, &namespace::enter(&inside, Cmd::new("ip").args(args)), usize::MAX);
    }
    show(&host.name, &namespace::enter(&inside, Cmd::new("bpftool").arg("net")), usize::MAX);
    for pin in pins(&host.pins) {
        let map = Cmd::new("bpftool").args(["map", "dump", "pinned"]).arg(&pin);
        show(&host.name, &map, MAP_LINES);
    }
}

/// The lines of a host's logs that matter when something went wrong, the last ones of each.
pub fn complaints(record: &Record, lines: usize) -> Vec<(PathBuf, String)> {
    logs(&record.directory)
        .into_iter()
        .filter_map(|log| {
            let bytes = fs::read(&log).ok()?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let bad: Vec<&str> = text.lines().filter(|line| complains(line)).collect();
            (!bad.is_empty()).then(|| (log, tail(&bad.join("\n"), lines)))
        })
        .collect()
}

/// Whether a line of the agent, of dockerd or of etcd is a warning or worse.
fn complains(line: &str) -> bool {
    const MARKS: [&str; 8] = [
        " WARN",
        "ERROR",
        "level=error",
        "level=fatal",
        "panicked at",
        "failed to start daemon",
        " C | ",
        "Error: ",
    ];
    MARKS.iter().any(|mark| line.contains(mark))
}

/// The maps below a folder of pins.
fn pins(directory: &Path) -> Vec<PathBuf> {
    files(directory)
        .into_iter()
        .filter(|pin| {
            Cmd::new("bpftool")
                .args(["map", "show", "pinned"])
                .arg(pin)
                .even_if_interrupted()
                .output()
                .is_ok_and(|output| output.status.success())
        })
        .collect()
}

/// The log files of a lab: its own and its hosts', not what Docker stores.
fn logs(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(directory) {
        if path.is_dir() {
            found.extend(entries(&path));
        } else {
            found.push(path);
        }
    }
    found.retain(|path| path.extension() == Some(OsStr::new("log")));
    found.sort();
    found
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(directory) {
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

fn show(host: &str, command: &Cmd, most: usize) {
    section(&format!("{host}: {command}"));
    match command.clone().even_if_interrupted().output() {
        Ok(output) => {
            for line in output.stdout.lines().chain(output.stderr.lines()).take(most) {
                eprintln!("{line}");
            }
        }
        Err(error) => eprintln!("{error:#}"),
    }
}

fn section(title: &str) {
    eprintln!("── {title}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_and_errors_complain() {
        assert!(complains("2026-01-01T00:00:00Z  WARN overlay_agent: etcd is away"));
        assert!(complains("time=\"…\" level=error msg=\"no bridge\""));
        assert!(!complains("2026-01-01T00:00:00Z  INFO overlay_agent: ready"));
    }
}
