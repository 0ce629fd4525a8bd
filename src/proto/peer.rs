//! One peer: handshake × three session slots × endpoint. Its timers are in [`super::peer_timers`].
//!
//! What is sent and what workers must know is put into [`Shared`], which all peers of a device share.
//!
//! Source: drivers/net/wireguard/send.c, receive.c, noise.c.

use std::collections::VecDeque;
use std::sync::Arc;

use super::activity::News::{Active, Confirmed, RekeyDue, SessionWanted};
use super::activity::{Activity, NewsSet};
use super::cookie::{MacChecker, MacWriter};
use super::index::Indices;
use super::keys::{PresharedKey, PublicKey};
use super::noise::{self, Consumed, Initiated, LocalKeys, RemoteKeys, TransportKeys};
use super::output::{HANDSHAKE_TOS, Handled, Message, PeerStatus, Transmit, Update};
use super::peer_timers::Timers;
use super::rng::Rng;
use super::session::{Keys, Role, Session};
use super::slots::Slots;
use super::tai64n::Tai64n;
use super::timers::{INITIATION_INTERVAL_MIN, REKEY_TIMEOUT, WIPE_AFTER_TIME};
use super::{Endpoint, PeerIndex};
use crate::time::{Span, Time, WallTime};
use crate::wire::message::{INITIATION_BYTES, KEEPALIVE_BYTES, RESPONSE_BYTES};

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
}

/// An initiation that waits for its response.
struct Outstanding {
    local_index: u32,
    initiated: Initiated,
}

/// See the module.
pub(super) struct Peer {
    index: PeerIndex,
    keys: RemoteKeys,
    /// Whether `keys` were computed with our own; that is done when they are first needed.
    keyed: bool,
    pub(super) macs: MacWriter,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) activity: Arc<Activity>,
    slots: Slots,
    outstanding: Option<Box<Outstanding>>,
    /// The newest stamp we sent.
    stamp_sent: Option<Tai64n>,
    /// The newest stamp we accepted. It outlives sessions and our own key: an old initiation stays a replay.
    stamp_accepted: Option<Tai64n>,
    /// When that was.
    accepted_at: Option<Time>,
    /// The newest initiation or response sent.
    pub(super) handshake_sent_at: Option<Time>,
    last_handshake: Option<WallTime>,
    /// Seconds between persistent keepalives, or 0.
    pub(super) keepalive: u16,
    /// Whether a worker holds packets for the peer.
    staged: bool,
    /// Whether a handshake is to begin as soon as there is an endpoint.
    wanted: bool,
    pub(super) timers: Timers,
    /// Under which time the device's timer queue has the peer.
    pub(super) queued_at: Option<Time>,
}

impl Peer {
    pub(super) fn new(index: PeerIndex, public: PublicKey) -> Peer {
        Peer {
            index,
            keys: RemoteKeys::new(None, public, PresharedKey::NONE),
            keyed: false,
            macs: MacWriter::new(&public),
            endpoint: None,
            activity: Arc::default(),
            slots: Slots::default(),
            outstanding: None,
            stamp_sent: None,
            stamp_accepted: None,
            accepted_at: None,
            handshake_sent_at: None,
            last_handshake: None,
            keepalive: 0,
            staged: false,
            wanted: false,
            timers: Timers::default(),
            queued_at: None,
        }
    }

    pub(super) fn public_key(&self) -> &PublicKey {
        self.keys.public()
    }

    pub(super) fn set_preshared_key(&mut self, psk: PresharedKey) {
        self.keys.set_psk(psk);
    }

    pub(super) fn status(&self) -> PeerStatus<'_> {
        PeerStatus {
            public_key: self.keys.public(),
            preshared_key: self.keys.psk(),
            endpoint: self.endpoint,
            last_handshake: self.last_handshake,
            rx_bytes: self.activity.rx_bytes(),
            tx_bytes: self.activity.tx_bytes(),
            keepalive: self.keepalive,
            activity: &self.activity,
        }
    }

    /// The peer is at `endpoint`.
    pub(super) fn move_to(&mut self, shared: &mut Shared, endpoint: Endpoint) {
        if self.endpoint != Some(endpoint) {
            self.endpoint = Some(endpoint);
            shared.updates.push_back(Update::Endpoint { peer: self.index, endpoint: self.endpoint });
        }
        if std::mem::take(&mut self.wanted) {
            self.begin_at(Time::default());
        }
    }

    /// Leaves our address to the routing table: the one the peer last sent to may have stopped working.
    pub(super) fn forget_local_address(&mut self, shared: &mut Shared) {
        if let Some(endpoint) = self.endpoint {
            self.move_to(shared, Endpoint { local: None, ..endpoint });
        }
    }

    /// What workers have left.
    pub(super) fn news(&mut self, shared: &mut Shared, news: NewsSet, at: Moment) {
        if news.has(Confirmed) {
            self.confirmed(shared, at);
        }
        if news.has(SessionWanted) {
            self.session_wanted(shared, at);
        }
        if news.has(RekeyDue) && self.slots.current().is_some_and(|session| session.rekey_due_on_send(at.now))
        {
            self.rekey(shared, at);
        }
        if news.has(Active) {
            self.watch(shared, at);
        }
    }

    /// The peer has used a session that it began.
    fn confirmed(&mut self, shared: &mut Shared, at: Moment) {
        let (promoted, dropped) = self.slots.promote();
        if promoted {
            self.handshake_completed(at);
            self.publish_current(shared);
            shared.release(dropped);
        } else if shared.yields_to(self.public_key()) && self.slots.yield_to_previous() {
            self.publish_current(shared);
        }
    }

    fn session_wanted(&mut self, shared: &mut Shared, at: Moment) {
        // The worker may have read its clock a little later than we, and may not have heard of the newest session.
        const CLOCK_SKEW: Span = Span::from_millis(100);
        if self.slots.usable(at.now + CLOCK_SKEW).is_none() {
            self.staged = true;
            self.want_handshake(shared, at);
        }
    }

    /// Renews the session, unless that is under way.
    fn rekey(&mut self, shared: &mut Shared, at: Moment) {
        if !self.timers.initiating() && self.soonest_initiation(at.now) <= at.now {
            self.want_handshake(shared, at);
        }
    }

    /// Something new asks for a handshake: the attempts count from here.
    pub(super) fn want_handshake(&mut self, shared: &mut Shared, at: Moment) {
        self.timers.count_attempts_anew();
        self.initiate(shared, at);
    }

    /// Sends an initiation, now or as soon as it may be.
    pub(super) fn initiate(&mut self, shared: &mut Shared, at: Moment) {
        if !shared.up || shared.local.is_none() {
            return;
        }
        let Some(endpoint) = self.endpoint else {
            self.wanted = true;
            return;
        };
        let soonest = self.soonest_initiation(at.now);
        if soonest > at.now {
            return self.timers.initiate_if_idle(soonest);
        }
        self.handshake_sent_at = Some(at.now);
        if let Some(message) = self.create_initiation(shared, at) {
            self.timers.initiation_sent(at.now, &mut shared.rng);
            self.send(shared, endpoint, message, HANDSHAKE_TOS, at.now);
        }
    }

    /// A response counts as well: the peer has just got one and is about to confirm it.
    fn soonest_initiation(&self, now: Time) -> Time {
        self.handshake_sent_at.map_or(now, |sent_at| sent_at + REKEY_TIMEOUT)
    }

    /// `None` when a key is a point of low order.
    fn create_initiation(&mut self, shared: &mut Shared, at: Moment) -> Option<Message> {
        let stamp = self.next_stamp(shared.newest_stamp, at.wall);
        let local_index = shared.allocate(self.index);
        let local = &shared.local.as_ref()?.keys;
        self.compute_keys(local);
        let ephemeral = shared.rng.private_key();
        let created = noise::create_initiation(local, &self.keys, ephemeral, stamp, local_index);
        let Some((mut message, initiated)) = created else {
            shared.indices.release(local_index);
            return None;
        };
        self.macs.write_macs(&mut message, at.now);
        self.drop_outstanding(shared);
        self.outstanding = Some(Box::new(Outstanding { local_index, initiated }));
        Some(Message::new(&message))
    }

    /// Later than all before, also when the wall clock stands still or was set back.
    fn next_stamp(&mut self, floor: Option<Tai64n>, wall: WallTime) -> Tai64n {
        let newest = self.stamp_sent.max(floor).map(Tai64n::next);
        let stamp = newest.map_or(Tai64n::from_wall(wall), |least| least.max(Tai64n::from_wall(wall)));
        self.stamp_sent = Some(stamp);
        stamp
    }

    pub(super) fn stamp_sent(&self) -> Option<Tai64n> {
        self.stamp_sent
    }

    /// The keys, made ready for a handshake.
    pub(super) fn remote_keys(&mut self, local: &LocalKeys) -> &RemoteKeys {
        self.compute_keys(local);
        &self.keys
    }

    fn compute_keys(&mut self, local: &LocalKeys) {
        if !std::mem::replace(&mut self.keyed, true) {
            self.keys.set_local(Some(local));
        }
    }

    /// Answers an initiation that is wholly verified, if it is new.
    pub(super) fn respond(
        &mut self,
        shared: &mut Shared,
        consumed: &Consumed,
        from: Endpoint,
        at: Moment,
    ) -> Handled {
        if self.stamp_accepted >= Some(consumed.timestamp) {
            return Handled::InitiationReplayed;
        }
        if self.accepted_at.is_some_and(|accepted| at.now.since(accepted) < INITIATION_INTERVAL_MIN) {
            return Handled::InitiationTooSoon;
        }
        let local_index = shared.allocate(self.index);
        let ephemeral = shared.rng.private_key();
        let Some((mut message, keys)) = noise::create_response(consumed, &self.keys, ephemeral, local_index)
        else {
            shared.indices.release(local_index);
            return Handled::InitiationUnanswerable;
        };
        self.stamp_accepted = Some(consumed.timestamp);
        self.accepted_at = Some(at.now);
        self.handshake_sent_at = Some(at.now);
        self.activity.control_received(INITIATION_BYTES as u64, at.now);
        self.move_to(shared, from);
        self.macs.write_macs(&mut message, at.now);
        self.add_session(shared, Role::Responder, local_index, keys, at.now);
        self.send(shared, from, Message::new(&message), HANDSHAKE_TOS, at.now);
        Handled::InitiationAccepted(self.index)
    }

    /// Takes the response to our newest initiation.
    pub(super) fn consume_response(
        &mut self,
        shared: &mut Shared,
        message: &[u8; RESPONSE_BYTES],
        receiver: u32,
        from: Endpoint,
        at: Moment,
    ) -> Handled {
        let answered = self.outstanding.as_ref().filter(|outstanding| outstanding.local_index == receiver);
        let (Some(outstanding), Some(local)) = (answered, &shared.local) else {
            return Handled::ResponseUnexpected;
        };
        let keys = noise::consume_response(&local.keys, &self.keys, &outstanding.initiated, message);
        let Some(keys) = keys else {
            return Handled::ResponseForged;
        };
        // Its index now is the session's.
        self.outstanding = None;
        self.activity.control_received(RESPONSE_BYTES as u64, at.now);
        self.move_to(shared, from);
        self.handshake_completed(at);
        let staged = std::mem::take(&mut self.staged);
        self.add_session(shared, Role::Initiator, receiver, keys, at.now);
        if !staged {
            self.send_keepalive(shared, at);
        }
        Handled::ResponseAccepted(self.index)
    }

    fn add_session(
        &mut self,
        shared: &mut Shared,
        role: Role,
        local_index: u32,
        keys: TransportKeys,
        now: Time,
    ) {
        let TransportKeys { sealing, opening, remote_index } = keys;
        let peer = self.index;
        let keys = Keys { peer, local_index, remote_index, role, sealing, opening, created: now };
        let session = Arc::new(Session::new(keys));
        shared.updates.push_back(Update::SessionAdded(Arc::clone(&session)));
        let dropped = self.slots.add(session);
        if role == Role::Initiator {
            self.publish_current(shared);
        }
        shared.release(dropped.into_iter().flatten());
        self.plan_wipe();
    }

    /// Both sides have the keys.
    fn handshake_completed(&mut self, at: Moment) {
        self.last_handshake = Some(at.wall);
        self.timers.handshake_completed();
    }

    fn publish_current(&mut self, shared: &mut Shared) {
        let session = self.slots.current().cloned();
        if session.is_some() {
            self.staged = false;
        }
        shared.updates.push_back(Update::Current { peer: self.index, session });
    }

    /// Sends a keepalive, or begins a handshake if there is no session.
    pub(super) fn send_keepalive(&mut self, shared: &mut Shared, at: Moment) {
        let session = self.slots.usable(at.now).cloned();
        let reserved = session.and_then(|session| Some((session.reserve(1, at.now).ok()?, session)));
        let (Some((counter, session)), Some(endpoint)) = (reserved, self.endpoint) else {
            return self.want_handshake(shared, at);
        };
        let mut message = [0; KEEPALIVE_BYTES];
        session.seal(counter, &mut message);
        self.send(shared, endpoint, Message::new(&message), 0, at.now);
        if session.rekey_due_on_send(at.now) {
            self.rekey(shared, at);
        }
    }

    fn send(&mut self, shared: &mut Shared, to: Endpoint, bytes: Message, tos: u8, now: Time) {
        self.activity.control_sent(bytes.len() as u64, now);
        shared.transmits.push_back(Transmit { peer: Some(self.index), to, bytes, tos });
    }

    /// Nothing answers.
    pub(super) fn give_up(&mut self, shared: &mut Shared) {
        self.staged = false;
        shared.updates.push_back(Update::DropStaged { peer: self.index });
    }

    /// Whether a session with this index is the peer's.
    pub(super) fn has_session(&self, local_index: u32) -> bool {
        self.slots.holds(local_index)
    }

    /// Drops the sessions that are of no more use, and an initiation that is not sent again.
    pub(super) fn wipe_old(&mut self, shared: &mut Shared, now: Time) {
        if !self.timers.initiating() {
            self.drop_outstanding(shared);
        }
        let had_current = self.slots.current().is_some();
        let dropped = self.slots.take_expired(now);
        if had_current && self.slots.current().is_none() {
            self.publish_current(shared);
        }
        shared.release(dropped.into_iter().flatten());
        self.plan_wipe();
    }

    /// No key is kept longer than this. The kernel counts from the newest session, so that handshakes which come to nothing
    /// keep old keys alive; we count from the oldest.
    fn plan_wipe(&mut self) {
        self.timers.wipe_at = self.slots.oldest().map(|created| created + WIPE_AFTER_TIME);
    }

    /// Drops all sessions and the outstanding initiation.
    pub(super) fn wipe(&mut self, shared: &mut Shared) {
        self.drop_outstanding(shared);
        let had_current = self.slots.current().is_some();
        let dropped = self.slots.take_all();
        if had_current {
            self.publish_current(shared);
        }
        shared.release(dropped.into_iter().flatten());
    }

    /// Everything begins anew: our key is another one, or the interface went down.
    pub(super) fn reset(&mut self, shared: &mut Shared) {
        self.wipe(shared);
        self.handshake_sent_at = None;
        self.wanted = false;
        self.timers = Timers::default();
        self.activity.forget();
        self.activity.set_watched(false);
    }

    /// What was computed with our key is no longer right.
    pub(super) fn forget_local_key(&mut self) {
        self.keys.set_local(None);
        self.keyed = false;
    }

    fn drop_outstanding(&mut self, shared: &mut Shared) {
        if let Some(outstanding) = self.outstanding.take() {
            shared.indices.release(outstanding.local_index);
        }
    }
}

impl Shared {
    /// A receiver index for `peer`. A peer's sessions all belong to one worker, the peers are spread over all.
    fn allocate(&mut self, peer: PeerIndex) -> u32 {
        let worker = peer as usize % self.workers;
        self.indices.allocate(worker, peer, &mut self.rng)
    }

    /// These sessions have lost their slots.
    fn release(&mut self, sessions: impl IntoIterator<Item = Arc<Session>>) {
        for session in sessions {
            self.indices.release(session.local_index());
            self.updates.push_back(Update::SessionRemoved { local_index: session.local_index() });
        }
    }

    /// Which side goes over to the other's session when both began one at once: the one with the lower public key.
    fn yields_to(&self, peer: &PublicKey) -> bool {
        self.local.as_ref().is_some_and(|local| local.keys.public() < peer)
    }
}

/// Not printed: keys.
impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("index", &self.index)
            .field("public", self.keys.public())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_peer_takes_less_than_two_kib() {
        assert!(size_of::<Peer>() + size_of::<Activity>() < 1024, "{}", size_of::<Peer>());
    }
}
