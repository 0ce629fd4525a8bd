//! What passes between the workers and the threads beside them; never a data packet, copies for a capture aside.
//!
//! ```text
//! worker ── arrivals: handshake messages, roaming ──▶ protocol thread     bounded; what finds no room is dropped and counted
//! worker ── cookies: cookie replies ───────────────▶ protocol thread     the same, with room of their own
//! worker ── news: "look at this peer" ─────────────▶ protocol thread     at most one per peer on its way
//! protocol thread ── orders ───────────────────────▶ each worker         the same for all, in the same order
//! capture thread ── orders: a tap, or none ────────▶ each worker         see [`super::tap`] for what comes back
//! ```

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::tap::Tap;
use crate::dataplane::allowed_ips::PeerIndex;
use crate::dataplane::view::Change;
use crate::io::udp::WorkerSockets;
use crate::io::wake::Waker;
use crate::proto::Endpoint;
use crate::proto::timers::UNDER_LOAD_QUEUED;
use crate::wire::message::{COOKIE_BYTES, HANDSHAKE_BYTES_MAX};

/// Arrivals that may wait. drivers/net/wireguard/messages.h MAX_QUEUED_INCOMING_HANDSHAKES.
pub const ARRIVALS_MAX: usize = 4096;
/// Cookie replies that may wait. They have no mac1, so anybody can send them by the million: they must neither take the room of
/// messages that make sessions nor bring us under load. Honest ones are few, at most one for each message that we sent.
pub const COOKIES_MAX: usize = 256;
const _: () = assert!(COOKIES_MAX < UNDER_LOAD_QUEUED);

/// Something came from the network that the protocol thread must see.
#[derive(Clone, Copy, Debug)]
pub enum Arrival {
    /// A handshake message or a cookie reply.
    Handshake {
        /// The message in the first [`Arrival::Handshake::len`] bytes.
        bytes: [u8; HANDSHAKE_BYTES_MAX],
        /// How long it is.
        len: usize,
        /// Where it came from.
        from: Endpoint,
    },
    /// An authenticated data message came from another address than the peer's.
    Roamed {
        /// The session's receiver index.
        local_index: u32,
        /// Where it came from.
        from: Endpoint,
    },
}

impl Arrival {
    /// A handshake message; `None` if it is too long for one.
    pub fn handshake(message: &[u8], from: Endpoint) -> Option<Arrival> {
        let mut bytes = [0; HANDSHAKE_BYTES_MAX];
        bytes.get_mut(..message.len())?.copy_from_slice(message);
        Some(Arrival::Handshake { bytes, len: message.len(), from })
    }
}

/// A worker's end towards the protocol thread.
#[derive(Clone, Debug)]
pub struct Outbox {
    arrivals: Sender<Arrival>,
    cookies: Sender<Arrival>,
    news: Sender<PeerIndex>,
}

impl Outbox {
    /// Hands over; false if there is no room.
    #[must_use]
    pub fn arrival(&self, arrival: Arrival) -> bool {
        // The length tells a cookie reply from the others.
        let queue = match arrival {
            Arrival::Handshake { len: COOKIE_BYTES, .. } => &self.cookies,
            _ => &self.arrivals,
        };
        queue.try_send(arrival).is_ok()
    }

    /// Asks to look at `peer`: [`Activity::tell`](crate::proto::activity::Activity::tell) said that it must be told.
    pub fn news(&self, peer: PeerIndex) {
        // Without room limit, and yet bounded: one note per peer. Fails only when the protocol thread has ended.
        let _ = self.news.send(peer);
    }
}

/// The protocol thread's end towards the workers.
#[derive(Debug)]
pub struct Inbox {
    /// See [`Arrival`]; all but cookie replies.
    pub arrivals: Receiver<Arrival>,
    /// Cookie replies.
    pub cookies: Receiver<Arrival>,
    /// Peers to look at.
    pub news: Receiver<PeerIndex>,
}

/// Both ends of the way from the workers to the protocol thread.
pub fn to_protocol() -> (Outbox, Inbox) {
    to_protocol_with_room(ARRIVALS_MAX)
}

/// The same with room for so many arrivals, and for no more cookie replies.
pub fn to_protocol_with_room(arrivals: usize) -> (Outbox, Inbox) {
    let (cookies_in, cookies) = bounded(COOKIES_MAX.min(arrivals));
    let (arrivals_in, arrivals) = bounded(arrivals);
    let (news_in, news) = unbounded();
    (Outbox { arrivals: arrivals_in, cookies: cookies_in, news: news_in }, Inbox { arrivals, cookies, news })
}

/// What a worker is to do between two turns.
#[derive(Debug)]
pub enum Order {
    /// Take over a step of the configuration.
    Change(Change),
    /// Send and receive on these sockets from now on.
    Rebind(WorkerSockets),
    /// Let packets be captured, or no longer.
    Tap(Option<Box<Tap>>),
}

/// A way to one worker: the protocol thread's, or the capture thread's.
#[derive(Clone, Debug)]
pub struct Orders {
    orders: Sender<Order>,
    waker: Option<Waker>,
    /// Whether the worker was given something since it was last woken.
    pending: bool,
}

impl Orders {
    /// Queues an order; the worker hears of it at the next [`Orders::wake`].
    pub fn give(&mut self, order: Order) {
        // Fails only when the worker has ended.
        let _ = self.orders.send(order);
        self.pending = true;
    }

    /// Wakes the worker if it was given something.
    pub fn wake(&mut self) {
        if std::mem::take(&mut self.pending)
            && let Some(waker) = &self.waker
        {
            waker.wake();
        }
    }
}

/// Both ends of the way to one worker, which `waker` wakes.
///
/// Without room limit: nobody must ever wait for a worker. A worker takes everything at each turn.
pub fn to_worker(waker: Option<Waker>) -> (Orders, Receiver<Order>) {
    let (orders, receiver) = unbounded();
    (Orders { orders, waker, pending: false }, receiver)
}
