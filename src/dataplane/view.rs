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
use crate::proto::output::Update;
use crate::proto::session::Session;
use crate::stats::drop::DropReason;
use crate::time::Time;

/// One step of the configuration.
#[derive(Clone, Debug)]
pub enum Change {
    /// A peer, its address or its sessions.
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
    peers: Vec<Option<PeerView>>,
    /// Whose messages we can open, by receiver index.
    sessions: HashMap<u32, Arc<Session>>,
    /// Where plain datagrams may come from.
    addresses: HashSet<IpAddr>,
}

/// One peer as a worker sees it.
#[derive(Clone, Debug, Default)]
pub struct PeerView {
    /// Its UDP address and the one of ours that it last sent to, once known.
    pub endpoint: Option<Endpoint>,
    /// What seals packets for it.
    pub current: Option<Arc<Session>>,
    /// Facts about its traffic, shared with the protocol thread.
    pub activity: Arc<Activity>,
    /// This worker holds staged packets for it, and newer ones must not overtake them.
    pub holding: bool,
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
            Update::PeerAdded { peer, activity } => {
                let index = peer as usize;
                if index >= self.peers.len() {
                    self.peers.resize_with(index + 1, || None);
                }
                self.peers[index] = Some(PeerView { activity, ..PeerView::default() });
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
                self.sessions.insert(session.local_index(), session);
            }
            Update::SessionRemoved { local_index } => {
                self.sessions.remove(&local_index);
            }
            Update::Current { peer, session } => {
                if let Some(peer) = self.peer_mut(peer) {
                    peer.current = session;
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
        Ok(match (self.encap, &peer.current) {
            (Encap::Plain, _) => Way::Train,
            (Encap::WireGuard, Some(session)) if !peer.holding && session.may_seal(now) => Way::Train,
            (Encap::WireGuard, _) => Way::Stage,
        })
    }

    /// How packets lie in datagrams.
    pub fn framing(&self) -> Framing {
        Framing { encap: self.encap, mtu: self.mtu.into() }
    }

    /// What seals packets for `peer`.
    pub fn session_to(&self, peer: PeerIndex) -> Option<&Session> {
        self.peer(peer)?.current.as_deref()
    }

    /// The session with this receiver index.
    pub fn session(&self, receiver: u32) -> Option<&Arc<Session>> {
        self.sessions.get(&receiver)
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
