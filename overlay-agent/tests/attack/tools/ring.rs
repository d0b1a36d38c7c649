//! Sending by a packet ring: the kernel makes buffers of which only the Ethernet header can be read in place.

use std::{
    ffi::c_void,
    io,
    mem::size_of,
    os::fd::AsRawFd as _,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering},
};

use nix::libc;
use overlay_lab::Namespace;

use super::port::{Port, set_option};

/// Enough for a frame of 1514 bytes and what stands before it.
const SLOT: usize = 2048;
const SLOTS: usize = 512;
const SIZE: usize = SLOT * SLOTS;
/// What may be on its way, in bytes of the kernel's memory.
const ON_THEIR_WAY: i32 = 64 << 20;
/// Where a frame begins in its slot: behind the header, as if there were no address.
const OFFSET: usize = 32;

/// A packet ring on a device.
#[derive(Debug)]
pub(crate) struct Ring {
    port: Port,
    memory: NonNull<u8>,
    next: usize,
}

impl Ring {
    pub(crate) fn open(namespace: &Namespace, device: &str) -> Self {
        let port = Port::open(namespace, device);
        set_option(port.fd(), libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &ON_THEIR_WAY).unwrap();
        let version = libc::c_int::try_from(libc::tpacket_versions::TPACKET_V2 as u32).unwrap();
        set_option(port.fd(), libc::SOL_PACKET, libc::PACKET_VERSION, &version).unwrap();
        let request = libc::tpacket_req {
            tp_block_size: u32::try_from(SIZE).unwrap(),
            tp_block_nr: 1,
            tp_frame_size: u32::try_from(SLOT).unwrap(),
            tp_frame_nr: u32::try_from(SLOTS).unwrap(),
        };
        set_option(port.fd(), libc::SOL_PACKET, libc::PACKET_TX_RING, &request).unwrap();
        // SAFETY: a new mapping of the ring that was just made, of its size.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                port.fd().as_raw_fd(),
                0,
            )
        };
        assert_ne!(memory, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self { port, memory: NonNull::new(memory.cast()).unwrap(), next: 0 }
    }

    /// Sends these frames, and returns once the kernel has done with all. It must not refuse any.
    pub(crate) fn send(&mut self, frames: &[Vec<u8>]) -> io::Result<()> {
        for batch in frames.chunks(SLOTS) {
            for frame in batch {
                self.place(frame);
            }
            self.kick(0)?;
        }
        Ok(())
    }

    /// Sends these frames without waiting for what becomes of them, unless so many are on their way that it would have to
    /// wait: a packet that waits for a neighbour's MAC, for one, keeps its slot.
    pub(crate) fn send_unless_busy(&mut self, frames: &[Vec<u8>]) -> io::Result<bool> {
        let free = |ahead| {
            self.status((self.next + ahead) % SLOTS).load(Ordering::Acquire)
                == libc::TP_STATUS_AVAILABLE
        };
        if !(0..frames.len()).all(free) {
            return Ok(false);
        }
        for frame in frames {
            self.place(frame);
        }
        self.kick(libc::MSG_DONTWAIT)?;
        Ok(true)
    }

    /// Has the kernel send what is in the ring.
    fn kick(&self, flags: i32) -> io::Result<()> {
        let fd = self.port.fd().as_raw_fd();
        // SAFETY: without data, the call takes numbers only; what is in the ring is whole frames.
        let sent = unsafe { libc::send(fd, std::ptr::null::<c_void>(), 0, flags) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn header(&self, slot: usize) -> NonNull<libc::tpacket2_hdr> {
        assert!(slot < SLOTS, "there is no slot {slot}");
        // SAFETY: the slot is one of the mapping's, which lasts as long as `self`.
        unsafe { self.memory.add(slot * SLOT) }.cast()
    }

    fn status(&self, slot: usize) -> &AtomicU32 {
        // SAFETY: the header is in the mapping and aligned as its slot is; we and the kernel use its status as an
        // atomic number.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.header(slot).as_ptr()).tp_status) }
    }

    fn place(&mut self, frame: &[u8]) {
        assert!(frame.len() <= SLOT - OFFSET, "{} bytes do not fit", frame.len());
        let header = self.header(self.next);
        let status = self.status(self.next);
        while status.load(Ordering::Acquire) != libc::TP_STATUS_AVAILABLE {
            std::hint::spin_loop();
        }
        // SAFETY: the slot belongs to us while its status is 0, for which we have waited; the frame fits into what of
        // it is behind the header.
        unsafe {
            let data = header.cast::<u8>().add(OFFSET);
            std::ptr::copy_nonoverlapping(frame.as_ptr(), data.as_ptr(), frame.len());
            (*header.as_ptr()).tp_len = u32::try_from(frame.len()).unwrap();
        }
        status.store(libc::TP_STATUS_SEND_REQUEST, Ordering::Release);
        self.next = (self.next + 1) % SLOTS;
    }
}

const _: () = assert!(size_of::<libc::tpacket2_hdr>() <= OFFSET);

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by us with this size, and nothing points into it any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), SIZE) };
    }
}

/// Or else a ring could not be moved to the thread that sends.
// SAFETY: the mapping belongs to the ring alone.
unsafe impl Send for Ring {}
