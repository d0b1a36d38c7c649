//! A TAP device in a container, as a virtual machine there would have it: frames come with what a driver says about
//! checksums and segments.

use std::{
    fs::File,
    io::{self, Write as _},
};

use overlay_lab::{
    Namespace,
    tun::{Carries, tun},
};

/// A TAP device, which goes away when dropped.
#[derive(Debug)]
pub(crate) struct Tap(File);

impl Tap {
    /// Makes `tap0` in a namespace.
    pub(crate) fn create(namespace: &Namespace) -> Self {
        Self(tun(namespace, "tap0", Carries::VirtioFrames).unwrap())
    }

    /// Sends a frame behind a header of virtio, unless the kernel refuses it.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.0).write_all(frame)
    }
}
