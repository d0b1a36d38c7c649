//! What the kernel says while a test runs.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
};

use nix::libc;

/// The kernel's log from some moment on.
#[derive(Debug)]
pub(crate) struct KernelLog(File);

/// What a kernel begins its complaints with.
const COMPLAINTS: [&str; 9] = [
    "WARNING:",
    "BUG:",
    "Call Trace",
    "Oops",
    "general protection fault",
    "KASAN",
    "bad checksum",
    "skb_warn_bad_offload",
    "soft lockup",
];

impl KernelLog {
    /// From now on.
    pub(crate) fn start() -> Self {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open("/dev/kmsg").unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        Self(file)
    }

    /// The lines since then in which it complains.
    pub(crate) fn complaints(mut self) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut record = vec![0; 1 << 16];
        loop {
            match self.0.read(&mut record) {
                Ok(length) => {
                    let line = String::from_utf8_lossy(&record[..length]).into_owned();
                    if COMPLAINTS.iter().any(|word| line.contains(word)) {
                        complaints.push(line);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return complaints,
                // The kernel has said so much that some of it is gone: that is what we look for, too.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {
                    complaints.push("some lines were overwritten".to_owned());
                }
                Err(error) => panic!("the kernel's log cannot be read: {error}"),
            }
        }
    }
}
