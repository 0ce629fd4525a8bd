//! The seam between the data plane and the kernel.
//!
//! Three drivers stand behind it: [`super::uring`], [`super::syscall`] and the hostile [`super::fake`]. The worker is generic
//! over [`Driver`], so there is no dynamic call on the path and the tests run the worker that ships.

use std::io;

use nix::errno::Errno;

use super::lease::Lease;
use super::udp::WorkerSockets;
use crate::offload::Part;
use crate::offload::coalesce::Gather;
use crate::offload::stride::Received;
pub use crate::proto::Endpoint;
use crate::time::Time;

/// One send: `datagrams` equal datagrams (the last may be shorter) in one range of a lent buffer.
#[derive(Clone, Copy, Debug)]
pub struct Send {
    /// The peer it goes to: the worker's own note, handed back with the completion.
    pub peer: u32,
    /// Its address.
    pub to: Endpoint,
    /// The outer IPv4 TOS or IPv6 traffic class byte, DSCP and ECN; 0 leaves it to the socket, which has 0.
    pub tos: u8,
    /// The bytes.
    pub part: Part,
    /// Bytes per datagram; the kernel cuts (UDP_SEGMENT) when `datagrams > 1`.
    pub segment_bytes: u16,
    /// How many datagrams the range holds.
    pub datagrams: u16,
    /// When the first of its packets was read.
    pub started: Time,
    /// When it was sealed.
    pub sealed: Time,
}

/// Something that happened.
#[derive(Debug)]
pub enum Completion {
    /// One TUN read: vnet header and packet in the first `bytes` of the buffer.
    TunRead {
        /// The buffer.
        lease: Lease,
        /// How much was read.
        bytes: u32,
    },
    /// Datagrams came in.
    Received {
        /// The buffer.
        lease: Lease,
        /// Where from, and where in the buffer.
        received: Received,
    },
    /// A send ended. Its buffer stays lent until the next turn, so a refused train can be sent again otherwise.
    Sent {
        /// The send.
        send: Send,
        /// What the kernel said.
        result: Result<(), Errno>,
    },
    /// A TUN write ended. Its buffers stay lent until the next turn.
    Written {
        /// The write, whose lists can be used again.
        gather: Gather,
        /// What the kernel said.
        result: Result<(), Errno>,
    },
    /// A receive or a TUN read failed (a pending ICMP error, no memory, a packet the TUN cannot describe) and brought nothing;
    /// both go on.
    ReceiveFailed(Errno),
    /// The TUN was deleted.
    TunGone,
    /// Somebody rang our [`super::wake::Waker`].
    Woken,
}

/// How long a turn may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Report what is there.
    Not,
    /// Sleep until something happens.
    Forever,
    /// Sleep until something happens or the time comes.
    Until(Time),
}

/// What the driver itself did since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// System calls.
    pub enters: u64,
    /// Operations that had to be armed anew (an ended multishot).
    pub rearms: u64,
}

/// A worker's hands: queues operations, and reports what became of them.
pub trait Driver {
    /// The clock of [`super::clock::now`], as of the last turn.
    fn now(&self) -> Time;

    /// The same clock at this moment.
    fn clock(&self) -> Time;

    /// A free buffer for a train, if there is one.
    fn send_buffer(&mut self) -> Option<Lease>;

    /// Hands a buffer over. Sends and writes may refer to it from now on; it goes back where it came from (send
    /// buffers, TUN reads, receives) at the start of the first turn at which none of them is under way.
    fn lend(&mut self, lease: Lease);

    /// Bytes of a lent buffer, as whoever uses it sees them: between a completion and the next turn what was sent or written.
    ///
    /// # Panics
    /// When the range does not lie in a buffer that is lent.
    fn lent(&self, part: Part) -> &[u8];

    /// Queues a send from a lent buffer. Sends of one worker leave in the order they were queued.
    fn send(&mut self, send: Send);

    /// Queues a TUN write: the head, then ranges of lent buffers. Writes happen in the order they were queued.
    fn write(&mut self, gather: Gather);

    /// Replaces the sockets, between two turns: the listen port changed. What is queued and not yet sent leaves from the
    /// new ones, what waits unread at the old ones is lost. The old ones are closed once nothing uses them, at the latest
    /// in the turn that follows.
    ///
    /// # Errors
    /// Only when the driver cannot go on at all.
    fn rebind(&mut self, sockets: WorkerSockets) -> io::Result<()>;

    /// Carries out what was queued, waits as asked, and appends what happened to `done`, in order per device.
    ///
    /// # Errors
    /// Only when the driver cannot go on at all.
    fn turn(&mut self, wait: Wait, done: &mut Vec<Completion>) -> io::Result<()>;

    /// Takes the counts since the last call.
    fn take_effort(&mut self) -> Effort;
}
