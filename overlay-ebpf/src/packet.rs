//! The packet under a program's hands: the only place with pointer arithmetic.

use aya_ebpf::programs::TcContext;
use overlay_common::packet::{Header, Packet};

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
        // SAFETY: `pointer` has checked the bounds, and a `Header` may lie at any address.
        unsafe { target.write_unaligned(header) };
        Some(())
    }
}

impl Packet for Skb<'_> {
    #[inline(always)]
    fn load<T: Header>(&self, offset: usize) -> Option<T> {
        let source = self.pointer::<T>(offset)?;
        // SAFETY: `pointer` has checked the bounds, and a `Header` can be read from any bytes.
        Some(unsafe { source.read_unaligned() })
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
