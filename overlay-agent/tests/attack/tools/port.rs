//! Sending frames as they are: a packet socket on a device.

use std::{
    io,
    mem::{size_of, zeroed},
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use nix::{libc, net::if_::if_nametoindex};
use overlay_lab::Namespace;

/// A device to send frames from.
#[derive(Debug)]
pub(crate) struct Port {
    socket: OwnedFd,
}

impl Port {
    pub(crate) fn open(namespace: &Namespace, device: &str) -> Self {
        let socket = socket(namespace, Some(device), 0);
        Self { socket }
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.socket
    }

    /// Sends one frame.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and the length are those of a slice that outlives the call.
        let sent =
            unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends many frames, and returns how many of them the kernel took: what it refuses is left out.
    pub(crate) fn send_many(&self, frames: &[Vec<u8>]) -> usize {
        let mut vectors: Vec<libc::iovec> = frames
            .iter()
            .map(|frame| libc::iovec {
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: frame.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: a message header of zeros is one without address, vectors and control data.
                let mut message: libc::mmsghdr = unsafe { zeroed() };
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let mut taken = 0;
        let mut rest = &mut messages[..];
        while !rest.is_empty() {
            let count = u32::try_from(rest.len()).unwrap();
            // SAFETY: the headers point to vectors, and these to frames, that outlive the call; the kernel
            // reads `count` of them, and of a packet to send nothing is written but its length.
            let sent =
                unsafe { libc::sendmmsg(self.socket.as_raw_fd(), rest.as_mut_ptr(), count, 0) };
            if let Ok(sent @ 1..) = usize::try_from(sent) {
                taken += sent;
                rest = &mut rest[sent..];
                continue;
            }
            match io::Error::last_os_error().raw_os_error() {
                // A queue is full: the same frame again.
                Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR) => {}
                // The first of the rest is no frame for the kernel.
                _ => rest = &mut rest[1..],
            }
        }
        taken
    }
}

/// A packet socket in a namespace, on one device or all, that receives `protocol`; 0 receives nothing.
pub(crate) fn socket(namespace: &Namespace, device: Option<&str>, protocol: u16) -> OwnedFd {
    let device = device.map(str::to_owned);
    namespace.within(move || open(device.as_deref(), protocol)).unwrap()
}

fn open(device: Option<&str>, protocol: u16) -> Result<OwnedFd> {
    let protocol = protocol.to_be();
    // SAFETY: the call takes numbers only.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into())
    };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("cannot make a packet socket");
    }
    // SAFETY: it was made here, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let Some(device) = device else { return Ok(socket) };
    let index = if_nametoindex(device).with_context(|| format!("there is no device {device}"))?;
    // SAFETY: the address is one of zeros until it is filled.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index)?;
    let length = u32::try_from(size_of::<libc::sockaddr_ll>())?;
    // SAFETY: the address is of the type and length that the kernel is told.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
    if bound < 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot bind a packet socket to {device}"));
    }
    Ok(socket)
}

/// Has a socket take nothing of what comes for it, without a word to who sent it.
pub(crate) fn deaf(socket: &impl AsRawFd) -> io::Result<()> {
    // Return 0: of every packet, no byte is kept.
    let mut program = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
}

/// Sets an option of a socket.
pub(crate) fn set_option<T>(
    socket: &impl AsRawFd,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    let length = u32::try_from(size_of::<T>()).unwrap();
    // SAFETY: the kernel reads as many bytes as it is told, which are those of `value`.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length)
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
