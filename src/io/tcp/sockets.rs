//! What both drivers do alike: making sockets, numbering them, and keeping what finds no room in the kernel.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use libc::linger;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::sockopt::{
    BindToDevice, Ipv6V6Only, KeepAlive, Linger, ReuseAddr, SocketError, TcpKeepCount, TcpKeepIdle,
    TcpKeepInterval, TcpNoDelay, TcpUserTimeout,
};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrStorage, bind, getsockname, getsockopt,
    listen, setsockopt, shutdown, socket,
};
use slab::Slab;

use super::{Id, Options};
use crate::io::lease::BUFFER_BYTES;
use crate::time::Span;

/// The sockets of one driver by [`Id`], each with what the driver notes about it.
#[derive(Debug)]
pub struct Table<E> {
    entries: Slab<(u32, E)>,
    generation: u32,
}

impl<E> Table<E> {
    /// Without sockets.
    pub fn new() -> Table<E> {
        Table { entries: Slab::new(), generation: 0 }
    }

    /// Takes a socket in.
    pub fn insert(&mut self, entry: E) -> Id {
        self.generation = self.generation.wrapping_add(1);
        let key = self.entries.insert((self.generation, entry)) as u32;
        Id { key, generation: self.generation }
    }

    /// The socket `id`, if it is still there.
    pub fn at(&mut self, id: Id) -> Option<&mut E> {
        let (generation, entry) = self.entries.get_mut(id.key as usize)?;
        (*generation == id.generation).then_some(entry)
    }

    /// The socket with this key, and its name.
    pub fn by_key(&mut self, key: u32) -> Option<(Id, &mut E)> {
        let (generation, entry) = self.entries.get_mut(key as usize)?;
        Some((Id { key, generation: *generation }, entry))
    }

    /// Lets go of a socket.
    pub fn remove(&mut self, id: Id) {
        if self.at(id).is_some() {
            self.entries.remove(id.key as usize);
        }
    }
}

impl Id {
    /// What completions and readiness are reported for.
    pub(super) fn key(self) -> u32 {
        self.key
    }
}

/// One socket.
#[derive(Debug)]
pub enum Socket {
    /// Bound and listening.
    Listener(TcpListener),
    /// Connected, or about to be.
    Stream(TcpStream),
    /// Of [`super::datagrams`].
    Datagrams(UdpSocket),
}

impl Socket {
    /// Frees a listener's port at once, even if the socket itself lasts a little longer.
    pub fn stop_listening(&self) {
        if let Socket::Listener(listener) = self {
            // Fails only if it does not listen.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
        }
    }

    /// Sends a FIN.
    pub fn send_fin(&self) {
        // Fails only on a connection that is broken, of which we hear otherwise.
        let _ = shutdown(self.as_raw_fd(), Shutdown::Write);
    }

    /// Takes a limit of unacknowledged time away.
    pub fn be_patient(&self) {
        // Cannot fail on a TCP socket; if it did, a long pause would end the connection.
        let _ = setsockopt(self, TcpUserTimeout, &0);
    }

    /// The end of this socket is a RST.
    pub fn will_reset(&self) {
        // Cannot fail on a socket; if it did, the other end would see a FIN.
        let _ = setsockopt(self, Linger, &linger { l_onoff: 1, l_linger: 0 });
    }

    /// Why the connection broke, if it did and nobody has heard of it; or that it did not come about.
    pub fn take_error(&self) -> Option<Errno> {
        let code = getsockopt(self, SocketError).ok()?;
        (code != 0).then(|| Errno::from_raw(code))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Listener(listener) => listener.as_fd(),
            Socket::Stream(stream) => stream.as_fd(),
            Socket::Datagrams(socket) => socket.as_fd(),
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// A listening socket and the address it has. An IPv6 wildcard serves IPv4 too.
///
/// # Errors
/// As [`super::Tcp::listen`].
pub fn listener(
    address: SocketAddr,
    options: &Options,
    flags: SockFlag,
) -> Result<(TcpListener, SocketAddr), Errno> {
    let fd = open(address, flags)?;
    setsockopt(&fd, ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&fd, Ipv6V6Only, &!address.ip().is_unspecified())?;
    }
    // Whoever is accepted inherits these.
    settle(&fd, options)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&fd, Backlog::MAXCONN)?;
    let bound = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
    Ok((TcpListener::from(fd), to_std(&bound).unwrap_or(address)))
}

/// A socket to connect to `address`.
///
/// # Errors
/// As [`super::Tcp::connect`].
pub fn stream(address: SocketAddr, options: &Options, flags: SockFlag) -> Result<TcpStream, Errno> {
    let fd = open(address, flags)?;
    settle(&fd, options)?;
    Ok(TcpStream::from(fd))
}

/// As [`super::Tcp::interface_index`].
pub fn interface_index(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}

fn open(address: SocketAddr, flags: SockFlag) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None)
}

/// Sends without delay, finds out when the other end has died, and keeps to the device.
fn settle(fd: &OwnedFd, options: &Options) -> Result<(), Errno> {
    let patience = options.patience;
    let seconds = |span: Span| (span.as_nanos() / 1_000_000_000).max(1) as u32;
    if let Some(device) = &options.device {
        setsockopt(fd, BindToDevice, &device.into())?;
    }
    setsockopt(fd, TcpNoDelay, &true)?;
    setsockopt(fd, KeepAlive, &true)?;
    setsockopt(fd, TcpKeepIdle, &seconds(patience.idle))?;
    setsockopt(fd, TcpKeepInterval, &seconds(patience.interval))?;
    setsockopt(fd, TcpKeepCount, &patience.probes)?;
    if let Some(span) = patience.unacknowledged {
        setsockopt(fd, TcpUserTimeout, &((span.as_nanos() / 1_000_000) as u32))?;
    }
    Ok(())
}

/// What the kernel calls an address, if it is one of IP.
pub fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}

/// Memory for what finds no room in the kernel. Pieces for about a buffer's bytes are kept for the next time, up to
/// [`SPARE_MAX`]; smaller ones are as small as what is in them.
#[derive(Debug, Default)]
pub struct Spare(Vec<Vec<u8>>);

/// 64 pieces of one buffer each: 4.5 MB.
const SPARE_MAX: usize = 64;
/// Up to here a piece has memory of its own size: many short messages that wait for one reader must not cost a buffer each.
const SMALL_BYTES: usize = 4096;

impl Spare {
    /// A copy of `bytes`.
    pub fn copy(&mut self, bytes: &[u8]) -> Vec<u8> {
        if bytes.len() <= SMALL_BYTES {
            return bytes.to_vec();
        }
        let mut copy = self.0.pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_BYTES));
        copy.extend_from_slice(bytes);
        copy
    }

    /// Takes a copy back that is not needed any more.
    pub fn give_back(&mut self, mut copy: Vec<u8>) {
        if self.0.len() < SPARE_MAX && (BUFFER_BYTES..2 * BUFFER_BYTES).contains(&copy.capacity()) {
            copy.clear();
            self.0.push(copy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_copy_takes_little_memory_and_a_long_one_is_used_again() {
        let mut spare = Spare::default();
        let long = spare.copy(&[1; SMALL_BYTES + 1]);
        let place = long.as_ptr();
        spare.give_back(long);
        let short = spare.copy(&[2; 100]);
        assert!(short.capacity() <= SMALL_BYTES && short == [2; 100]);
        spare.give_back(short);
        let again = spare.copy(&[3; BUFFER_BYTES]);
        assert!(again.as_ptr() == place && again == [3; BUFFER_BYTES]);
    }
}
