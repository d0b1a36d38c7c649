//! A TAP device in a container, as a virtual machine there would have it: frames come with what a driver says about
//! checksums and segments.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    mem::zeroed,
    os::fd::AsRawFd as _,
};

use anyhow::Context as _;
use nix::libc;
use overlay_lab::Namespace;

/// A TAP device, which goes away when dropped.
#[derive(Debug)]
pub(crate) struct Tap(File);

impl Tap {
    /// Makes `tap0` in a namespace.
    pub(crate) fn create(namespace: &Namespace) -> Self {
        let file = namespace.within(|| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/net/tun")
                .context("cannot open /dev/net/tun")?;
            // SAFETY: a request of zeros is an empty one.
            let mut request: libc::ifreq = unsafe { zeroed() };
            for (place, byte) in request.ifr_name.iter_mut().zip(b"tap0") {
                *place = libc::c_char::from_ne_bytes([*byte]);
            }
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
            request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags)?;
            // SAFETY: the kernel reads and writes one request, which outlives the call.
            let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
            anyhow::ensure!(made >= 0, "cannot make tap0: {}", io::Error::last_os_error());
            Ok(file)
        });
        Self(file.unwrap())
    }

    /// Sends a frame behind a header of virtio (version 1, 5.1.6), unless the kernel refuses it.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.0).write_all(frame)
    }
}
