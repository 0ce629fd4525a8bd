//! One peer: handshake × three session slots × endpoint. Its part in a handshake is in
//! [`super::peer_handshake`], its timers are in [`super::peer_timers`].
//!
//! What is sent and what workers must know is put into [`Shared`], which all peers of a device share.
//!
//! Source: drivers/net/wireguard/send.c, receive.c, noise.c.

use std::sync::Arc;

use super::activity::News::{Active, Confirmed, RekeyDue, SessionWanted};
use super::activity::{Activity, NewsSet};
use super::cookie::MacWriter;
use super::keys::{PresharedKey, PublicKey};
use super::noise::RemoteKeys;
use super::output::{HANDSHAKE_TOS, Message, PeerStatus, RoundTrips, Transmit, Update};
use super::peer_handshake::Outstanding;
use super::peer_timers::Timers;
use super::shared::{Moment, Shared};
use super::slots::Slots;
use super::tai64n::Tai64n;
use super::timers::{REKEY_TIMEOUT, WIPE_AFTER_TIME};
use super::{Endpoint, PeerIndex};
use crate::time::{Span, Time, WallTime};
use crate::wire::message::KEEPALIVE_BYTES;

/// See the module.
pub(super) struct Peer {
    pub(super) index: PeerIndex,
    pub(super) keys: RemoteKeys,
    /// Whether `keys` were computed with our own; that is done when they are first needed.
    pub(super) keyed: bool,
    pub(super) macs: MacWriter,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) activity: Arc<Activity>,
    pub(super) slots: Slots,
    pub(super) outstanding: Option<Box<Outstanding>>,
    /// The newest stamp we sent.
    pub(super) stamp_sent: Option<Tai64n>,
    /// The newest stamp we accepted. It outlives sessions and our own key: an old initiation stays a replay.
    pub(super) stamp_accepted: Option<Tai64n>,
    /// When that was.
    pub(super) accepted_at: Option<Time>,
    /// The newest initiation or response sent.
    pub(super) handshake_sent_at: Option<Time>,
    pub(super) last_handshake: Option<WallTime>,
    pub(super) round_trips: RoundTrips,
    /// Seconds between persistent keepalives, or 0.
    pub(super) keepalive: u16,
    /// Whether a worker holds packets for the peer.
    pub(super) staged: bool,
    /// Whether a handshake is to begin as soon as there is an endpoint.
    pub(super) wanted: bool,
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
            round_trips: RoundTrips::default(),
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
            keyed_at: self.slots.current().map(|session| session.created()),
            round_trips: self.round_trips,
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
        let yields = shared.yields_to(self.public_key());
        if !self.promote(shared, at) && yields && self.slots.yield_to_previous() {
            self.publish_current(shared);
        }
    }

    /// Goes over to the next session if the peer has used it.
    pub(super) fn promote(&mut self, shared: &mut Shared, at: Moment) -> bool {
        let (promoted, dropped) = self.slots.promote();
        if let Some(created) = promoted {
            // Whoever still answers our own initiation is late: its half of that session may be old.
            self.drop_outstanding(shared);
            self.handshake_completed(shared, created, at);
            self.publish_current(shared);
            shared.release(dropped);
        }
        promoted.is_some()
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

    /// Both sides have the keys; our message that the peer answered was sent at `sent_at`.
    pub(super) fn handshake_completed(&mut self, shared: &mut Shared, sent_at: Time, at: Moment) {
        let took = at.now.since(sent_at);
        self.round_trips.add(took);
        shared.round_trips.push_back(took);
        self.last_handshake = Some(at.wall);
        self.timers.handshake_completed();
    }

    pub(super) fn publish_current(&mut self, shared: &mut Shared) {
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

    pub(super) fn send(&mut self, shared: &mut Shared, to: Endpoint, bytes: Message, tos: u8, now: Time) {
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
    pub(super) fn plan_wipe(&mut self) {
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
        self.forget_traffic();
    }

    /// What workers noted is of no interest any more; what they note from now on is told again.
    pub(super) fn forget_traffic(&mut self) {
        self.activity.forget();
        self.activity.set_watched(false);
    }

    pub(super) fn drop_outstanding(&mut self, shared: &mut Shared) {
        if let Some(outstanding) = self.outstanding.take() {
            shared.indices.release(outstanding.local_index);
        }
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
