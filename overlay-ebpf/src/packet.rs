//! The packet under a program's hands: the only place with pointer arithmetic.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::BPF_CSUM_LEVEL_QUERY,
    helpers::generated::{bpf_csum_level, bpf_skb_load_bytes_relative},
    programs::TcContext,
};
use overlay_common::packet::{Header, Packet};

/// Ethernet, IPv4 and TCP up to its flags.
pub(crate) const TCP_HEADERS: u32 = 14 + 20 + 14;

/// Ethernet, four tags, IPv4 with all options, and UDP: whatever checks look at.
const CHECKED: u32 = 14 + 4 * 4 + 60 + 8;

/// `BPF_HDR_START_NET`: offsets count from the network header, which packets of every kind of interface have.
const BPF_HDR_START_NET: u32 = 1;

/// `include/uapi/linux/if_packet.h`
const PACKET_OTHERHOST: u32 = 3;

#[repr(C, align(8))]
struct Aligned<T>(T);

/// Copies a `T` word by word. Headers have alignment 1, for which the compiler would move single bytes;
/// the kernel's verifier accepts wide accesses to packets at any address where the processor does.
#[expect(clippy::cast_ptr_alignment, reason = "BPF moves words to and from any address")]
#[inline(always)]
unsafe fn copy_words<T>(from: *const u8, to: *mut u8) {
    let mut offset = 0;
    macro_rules! copy {
        ($word:ty) => {
            while size_of::<T>() - offset >= size_of::<$word>() {
                // SAFETY: the caller vouches for `size_of::<T>()` bytes on both sides.
                unsafe { *to.add(offset).cast::<$word>() = *from.add(offset).cast::<$word>() };
                offset += size_of::<$word>();
            }
        };
    }
    copy!(u32);
    copy!(u16);
    copy!(u8);
}

/// A packet, read and written in place.
pub(crate) struct Skb<'a> {
    pub(crate) ctx: &'a TcContext,
}

impl<'a> Skb<'a> {
    /// Makes at least the first `headers` bytes, or all there are, readable in place.
    #[inline(always)]
    pub(crate) fn new(ctx: &'a TcContext, headers: u32) -> Self {
        if ctx.data() + headers as usize > ctx.data_end() {
            let headers = headers.min(ctx.len());
            if ctx.data() + headers as usize > ctx.data_end() {
                // Where this fails, the headers cannot be read, and the decision says so.
                let _unreadable = ctx.pull_data(headers);
            }
        }
        Self { ctx }
    }

    #[inline(always)]
    fn pointer<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.ctx.data() + offset;
        (start + size_of::<T>() <= self.ctx.data_end()).then_some(start as *mut T)
    }

    /// Copies bytes that start `offset` behind the Ethernet header, if they are readable in place.
    #[inline(always)]
    fn copy_network<T: Header>(&self, offset: usize, to: &mut MaybeUninit<Aligned<T>>) -> bool {
        // SAFETY: the kernel writes no more than the size it is told, that of a local.
        let failed = unsafe {
            bpf_skb_load_bytes_relative(
                self.ctx.skb.skb.cast(),
                offset as u32,
                to.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                BPF_HDR_START_NET,
            )
        };
        failed == 0
    }

    /// Overwrites the header at `offset`; `None` where the packet ends before.
    #[inline(always)]
    pub(crate) fn store<T: Header>(&self, offset: usize, header: T) -> Option<()> {
        let target = self.pointer::<T>(offset)?;
        let header = Aligned(header);
        // SAFETY: `pointer` has checked the bounds of one side, the other is a local of that size.
        unsafe { copy_words::<T>((&raw const header).cast(), target.cast()) };
        Some(())
    }
}

impl Packet for Skb<'_> {
    #[inline(always)]
    fn load<T: Header>(&self, offset: usize) -> Option<T> {
        let source = self.pointer::<T>(offset)?;
        let mut header = MaybeUninit::<Aligned<T>>::uninit();
        // SAFETY: `pointer` has checked the bounds of one side, the other is a local of that size;
        // a `Header` can be made of any bytes.
        unsafe {
            copy_words::<T>(source.cast(), header.as_mut_ptr().cast());
            Some(header.assume_init().0)
        }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.ctx.len()
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (*self.ctx.skb.skb).gso_size }
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.ctx.skb.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn vlan_id(&self) -> u16 {
        // SAFETY: as above.
        unsafe { (*self.ctx.skb.skb).vlan_tci as u16 & 0x0fff }
    }

    #[inline(always)]
    fn is_for_another_host(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.ctx.skb.skb).pkt_type == PACKET_OTHERHOST }
    }

    #[inline(always)]
    fn checksum_verified(&self) -> bool {
        // SAFETY: as above.
        let level = unsafe { bpf_csum_level(self.ctx.skb.skb, u64::from(BPF_CSUM_LEVEL_QUERY)) };
        level >= 0
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.ctx.skb.skb).mark }
    }

    #[inline(always)]
    fn protocol(&self) -> [u8; 2] {
        // SAFETY: as above.
        (unsafe { (*self.ctx.skb.skb).protocol } as u16).to_ne_bytes()
    }

    #[inline(always)]
    fn network<T: Header>(&self, offset: usize) -> Option<T> {
        let mut header = MaybeUninit::<Aligned<T>>::uninit();
        let read = self.copy_network(offset, &mut header)
            || (self.ctx.pull_data(self.ctx.len().min(CHECKED)).is_ok()
                && self.copy_network(offset, &mut header));
        // SAFETY: the kernel has filled it, and a `Header` can be made of any bytes.
        read.then(|| unsafe { header.assume_init().0 })
    }
}

/// What `tc_index` says of a packet between two of our programs. Nothing but TC looks at it.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Nothing.
    None = 0,
    /// One of our programs delivers it to the bridge.
    Delivered = 0x4f56,
    /// One of our programs sends it to a peer.
    Sent = 0x4f57,
    /// From an overlay address and not encapsulated, and let in all the same.
    Admitted = 0x4f58,
    /// One of our programs has judged it on the uplink, and decapsulated it.
    Decapsulated = 0x4f59,
}

impl Mark {
    /// Marks a packet.
    #[inline(always)]
    pub(crate) fn set(self, ctx: &TcContext) {
        // SAFETY: the context is valid for as long as the program runs.
        unsafe { (*ctx.skb.skb).tc_index = self as u32 };
    }

    /// Whether a packet is marked so.
    #[inline(always)]
    pub(crate) fn is_on(self, ctx: &TcContext) -> bool {
        // SAFETY: as above.
        unsafe { (*ctx.skb.skb).tc_index == self as u32 }
    }
}

/// The interface that the packet came to this host by; 0 where this host made it.
#[inline(always)]
pub(crate) fn ingress_ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for as long as the program runs.
    unsafe { (*ctx.skb.skb).ingress_ifindex }
}

/// The interface that the program runs on.
#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for as long as the program runs.
    unsafe { (*ctx.skb.skb).ifindex }
}
