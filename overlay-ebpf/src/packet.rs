//! The packet under a program's hands: the only place with pointer arithmetic.

use core::mem::MaybeUninit;

use aya_ebpf::programs::TcContext;
use overlay_common::packet::{Header, Packet};

/// Ethernet, IPv4 and TCP up to the data offset.
pub(crate) const TCP_HEADERS: u32 = 14 + 20 + 13;

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
        if ctx.data() + headers as usize > ctx.data_end() && ctx.len() >= headers {
            // Where this fails, the headers cannot be read, and the decision says so.
            let _unreadable = ctx.pull_data(headers);
        }
        Self { ctx }
    }

    #[inline(always)]
    fn pointer<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.ctx.data() + offset;
        (start + size_of::<T>() <= self.ctx.data_end()).then_some(start as *mut T)
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
}

/// The interface that the program runs on.
#[inline(always)]
pub(crate) fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for as long as the program runs.
    unsafe { (*ctx.skb.skb).ifindex }
}
