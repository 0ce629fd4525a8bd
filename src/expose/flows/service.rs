//! The local service of one flow: which of its addresses answers.
//!
//! A name may mean several addresses (`localhost`: ::1 and 127.0.0.1), and a service may be at one of them only. TCP finds
//! out by connecting. Here the datagrams sent so far are kept until the first answer, and sent again to the next address when
//! the kernel hears that nobody is there (ICMP port unreachable).

use std::net::SocketAddr;

use nix::errno::Errno;

use super::{WAITING_BYTES_MAX, WAITING_DATAGRAMS_MAX};
use crate::expose::frames::{self, Frames, HEADER_BYTES};
use crate::io::tcp::datagrams::Udp;
use crate::io::tcp::{Close, Id};

/// See the module.
#[derive(Debug)]
pub(super) struct Service {
    /// To be tried in turn; the one in use is at `index`.
    addresses: Vec<SocketAddr>,
    index: usize,
    /// How many of them have refused what is kept.
    refusals: usize,
    /// Frames.
    kept: Vec<u8>,
    kept_count: usize,
    answered: bool,
}

impl Service {
    /// At the first of `addresses` for which there is a socket, `preferred` before all others if it is one of them.
    ///
    /// # Errors
    /// Of the last one; EADDRNOTAVAIL without any.
    pub fn new(
        udp: &mut (impl Udp + ?Sized),
        addresses: &[SocketAddr],
        preferred: Option<SocketAddr>,
    ) -> Result<(Service, Id), Errno> {
        let mut addresses = addresses.to_vec();
        let first = addresses.iter().position(|address| Some(*address) == preferred).unwrap_or(0);
        addresses.rotate_left(first);
        let mut service =
            Service { addresses, index: 0, refusals: 0, kept: Vec::new(), kept_count: 0, answered: false };
        let socket = service.associate(udp)?;
        Ok((service, socket))
    }

    /// A socket for the address in use, or for the next one for which there is one.
    fn associate(&mut self, udp: &mut (impl Udp + ?Sized)) -> Result<Id, Errno> {
        let mut last = Errno::EADDRNOTAVAIL;
        for _ in 0..self.addresses.len() {
            match udp.associate(self.addresses[self.index]) {
                Ok(socket) => return Ok(socket),
                Err(error) => last = error,
            }
            self.index = (self.index + 1) % self.addresses.len();
        }
        Err(last)
    }

    /// It has answered: where it is.
    pub fn answered(&mut self) -> SocketAddr {
        (self.answered, self.kept) = (true, Vec::new());
        self.addresses[self.index]
    }

    /// Keeps a datagram that is sent now, if it may have to be sent again.
    pub fn keep(&mut self, payload: &[u8]) {
        let short = self.kept.len() + HEADER_BYTES + payload.len() <= WAITING_BYTES_MAX;
        if self.addresses.len() > 1 && !self.answered && short && self.kept_count < WAITING_DATAGRAMS_MAX {
            self.kept_count += 1;
            frames::put(payload, &mut self.kept);
        }
    }

    /// Nobody is where the socket `old` sends to: the socket to use from now on, and how many datagrams are lost. If the
    /// service may be elsewhere, `old` is closed, and what is kept goes out at the new one.
    pub fn refused(&mut self, udp: &mut (impl Udp + ?Sized), old: Id) -> (Id, usize) {
        if self.answered || self.addresses.len() < 2 {
            return (old, 1);
        }
        self.refusals += 1;
        self.index = (self.index + 1) % self.addresses.len();
        let Ok(socket) = self.associate(udp) else { return (old, 1) };
        udp.close(old, Close::Finish);
        let mut lost = 0;
        if self.refusals >= self.addresses.len() {
            // All have refused it. The next datagram starts anew.
            lost = self.kept_count.max(1);
            (self.refusals, self.kept_count) = (0, 0);
            self.kept.clear();
        }
        self.send_again(udp, socket);
        (socket, lost)
    }

    fn send_again(&self, udp: &mut (impl Udp + ?Sized), socket: Id) {
        let (mut frames, mut rest) = (Frames::default(), &self.kept[..]);
        while let Ok((count, Some(payload))) = frames.take(rest) {
            // It was counted when it was sent first.
            let _ = udp.send_datagram(socket, None, payload);
            rest = &rest[count..];
        }
    }
}
