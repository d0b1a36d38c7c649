//! TUN and TAP devices (`/dev/net/tun`), and a wire made of two of them.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    mem::zeroed,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::Namespace;

/// What a device carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// IP packets, without Ethernet headers.
    Packets,
    /// Ethernet frames, each behind a header of virtio (version 1, 5.1.6), as from a virtual machine's driver.
    VirtioFrames,
}

/// Makes a device in a namespace; it is there for as long as the file that is returned is open. Names have at most 15
/// letters.
pub fn tun(namespace: &Namespace, name: &str, carries: Carries) -> Result<File> {
    let name = name.to_owned();
    namespace.within(move || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .context("cannot open /dev/net/tun")?;
        // SAFETY: a request of zeros is an empty one.
        let mut request: libc::ifreq = unsafe { zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
            *place = libc::c_char::from_ne_bytes([*byte]);
        }
        let flags = match carries {
            Carries::Packets => libc::IFF_TUN | libc::IFF_NO_PI,
            Carries::VirtioFrames => libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR,
        };
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags)?;
        // SAFETY: the kernel reads and writes one request, which outlives the call.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        ensure!(made >= 0, "cannot make {name}: {}", io::Error::last_os_error());
        Ok(file)
    })
}

/// Carries packets between a TUN device of one name in each of two namespaces, until it is dropped.
#[derive(Debug)]
pub struct TunWire {
    ended: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

impl TunWire {
    /// Makes both devices.
    pub fn between(one: &Namespace, other: &Namespace, name: &str) -> Result<Self> {
        let [one, other] = [one, other].map(|namespace| tun(namespace, name, Carries::Packets));
        let (one, other) = (Arc::new(one?), Arc::new(other?));
        let ended = Arc::new(AtomicBool::new(false));
        let carriers = [(Arc::clone(&one), Arc::clone(&other)), (other, one)]
            .map(|(from, to)| {
                let ended = Arc::clone(&ended);
                thread::spawn(move || carry(&from, &to, &ended))
            })
            .into();
        Ok(Self { ended, carriers })
    }
}

impl Drop for TunWire {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            // One that has panicked has carried nothing since, which the test has seen.
            carrier.join().ok();
        }
    }
}

fn carry(mut from: &File, mut to: &File, ended: &AtomicBool) {
    // Milliseconds until it looks whether it is to end.
    const PATIENCE: u16 = 100;
    let mut packet = vec![0; usize::from(u16::MAX)];
    while !ended.load(Ordering::Relaxed) {
        let mut readable = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if poll(&mut readable, PollTimeout::from(PATIENCE)) != Ok(1) {
            continue;
        }
        // A device that is down refuses, as a cable that is out loses.
        if let Ok(length) = from.read(&mut packet) {
            to.write_all(&packet[..length]).ok();
        }
    }
}
