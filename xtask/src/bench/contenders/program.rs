//! The BPF programs of the contenders that are not ours, assembled here: they are a dozen steps each,
//! and no compiler is needed to measure them.

use std::{
    ffi::CString,
    fs, io,
    net::Ipv4Addr,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::libc;
use overlay_lab::Host;

use super::index_of;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Helpers by their number in `include/uapi/linux/bpf.h`.
mod helper {
    pub(super) const SKB_STORE_BYTES: i32 = 9;
    pub(super) const SKB_GET_TUNNEL_KEY: i32 = 20;
    pub(super) const SKB_SET_TUNNEL_KEY: i32 = 21;
    pub(super) const REDIRECT: i32 = 23;
    pub(super) const SKB_LOAD_BYTES: i32 = 26;
    pub(super) const REDIRECT_PEER: i32 = 155;
}

/// Offset of `protocol` in `struct __sk_buff`.
const PROTOCOL: i16 = 16;

/// The packet's context, kept over calls.
const CONTEXT: u8 = 6;
/// The frame pointer.
const FRAME: u8 = 10;

/// A frame's two MAC addresses on the stack.
const MACS_AT: i16 = -48;
/// `struct bpf_tunnel_key`, up to its label, on the stack.
const KEY_AT: i16 = -32;
/// Its length.
const KEY_LENGTH: i32 = 24;
/// An address on the stack.
const ADDRESS_AT: i16 = -4;

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate }
}

const fn move_immediate(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}

const fn move_register(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

const fn add_immediate(to: u8, value: i16) -> Instruction {
    instruction(0x07, to, 0, 0, value as i32)
}

const fn load_word(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x61, to, from, offset, 0)
}

const fn store_word(offset: i16, value: i32) -> Instruction {
    instruction(0x62, FRAME, 0, offset, value)
}

const fn store_half(offset: i16, value: i32) -> Instruction {
    instruction(0x6a, FRAME, 0, offset, value)
}

const fn call(helper: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, helper)
}

const EXIT: Instruction = instruction(0x95, 0, 0, 0, 0);

/// Jumps to the end of the program unless the lower half of a register has this value. Where the end is
/// gets known later.
const fn leave_unless(register: u8, value: i32) -> Instruction {
    instruction(0x56, register, 0, 0, value)
}

/// A program under construction.
struct Assembler(Vec<Instruction>);

impl Assembler {
    fn new() -> Self {
        Self(vec![move_register(CONTEXT, 1)])
    }

    fn push(&mut self, instructions: &[Instruction]) {
        self.0.extend_from_slice(instructions);
    }

    /// Leaves what is not IPv4 to an address under this prefix.
    fn leave_unless_to(&mut self, address: [u8; 4], mask: [u8; 4]) {
        const DESTINATION: i32 = 14 + 16;
        const IPV4: i32 = i32::from_le_bytes([8, 0, 0, 0]);
        self.push(&[
            load_word(2, CONTEXT, PROTOCOL),
            leave_unless(2, IPV4),
            move_register(1, CONTEXT),
            move_immediate(2, DESTINATION),
            move_register(3, FRAME),
            add_immediate(3, ADDRESS_AT),
            move_immediate(4, 4),
            call(helper::SKB_LOAD_BYTES),
            leave_unless(0, 0),
            load_word(1, FRAME, ADDRESS_AT),
            // And with the mask.
            instruction(0x57, 1, 0, 0, i32::from_le_bytes(mask)),
            leave_unless(1, i32::from_le_bytes(address)),
        ]);
    }

    /// Overwrites how the frame begins: the destination's MAC address, or that and the source's.
    fn store_macs(&mut self, macs: &[u8]) {
        let length = i16::try_from(macs.len()).unwrap_or(i16::MAX);
        for (at, half) in (MACS_AT..).step_by(2).zip(macs.chunks_exact(2)) {
            self.push(&[store_half(at, i32::from(u16::from_le_bytes([half[0], half[1]])))]);
        }
        self.push(&[
            move_register(1, CONTEXT),
            move_immediate(2, 0),
            move_register(3, FRAME),
            add_immediate(3, MACS_AT),
            move_immediate(4, length.into()),
            move_immediate(5, 0),
            call(helper::SKB_STORE_BYTES),
        ]);
    }

    /// Ends with a redirect, and returns the whole program.
    fn redirect(mut self, by: i32, to: u32) -> Vec<Instruction> {
        self.push(&[move_immediate(1, to.cast_signed()), move_immediate(2, 0), call(by), EXIT]);
        let end = self.0.len();
        for (place, instruction) in self.0.iter_mut().enumerate() {
            if instruction.code == 0x56 {
                instruction.offset = i16::try_from(end - place - 1).unwrap_or(i16::MAX);
            }
        }
        // TC_ACT_UNSPEC: as if it were not there.
        self.push(&[move_immediate(0, -1), EXIT]);
        self.0
    }
}

/// What goes to `subnet` (a /24) goes to `device` for the VTEP `peer`.
pub(super) fn to_tunnel(
    subnet: [u8; 4],
    peer: Ipv4Addr,
    peer_mac: [u8; 6],
    device: u32,
) -> Vec<Instruction> {
    const ZERO_CHECKSUM: i32 = 2;
    const VNI: i32 = 1;
    const TTL: i32 = 64;
    let mut program = Assembler::new();
    program.leave_unless_to(subnet, [255, 255, 255, 0]);
    program.push(&[
        store_word(KEY_AT, VNI),
        store_word(KEY_AT + 4, peer.to_bits().cast_signed()),
        store_word(KEY_AT + 8, 0),
        store_word(KEY_AT + 12, 0),
        store_word(KEY_AT + 16, 0),
        store_word(KEY_AT + 20, TTL << 8),
        move_register(1, CONTEXT),
        move_register(2, FRAME),
        add_immediate(2, KEY_AT),
        move_immediate(3, KEY_LENGTH),
        move_immediate(4, ZERO_CHECKSUM),
        call(helper::SKB_SET_TUNNEL_KEY),
        leave_unless(0, 0),
    ]);
    program.store_macs(&peer_mac);
    program.redirect(helper::REDIRECT, device)
}

/// What the device received goes to the container behind `veth`.
pub(super) fn to_container(mac: [u8; 6], veth: u32) -> Vec<Instruction> {
    let mut program = Assembler::new();
    program.push(&[
        move_register(1, CONTEXT),
        move_register(2, FRAME),
        add_immediate(2, KEY_AT),
        move_immediate(3, KEY_LENGTH),
        move_immediate(4, 0),
        call(helper::SKB_GET_TUNNEL_KEY),
        leave_unless(0, 0),
    ]);
    program.store_macs(&mac);
    program.redirect(helper::REDIRECT_PEER, veth)
}

/// What goes to `subnet` (a /24) goes out of `uplink` as it is, from and to the hosts with these MAC
/// addresses. Were it not from the host's own, the switch would forget that one after a while, and send
/// what comes for it to every port.
pub(super) fn to_uplink(
    subnet: [u8; 4],
    [peer_mac, own_mac]: [[u8; 6]; 2],
    uplink: u32,
) -> Vec<Instruction> {
    let mut program = Assembler::new();
    program.leave_unless_to(subnet, [255, 255, 255, 0]);
    program.store_macs(&[peer_mac, own_mac].concat());
    program.redirect(helper::REDIRECT, uplink)
}

/// What comes for `address` goes to the container behind `veth`.
pub(super) fn from_uplink(address: Ipv4Addr, mac: [u8; 6], veth: u32) -> Vec<Instruction> {
    let mut program = Assembler::new();
    program.leave_unless_to(address.octets(), [255; 4]);
    program.store_macs(&mac);
    program.redirect(helper::REDIRECT_PEER, veth)
}

/// The part of `union bpf_attr` that loading takes.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// The part of `union bpf_attr` that pinning takes.
#[repr(C)]
struct PinAttributes {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that attaching takes.
#[repr(C)]
struct LinkAttributes {
    program: u32,
    device: u32,
    attach_type: u32,
    flags: u32,
}

/// Runs a program over everything that a device of a host receives, in the way that our agent does: by
/// TCX where the kernel has it, else by a filter, which costs more.
pub(super) fn attach(host: &Host, name: &str, program: &[Instruction], device: &str) -> Result<()> {
    let pins = host.pins();
    fs::create_dir_all(pins).with_context(|| format!("cannot create {}", pins.display()))?;
    let file = pins.join(name);
    let program = load(name, program)?;
    let index = index_of(host.namespace(), device)?;
    let descriptor = program.as_raw_fd();
    // The kernel looks for the device in the namespace of the thread that asks.
    match host.namespace().within(move || Ok(link(descriptor, index)))? {
        Ok(link) => pin(&link, &file),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            pin(&program, &file)?;
            let tc = |arguments: &str| host.command("tc").args(arguments.split(' '));
            tc(&format!("qdisc add dev {device} clsact")).run()?;
            tc(&format!("filter add dev {device} ingress bpf direct-action object-pinned"))
                .arg(&file)
                .run()?;
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("cannot attach {name} to {device}")),
    }
}

/// Loads a TC program.
fn load(name: &str, program: &[Instruction]) -> Result<OwnedFd> {
    const PROG_LOAD: libc::c_long = 5;
    const SCHED_CLS: u32 = 3;
    let license = c"GPL";
    let mut log = vec![0_u8; 1 << 16];
    let attributes = LoadAttributes {
        program_type: SCHED_CLS,
        instruction_count: u32::try_from(program.len()).context("a program that long")?,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 1,
        log_size: u32::try_from(log.len()).context("a log that long")?,
        log: log.as_mut_ptr() as u64,
    };
    // SAFETY: the attributes point to memory that outlives the call, and lengths are right.
    let loaded = unsafe { bpf(PROG_LOAD, &raw const attributes) };
    loaded.with_context(|| {
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
        format!("the kernel refuses {name}: {}", String::from_utf8_lossy(&log[..end]))
    })
}

/// Attaches a program to what a device of this thread's namespace receives, for as long as the link is
/// open or pinned. A kernel without TCX says `EINVAL`.
fn link(program: RawFd, device: u32) -> io::Result<OwnedFd> {
    const LINK_CREATE: libc::c_long = 28;
    const TCX_INGRESS: u32 = 46;
    let attributes = LinkAttributes {
        program: program.cast_unsigned(),
        device,
        attach_type: TCX_INGRESS,
        flags: 0,
    };
    // SAFETY: the attributes are numbers.
    unsafe { bpf(LINK_CREATE, &raw const attributes) }
}

/// Keeps a program or a link alive in the BPF file system.
fn pin(object: &OwnedFd, file: &Path) -> Result<()> {
    const OBJ_PIN: libc::c_long = 6;
    let path = CString::new(file.as_os_str().as_bytes())
        .with_context(|| format!("{} has a zero byte", file.display()))?;
    let attributes = PinAttributes {
        path: path.as_ptr() as u64,
        descriptor: object.as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    // SAFETY: the path lives. Pinning returns 0, which is nobody's descriptor to close.
    let pinned = unsafe { bpf_raw(OBJ_PIN, &raw const attributes) };
    if pinned != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot pin {}", file.display()));
    }
    Ok(())
}

/// # Safety
///
/// The attributes must be those of the command, and what they point to must live.
unsafe fn bpf_raw<T>(command: libc::c_long, attributes: *const T) -> libc::c_long {
    // SAFETY: promised by the caller.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) }
}

/// # Safety
///
/// As [`bpf_raw`], for a command that returns a new descriptor.
unsafe fn bpf<T>(command: libc::c_long, attributes: *const T) -> io::Result<OwnedFd> {
    // SAFETY: promised by the caller.
    let result = unsafe { bpf_raw(command, attributes) };
    match i32::try_from(result) {
        // SAFETY: the kernel made this descriptor for us.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_out_of_the_middle_ends_at_the_last_two_instructions() {
        let peer = Ipv4Addr::new(192, 168, 33, 11);
        for program in [
            to_tunnel([10, 40, 2, 0], peer, [2, 0, 0, 0, 0, 1], 7),
            to_container([2; 6], 9),
            to_uplink([10, 40, 2, 0], [[2; 6], [4; 6]], 7),
            from_uplink(peer, [2; 6], 9),
        ] {
            let end = program.len() - 2;
            let jumps: Vec<_> =
                program.iter().enumerate().filter(|(_, it)| it.code == 0x56).collect();
            assert!(!jumps.is_empty());
            for (place, jump) in jumps {
                assert_eq!(place + 1 + usize::try_from(jump.offset).unwrap(), end);
            }
            assert_eq!(program[end..], [move_immediate(0, -1), EXIT]);
        }
    }
}
