//! Sending by a packet ring: the kernel makes buffers of which only the Ethernet header can be read in place.

use std::{
    ffi::c_void,
    io,
    mem::size_of,
    os::fd::AsRawFd as _,
    ptr::NonNull,
    sync::atomic::{AtomicU32, Ordering, fence},
};

use nix::libc;
use xtask::lab::Namespace;

use super::port::{Port, set_option};

/// Enough for a frame of 1514 bytes and what stands before it.
const SLOT: usize = 2048;
const SLOTS: usize = 512;
const SIZE: usize = SLOT * SLOTS;
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

    /// Sends these frames, and returns once the kernel has taken all. It must not refuse any.
    pub(crate) fn send(&mut self, frames: &[Vec<u8>]) -> io::Result<()> {
        for batch in frames.chunks(SLOTS) {
            for frame in batch {
                self.place(frame);
            }
            // SAFETY: without data, the call takes numbers only; what is in the ring is whole frames.
            let sent =
                unsafe { libc::send(self.port.fd().as_raw_fd(), std::ptr::null::<c_void>(), 0, 0) };
            if sent < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    fn place(&mut self, frame: &[u8]) {
        assert!(frame.len() <= SLOT - OFFSET, "{} bytes do not fit", frame.len());
        // SAFETY: the slot is one of the mapping's, which lasts as long as `self`. Its header belongs to
        // us while its status is 0, for which we wait, and is the kernel's once we have written another.
        unsafe {
            let slot = self.memory.add(self.next * SLOT);
            let header = slot.cast::<libc::tpacket2_hdr>().as_ptr();
            let status = AtomicU32::from_ptr(&raw mut (*header).tp_status);
            while status.load(Ordering::Acquire) != libc::TP_STATUS_AVAILABLE {
                std::hint::spin_loop();
            }
            std::ptr::copy_nonoverlapping(frame.as_ptr(), slot.add(OFFSET).as_ptr(), frame.len());
            (*header).tp_len = u32::try_from(frame.len()).unwrap();
            status.store(libc::TP_STATUS_SEND_REQUEST, Ordering::Release);
        }
        fence(Ordering::SeqCst);
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
