//! Eyes: every frame that enters a namespace, and every datagram that its stack takes as its own.

use std::{
    io,
    mem::{size_of, zeroed},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use nix::libc;
use overlay_lab::{Namespace, eventually};

use super::{
    frame::PORT,
    port::{set_option, socket},
};

/// What our packets carry: two bytes that say so, and two that say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marker(pub(crate) [u8; 4]);

const PREFIX: [u8; 2] = [0xa7, 0x7a];

impl Marker {
    /// One that nobody has had.
    pub(crate) fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let [.., high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        Self([PREFIX[0], PREFIX[1], high, low])
    }

    fn is_in(self, frame: &[u8]) -> bool {
        frame.windows(4).any(|bytes| bytes == self.0)
    }
}

/// As much as keeps what comes while a busy machine does not let us look.
const BUFFER: i32 = 64 << 20;

/// A namespace that is looked into; ended when dropped.
#[derive(Debug)]
pub(crate) struct Sniffer {
    pub(crate) place: String,
    /// Whether the kernel counts what it could not keep.
    counts: bool,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    seen: Mutex<Vec<Vec<u8>>>,
    /// How often there was nothing to see for a moment.
    pauses: AtomicU64,
    stop: AtomicBool,
}

/// How long a moment is.
const MOMENT: libc::timeval = libc::timeval { tv_sec: 0, tv_usec: 10_000 };

impl Sniffer {
    /// Frames that come in by any device, tags included, of which `wanted` wants them kept.
    pub(crate) fn frames(
        namespace: &Namespace,
        place: &str,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Self {
        let socket = socket(namespace, None, u16::try_from(libc::ETH_P_ALL).unwrap());
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32).unwrap();
        let mut sniffer = Self::start(socket, place, wanted);
        sniffer.counts = true;
        sniffer
    }

    /// Frames that carry a marker.
    pub(crate) fn marked(namespace: &Namespace, place: &str) -> Self {
        Self::frames(namespace, place, is_marked)
    }

    /// Datagrams to [`PORT`] that the stack of a namespace takes as its own and that carry a marker.
    pub(crate) fn host(namespace: &Namespace, place: &str) -> Self {
        Self::datagrams(namespace, place, |packet| {
            let header = usize::from(packet[0] & 15) * 4;
            is_marked(packet) && packet.get(header + 2..header + 4) == Some(&PORT.to_be_bytes())
        })
    }

    /// Datagrams, from their IPv4 header on, that the stack of a namespace takes as its own.
    pub(crate) fn datagrams(
        namespace: &Namespace,
        place: &str,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Self {
        let socket: OwnedFd = namespace
            .within(|| {
                let socket = socket2::Socket::new(
                    socket2::Domain::IPV4,
                    socket2::Type::RAW,
                    Some(socket2::Protocol::UDP),
                )?;
                Ok(socket.into())
            })
            .unwrap();
        Self::start(socket, place, wanted)
    }

    fn start(
        socket: OwnedFd,
        place: &str,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Self {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER).unwrap();
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &MOMENT).unwrap();
        let shared = Arc::new(Shared {
            socket,
            seen: Mutex::default(),
            pauses: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let look = Arc::clone(&shared);
        let thread = std::thread::spawn(move || look.run(wanted));
        Self { place: place.to_owned(), counts: false, shared, thread: Some(thread) }
    }

    /// Waits until all that has come to these places has been looked at.
    pub(crate) fn settle<'a>(sniffers: impl IntoIterator<Item = &'a Self>) {
        let sniffers: Vec<&Self> = sniffers.into_iter().collect();
        let pauses = |sniffer: &Self| sniffer.shared.pauses.load(Ordering::Acquire);
        let before: Vec<u64> = sniffers.iter().copied().map(pauses).collect();
        for (sniffer, before) in sniffers.iter().zip(before) {
            eventually(Duration::from_secs(30), &format!("{} to be quiet", sniffer.place), || {
                // The first may have begun before we asked.
                anyhow::ensure!(pauses(sniffer) - before >= 2, "there is always more");
                Ok(())
            })
            .unwrap();
        }
    }

    /// What was kept.
    pub(crate) fn seen(&self) -> Vec<Vec<u8>> {
        self.shared.seen().clone()
    }

    /// How many frames with this marker came.
    pub(crate) fn count(&self, marker: Marker) -> u64 {
        self.shared.seen().iter().filter(|frame| marker.is_in(frame)).count() as u64
    }

    /// How many frames the kernel could not keep for us since this was asked last; it does not say for datagrams.
    pub(crate) fn missed(&self) -> u32 {
        if !self.counts {
            return 0;
        }
        let mut statistics = [0_u32; 2];
        let mut length = u32::try_from(size_of_val(&statistics)).unwrap();
        // SAFETY: the kernel writes no more than the length it is told, that of two numbers.
        let got = unsafe {
            libc::getsockopt(
                self.shared.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        assert_eq!(got, 0, "{}", io::Error::last_os_error());
        statistics[1]
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn is_marked(frame: &[u8]) -> bool {
    frame.windows(2).any(|bytes| bytes == PREFIX)
}

impl Shared {
    fn seen(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, wanted: impl Fn(&[u8]) -> bool) {
        let mut buffer = vec![0; 1 << 17];
        while !self.stop.load(Ordering::Relaxed) {
            match self.receive(&mut buffer) {
                Some(length) if length > 0 && wanted(&buffer[..length]) => {
                    self.seen().push(buffer[..length].to_vec());
                }
                Some(_) => {}
                None => drop(self.pauses.fetch_add(1, Ordering::Release)),
            }
        }
    }

    /// The next frame's length, 0 for one that is on its way out; nothing where none comes.
    fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        // SAFETY: a header, an address and control data of zeros are empty ones.
        let (mut header, mut from, mut control): (libc::msghdr, libc::sockaddr_ll, [u64; 16]) =
            unsafe { (zeroed(), zeroed(), zeroed()) };
        // Room for a tag that the kernel has taken out.
        let mut vector =
            libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() - 4 };
        header.msg_name = (&raw mut from).cast();
        header.msg_namelen = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control) as _;
        // SAFETY: everything that the header points to outlives the call and has the length it says.
        let received = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, 0) };
        let length = usize::try_from(received).ok()?;
        let packet = i32::from(from.sll_family) == libc::AF_PACKET;
        if packet && from.sll_pkttype == libc::PACKET_OUTGOING {
            return Some(0);
        }
        match tag(&header) {
            Some(tag) if packet && length >= 12 => {
                buffer.copy_within(12..length, 16);
                buffer[12..16].copy_from_slice(&tag);
                Some(length + 4)
            }
            _ => Some(length),
        }
    }
}

/// The tag that the kernel took out of a frame.
fn tag(header: &libc::msghdr) -> Option<[u8; 4]> {
    // SAFETY: the header is one that the kernel has filled, and the control data it points to still there; an
    // auxiliary record is read where the kernel says that there is one.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            let record = &*control;
            if (record.cmsg_level, record.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
                let data: *const libc::c_void = libc::CMSG_DATA(control).cast();
                let data = data.cast::<libc::tpacket_auxdata>().read_unaligned();
                if data.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
                    return None;
                }
                let [a, b] = data.tp_vlan_tpid.to_be_bytes();
                let [c, d] = data.tp_vlan_tci.to_be_bytes();
                return Some([a, b, c, d]);
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}
