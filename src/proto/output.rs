//! What a [`Device`](super::device::Device) has to say: datagrams to send, updates for the workers, what became of a
//! datagram, and which timer comes next.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use super::activity::Activity;
use super::keys::{PresharedKey, PublicKey};
use super::session::Session;
use super::{Endpoint, PeerIndex};
use crate::time::{Span, Time, WallTime};
use crate::wire::message::HANDSHAKE_BYTES_MAX;

/// Type of service of initiations and responses: DSCP AF41, no ECN. drivers/net/wireguard/messages.h `HANDSHAKE_DSCP`.
pub const HANDSHAKE_TOS: u8 = 0x88;

/// A message that makes sessions, or a keepalive: at most [`HANDSHAKE_BYTES_MAX`] bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Message {
    bytes: [u8; HANDSHAKE_BYTES_MAX],
    used: u8,
}

const _: () = assert!(HANDSHAKE_BYTES_MAX <= u8::MAX as usize);

impl Message {
    /// A copy of `message`.
    ///
    /// # Panics
    /// When it is longer than [`HANDSHAKE_BYTES_MAX`].
    pub fn new(message: &[u8]) -> Message {
        let mut bytes = [0; HANDSHAKE_BYTES_MAX];
        bytes[..message.len()].copy_from_slice(message);
        Message { bytes, used: message.len() as u8 }
    }
}

impl Deref for Message {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.used)]
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message(type {}, {} bytes)", self.bytes[0], self.used)
    }
}

/// A datagram to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Whom it is for; `None` for a cookie reply, whose receiver is not known.
    pub peer: Option<PeerIndex>,
    /// Where it goes, and from which of our addresses.
    pub to: Endpoint,
    /// The UDP payload.
    pub bytes: Message,
    /// The IP header's type of service or traffic class.
    pub tos: u8,
}

/// What every worker must know. They are to be published to each worker in the order they came in.
#[derive(Clone, Debug)]
pub enum Update {
    /// We have another key.
    LocalKey {
        /// Who we are for others; `None` when we have none.
        public_key: Option<PublicKey>,
    },
    /// There is a new peer.
    PeerAdded {
        /// Its index.
        peer: PeerIndex,
        /// Its name.
        public_key: PublicKey,
        /// Where workers note its traffic.
        activity: Arc<Activity>,
    },
    /// A peer is gone, and all that belonged to it. Its index may be used again.
    PeerRemoved {
        /// Its index.
        peer: PeerIndex,
    },
    /// What is sent to the peer goes there from now on.
    Endpoint {
        /// The peer.
        peer: PeerIndex,
        /// `None` when it is not known.
        endpoint: Option<Endpoint>,
    },
    /// Data messages with the session's local index may be opened from now on.
    SessionAdded(Arc<Session>),
    /// They no longer may.
    SessionRemoved {
        /// The session's local index.
        local_index: u32,
    },
    /// Packets are sealed with this session from now on; staged ones go out.
    Current {
        /// The peer.
        peer: PeerIndex,
        /// `None`: packets are staged.
        session: Option<Arc<Session>>,
    },
    /// Nothing answers; staged packets die.
    DropStaged {
        /// The peer.
        peer: PeerIndex,
    },
}

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// An initiation was answered.
    InitiationAccepted(PeerIndex),
    /// A response made a session.
    ResponseAccepted(PeerIndex),
    /// A cookie is kept for the peer's next handshake message.
    CookieAccepted(PeerIndex),
    /// Under load, and the sender has not shown that it owns its address: a cookie was sent.
    CookieSent,
    /// None of the messages that make sessions.
    NotHandshake,
    /// The interface is down.
    Down,
    /// We have no private key.
    NoPrivateKey,
    /// mac1 is wrong: the sender does not know our public key.
    BadMac1,
    /// Under load, and this source has sent too many.
    RateLimited,
    /// An initiation whose static key does not open, or whose ephemeral key is of low order.
    InitiationUnreadable,
    /// An initiation from a key that is no peer's.
    UnknownPeer,
    /// An initiation that the peer it names did not make.
    InitiationForged(PeerIndex),
    /// An initiation not newer than the newest accepted.
    InitiationReplayed(PeerIndex),
    /// An initiation too soon after the one before.
    InitiationTooSoon(PeerIndex),
    /// An initiation that cannot be answered: a key of low order.
    InitiationUnanswerable(PeerIndex),
    /// A response to no initiation of ours, or to one that was followed by another.
    ResponseUnexpected,
    /// A response that the peer did not make, or made with another preshared key.
    ResponseForged(PeerIndex),
    /// A cookie reply to no message of ours, or one that does not open.
    CookieRefused,
}

impl Handled {
    /// The peer that it is from, or says that it is from.
    pub fn peer(self) -> Option<PeerIndex> {
        match self {
            Handled::InitiationAccepted(peer)
            | Handled::ResponseAccepted(peer)
            | Handled::CookieAccepted(peer)
            | Handled::InitiationForged(peer)
            | Handled::InitiationReplayed(peer)
            | Handled::InitiationTooSoon(peer)
            | Handled::InitiationUnanswerable(peer)
            | Handled::ResponseForged(peer) => Some(peer),
            _ => None,
        }
    }
}

/// What to say of the message.
impl fmt::Display for Handled {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Handled::InitiationAccepted(_) => "initiation answered",
            Handled::ResponseAccepted(_) => "response accepted, there is a session",
            Handled::CookieAccepted(_) => "cookie kept for the next handshake message",
            Handled::CookieSent => "under load, a cookie was sent",
            Handled::NotHandshake => "dropped, it is no handshake message",
            Handled::Down => "dropped, the interface is down",
            Handled::NoPrivateKey => "dropped, there is no private key",
            Handled::BadMac1 => "refused, mac1 is wrong: the sender does not know our public key",
            Handled::RateLimited => "refused under load, this address has sent too many",
            Handled::InitiationUnreadable => "initiation refused, it does not open",
            Handled::UnknownPeer => "initiation refused, its key is no peer's",
            Handled::InitiationForged(_) => "initiation refused, the peer it names did not make it",
            Handled::InitiationReplayed(_) => {
                "initiation refused, it is not newer than the last: a replay, or the peer's clock was set back"
            }
            Handled::InitiationTooSoon(_) => "initiation refused, it came too soon after the one before",
            Handled::InitiationUnanswerable(_) => "initiation refused, its key is of low order",
            Handled::ResponseUnexpected => "response refused, it answers nothing that waits for an answer",
            Handled::ResponseForged(_) => {
                "response refused, the peer did not make it, or has another preshared key"
            }
            Handled::CookieRefused => "cookie refused, it answers nothing or does not open",
        })
    }
}

/// The timer that is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// An initiation is to be sent, or sent again.
    Initiation,
    /// Traffic is to be looked at: we may owe a keepalive, or the peer may have gone silent.
    Traffic,
    /// A persistent keepalive.
    PersistentKeepalive,
    /// Old keys are to be wiped.
    Wipe,
}

/// What is to be known of a peer from outside.
#[derive(Clone, Copy, Debug)]
pub struct PeerStatus<'a> {
    /// Its name.
    pub public_key: &'a PublicKey,
    /// All zeros when there is none.
    pub preshared_key: &'a PresharedKey,
    /// Where it was last seen, or was said to be.
    pub endpoint: Option<Endpoint>,
    /// When the newest session was proven to both sides.
    pub last_handshake: Option<WallTime>,
    /// When the handshake was done that made the keys which seal what is sent.
    pub keyed_at: Option<Time>,
    /// The handshakes that made sessions with it.
    pub round_trips: RoundTrips,
    /// Seconds between persistent keepalives; 0 for none.
    pub keepalive: u16,
    /// What was counted of its traffic.
    pub activity: &'a Arc<Activity>,
}

/// How long the handshakes with a peer took that made sessions: as initiator from beginning the initiation that was answered to
/// taking up the response, as responder from taking up the initiation to hearing of the first message under the new keys.
///
/// What is computed in between is in, what is computed for the last message is not. Of what was lost nothing is known: each
/// initiation counts from itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrips {
    /// How many there were.
    pub count: u64,
    /// The newest.
    pub last: Span,
    /// The shortest.
    pub least: Span,
}

impl RoundTrips {
    /// Takes in another.
    pub fn add(&mut self, took: Span) {
        self.least = if self.count == 0 { took } else { self.least.min(took) };
        self.last = took;
        self.count += 1;
    }
}

impl Endpoint {
    /// The peer is at `remote`; the routing table chooses our address.
    pub const fn to(remote: SocketAddr) -> Endpoint {
        Endpoint { remote, local: None }
    }
}
