//! What one worker knows of the configuration: its own replica, so that the data path takes no lock.
//!
//! The protocol thread owns the truth and sends every worker the same [`Change`]s in the same order; a worker applies them
//! between two turns. Large things (routes, sessions) are shared, only the pointers to them are replicated.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::allowed_ips::{AllowedIps, PeerIndex};
use super::encap::{Encap, Framing};
use crate::proto::Endpoint;
use crate::proto::activity::Activity;
use crate::proto::cookie::Mac1Checker;
use crate::proto::keys::PublicKey;
use crate::proto::output::Update;
use crate::proto::session::{Role, Session};
use crate::stats::counters::WorkerCounters;
use crate::stats::drop::DropReason;
use crate::time::Time;
use crate::wire::message::COOKIE_BYTES;

/// One step of the configuration.
#[derive(Clone, Debug)]
pub enum Change {
    /// Our key, or a peer, its address or its sessions.
    Peer(Update),
    /// The routes, as a whole.
    Routes(Arc<AllowedIps>),
    /// The interface's MTU.
    Mtu(u16),
}

/// Encapsulation, routes, peers and sessions, as one worker knows them.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// How packets become datagrams.
    pub encap: Encap,
    /// Address to peer.
    pub routes: Arc<AllowedIps>,
    /// Largest packet of the interface in bytes: padding stays below. 0: not known, no limit.
    pub mtu: u16,
    /// Tells who knows our public key; `None` while we have none.
    mac1: Option<Mac1Checker>,
    peers: Vec<Option<PeerView>>,
    /// Whose messages we can open, by receiver index.
    sessions: HashMap<u32, Arc<Session>>,
    /// Where plain datagrams may come from.
    addresses: HashSet<IpAddr>,
}

/// One peer as a worker sees it.
#[derive(Clone, Debug, Default)]
pub struct PeerView {
    /// Its name; none in plaintext mode.
    pub public_key: Option<PublicKey>,
    /// Its UDP address and the one of ours that it last sent to, once known.
    pub endpoint: Option<Endpoint>,
    /// What seals packets for it, as the protocol thread said last.
    current: Option<Arc<Session>>,
    /// The newest that the peer began, until the protocol thread speaks again: see [`PeerView::sealing`].
    next: Option<Arc<Session>>,
    /// Facts about its traffic, shared with the protocol thread.
    pub activity: Arc<Activity>,
    /// This worker holds staged packets for it, and newer ones must not overtake them.
    pub holding: bool,
}

impl PeerView {
    /// What seals packets for it.
    ///
    /// Which session does is the protocol thread's to say. But when the peer has shown that it has the keys of the one it
    /// began, it may have forgotten all others, and the answer to what it sent with it can be here before the protocol
    /// thread has heard of that: any worker goes over to it by itself. Not from a session that has ended: then packets wait on
    /// stage for the protocol thread's word, and must stay in order.
    pub fn sealing(&self, now: Time) -> Option<&Session> {
        let current = self.current.as_deref();
        let confirmed = self.next.as_deref().filter(|next| next.confirmed());
        let newer = |current: &Session| {
            confirmed.filter(|next| current.created() < next.created() && current.may_seal(now))
        };
        current.and_then(newer).or(current)
    }
}

/// How a packet gets to its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// In the next train.
    Train,
    /// It waits for a session.
    Stage,
}

impl View {
    /// Without peers: they come as [`Change`]s. `mtu` is the interface's.
    pub fn for_wireguard(mtu: u16) -> View {
        View { encap: Encap::WireGuard, mtu, ..View::default() }
    }

    /// Adds a peer at `endpoint` and returns its index; for plaintext mode.
    pub fn add_peer(&mut self, endpoint: Option<SocketAddr>) -> PeerIndex {
        let peer = self.peers.len() as PeerIndex;
        self.addresses.extend(endpoint.map(|endpoint| endpoint.ip()));
        let endpoint = endpoint.map(|remote| Endpoint { remote, local: None });
        self.peers.push(Some(PeerView { endpoint, ..PeerView::default() }));
        peer
    }

    /// Routes `prefix` to `peer`.
    pub fn add_route(&mut self, prefix: IpNet, peer: PeerIndex) {
        Arc::make_mut(&mut self.routes).insert(prefix, peer);
    }

    /// The peers' UDP addresses that are known.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> {
        self.peers.iter().flatten().filter_map(|peer| peer.endpoint).map(|endpoint| endpoint.remote)
    }

    /// Takes over one step of the configuration. What staged packets need is the worker's business.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Routes(routes) => self.routes = routes,
            Change::Mtu(mtu) => self.mtu = mtu,
            Change::Peer(update) => self.update(update),
        }
    }

    fn update(&mut self, update: Update) {
        match update {
            Update::LocalKey { public_key } => self.mac1 = public_key.as_ref().map(Mac1Checker::new),
            Update::PeerAdded { peer, public_key, activity } => {
                let index = peer as usize;
                if index >= self.peers.len() {
                    self.peers.resize_with(index + 1, || None);
                }
                self.peers[index] =
                    Some(PeerView { public_key: Some(public_key), activity, ..PeerView::default() });
            }
            Update::PeerRemoved { peer } => {
                if let Some(entry) = self.peers.get_mut(peer as usize) {
                    *entry = None;
                }
            }
            Update::Endpoint { peer, endpoint } => {
                if let Some(peer) = self.peer_mut(peer) {
                    peer.endpoint = endpoint;
                }
            }
            Update::SessionAdded(session) => {
                if let Some(peer) = self.peer_mut(session.peer()) {
                    peer.next = Some(session.clone()).filter(|session| session.role() == Role::Responder);
                }
                self.sessions.insert(session.local_index(), session);
            }
            Update::SessionRemoved { local_index } => {
                if let Some(removed) = self.sessions.remove(&local_index)
                    && let Some(peer) = self.peer_mut(removed.peer())
                {
                    peer.next.take_if(|next| next.local_index() == local_index);
                }
            }
            Update::Current { peer, session } => {
                if let Some(peer) = self.peer_mut(peer) {
                    (peer.current, peer.next) = (session, None);
                }
            }
            Update::DropStaged { .. } => {}
        }
    }

    /// A peer; `None` once it was removed.
    pub fn peer(&self, peer: PeerIndex) -> Option<&PeerView> {
        self.peers.get(peer as usize)?.as_ref()
    }

    /// A peer, to note what the worker learned of it.
    pub fn peer_mut(&mut self, peer: PeerIndex) -> Option<&mut PeerView> {
        self.peers.get_mut(peer as usize)?.as_mut()
    }

    /// The peer that owns `destination`.
    ///
    /// # Errors
    /// [`DropReason::NoRoute`].
    pub fn route(&self, destination: IpAddr) -> Result<PeerIndex, DropReason> {
        self.routes.lookup(destination).ok_or(DropReason::NoRoute)
    }

    /// How packets get to `peer` just now.
    ///
    /// # Errors
    /// [`DropReason::NoRoute`] when the peer is gone, [`DropReason::NoEndpoint`].
    pub fn way_to(&self, peer: PeerIndex, now: Time) -> Result<Way, DropReason> {
        let peer = self.peer(peer).ok_or(DropReason::NoRoute)?;
        peer.endpoint.ok_or(DropReason::NoEndpoint)?;
        Ok(match (self.encap, peer.sealing(now)) {
            (Encap::Plain, _) => Way::Train,
            (Encap::WireGuard, Some(session)) if !peer.holding && session.may_seal(now) => Way::Train,
            (Encap::WireGuard, _) => Way::Stage,
        })
    }

    /// Counts `packets` that went no further, also with the peer they were for or whose session they named, if any.
    pub fn count_drop(
        &self,
        counters: &WorkerCounters,
        peer: Option<PeerIndex>,
        reason: DropReason,
        packets: u64,
    ) {
        if packets == 0 {
            return;
        }
        counters.count_drop(reason, packets);
        if let Some(peer) = peer.and_then(|peer| self.peer(peer)) {
            peer.activity.count_drop(reason, packets);
        }
    }

    /// Where what is sent to `peer` goes.
    ///
    /// # Errors
    /// As [`View::way_to`].
    pub fn endpoint(&self, peer: PeerIndex) -> Result<Endpoint, DropReason> {
        self.peer(peer).ok_or(DropReason::NoRoute)?.endpoint.ok_or(DropReason::NoEndpoint)
    }

    /// How packets lie in datagrams.
    pub fn framing(&self) -> Framing {
        Framing { encap: self.encap, mtu: self.mtu.into() }
    }

    /// What seals packets for `peer`.
    pub fn session_to(&self, peer: PeerIndex, now: Time) -> Option<&Session> {
        self.peer(peer)?.sealing(now)
    }

    /// The session with this receiver index.
    pub fn session(&self, receiver: u32) -> Option<&Arc<Session>> {
        self.sessions.get(&receiver)
    }

    /// Whether the sender of a message that makes sessions may know our public key. A cookie reply has no mac1 to tell by, and
    /// without a key of ours there is nothing to compare with: those are the protocol thread's to refuse.
    pub fn mac1_fits(&self, message: &[u8]) -> bool {
        message.len() == COOKIE_BYTES || self.mac1.as_ref().is_none_or(|mac1| mac1.fits(message))
    }

    /// Whether a peer of plaintext mode lives at `address`.
    pub fn knows(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// The peer that owns the inner `source`, if it lives at the outer `address`: plaintext mode's source check. The port
    /// may differ: each worker of a peer sends from a port of its own.
    pub fn peer_sending(&self, source: IpAddr, address: IpAddr) -> Option<PeerIndex> {
        let peer = self.routes.lookup(source)?;
        let endpoint = self.peer(peer)?.endpoint?;
        (endpoint.remote.ip() == address).then_some(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::crypto::Secret;
    use crate::proto::session::Keys;
    use crate::time::Span;

    const NOW: Time = Time::from_nanos(1_000_000_000_000);
    const LATER: Time = Time::from_nanos(1_001_000_000_000);

    fn session(local_index: u32, role: Role, created: Time) -> Arc<Session> {
        let [sealing, opening] = [1, 2].map(|byte| Secret::new([byte; 32]));
        Arc::new(Session::new(Keys {
            peer: 0,
            local_index,
            remote_index: 9,
            role,
            sealing,
            opening,
            created,
        }))
    }

    /// A view of one peer: `current` seals, and then the peer has begun `next`.
    fn view(current: Option<&Arc<Session>>, next: &Arc<Session>) -> View {
        let mut view = View::for_wireguard(1420);
        let public_key = PublicKey::from_bytes([7; 32]);
        view.update(Update::PeerAdded { peer: 0, public_key, activity: Arc::default() });
        if let Some(session) = current {
            view.update(Update::SessionAdded(session.clone()));
            view.update(Update::Current { peer: 0, session: Some(session.clone()) });
        }
        view.update(Update::SessionAdded(next.clone()));
        view
    }

    fn seals(view: &View, now: Time) -> Option<u32> {
        view.session_to(0, now).map(Session::local_index)
    }

    #[test]
    fn a_session_that_the_peer_has_used_seals_until_the_protocol_thread_speaks() {
        let (old, new) = (session(1, Role::Initiator, NOW), session(2, Role::Responder, LATER));
        let mut view = view(Some(&old), &new);
        assert_eq!(seals(&view, LATER), Some(1), "the peer may not have the keys");
        // By whichever worker.
        assert!(new.confirm());
        assert_eq!(seals(&view, LATER), Some(2));
        let mut told = view.clone();
        told.update(Update::Current { peer: 0, session: Some(old) });
        assert_eq!(seals(&told, LATER), Some(1));
        view.update(Update::SessionRemoved { local_index: 2 });
        assert_eq!(seals(&view, LATER), Some(1));
    }

    #[test]
    fn the_protocol_thread_decides_between_crossed_sessions_and_when_packets_wait() {
        let theirs = session(2, Role::Responder, NOW);
        assert!(theirs.confirm());
        let ours = session(1, Role::Initiator, LATER);
        assert_eq!(seals(&view(Some(&ours), &theirs), LATER), Some(1));
        assert_eq!(seals(&view(None, &theirs), LATER), None);
        let (old, new) = (session(1, Role::Initiator, NOW), session(2, Role::Responder, LATER));
        assert!(new.confirm());
        assert_eq!(seals(&view(Some(&old), &new), NOW + Span::from_secs(180)), Some(1));
    }
}
