//! Single datagrams outside a worker's ring: handshakes, cookies, keepalives of the thread that speaks the protocol.
//!
//! They leave from the listen port like everything else, through descriptors of worker 0's sockets.
//!
//! Source: sendmsg(2), ip(7) and ipv6(7) for pktinfo, whitepaper §6.5 for the sticky source address.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;

use super::cmsg::SendControl;
use super::driver::Endpoint;
use super::message::{ADDRESS_BYTES, emit_address};
use super::udp::WorkerSockets;

/// Sends datagrams one by one, without waiting.
#[derive(Debug)]
pub struct Mailer {
    sockets: WorkerSockets,
}

impl Mailer {
    /// On clones of `sockets`; the port stays taken until both are dropped.
    ///
    /// # Errors
    /// EMFILE.
    pub fn new(sockets: &WorkerSockets) -> std::io::Result<Mailer> {
        Ok(Mailer { sockets: sockets.try_clone()? })
    }

    /// Sends `bytes` as one datagram with `tos` as its outer TOS or traffic class byte.
    ///
    /// A source address that went away with its interface or its route is given up: the datagram leaves from whichever
    /// one the routing table chooses.
    ///
    /// # Errors
    /// EAGAIN or ENOBUFS when there is no room, EAFNOSUPPORT without a socket of that family, EMSGSIZE, and what the
    /// network says: ENETUNREACH, EHOSTUNREACH, EPERM, ECONNREFUSED (of an earlier datagram), EACCES.
    pub fn send(&self, bytes: &[u8], to: Endpoint, tos: u8) -> nix::Result<()> {
        let family = if to.remote.is_ipv4() { &self.sockets.v4 } else { &self.sockets.v6 };
        let socket = family.as_ref().ok_or(Errno::EAFNOSUPPORT)?.sender();
        match send_from(socket, bytes, to, to.local, tos) {
            Err(Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH | Errno::EHOSTUNREACH)
                if to.local.is_some() =>
            {
                send_from(socket, bytes, to, None, tos)
            }
            sent => sent,
        }
    }
}

fn send_from(
    socket: &OwnedFd,
    bytes: &[u8],
    to: Endpoint,
    source: Option<IpAddr>,
    tos: u8,
) -> nix::Result<()> {
    let mut address = [0; ADDRESS_BYTES];
    let mut control = SendControl::new();
    if let Some(source) = source {
        control.source(source);
    }
    if tos != 0 {
        control.traffic_class(tos, to.remote.ip());
    }
    let mut iovec = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: (R) all zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_namelen = emit_address(to.remote, &mut address) as u32;
    header.msg_name = address.as_mut_ptr().cast();
    header.msg_iov = &raw mut iovec;
    header.msg_iovlen = 1;
    let control = control.bytes();
    if !control.is_empty() {
        header.msg_control = control.as_ptr().cast_mut().cast();
        header.msg_controllen = control.len();
    }
    loop {
        // SAFETY: everything the header points at outlives this call, and sendmsg writes to none of it.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
        match Errno::result(sent) {
            Err(Errno::EINTR) => {}
            sent => return sent.map(drop),
        }
    }
}
