//! A session: the pair of transport keys that one handshake made.
//!
//! Shared read-only by all workers. What changes is atomic (the send counter) or behind a lock that only the worker owning
//! the session takes (the replay window). There is one counter space per session, never one per worker: a nonce used
//! twice would give the packets away.
//!
//! Source: WireGuard whitepaper §5.4.5, §5.4.6, §6.1.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::PeerIndex;
use super::crypto::{AeadKey, Secret};
use super::replay::ReplayWindow;
use super::timers::{KEEPALIVE_TIMEOUT, REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_TIMEOUT};
use crate::time::{Span, Time};
use crate::wire::message::{
    DATA_HEADER_BYTES, DATA_OVERHEAD_BYTES, DATA_TAG_BYTES, Kind, classify, emit_data_header,
};

/// Data messages after which a new session is wanted. Whitepaper §6.1, Rekey-After-Messages.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Data messages after which a session is of no more use: counters from here on are neither sent nor accepted. The distance
/// to 2^64 is more than the replay window, so that nothing there can wrap. Whitepaper §6.1, Reject-After-Messages.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// Who sent the handshake's initiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We did. Only the initiator renews a session by time.
    Initiator,
    /// The peer did. We may send only once it has shown that it has the keys.
    Responder,
}

/// What a handshake ends with.
pub struct Keys {
    /// The peer.
    pub peer: PeerIndex,
    /// What incoming messages carry as receiver; we chose it.
    pub local_index: u32,
    /// What outgoing messages carry as receiver; the peer chose it.
    pub remote_index: u32,
    /// Which side we were.
    pub role: Role,
    /// Seals what we send.
    pub sealing: Secret,
    /// Opens what we receive.
    pub opening: Secret,
    /// When the handshake was done.
    pub created: Time,
}

/// Why a message was not sealed or opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// Older than [`REJECT_AFTER_TIME`].
    Expired,
    /// The counter is at or beyond [`REJECT_AFTER_MESSAGES`].
    CounterExhausted,
    /// The tag did not fit.
    BadTag,
}

/// One session. See the module.
pub struct Session {
    peer: PeerIndex,
    local_index: u32,
    remote_index: u32,
    role: Role,
    created: Time,
    sealing: AeadKey,
    opening: AeadKey,
    send_counter: AtomicU64,
    /// Whether the peer has shown that it has the keys.
    confirmed: AtomicBool,
    /// Whether the peer began another at the same time.
    crossed: AtomicBool,
    window: Mutex<ReplayWindow>,
}

impl Session {
    /// The session that `keys` make.
    pub fn new(keys: Keys) -> Session {
        Session {
            peer: keys.peer,
            local_index: keys.local_index,
            remote_index: keys.remote_index,
            role: keys.role,
            created: keys.created,
            sealing: AeadKey::new(&keys.sealing),
            opening: AeadKey::new(&keys.opening),
            send_counter: AtomicU64::new(0),
            confirmed: AtomicBool::new(keys.role == Role::Initiator),
            crossed: AtomicBool::new(false),
            window: Mutex::default(),
        }
    }

    /// The peer.
    pub fn peer(&self) -> PeerIndex {
        self.peer
    }

    /// What incoming messages carry as receiver.
    pub fn local_index(&self) -> u32 {
        self.local_index
    }

    /// Which side we were.
    pub fn role(&self) -> Role {
        self.role
    }

    /// When its handshake was done.
    pub fn created(&self) -> Time {
        self.created
    }

    /// Whether it is too old to be used.
    pub fn expired(&self, now: Time) -> bool {
        now.since(self.created) >= REJECT_AFTER_TIME
    }

    /// Whether packets may be sealed with it.
    pub fn may_seal(&self, now: Time) -> bool {
        !self.expired(now) && self.sent() < REJECT_AFTER_MESSAGES
    }

    /// Takes the next `count` counters; the first is returned. They are used up whatever becomes of them.
    ///
    /// # Errors
    /// [`Unusable::Expired`], [`Unusable::CounterExhausted`]; the peer then needs a new handshake.
    pub fn reserve(&self, count: u64, now: Time) -> Result<u64, Unusable> {
        if self.expired(now) {
            return Err(Unusable::Expired);
        }
        // Relaxed: the counter orders nothing but itself; that no two calls get the same number is all that matters.
        self.send_counter
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |first| {
                let next = first.checked_add(count)?;
                (next <= REJECT_AFTER_MESSAGES).then_some(next)
            })
            .map_err(|_| Unusable::CounterExhausted)
    }

    /// Counters used so far.
    pub fn sent(&self) -> u64 {
        self.send_counter.load(Ordering::Relaxed)
    }

    /// Whether sending on it should start a new handshake: the initiator's is older than [`REKEY_AFTER_TIME`], or it has
    /// carried [`REKEY_AFTER_MESSAGES`]. See also [`Session::note_crossed`].
    pub fn rekey_due_on_send(&self, now: Time) -> bool {
        // Late enough for an initiator to have renewed it, early enough for a handshake.
        const NOBODY_DID: Span =
            Span::from_nanos(REJECT_AFTER_TIME.as_nanos() - KEEPALIVE_TIMEOUT.as_nanos());
        let age = now.since(self.created);
        let old = match self.role {
            Role::Initiator => age >= REKEY_AFTER_TIME,
            Role::Responder => age >= NOBODY_DID && self.crossed.load(Ordering::Relaxed),
        };
        old || self.sent() >= REKEY_AFTER_MESSAGES
    }

    /// Notes that the peer began another session at the same time. It may happen that each side then seals with the one that
    /// the other began. Nobody is the initiator of what it uses, so whoever sends must renew it in the end.
    pub fn note_crossed(&self) {
        // Relaxed: asked again with every train.
        self.crossed.store(true, Ordering::Relaxed);
    }

    /// Whether receiving on it should start a new handshake: the initiator's ends before a keepalive and a handshake could
    /// be done. Whitepaper §6.2.
    pub fn rekey_due_on_receive(&self, now: Time) -> bool {
        const LAST_CALL: Span = Span::from_nanos(
            REJECT_AFTER_TIME.as_nanos() - KEEPALIVE_TIMEOUT.as_nanos() - REKEY_TIMEOUT.as_nanos(),
        );
        self.role == Role::Initiator && now.since(self.created) >= LAST_CALL
    }

    /// Seals a data message in place: `message` is header 16 | packet and padding | tag 16, of which the middle is given.
    /// `counter` comes from [`Session::reserve`] and is used for nothing else.
    ///
    /// # Panics
    /// When `message` is shorter than header and tag.
    pub fn seal(&self, counter: u64, message: &mut [u8]) {
        emit_data_header(message, self.remote_index, counter);
        let tag_at = message.len() - DATA_TAG_BYTES;
        let (front, tag) = message.split_at_mut(tag_at);
        tag.copy_from_slice(&self.sealing.seal(counter, &[], &mut front[DATA_HEADER_BYTES..]));
    }

    /// Whether `datagram` begins as those that this session sealed.
    pub fn sealed(&self, datagram: &[u8]) -> bool {
        matches!(classify(datagram), Some(Kind::Data { receiver, .. }) if receiver == self.remote_index)
    }

    /// Opens a data message in place; returns where in it the packet and its padding lie. The replay window is not asked:
    /// that is the next step, see [`Session::window`].
    ///
    /// # Errors
    /// [`Unusable`]; the message's bytes are then undefined.
    ///
    /// # Panics
    /// When `message` is shorter than header and tag.
    pub fn open(&self, counter: u64, message: &mut [u8], now: Time) -> Result<Range<usize>, Unusable> {
        assert!(message.len() >= DATA_OVERHEAD_BYTES, "a data message of {} bytes", message.len());
        if self.expired(now) {
            return Err(Unusable::Expired);
        }
        if counter >= REJECT_AFTER_MESSAGES {
            return Err(Unusable::CounterExhausted);
        }
        let text = &mut message[DATA_HEADER_BYTES..];
        let bytes = self.opening.open(counter, &[], text).map_err(|_| Unusable::BadTag)?;
        Ok(DATA_HEADER_BYTES..DATA_HEADER_BYTES + bytes)
    }

    /// The replay window; taken once per receive. All of a session's messages are steered to one worker, so it is free.
    pub fn window(&self) -> MutexGuard<'_, ReplayWindow> {
        // A panic between two window updates leaves it whole.
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the peer has shown that it has the keys; true the first time.
    pub fn confirm(&self) -> bool {
        // Relaxed: who must act on it hears of it by `Activity::tell`, which orders.
        !self.confirmed.load(Ordering::Relaxed) && !self.confirmed.swap(true, Ordering::Relaxed)
    }

    /// Whether the peer has shown that it has the keys.
    pub fn confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Uses up all counters before `counter`, for tests of their end. It never goes back.
    #[doc(hidden)]
    pub fn skip_to(&self, counter: u64) {
        self.send_counter.fetch_max(counter, Ordering::Relaxed);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer)
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread;

    use super::*;
    use crate::wire::message::{Kind, classify};

    /// The two ends of one session, made at the start of time.
    fn pair() -> (Session, Session) {
        let keys = |role, sealing, opening| Keys {
            peer: 3,
            local_index: 10,
            remote_index: 20,
            role,
            sealing: Secret::new([sealing; 32]),
            opening: Secret::new([opening; 32]),
            created: Time::default(),
        };
        (Session::new(keys(Role::Initiator, 1, 2)), Session::new(keys(Role::Responder, 2, 1)))
    }

    fn after(secs: u64) -> Time {
        Time::default() + Span::from_secs(secs)
    }

    /// `packet` with room for header and tag.
    fn unsealed(packet: &[u8]) -> Vec<u8> {
        [&[0; DATA_HEADER_BYTES], packet, &[0; DATA_TAG_BYTES]].concat()
    }

    #[test]
    fn what_one_end_seals_the_other_opens() {
        let (initiator, responder) = pair();
        for (from, to) in [(&initiator, &responder), (&responder, &initiator)] {
            let mut message = unsealed(b"sixteen bytes ok");
            from.seal(77, &mut message);
            assert_eq!(classify(&message), Some(Kind::Data { receiver: 20, counter: 77 }));
            let packet = to.open(77, &mut message, after(1)).unwrap();
            assert_eq!(message[packet], *b"sixteen bytes ok");
        }
    }

    #[test]
    fn a_keepalive_is_an_empty_packet() {
        let (initiator, responder) = pair();
        let mut message = unsealed(b"");
        initiator.seal(0, &mut message);
        assert_eq!(responder.open(0, &mut message, after(1)), Ok(16..16));
    }

    #[test]
    fn a_flipped_bit_or_another_counter_is_refused() {
        let (initiator, responder) = pair();
        let mut sealed = unsealed(b"packet");
        initiator.seal(5, &mut sealed);
        for bit in 8 * DATA_HEADER_BYTES..8 * sealed.len() {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(responder.open(5, &mut damaged, after(1)), Err(Unusable::BadTag), "bit {bit}");
        }
        assert_eq!(responder.open(6, &mut sealed.clone(), after(1)), Err(Unusable::BadTag));
        assert!(responder.open(5, &mut sealed, after(1)).is_ok());
    }

    #[test]
    fn no_counter_is_reserved_twice_by_however_many_workers() {
        let (session, _) = pair();
        let reserve = || (0..1_000).map(|turn| (session.reserve(turn % 7, after(1)).unwrap(), turn % 7));
        let reserved: Vec<(u64, u64)> = thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| reserve().collect::<Vec<_>>())).collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        let counters: Vec<u64> = reserved.iter().flat_map(|(first, count)| *first..first + count).collect();
        assert_eq!(counters.iter().collect::<HashSet<_>>().len(), counters.len());
        assert_eq!(session.sent(), counters.len() as u64);
    }

    #[test]
    fn counters_end_at_reject_after_messages_on_both_sides() {
        assert_eq!(REJECT_AFTER_MESSAGES, (1u128 << 64).wrapping_sub((1 << 13) + 1) as u64);
        let (initiator, responder) = pair();
        initiator.skip_to(REJECT_AFTER_MESSAGES - 3);
        assert_eq!(initiator.reserve(4, after(1)), Err(Unusable::CounterExhausted));
        assert_eq!(initiator.reserve(3, after(1)), Ok(REJECT_AFTER_MESSAGES - 3), "refusing used none up");
        assert_eq!(initiator.reserve(1, after(1)), Err(Unusable::CounterExhausted));
        assert_eq!(initiator.reserve(u64::MAX, after(1)), Err(Unusable::CounterExhausted));
        for (counter, expected) in [
            (REJECT_AFTER_MESSAGES - 1, Ok(16..16)),
            (REJECT_AFTER_MESSAGES, Err(Unusable::CounterExhausted)),
            (u64::MAX, Err(Unusable::CounterExhausted)),
        ] {
            let mut message = unsealed(b"");
            initiator.seal(counter, &mut message);
            assert_eq!(responder.open(counter, &mut message, after(1)), expected, "{counter}");
        }
    }

    #[test]
    fn a_session_is_neither_sent_on_nor_received_on_after_180_seconds() {
        let (initiator, responder) = pair();
        let last = after(180) - Span::from_nanos(1);
        assert_eq!(initiator.reserve(1, last), Ok(0));
        let mut message = unsealed(b"");
        initiator.seal(0, &mut message);
        assert!(responder.open(0, &mut message.clone(), last).is_ok());
        assert_eq!(initiator.reserve(1, after(180)), Err(Unusable::Expired));
        assert_eq!(responder.open(0, &mut message, after(180)), Err(Unusable::Expired));
        assert!(initiator.expired(after(180)) && !initiator.expired(last));
    }

    #[test]
    fn only_the_initiator_renews_by_time_and_either_by_messages() {
        let (initiator, responder) = pair();
        let before = |secs| after(secs) - Span::from_nanos(1);
        assert!(!initiator.rekey_due_on_send(before(120)) && initiator.rekey_due_on_send(after(120)));
        assert!(!initiator.rekey_due_on_receive(before(165)) && initiator.rekey_due_on_receive(after(165)));
        assert!(!responder.rekey_due_on_send(before(180)) && !responder.rekey_due_on_receive(before(180)));
        responder.note_crossed();
        assert!(!responder.rekey_due_on_send(before(170)) && responder.rekey_due_on_send(after(170)));
        for session in [initiator, responder] {
            session.skip_to(REKEY_AFTER_MESSAGES - 1);
            assert!(!session.rekey_due_on_send(after(1)));
            session.reserve(1, after(1)).unwrap();
            assert!(session.rekey_due_on_send(after(1)));
        }
    }

    #[test]
    fn the_responder_s_session_is_confirmed_once_and_the_initiator_s_from_the_start() {
        let (initiator, responder) = pair();
        assert!(initiator.confirmed() && !initiator.confirm());
        assert!(!responder.confirmed());
        assert!(responder.confirm() && responder.confirmed() && !responder.confirm());
    }

    #[test]
    fn no_key_is_printed() {
        let expected = "Session { peer: 3, local_index: 10, remote_index: 20, role: Initiator, .. }";
        assert_eq!(format!("{:?}", pair().0), expected);
    }
}
