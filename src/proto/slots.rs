//! A peer's sessions: `previous`, `current`, `next`.
//!
//! * `current` seals what we send.
//! * `next` was made by a handshake that the peer began: it may become `current` when the peer has shown that it has the
//!   keys.
//! * `previous` opens what was under way when `current` changed.
//!
//! Source: drivers/net/wireguard/noise.c `add_new_keypair`, `wg_noise_received_with_keypair`.

use std::sync::Arc;

use super::session::{REJECT_AFTER_MESSAGES, Role, Session};
use super::timers::REKEY_TIMEOUT;
use crate::time::Time;

/// The three slots.
#[derive(Debug, Default)]
pub(super) struct Slots {
    previous: Option<Arc<Session>>,
    current: Option<Arc<Session>>,
    next: Option<Arc<Session>>,
}

impl Slots {
    /// The session that seals.
    pub(super) fn current(&self) -> Option<&Arc<Session>> {
        self.current.as_ref()
    }

    /// The session that seals, if it still may at `now`.
    pub(super) fn usable(&self, now: Time) -> Option<&Arc<Session>> {
        self.current.as_ref().filter(|session| usable(session, now))
    }

    /// Whether a session with this index is in one of the slots.
    pub(super) fn holds(&self, local_index: u32) -> bool {
        self.iter().any(|session| session.local_index() == local_index)
    }

    /// Takes a session that a handshake has made; returns those that lose their slot.
    pub(super) fn add(&mut self, session: Arc<Session>) -> [Option<Arc<Session>>; 2] {
        match session.role() {
            Role::Initiator => self.add_current(session),
            Role::Responder => [self.next.replace(session), self.previous.take()],
        }
    }

    /// The peer has answered, so it has the keys. A session in `next` was not used yet, but the peer may have begun to.
    fn add_current(&mut self, session: Arc<Session>) -> [Option<Arc<Session>>; 2] {
        let replaced = self.current.replace(session);
        match self.next.take() {
            Some(next) => [self.previous.replace(next), replaced],
            None => [std::mem::replace(&mut self.previous, replaced), None],
        }
    }

    /// Makes `next` the session that seals, if the peer has shown that it has the keys. Returns when it was made if it did, and
    /// who loses its slot.
    pub(super) fn promote(&mut self) -> (Option<Time>, Option<Arc<Session>>) {
        let Some(next) = self.next.take_if(|next| next.confirmed()) else {
            return (None, None);
        };
        let created = next.created();
        if self.current.as_ref().is_some_and(|current| crossed(current, &next)) {
            next.note_crossed();
        }
        let replaced = self.current.replace(next);
        (Some(created), std::mem::replace(&mut self.previous, replaced))
    }

    /// After both sides began a handshake at once there are two sessions, and each side seals with the one it began. If the
    /// peer has used the one that it began, goes over to it. True if that was so.
    pub(super) fn yield_to_previous(&mut self) -> bool {
        let (Some(previous), Some(current)) = (&self.previous, &self.current) else {
            return false;
        };
        let yields = crossed(current, previous) && previous.confirmed();
        if yields {
            previous.note_crossed();
            std::mem::swap(&mut self.previous, &mut self.current);
        }
        yields
    }

    /// When the oldest session was made.
    pub(super) fn oldest(&self) -> Option<Time> {
        self.iter().map(|session| session.created()).min()
    }

    /// Empties the slots whose sessions are too old to be used.
    pub(super) fn take_expired(&mut self, now: Time) -> [Option<Arc<Session>>; 3] {
        [&mut self.previous, &mut self.current, &mut self.next]
            .map(|slot| slot.take_if(|session| session.expired(now)))
    }

    /// Empties all slots.
    pub(super) fn take_all(&mut self) -> [Option<Arc<Session>>; 3] {
        [self.previous.take(), self.current.take(), self.next.take()]
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<Session>> {
        [&self.previous, &self.current, &self.next].into_iter().flatten()
    }
}

/// Whether we began the one and the peer the other, both at about the same time.
fn crossed(ours: &Session, theirs: &Session) -> bool {
    let gap = ours.created().since(theirs.created()).max(theirs.created().since(ours.created()));
    ours.role() == Role::Initiator && theirs.role() == Role::Responder && gap < REKEY_TIMEOUT
}

fn usable(session: &Session, now: Time) -> bool {
    !session.expired(now) && session.sent() < REJECT_AFTER_MESSAGES
}
