//! WireGuard without I/O: bytes, time and a seed go in; datagrams, updates for the workers and a deadline come out.
//!
//! # The contract of [`device::Device`], four kinds of methods
//!
//! | kind | what it does |
//! |---|---|
//! | `set_*`, `add_peer`, `remove_peer` | configuration |
//! | `handle_*` | something happened: a datagram came, a worker left news, a deadline passed |
//! | `poll_*` | what is to be done: datagrams to send, updates for the workers, when to call again |
//! | the others | look, and change nothing |
//!
//! No clock, no randomness, no socket: [`Time`](crate::time::Time) and [`WallTime`](crate::time::WallTime) are arguments, random
//! bytes come from a generator that was given a seed. So the simulation and the tests run what ships.
//!
//! After anything of the first two kinds: take all updates and publish them to the workers in their order, send all datagrams,
//! and ask for the next deadline. What one call leaves to be taken is bounded by what it was about: one peer, or those whose
//! timers were due.
//!
//! # Who does what
//!
//! The protocol thread owns the [`device::Device`]: handshakes, timers, cookies. It is never on the way of a data packet.
//! Workers seal and open with [`session::Session`]s that they share with it, and note facts in the peer's
//! [`activity::Activity`], from which the timers are computed.
//!
//! # A handshake
//!
//! ```text
//! initiator                                    responder
//!   create initiation ── 148 bytes ──────────▶ consume, create response; session in slot `next`
//!   session in slot `current` ◀─ 92 bytes ───
//!   confirm: data or keepalive ──────────────▶ opened: `next` becomes `current`, may send now
//! ```
//!
//! # Where the whitepaper is implemented
//!
//! | section | file |
//! |---|---|
//! | §5.1 silence, TAI64N | `receive`, [`tai64n`] |
//! | §5.3 denial of service, §5.4.4 mac1 and mac2, §5.4.7 cookies | [`cookie`], [`rate_limit`] |
//! | §5.4.1 to §5.4.3 handshake messages, §5.4.5 key derivation | [`noise`], `peer_handshake` |
//! | §5.4.6 transport data | [`session`], [`replay`] |
//! | §5.4.5 previous, current, next session | `slots` |
//! | §6 timers | [`timers`], `peer_timers` |
//!
//! Where we do otherwise than the kernel, and why: a handshake that had to wait because one was just sent begins by itself as
//! soon as it may; initiations that cross leave both sides with a session at once, and the side with the lower public key
//! goes over to the other's, see `slots`; if each side so ends with the session that the other began, whoever sends renews it
//! shortly before its end, see [`session::Session::note_crossed`]; a response to our initiation is refused once the peer's own
//! handshake is done; keys are wiped by the age of the oldest session, not of the newest; after a change of our own key
//! handshakes with all peers begin at once.

pub mod activity;
pub mod cookie;
pub mod crypto;
pub mod device;
pub mod index;
pub mod keys;
pub mod noise;
pub mod output;
mod peer;
mod peer_handshake;
mod peer_timers;
pub mod rate_limit;
mod receive;
pub mod replay;
pub mod rng;
pub mod session;
mod shared;
mod slots;
pub mod tai64n;
pub mod timers;

use std::net::{IpAddr, SocketAddr};

/// A peer's index in its device; used again after the peer was removed.
pub type PeerIndex = u32;

/// The two UDP addresses of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The peer's.
    pub remote: SocketAddr,
    /// Ours, that the peer last sent to: answers leave from there. `None` leaves it to the routing table.
    pub local: Option<IpAddr>,
}
