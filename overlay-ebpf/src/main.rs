//! The overlay's TC programs: thin hands around `overlay_common::decide`.
#![no_std]
#![no_main]

mod hooks;
mod maps;
mod packet;
mod steps;
mod verdict;

/// The kernel offers its GPL-only helpers to programs under a licence it knows.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
