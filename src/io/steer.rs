//! Small kernel programs (classic BPF) on our UDP sockets.
//!
//! One spreads a single peer over the workers of the receiver. A peer with n workers sends from n source ports whose
//! low bytes are consecutive (see [`super::udp`]); the group's program takes that low byte modulo its own number of
//! workers. With as many workers on both sides, each receiver hears exactly one sender, and a GSO burst, which is
//! steered whole, stays whole. The ports alone decide: the hash of the four-tuple, which puts four flows on four
//! sockets one time in ten, is only the fallback.
//!
//! Another serves WireGuard peers, which send from one port: it reads the receiver index that we gave the session, so a
//! session's transport messages all come to the worker its index names. Handshakes go to worker 0.
//!
//! The third drops everything, for the sockets that only send.
//!
//! Source: linux/filter.h, linux/bpf_common.h, socket(7) SO_ATTACH_REUSEPORT_CBPF, net/core/sock_reuseport.c.

use std::os::fd::AsFd;

use nix::Result;

use super::sys;

/// The low byte of a source port decides which worker of the receiver gets the datagram.
pub const PORT_RESIDUES: u16 = 256;

/// What the group's program answers to leave the choice to the kernel's hash: an index no group has.
const LEAVE_IT_TO_THE_HASH: u32 = 0xffff;

/// The first byte of a transport message, and where its receiver index starts: little-endian, so with the low byte.
const TRANSPORT_MESSAGE: u32 = 4;
const RECEIVER_INDEX: u32 = 4;

const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const SHIFT_RIGHT: u16 = (libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K) as u16;
const MODULO: u16 = (libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN_A: u16 = (libc::BPF_RET | libc::BPF_A) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Steers the REUSEPORT group of `socket` by the low byte of the UDP source port, modulo `workers`.
///
/// Once per group and family, after all its sockets are bound; index 0 is the socket bound first. Packets with IPv4
/// options or IPv6 extension headers go where the hash sends them.
///
/// # Errors
/// EINVAL if the socket is in no group, EPERM or ENOSYS where a filter (seccomp) forbids BPF: the hash goes on
/// steering.
pub fn spread_by_source_port(socket: impl AsFd, workers: usize) -> Result<()> {
    assert!((1..=256).contains(&workers), "steer: {workers} workers, a group has 1 to 256");
    sys::attach_program(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &source_port_program(workers as u32))
}

/// Steers the REUSEPORT group of `socket` by what WireGuard says: transport messages (type 4) to the worker that is the
/// low byte of the receiver index modulo `workers`, everything else to the socket bound first.
///
/// Once per group and family, after all its sockets are bound. A burst is steered whole, by its first datagram. Workers
/// must not rely on it: a session's data may come to any of them.
///
/// # Errors
/// As [`spread_by_source_port`].
///
/// Source: WireGuard whitepaper §5.4.6.
pub fn spread_by_receiver_index(socket: impl AsFd, workers: usize) -> Result<()> {
    assert!((1..=256).contains(&workers), "steer: {workers} workers, a group has 1 to 256");
    sys::attach_program(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &receiver_index_program(workers as u32))
}

/// Drops whatever arrives at `socket` before it is queued.
///
/// # Errors
/// As the kernel gives them; the socket then queues up to its receive buffer and drops the rest.
pub fn drop_everything(socket: impl AsFd) -> Result<()> {
    sys::attach_program(socket, libc::SO_ATTACH_FILTER, &[statement(RETURN, 0)])
}

/// The data pointer stands at the UDP payload, so headers are loaded relative to the IP header (SKF_NET_OFF).
fn source_port_program(workers: u32) -> [libc::sock_filter; 13] {
    [
        statement(LOAD_BYTE, from_ip(0)),
        jump_if_equal(0x45, 0, 3), // IPv4 without options
        statement(LOAD_BYTE, from_ip(20 + 1)),
        statement(MODULO, workers),
        statement(RETURN_A, 0),
        statement(SHIFT_RIGHT, 4),
        jump_if_equal(6, 0, 5),
        statement(LOAD_BYTE, from_ip(6)),
        jump_if_equal(libc::IPPROTO_UDP as u32, 0, 3), // no extension header
        statement(LOAD_BYTE, from_ip(40 + 1)),
        statement(MODULO, workers),
        statement(RETURN_A, 0),
        statement(RETURN, LEAVE_IT_TO_THE_HASH),
    ]
}

/// A load behind the end of the payload ends the program with 0: that datagram is no transport message.
fn receiver_index_program(workers: u32) -> [libc::sock_filter; 6] {
    [
        statement(LOAD_BYTE, 0),
        jump_if_equal(TRANSPORT_MESSAGE, 0, 3),
        statement(LOAD_BYTE, RECEIVER_INDEX),
        statement(MODULO, workers),
        statement(RETURN_A, 0),
        statement(RETURN, 0),
    ]
}

const fn from_ip(offset: u32) -> u32 {
    (libc::SKF_NET_OFF as u32).wrapping_add(offset)
}

const fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

const fn jump_if_equal(k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: JUMP_IF_EQUAL, jt, jf, k }
}
