//! What a submission points at: msghdr, iovecs, addresses, heads. Shared by the io_uring and the syscall driver, and with what
//! moves single datagrams ([`super::tcp::datagrams`]).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;

use super::cmsg::{Overflow, RECEIVE_CONTROL_BYTES, ReceiveControl, SendControl};
use super::driver::Send;
use super::lease::Loans;
use super::sys::uninterrupted;
use super::udp::WorkerSockets;
use crate::offload::coalesce::{Gather, HEAD_BYTES_MAX, SEGMENTS_MAX};
use crate::offload::stride::Received;
use crate::time::Time;

/// A worker's descriptors.
#[derive(Debug)]
pub struct Devices {
    /// The TUN queue, non-blocking.
    pub tun: OwnedFd,
    /// The sockets.
    pub sockets: WorkerSockets,
}

/// struct sockaddr_in6, the longer of the two.
pub(super) const ADDRESS_BYTES: usize = 28;
const _: () = assert!(size_of::<libc::sockaddr_in6>() == ADDRESS_BYTES);
const IPV4_ADDRESS_BYTES: usize = 16;
const _: () = assert!(size_of::<libc::sockaddr_in>() == IPV4_ADDRESS_BYTES);

/// Room that a multishot receive keeps for the sender's address.
pub(super) const NAME_BYTES: usize = 32;
/// Where received datagrams start: behind struct io_uring_recvmsg_out (16), the address and the control bytes.
/// A multiple of 64, so that payloads start on a cache line. The syscall driver keeps the same room.
pub(super) const PAYLOAD_START: usize = 16 + NAME_BYTES + RECEIVE_CONTROL_BYTES;
const _: () = assert!(PAYLOAD_START.is_multiple_of(64));
const _: () = assert!(PAYLOAD_START + 65_535 <= super::lease::BUFFER_BYTES);

/// A head and one range per segment.
const IOVECS_MAX: usize = SEGMENTS_MAX + 1;

/// The memory one operation points at: argument (O) in [`super`].
pub(super) struct OperationMemory {
    header: libc::msghdr,
    address: [u8; ADDRESS_BYTES],
    control: SendControl,
    head: [u8; HEAD_BYTES_MAX],
    iovecs: [libc::iovec; IOVECS_MAX],
}

impl OperationMemory {
    pub fn new() -> OperationMemory {
        OperationMemory {
            // SAFETY: (R) all zero is a valid msghdr.
            header: unsafe { std::mem::zeroed() },
            address: [0; ADDRESS_BYTES],
            control: SendControl::new(),
            head: [0; HEAD_BYTES_MAX],
            iovecs: [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; IOVECS_MAX],
        }
    }

    /// Lays out sendmsg's argument for `send`.
    pub fn prepare_send(&mut self, send: &Send, loans: &Loans) -> *const libc::msghdr {
        let part = send.part;
        let bytes = loans.address(part);
        self.iovecs[0] = libc::iovec { iov_base: bytes.cast(), iov_len: part.len as usize };
        self.control = SendControl::new();
        if send.datagrams > 1 {
            self.control.segment(send.segment_bytes);
        }
        if let Some(source) = send.to.local {
            self.control.source(source);
        }
        if send.tos != 0 {
            self.control.traffic_class(send.tos, send.to.remote.ip());
        }
        let address_bytes = emit_address(send.to.remote, &mut self.address);
        let control = self.control.bytes();
        self.header.msg_name = self.address.as_mut_ptr().cast();
        self.header.msg_namelen = address_bytes as u32;
        self.header.msg_iov = self.iovecs.as_mut_ptr();
        self.header.msg_iovlen = 1;
        self.header.msg_controllen = control.len();
        self.header.msg_control =
            if control.is_empty() { ptr::null_mut() } else { control.as_ptr().cast_mut().cast() };
        &self.header
    }

    /// Lays out writev's argument for `gather`: address and number of iovecs.
    pub fn prepare_write(&mut self, gather: &Gather, loans: &Loans) -> (*const libc::iovec, usize) {
        let head = gather.head();
        self.head[..head.len()].copy_from_slice(head);
        self.iovecs[0] = libc::iovec { iov_base: self.head.as_mut_ptr().cast(), iov_len: head.len() };
        assert!(gather.parts.len() < IOVECS_MAX, "{} parts in one write", gather.parts.len());
        for (iovec, part) in self.iovecs[1..].iter_mut().zip(&gather.parts) {
            let bytes = loans.address(*part);
            *iovec = libc::iovec { iov_base: bytes.cast(), iov_len: part.len as usize };
        }
        (self.iovecs.as_ptr(), gather.parts.len() + 1)
    }
}

/// What the kernel says of a datagram that was received.
pub(super) struct Arrival {
    address: [u8; NAME_BYTES],
    address_bytes: usize,
    control: ControlBytes,
    control_bytes: usize,
    /// So many are in the room that was given.
    pub bytes: usize,
    /// There were more, and they are lost.
    pub truncated: bool,
}

/// Control bytes with the alignment of struct cmsghdr.
#[repr(C, align(8))]
struct ControlBytes([u8; RECEIVE_CONTROL_BYTES]);

impl Arrival {
    /// The sender's sockaddr, for [`parse_address`].
    pub fn address(&self) -> &[u8] {
        &self.address[..self.address_bytes]
    }

    /// For [`ReceiveControl::parse`].
    pub fn control(&self) -> &[u8] {
        &self.control.0[..self.control_bytes]
    }
}

/// Receives one datagram into `room`, without waiting.
///
/// # Errors
/// EAGAIN when there is none; what befell one that was sent before, and what else recvmsg(2) says.
pub(super) fn receive(fd: RawFd, room: &mut [u8]) -> Result<Arrival, Errno> {
    let mut address = [0; NAME_BYTES];
    let mut control = ControlBytes([0; RECEIVE_CONTROL_BYTES]);
    let mut iovec = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: (R) all zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = address.as_mut_ptr().cast();
    header.msg_namelen = NAME_BYTES as u32;
    header.msg_iov = &raw mut iovec;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = RECEIVE_CONTROL_BYTES;
    // SAFETY: everything the header points at is ours and outlives this call.
    let bytes = uninterrupted(|| unsafe { libc::recvmsg(fd, &raw mut header, libc::MSG_DONTWAIT) })?;
    Ok(Arrival {
        address,
        address_bytes: (header.msg_namelen as usize).min(NAME_BYTES),
        control,
        control_bytes: header.msg_controllen.min(RECEIVE_CONTROL_BYTES),
        bytes,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
    })
}

/// Puts together what the kernel said about a receive from the socket of `overflow`; `None` when the sender's address makes
/// no sense.
pub(super) fn received(
    address: &[u8],
    control: &[u8],
    bytes: usize,
    truncated: bool,
    overflow: &mut Overflow,
    realtime_offset: i64,
    now: Time,
) -> Option<Received> {
    let told = ReceiveControl::parse(control);
    let at = told.realtime_ns.map_or(now, |ns| Time::from_nanos((ns as i64 - realtime_offset).max(0) as u64));
    Some(Received {
        from: parse_address(address)?,
        to: told.to,
        start: PAYLOAD_START as u32,
        bytes: bytes as u32,
        stride: told.stride,
        tos: told.tos,
        truncated,
        overflown: overflow.more(told.overflown),
        // A wall clock that was set in between must not put the arrival into the future.
        at: at.min(now),
    })
}

/// Writes `address` as a sockaddr and returns its length. Source: ip(7), ipv6(7).
pub(super) fn emit_address(address: SocketAddr, out: &mut [u8; ADDRESS_BYTES]) -> usize {
    out[2..4].copy_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => {
            out[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
            out[4..8].copy_from_slice(&v4.ip().octets());
            out[8..16].fill(0);
            IPV4_ADDRESS_BYTES
        }
        SocketAddr::V6(v6) => {
            out[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
            out[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
            out[8..24].copy_from_slice(&v6.ip().octets());
            out[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
            ADDRESS_BYTES
        }
    }
}

/// Reads a sockaddr; `None` if it is none of IP.
pub(super) fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk()?);
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    match family as i32 {
        libc::AF_INET => {
            let ip: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
            Some(SocketAddrV4::new(Ipv4Addr::from(ip), port).into())
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_to_the_kernel_and_back() {
        for text in ["192.0.2.7:51820", "[2001:db8::1]:443", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().expect("an address");
            let mut bytes = [0xff; ADDRESS_BYTES];
            let length = emit_address(address, &mut bytes);
            assert_eq!(parse_address(&bytes[..length]), Some(address));
        }
    }

    #[test]
    fn no_address_comes_from_too_few_bytes_or_another_family() {
        assert_eq!(parse_address(&[]), None);
        assert_eq!(parse_address(&[2, 0, 1]), None);
        assert_eq!(parse_address(&[1, 0, 1, 1, 1, 1, 1, 1]), None);
    }
}
