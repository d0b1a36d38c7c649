//! The overlay's TC programs: thin hands around `overlay_common::decide`.
#![no_std]
#![no_main]
#![expect(
    clippy::inline_always,
    reason = "a BPF program is one function: calls cost stack and registers"
)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "helpers take and return numbers of other widths than they need"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the kernel hands a program its context by value"
)]

mod hooks;
mod maps;
mod packet;
mod probe;
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
