//! TCP for those who relay it: listening, connecting, moving bytes, each connection at its own pace.
//!
//! ```text
//!   relay                          Tcp                                   kernel
//!   receive(id) ────────────▶ one receive is armed ────────────────▶ waits for bytes, holds no buffer
//!   Received { chunk } ◀───── the kernel picked a buffer ◀──────────
//!   send(other, chunk) ─────▶ tried at once; what finds no room is copied
//!                             aside, and the buffer is free again ─▶ goes out when there is room
//!   Sent { other } ◀───────── all of it is with the kernel ◀────────
//! ```
//!
//! So a connection that is idle or slow holds none of the few buffers, and cannot make another wait.
//!
//! Whoever brings much at once passes it on through a pipe instead ([`Tcp::pass`]): the bytes are never copied.
//!
//! Three stand behind [`Tcp`]: [`uring`], its twin on plain system calls [`epoll`], and [`fake`] for tests. All of them move
//! datagrams too ([`datagrams`]).

pub mod datagrams;
pub mod epoll;
pub mod fake;
pub mod pipe;
mod sockets;
pub mod uring;

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;

use nix::errno::Errno;

use datagrams::{Endpoint, HEADROOM};

pub use super::driver::Wait;
use super::lease::Lease;
use crate::time::{Span, Time};

/// Names a listener or a connection of one [`Tcp`]. Never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// Small numbers, used again.
    key: u32,
    /// Tells the users of a key apart.
    generation: u32,
}

/// Bytes that came, in one of the driver's buffers. To be sent or given back: a chunk that is dropped takes its buffer along.
#[derive(Debug)]
pub struct Chunk {
    lease: Lease,
    start: usize,
    end: usize,
}

impl Chunk {
    /// The first `len` bytes of a buffer.
    pub(super) fn new(lease: Lease, len: usize) -> Chunk {
        assert!(len <= lease.len(), "{len} bytes in a buffer of {}", lease.len());
        Chunk { lease, start: 0, end: len }
    }

    /// The `len` bytes of a buffer behind its [`HEADROOM`].
    pub(super) fn behind_headroom(lease: Lease, len: usize) -> Chunk {
        let end = HEADROOM + len;
        assert!(end <= lease.len(), "{end} bytes in a buffer of {}", lease.len());
        Chunk { lease, start: HEADROOM, end }
    }

    /// Puts `bytes` in front.
    ///
    /// # Panics
    /// When there is no room: a datagram has [`HEADROOM`] bytes, anything else only what was left out.
    pub fn prepend(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= self.start, "{} bytes and room for {}", bytes.len(), self.start);
        self.start -= bytes.len();
        self.lease[self.start..self.start + bytes.len()].copy_from_slice(bytes);
    }

    /// Leaves the first `count` bytes out.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "{count} of {} bytes", self.len());
        self.start += count;
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.lease[self.start..self.end]
    }
}

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A connection came in. It is not received from until [`Tcp::receive`].
    Accepted {
        /// Where.
        listener: Id,
        /// The connection.
        id: Id,
        /// Who.
        from: SocketAddr,
    },
    /// No connection can come in (no descriptors, no memory) until [`Tcp::accept`] is called again.
    AcceptFailed {
        /// Where.
        listener: Id,
        /// Why.
        error: Errno,
    },
    /// A [`Tcp::connect`] ended well.
    Connected(Id),
    /// What [`Tcp::receive`] asked for.
    Received {
        /// From whom.
        id: Id,
        /// At least one byte.
        chunk: Chunk,
    },
    /// What [`Tcp::pass`] asked for, or some of it.
    Passed {
        /// From whom.
        from: Id,
        /// So many bytes, at least one, are with the kernel.
        bytes: usize,
        /// So many have come and wait for room; with none, this was all.
        left: usize,
    },
    /// The other end sends no more (FIN). Ends what [`Tcp::receive`] or [`Tcp::pass`] asked for.
    Ended(Id),
    /// All bytes of one send are with the kernel.
    Sent(Id),
    /// The connection is no more, or never was: reset, timed out, refused.
    Failed {
        /// Which.
        id: Id,
        /// Why.
        error: Errno,
    },
    /// A datagram came in.
    Datagram {
        /// Where.
        id: Id,
        /// From whom, and to which of our addresses if the socket has several.
        from: Endpoint,
        /// The payload, which may be empty, with [`HEADROOM`] in front.
        chunk: Chunk,
    },
    /// A datagram that was sent here found nobody, or one that came in cannot be had. The socket goes on.
    Undelivered {
        /// Where.
        id: Id,
        /// Why; ECONNREFUSED: nobody listens at that port.
        error: Errno,
    },
    /// Datagrams that came in found the socket's queue in the kernel full, or had a wrong checksum, and are lost. Told when the
    /// next one comes in.
    Overflown {
        /// Where.
        id: Id,
        /// How many since this was told last.
        count: u32,
    },
    /// Somebody rang the [`super::wake::Waker`].
    Woken,
}

/// How a connection is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// What was sent goes out first, as far as the kernel has room for it; then a FIN.
    Finish,
    /// The other end hears of a failure (RST).
    Reset,
}

/// How a socket is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// When it gives up.
    pub patience: Patience,
    /// The only interface it may use.
    pub device: Option<String>,
}

/// When silence is taken for death. The kernel probes a silent connection after `idle` and then every `interval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Silence before the first probe; whole seconds.
    pub idle: Span,
    /// Between two probes; whole seconds.
    pub interval: Span,
    /// Probes without an answer.
    pub probes: u32,
    /// How long sent bytes may stay unacknowledged; `None`: as long as the system's retransmissions last.
    pub unacknowledged: Option<Span>,
}

/// Hands that move TCP. One thread uses them.
///
/// An [`Id`] that was closed is ignored wherever it is given. No later turn brings an event that names it; those that came in
/// the same turn as the reason to close it may still do.
pub trait Tcp {
    /// The clock of [`super::clock::now`], as of the last turn.
    fn now(&self) -> Time;

    /// Listens at `address`, port 0 being any free one; the address it became. Nothing is accepted yet.
    /// Accepted connections get the same `options`.
    ///
    /// # Errors
    /// EADDRINUSE, EACCES, EADDRNOTAVAIL, EMFILE, ENODEV without the device, and what else socket(2), bind(2) and listen(2) say.
    fn listen(&mut self, address: SocketAddr, options: &Options) -> Result<(Id, SocketAddr), Errno>;

    /// The number of the interface `name` now. A socket made with [`Options::device`] keeps to the number: when the interface is
    /// removed and made again under the same name, it reaches the socket no more.
    fn interface_index(&self, name: &str) -> Option<u32>;

    /// Accepts at `listener` from now on.
    fn accept(&mut self, listener: Id);

    /// Connects to `address`; [`Event::Connected`] or [`Event::Failed`] follows, however long that takes.
    ///
    /// # Errors
    /// What socket(2) says, EMFILE above all; ENODEV without the device.
    fn connect(&mut self, address: SocketAddr, options: &Options) -> Result<Id, Errno>;

    /// Asks for bytes once: one [`Event::Received`], [`Event::Ended`] or [`Event::Failed`] follows.
    fn receive(&mut self, id: Id);

    /// Asks for bytes once, which `to` is sent without passing through our memory, [`pipe::PIPE_BYTES`] of them at most. For
    /// whoever brings much at once: [`Event::Passed`] follows until nothing is left; or what follows [`Tcp::receive`], also
    /// [`Event::Received`], when there is no pipe or none takes what came (urgent data). Meanwhile nothing else must be sent to
    /// `to`.
    fn pass(&mut self, from: Id, to: Id);

    /// Sends what was received elsewhere; one [`Event::Sent`] follows, or [`Event::Failed`]. Sends of one connection leave in
    /// the order they were given. How much waits is up to the caller.
    fn send(&mut self, id: Id, chunk: Chunk);

    /// As [`Tcp::send`], for a few bytes of our own.
    fn send_bytes(&mut self, id: Id, bytes: &[u8]);

    /// From now on sent bytes may stay unacknowledged as long as the system's retransmissions last: a reader who pauses takes none,
    /// and [`Patience::unacknowledged`] counts that too (tcp(7) TCP_USER_TIMEOUT).
    fn be_patient(&mut self, id: Id);

    /// Sends a FIN behind everything that was sent.
    fn shut_down(&mut self, id: Id);

    /// Ends a connection or a listener. What waits unaccepted at a listener is reset by the kernel.
    fn close(&mut self, id: Id, how: Close);

    /// Takes a chunk back that is not sent.
    fn give_back(&mut self, chunk: Chunk);

    /// Carries out what was asked for, waits as told, and appends what happened to `events`, in order per connection.
    ///
    /// # Errors
    /// Only when nothing can go on at all.
    fn turn(&mut self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()>;
}

/// A map from [`Id`]s, as quick as an array.
#[derive(Debug)]
pub struct IdMap<V> {
    entries: Vec<Option<(u32, V)>>,
    count: usize,
}

impl<V> Default for IdMap<V> {
    fn default() -> IdMap<V> {
        IdMap { entries: Vec::new(), count: 0 }
    }
}

impl<V> IdMap<V> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Puts `value` at `id`; what was at an earlier user of its key is gone.
    pub fn insert(&mut self, id: Id, value: V) {
        let index = id.key as usize;
        if index >= self.entries.len() {
            self.entries.resize_with(index + 1, || None);
        }
        if self.entries[index].replace((id.generation, value)).is_none() {
            self.count += 1;
        }
    }

    /// What is at `id`.
    pub fn at(&self, id: Id) -> Option<&V> {
        let (generation, value) = self.entries.get(id.key as usize)?.as_ref()?;
        (*generation == id.generation).then_some(value)
    }

    /// What is at `id`, to be changed.
    pub fn at_mut(&mut self, id: Id) -> Option<&mut V> {
        let (generation, value) = self.entries.get_mut(id.key as usize)?.as_mut()?;
        (*generation == id.generation).then_some(value)
    }

    /// Takes what is at `id`.
    pub fn remove(&mut self, id: Id) -> Option<V> {
        let entry = self.entries.get_mut(id.key as usize)?;
        let (_, value) = entry.take_if(|(generation, _)| *generation == id.generation)?;
        self.count -= 1;
        Some(value)
    }

    /// All of them, in no order that means something.
    pub fn iter(&self) -> impl Iterator<Item = (Id, &V)> {
        self.entries.iter().enumerate().filter_map(|(key, entry)| {
            let (generation, value) = entry.as_ref()?;
            Some((Id { key: key as u32, generation: *generation }, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(key: u32, generation: u32) -> Id {
        Id { key, generation }
    }

    #[test]
    fn a_map_knows_the_users_of_a_key_apart() {
        let mut map = IdMap::default();
        map.insert(id(3, 1), "one");
        assert_eq!((map.at(id(3, 1)), map.at(id(3, 2)), map.at(id(9, 1))), (Some(&"one"), None, None));
        assert_eq!(map.remove(id(3, 2)), None);
        map.insert(id(3, 2), "two");
        assert_eq!((map.at(id(3, 1)), map.len()), (None, 1));
        *map.at_mut(id(3, 2)).unwrap() = "other";
        assert_eq!(map.iter().collect::<Vec<_>>(), [(id(3, 2), &"other")]);
        assert_eq!(map.remove(id(3, 2)), Some("other"));
        assert!(map.is_empty());
    }

    #[test]
    fn a_chunk_is_what_is_left_of_the_bytes_that_came() {
        let mut lease = crate::io::lease::map(1).unwrap().remove(0);
        lease[..5].copy_from_slice(b"12345");
        let mut chunk = Chunk::new(lease, 5);
        chunk.advance(2);
        assert_eq!(&*chunk, b"345");
        chunk.advance(3);
        assert!(chunk.is_empty());
    }

    #[test]
    fn there_is_room_in_front_of_a_datagram() {
        let mut lease = crate::io::lease::map(1).unwrap().remove(0);
        lease[HEADROOM..HEADROOM + 3].copy_from_slice(b"abc");
        let mut chunk = Chunk::behind_headroom(lease, 3);
        assert_eq!(&*chunk, b"abc");
        chunk.prepend(&[0, 3]);
        assert_eq!(&*chunk, b"\x00\x03abc");
        chunk.prepend(&[7; HEADROOM - 2]);
        assert_eq!(chunk.len(), HEADROOM + 3);
    }
}
