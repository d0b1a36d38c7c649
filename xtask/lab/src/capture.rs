//! What is on the wire: `tcpdump` into a file, read back by `tshark`.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use crate::{
    command::Cmd, ledger::Ledger, namespace::Namespace, process::Process, wait::eventually,
};

/// The port of flannel's VXLAN, which tshark does not know by itself.
const PORT: u16 = 8472;

/// A capture under way: ended when dropped.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts to capture on a device of a namespace, and returns once packets are seen.
    ///
    /// `filter` is an expression of `tcpdump`, such as `udp port 8472`; empty takes everything.
    pub fn start(
        ledger: &Ledger,
        namespace: &Namespace,
        device: &str,
        filter: &str,
    ) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("capture-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let file = ledger.directory().join(format!("{name}.pcap"));
        let log = ledger.directory().join(format!("{name}.log"));
        let mut command = namespace
            .command("tcpdump")
            .args(["-n", "-U", "--immediate-mode", "-s", "0", "-B", "8192"])
            // It would give up root, and then not be allowed to write here.
            .args(["-Z", "root"])
            .args(["-i", device, "-w"])
            .arg(&file);
        if !filter.is_empty() {
            command = command.arg(filter);
        }
        let what = format!("capture on {device} in {}", namespace.name());
        let mut process = Process::spawn(ledger, &what, &command, &log)?;
        eventually(Duration::from_secs(10), &what, || {
            process.check_running()?;
            if !process.log()?.contains("listening on") {
                bail!("tcpdump does not listen yet");
            }
            Ok(())
        })?;
        Ok(Self { process, file })
    }

    /// Ends it, with every packet seen so far in the file.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGINT)?;
        self.process.stop().map(drop)
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The fields of all packets that match a display filter of `tshark`: a row for each packet, a
    /// column for each field. A field that occurs twice (outer and inner header) is `first,second`.
    ///
    /// Checksums are verified: `ip.checksum.status`, `udp.checksum.status` and
    /// `tcp.checksum.status` are 1 when good, 0 when bad.
    pub fn fields(&self, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
        let mut command = self.tshark().args([
            "-Y",
            filter,
            "-T",
            "fields",
            "-E",
            "separator=/t",
            "-E",
            "occurrence=a",
        ]);
        for field in fields {
            command = command.args(["-e", field]);
        }
        Ok(command
            .run()?
            .stdout
            .lines()
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect())
    }

    /// The packets that match, in full, as people read them.
    pub fn describe(&self, filter: &str) -> Result<String> {
        self.tshark().args(["-Y", filter, "-V"]).read()
    }

    fn tshark(&self) -> Cmd {
        let mut command = Cmd::new("tshark")
            .arg("-n")
            .arg("-r")
            .arg(&self.file)
            .args(["-d", &format!("udp.port=={PORT},vxlan")]);
        for protocol in ["ip", "udp", "tcp"] {
            command = command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
        }
        command
    }
}
