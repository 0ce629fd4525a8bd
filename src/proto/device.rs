//! All peers of one interface: the surface of the protocol core. Its contract is in [`super`].
//!
//! Peers are found by public key or by receiver index; each has one entry in the timer queue. What came in from the network
//! is taken in `receive`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use slab::Slab;
use zeroize::Zeroize;

use super::activity::News;
use super::cookie::MacChecker;
use super::index::Indices;
use super::keys::{PresharedKey, PrivateKey, PublicKey};
use super::noise::LocalKeys;
use super::output::{PeerStatus, Reason, Transmit, Update};
use super::peer::Peer;
use super::rate_limit::RateLimit;
use super::rng::Rng;
use super::shared::{Local, Moment, Shared};
use super::{Endpoint, PeerIndex};
use crate::time::{Span, Time, WallTime};

/// When something begins for all peers at once, so many handshakes begin at once.
const BEGIN_AT_ONCE: u64 = 64;
/// The others follow at this distance, about twice the time that one takes.
const BEGIN_DISTANCE: Span = Span::from_nanos(200_000);

/// The protocol side of one interface. See the module.
pub struct Device {
    pub(super) shared: Shared,
    /// Boxed: a slab that grows would leave copies of keys behind that nobody wipes.
    pub(super) peers: Slab<Box<Peer>>,
    by_key: BTreeMap<PublicKey, PeerIndex>,
    /// Each peer that has a timer running, by the one that fires first.
    timers: BTreeSet<(Time, PeerIndex)>,
    pub(super) limiter: RateLimit,
    /// When the queue of handshake datagrams was last long.
    pub(super) loaded_at: Option<Time>,
}

impl Device {
    /// An interface that is down, without key and peers. `workers` own its sessions, 1 to 256 of them. All random numbers
    /// come from `seed`.
    pub fn new(workers: usize, mut seed: [u8; 32]) -> Device {
        let mut rng = Rng::from_seed(seed);
        seed.zeroize();
        Device {
            limiter: RateLimit::new(&mut rng),
            shared: Shared {
                up: false,
                local: None,
                rng,
                workers,
                indices: Indices::new(workers),
                newest_stamp: None,
                transmits: VecDeque::new(),
                updates: VecDeque::new(),
                round_trips: VecDeque::new(),
            },
            peers: Slab::new(),
            by_key: BTreeMap::new(),
            timers: BTreeSet::new(),
            loaded_at: None,
        }
    }

    /// Changes our key. All sessions end, a peer with our own public key is removed, and handshakes with all peers begin.
    /// With `None` nobody is answered any more. Setting the same key again changes nothing.
    pub fn set_private_key(&mut self, key: Option<PrivateKey>, now: Time, wall: WallTime) {
        if self.private_key() == key.as_ref() {
            return;
        }
        self.shared.local = key.map(|key| {
            let keys = LocalKeys::new(key);
            Local { macs: MacChecker::new(keys.public()), keys }
        });
        self.shared.updates.push_back(Update::LocalKey { public_key: self.public_key() });
        self.shared.transmits.clear();
        self.for_each_peer(|peer, shared| {
            peer.forget_local_key();
            peer.reset(shared);
        });
        if let Some(ourselves) = self.public_key().and_then(|key| self.find_peer(&key)) {
            self.remove_peer(ourselves);
        }
        if self.shared.up && self.shared.local.is_some() {
            let mut starts = Starts::from(now);
            self.for_each_peer(|peer, _| {
                peer.begin_at(starts.next());
                peer.restart_persistent(now);
            });
            self.handle_timeout(now, wall);
        }
    }

    /// Our public key.
    pub fn public_key(&self) -> Option<PublicKey> {
        self.shared.local.as_ref().map(|local| *local.keys.public())
    }

    /// Our private key.
    pub fn private_key(&self) -> Option<&PrivateKey> {
        self.shared.local.as_ref().map(|local| local.keys.private())
    }

    /// Adds a peer, or finds the one that has this key. `None` for our own key.
    pub fn add_peer(&mut self, key: PublicKey) -> Option<PeerIndex> {
        if self.public_key() == Some(key) {
            return None;
        }
        if let Some(peer) = self.find_peer(&key) {
            return Some(peer);
        }
        let entry = self.peers.vacant_entry();
        let index = PeerIndex::try_from(entry.key()).expect("memory holds fewer than 2^32 peers");
        let peer = entry.insert(Box::new(Peer::new(index, key)));
        let activity = Arc::clone(&peer.activity);
        self.shared.updates.push_back(Update::PeerAdded { peer: index, public_key: key, activity });
        self.by_key.insert(key, index);
        Some(index)
    }

    /// The peer with this key.
    pub fn find_peer(&self, key: &PublicKey) -> Option<PeerIndex> {
        self.by_key.get(key).copied()
    }

    /// Removes a peer and all that belongs to it.
    pub fn remove_peer(&mut self, index: PeerIndex) {
        let Some(mut peer) = self.peers.try_remove(index as usize) else {
            return;
        };
        peer.wipe(&mut self.shared);
        self.shared.newest_stamp = self.shared.newest_stamp.max(peer.stamp_sent());
        self.shared.transmits.retain(|transmit| transmit.peer != Some(index));
        self.shared.updates.push_back(Update::PeerRemoved { peer: index });
        self.by_key.remove(peer.public_key());
        if let Some(time) = peer.queued_at {
            self.timers.remove(&(time, index));
        }
    }

    /// Changes the preshared key. Sessions live on; the next handshake uses it.
    pub fn set_preshared_key(&mut self, peer: PeerIndex, key: PresharedKey) {
        self.with_peer(peer, |peer, _| peer.set_preshared_key(key));
    }

    /// Says where the peer is. If a handshake waited for that, it is due now.
    pub fn set_endpoint(&mut self, peer: PeerIndex, remote: SocketAddr) {
        self.with_peer(peer, |peer, shared| peer.move_to(shared, Endpoint::to(remote)));
    }

    /// Sends the peer a keepalive after every `seconds` in which nothing passed, 0 for never; the first at once if there
    /// were none until now. Saying the same again changes nothing.
    pub fn set_keepalive(&mut self, peer: PeerIndex, seconds: u16, now: Time, wall: WallTime) {
        self.with_peer(peer, |peer, shared| {
            if peer.keepalive == seconds {
                return;
            }
            let begins = peer.keepalive == 0;
            peer.keepalive = seconds;
            if shared.up && begins {
                peer.start_persistent(shared, Moment { now, wall });
            } else if shared.up {
                peer.restart_persistent(now);
            }
        });
    }

    /// The interface goes up or down. Down: sessions, handshakes, staged packets and timers are gone, and nothing is sent.
    /// Up: persistent keepalives begin, and handshakes for packets that workers took in before we heard of it.
    pub fn set_up(&mut self, up: bool, now: Time, wall: WallTime) {
        if std::mem::replace(&mut self.shared.up, up) == up {
            return;
        }
        if up {
            let mut starts = Starts::from(now);
            self.for_each_peer(|peer, shared| {
                if peer.keepalive > 0 {
                    peer.begin_persistent_at(starts.next());
                }
                if peer.staged {
                    peer.want_handshake(shared, Moment { now, wall });
                }
            });
            return self.handle_timeout(now, wall);
        }
        self.shared.transmits.clear();
        self.for_each_peer(|peer, shared| {
            peer.reset(shared);
            peer.give_up(shared);
        });
    }

    /// Whether the interface is up.
    pub fn is_up(&self) -> bool {
        self.shared.up
    }

    /// All peers, by index.
    pub fn peers(&self) -> impl Iterator<Item = (PeerIndex, PeerStatus<'_>)> {
        self.peers.iter().map(|(index, peer)| (index as PeerIndex, peer.status()))
    }

    /// What is known of a peer.
    pub fn peer(&self, peer: PeerIndex) -> Option<PeerStatus<'_>> {
        self.peers.get(peer as usize).map(|peer| peer.status())
    }

    /// A worker has left news in the peer's activity.
    pub fn handle_news(&mut self, peer: PeerIndex, now: Time, wall: WallTime) {
        self.with_peer(peer, |peer, shared| {
            let news = peer.activity.take_news();
            if shared.up {
                peer.news(shared, news, Moment { now, wall });
            } else {
                // Perhaps the interface is up already, and no other packet will come.
                peer.staged |= news.has(News::SessionWanted);
                peer.forget_traffic();
            }
        });
    }

    /// An authenticated data message of the session with this index came from there.
    pub fn handle_roamed(&mut self, local_index: u32, from: Endpoint) {
        let Some(&peer) = self.shared.indices.get(local_index) else {
            return;
        };
        self.with_peer(peer, |peer, shared| {
            if peer.has_session(local_index) {
                peer.move_to(shared, from);
            }
        });
    }

    /// The time that [`Device::poll_timeout`] gave has come. Afterwards it lies in the future.
    pub fn handle_timeout(&mut self, now: Time, wall: WallTime) {
        while let Some(&(time, index)) = self.timers.first()
            && time <= now
        {
            self.with_peer(index, |peer, shared| peer.fire(shared, Moment { now, wall }));
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.shared.transmits.pop_front()
    }

    /// The next update for all workers.
    pub fn poll_update(&mut self) -> Option<Update> {
        self.shared.updates.pop_front()
    }

    /// How long the next of the handshakes took that made sessions, see [`RoundTrips`](super::output::RoundTrips).
    pub fn poll_round_trip(&mut self) -> Option<Span> {
        self.shared.round_trips.pop_front()
    }

    /// When [`Device::handle_timeout`] is to be called, and for what. May lie in the past after a change of configuration.
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let (_, index) = self.timers.first()?;
        self.peers.get(*index as usize)?.timers.next()
    }

    /// Does something to a peer, and keeps the timer queue in step.
    pub(super) fn with_peer<R>(
        &mut self,
        index: PeerIndex,
        work: impl FnOnce(&mut Peer, &mut Shared) -> R,
    ) -> Option<R> {
        let peer = self.peers.get_mut(index as usize)?;
        let result = work(peer, &mut self.shared);
        let next = peer.timers.next().map(|(time, _)| time);
        if next != peer.queued_at {
            if let Some(time) = peer.queued_at {
                self.timers.remove(&(time, index));
            }
            if let Some(time) = next {
                self.timers.insert((time, index));
            }
            peer.queued_at = next;
        }
        Some(result)
    }

    fn for_each_peer(&mut self, mut work: impl FnMut(&mut Peer, &mut Shared)) {
        let indices: Vec<PeerIndex> = self.peers.iter().map(|(index, _)| index as PeerIndex).collect();
        for index in indices {
            self.with_peer(index, &mut work);
        }
    }
}

/// Times at which peers begin when all begin at once: the first now, the others one after the other.
struct Starts {
    now: Time,
    count: u64,
}

impl Starts {
    fn from(now: Time) -> Starts {
        Starts { now, count: 0 }
    }

    fn next(&mut self) -> Time {
        let waits = self.count.saturating_sub(BEGIN_AT_ONCE - 1);
        self.count += 1;
        self.now + Span::from_nanos(waits * BEGIN_DISTANCE.as_nanos())
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("public_key", &self.public_key())
            .field("up", &self.shared.up)
            .field("peers", &self.peers.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_told_of_every_change_of_our_key() {
        let (now, wall) = (Time::from_nanos(1), WallTime::from_parts(1_700_000_000, 0));
        let mut device = Device::new(1, [1; 32]);
        let keys = [2, 3].map(|byte| PrivateKey::from_bytes([byte; 32]));
        let public_keys = keys.each_ref().map(|key| Some(key.public_key()));
        let [first, second] = keys.map(Some);
        for (key, told) in [
            (first.clone(), vec![public_keys[0]]),
            (first, vec![]),
            (second, vec![public_keys[1]]),
            (None, vec![None]),
        ] {
            device.set_private_key(key, now, wall);
            let updates = std::iter::from_fn(|| device.poll_update()).map(|update| match update {
                Update::LocalKey { public_key } => public_key,
                other => panic!("nothing else has changed: {other:?}"),
            });
            assert_eq!(updates.collect::<Vec<_>>(), told);
        }
    }

    #[test]
    fn a_handshake_that_cannot_begin_keeps_no_index() {
        let (now, wall) = (Time::from_nanos(1), WallTime::from_parts(1_700_000_000, 0));
        let mut device = Device::new(1, [1; 32]);
        device.set_private_key(Some(PrivateKey::from_bytes([2; 32])), now, wall);
        device.set_up(true, now, wall);
        let low_order = PublicKey::from_bytes([0; 32]);
        let peer = device.add_peer(low_order).expect("it is not ours");
        device.set_endpoint(peer, SocketAddr::from(([192, 0, 2, 1], 1)));
        assert!(device.peer(peer).expect("it was added").activity.tell(News::SessionWanted));
        device.handle_news(peer, now, wall);
        assert!(device.poll_transmit().is_none() && device.poll_timeout().is_none());
        assert!(device.shared.indices.is_empty());
    }
}
