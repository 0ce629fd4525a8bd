//! What the peers of one device share: our key, random numbers, receiver indices, and what goes out.

use std::collections::VecDeque;
use std::sync::Arc;

use super::PeerIndex;
use super::cookie::MacChecker;
use super::index::Indices;
use super::keys::PublicKey;
use super::noise::LocalKeys;
use super::output::{Transmit, Update};
use super::rng::Rng;
use super::session::Session;
use super::tai64n::Tai64n;
use crate::time::{Span, Time, WallTime};

/// Now, on both clocks.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Time,
    pub(super) wall: WallTime,
}

/// Our key, and what is computed from it.
pub(super) struct Local {
    pub(super) keys: LocalKeys,
    pub(super) macs: MacChecker,
}

/// What the peers of one device have in common.
pub(super) struct Shared {
    pub(super) up: bool,
    pub(super) local: Option<Local>,
    pub(super) rng: Rng,
    pub(super) workers: usize,
    /// Whose a receiver index is: of its outstanding initiation, or of a session in one of its slots.
    pub(super) indices: Indices<PeerIndex>,
    /// The newest stamp of the peers that were removed: one that comes back must not get an older one.
    pub(super) newest_stamp: Option<Tai64n>,
    pub(super) transmits: VecDeque<Transmit>,
    pub(super) updates: VecDeque<Update>,
    /// Of handshakes that nobody was told of yet.
    pub(super) round_trips: VecDeque<Span>,
}

impl Shared {
    /// A receiver index for `peer`. A peer's sessions all belong to one worker, the peers are spread over all.
    pub(super) fn allocate(&mut self, peer: PeerIndex) -> u32 {
        let worker = peer as usize % self.workers;
        self.indices.allocate(worker, peer, &mut self.rng)
    }

    /// These sessions have lost their slots.
    pub(super) fn release(&mut self, sessions: impl IntoIterator<Item = Arc<Session>>) {
        for session in sessions {
            self.indices.release(session.local_index());
            self.updates.push_back(Update::SessionRemoved { local_index: session.local_index() });
        }
    }

    /// Which side goes over to the other's session when both began one at once: the one with the lower public key.
    pub(super) fn yields_to(&self, peer: &PublicKey) -> bool {
        self.local.as_ref().is_some_and(|local| local.keys.public() < peer)
    }
}
