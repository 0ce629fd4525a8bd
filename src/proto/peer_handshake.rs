//! One peer's part in a handshake: the messages it is sent and those that came from it.
//!
//! Source: WireGuard whitepaper §5.4.2, §5.4.3; drivers/net/wireguard/noise.c, receive.c.

use std::sync::Arc;

use super::Endpoint;
use super::noise::{self, Consumed, Initiated, LocalKeys, RemoteKeys, TransportKeys};
use super::output::{HANDSHAKE_TOS, Handled, Message, Update};
use super::peer::Peer;
use super::session::{Keys, Role, Session};
use super::shared::{Moment, Shared};
use super::tai64n::Tai64n;
use super::timers::INITIATION_INTERVAL_MIN;
use crate::time::{Time, WallTime};
use crate::wire::message::{INITIATION_BYTES, RESPONSE_BYTES};

/// An initiation that waits for its response.
pub(super) struct Outstanding {
    pub(super) local_index: u32,
    initiated: Initiated,
    sent_at: Time,
}

impl Peer {
    /// `None` when we have no key, or the peer's is a point of low order.
    pub(super) fn create_initiation(&mut self, shared: &mut Shared, at: Moment) -> Option<Message> {
        let stamp = self.next_stamp(shared.newest_stamp, at.wall);
        let local_index = shared.allocate(self.index);
        let ephemeral = shared.rng.private_key();
        let created = shared.local.as_ref().and_then(|local| {
            let remote = self.remote_keys(&local.keys);
            noise::create_initiation(&local.keys, remote, ephemeral, stamp, local_index)
        });
        let Some((mut message, initiated)) = created else {
            shared.indices.release(local_index);
            return None;
        };
        self.macs.write_macs(&mut message, at.now);
        self.drop_outstanding(shared);
        self.outstanding = Some(Box::new(Outstanding { local_index, initiated, sent_at: at.now }));
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
        if !std::mem::replace(&mut self.keyed, true) {
            self.keys.set_local(Some(local));
        }
        &self.keys
    }

    /// What was computed with our key is no longer right.
    pub(super) fn forget_local_key(&mut self) {
        self.keys.set_local(None);
        self.keyed = false;
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
            return Handled::InitiationReplayed(self.index);
        }
        if self.accepted_at.is_some_and(|accepted| at.now.since(accepted) < INITIATION_INTERVAL_MIN) {
            return Handled::InitiationTooSoon(self.index);
        }
        let local_index = shared.allocate(self.index);
        let ephemeral = shared.rng.private_key();
        let Some((mut message, keys)) = noise::create_response(consumed, &self.keys, ephemeral, local_index)
        else {
            shared.indices.release(local_index);
            return Handled::InitiationUnanswerable(self.index);
        };
        self.stamp_accepted = Some(consumed.timestamp);
        self.accepted_at = Some(at.now);
        self.handshake_sent_at = Some(at.now);
        // A worker may have seen the peer use the session before this one, and we not have heard of it yet.
        self.promote(shared, at);
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
            return Handled::ResponseForged(self.index);
        };
        let sent_at = outstanding.sent_at;
        // Its index now is the session's.
        self.outstanding = None;
        self.promote(shared, at);
        self.activity.control_received(RESPONSE_BYTES as u64, at.now);
        self.move_to(shared, from);
        self.handshake_completed(shared, sent_at, at);
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
}
