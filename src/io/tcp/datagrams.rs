//! Datagrams beside [`Tcp`]: the sockets that visitors share, and those that know one service.
//!
//! ```text
//!   user                              Udp                                 kernel
//!   bind / associate ──────▶ received from at once ─────────────▶ queues what comes
//!   Datagram { chunk } ◀──── so many per socket and turn ◀─────── recvmsg
//!   send_datagram ─────────▶ now or never ──────────────────────▶ sendmsg
//! ```
//!
//! Nobody is ever made to wait: what finds no room is lost, and the caller is told. Both drivers do the same here: an epoll
//! of all datagram sockets, which the ring polls as one descriptor, says which are readable. So a socket that is closed frees
//! its port at once, with nothing under way that would hold it.
//!
//! What found a socket's queue in the kernel full is counted there, and told with the next datagram (SO_RXQ_OVFL).
//!
//! Source: udp(7), ip(7), ipv6(7), socket(7), epoll(7).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::sockopt::Ipv6V6Only;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockname, setsockopt, socket,
};

use super::sockets::to_std;
use super::{Chunk, Event, Id, IdMap, Tcp};
use crate::io::cmsg::{Overflow, ReceiveControl, SendControl};
pub use crate::io::driver::Endpoint;
use crate::io::lease::{BUFFER_BYTES, Lease};
use crate::io::message::{self, ADDRESS_BYTES, emit_address, parse_address};
use crate::io::{sys, udp};

/// The longest payload there is: that of an IPv6 packet of 65,535 bytes; IPv4 has room for 20 less.
pub const PAYLOAD_BYTES_MAX: usize = 65_527;
/// Room in front of a payload that was received, for [`Chunk::prepend`].
pub const HEADROOM: usize = 64;
const _: () = assert!(HEADROOM + PAYLOAD_BYTES_MAX <= BUFFER_BYTES);

/// Buffers of each driver that hold nothing but datagrams: as many as may come in one turn.
pub(super) const BUFFERS: u16 = 32;
/// Datagrams received from one socket in one turn, so that no other has to wait for long.
const SHARE: usize = 8;
/// What a socket may have queued in the kernel, in the kernel's count: some seven datagrams of 64 KiB. Without privileges
/// it is what net.core.rmem_max allows.
const QUEUE_BYTES: usize = 1 << 20;

/// Hands that move datagrams too. What is said of [`Id`]s at [`Tcp`] holds here; [`Tcp::close`] ends a socket.
pub trait Udp: Tcp {
    /// Receives whatever comes to `address` from now on, port 0 being any free one; the address it became. An IPv6 wildcard
    /// serves IPv4 too.
    ///
    /// # Errors
    /// EADDRINUSE, EACCES, EADDRNOTAVAIL, EMFILE, and what else socket(2) and bind(2) say.
    fn bind(&mut self, address: SocketAddr) -> Result<(Id, SocketAddr), Errno>;

    /// A socket that exchanges datagrams with `address` and nobody else.
    ///
    /// # Errors
    /// EMFILE, ENETUNREACH, and what else socket(2) and connect(2) say.
    fn associate(&mut self, address: SocketAddr) -> Result<Id, Errno>;

    /// Sends one datagram, at once or not at all: to `to`, or where the socket is associated with.
    ///
    /// # Errors
    /// The datagram is lost: EAGAIN and ENOBUFS without room, EMSGSIZE if it is too long, EBADF if `id` was closed, and what
    /// else sendmsg(2) says. What befell an earlier datagram is no error here but an [`Event::Undelivered`].
    fn send_datagram(&mut self, id: Id, to: Option<Endpoint>, payload: &[u8]) -> Result<(), Errno>;
}

/// A socket for [`Udp::bind`].
pub(super) fn shared(address: SocketAddr) -> Result<(UdpSocket, SocketAddr), Errno> {
    let fd = open(address)?;
    if address.is_ipv6() {
        setsockopt(&fd, Ipv6V6Only, &!address.ip().is_unspecified())?;
    }
    if address.ip().is_unspecified() {
        // Whoever asked one address of several wants the answer from there.
        let (level, name) = match address {
            SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
            SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        };
        sys::set_option(&fd, level, name, 1)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    let bound = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
    Ok((UdpSocket::from(fd), to_std(&bound).unwrap_or(address)))
}

/// A socket for [`Udp::associate`].
pub(super) fn associated(address: SocketAddr) -> Result<UdpSocket, Errno> {
    let fd = open(address)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(UdpSocket::from(fd))
}

/// Datagrams may be cut into fragments on their way (DF is clear): whoever sent one has no path of its own to measure here.
fn open(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Datagram, flags, None)?;
    sys::set_option(&fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    if address.is_ipv6() {
        sys::set_option(&fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
    }
    sys::set_option(&fd, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
    for (force, plain) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)] {
        udp::grant(&fd, force, plain, QUEUE_BYTES);
    }
    Ok(fd)
}

/// The datagram sockets of one driver: who is readable, and buffers for what comes.
#[derive(Debug)]
pub(super) struct Datagrams {
    epoll: Epoll,
    free: Vec<Lease>,
    /// How many datagrams a socket had no room for, as the kernel said last.
    overflown: IdMap<Overflow>,
}

impl Datagrams {
    /// With `free` for what comes.
    ///
    /// # Errors
    /// EMFILE.
    pub fn new(free: Vec<Lease>) -> io::Result<Datagrams> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Datagrams { epoll, free, overflown: IdMap::default() })
    }

    /// Readable when one of the sockets is.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Receives from `socket` until it is closed.
    ///
    /// # Errors
    /// ENOSPC, ENOMEM.
    pub fn watch(&self, socket: impl AsFd, id: Id) -> Result<(), Errno> {
        self.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, u64::from(id.key())))
    }

    /// Takes a buffer back.
    pub fn take_home(&mut self, lease: Lease) {
        self.free.push(lease);
    }

    /// Receives what has come, from each socket at most [`SHARE`] datagrams and as many in all as there are buffers. The
    /// kernel lets sockets of which something is left stand behind the others. `socket` is the one with this key.
    pub fn serve(&mut self, mut socket: impl FnMut(u32) -> Option<(Id, RawFd)>, events: &mut Vec<Event>) {
        let mut readable = [EpollEvent::empty(); BUFFERS as usize];
        let Some(room) = readable.get_mut(..self.free.len()).filter(|room| !room.is_empty()) else { return };
        // EINTR: they are told of again.
        let count = self.epoll.wait(room, EpollTimeout::ZERO).unwrap_or(0);
        for event in &readable[..count] {
            let Some((id, fd)) = socket(event.data() as u32) else { continue };
            self.serve_one(id, fd, events);
        }
    }

    fn serve_one(&mut self, id: Id, fd: RawFd, events: &mut Vec<Event>) {
        for _ in 0..SHARE {
            let Some(mut lease) = self.free.pop() else { return };
            match receive(fd, &mut lease) {
                Ok((from, bytes, overflown)) => {
                    self.tell_overflown(id, overflown, events);
                    let chunk = Chunk::behind_headroom(lease, bytes);
                    events.push(Event::Datagram { id, from, chunk });
                }
                Err(error) => {
                    self.free.push(lease);
                    if error == Errno::EAGAIN {
                        return;
                    }
                    events.push(Event::Undelivered { id, error });
                }
            }
        }
    }

    /// Tells how many more than before the socket had no room for, `overflown` in all.
    fn tell_overflown(&mut self, id: Id, overflown: u32, events: &mut Vec<Event>) {
        let mut overflow = self.overflown.at(id).copied().unwrap_or_default();
        let count = overflow.more(overflown);
        if count > 0 {
            self.overflown.insert(id, overflow);
            events.push(Event::Overflown { id, count });
        }
    }
}

/// Receives one datagram behind the headroom of `lease`: from whom and, if the socket tells, to which address; its bytes; how
/// many the socket had no room for before.
fn receive(fd: RawFd, lease: &mut Lease) -> Result<(Endpoint, usize, u32), Errno> {
    let arrival = message::receive(fd, &mut lease[HEADROOM..])?;
    // None is longer than the room; should one be, what is left of it is of no use.
    if arrival.truncated {
        return Err(Errno::EMSGSIZE);
    }
    let remote = parse_address(arrival.address()).ok_or(Errno::EAFNOSUPPORT)?;
    let told = ReceiveControl::parse(arrival.control());
    Ok((Endpoint { remote, local: told.to }, arrival.bytes, told.overflown))
}

/// Sends one datagram as [`Udp::send_datagram`] says, but for what befell an earlier one: that comes first, and this one is
/// not sent then.
fn attempt(fd: RawFd, to: Option<Endpoint>, payload: &[u8]) -> Result<(), Errno> {
    let mut address = [0; ADDRESS_BYTES];
    let mut control = SendControl::new();
    let mut iovec = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    // SAFETY: (R) all zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iovec;
    header.msg_iovlen = 1;
    if let Some(to) = to {
        header.msg_namelen = emit_address(to.remote, &mut address) as u32;
        header.msg_name = address.as_mut_ptr().cast();
        if let Some(local) = to.local {
            control.source(local);
            header.msg_control = control.bytes().as_ptr().cast_mut().cast();
            header.msg_controllen = control.bytes().len();
        }
    }
    // SAFETY: everything the header points at outlives this call, and is only read.
    sys::uninterrupted(|| unsafe { libc::sendmsg(fd, &raw const header, libc::MSG_DONTWAIT) }).map(drop)
}

/// As [`Udp::send_datagram`], for the socket `id`, which is `fd`.
pub(super) fn send(
    id: Id,
    fd: RawFd,
    to: Option<Endpoint>,
    payload: &[u8],
    events: &mut Vec<Event>,
) -> Result<(), Errno> {
    match attempt(fd, to, payload) {
        // Nobody listened when the last one came, and perhaps somebody does now.
        Err(error @ Errno::ECONNREFUSED) => {
            events.push(Event::Undelivered { id, error });
            attempt(fd, to, payload)
        }
        result => result,
    }
}
