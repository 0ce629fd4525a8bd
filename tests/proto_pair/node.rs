//! One device with a worker: the smallest thing that carries packets.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use uringvpn::proto::activity::{Activity, News};
use uringvpn::proto::device::Device;
use uringvpn::proto::keys::{PrivateKey, PublicKey};
use uringvpn::proto::output::{Handled, Update};
use uringvpn::proto::session::Session;
use uringvpn::proto::{Endpoint, PeerIndex};
use uringvpn::time::{Time, WallTime};
use uringvpn::wire::message::{DATA_OVERHEAD_BYTES, Kind, classify, padded_bytes};

/// Packets a worker keeps for a peer without session.
pub const STAGED_MAX: usize = 128;

/// What a worker knows of a peer.
pub struct WorkerPeer {
    pub activity: Arc<Activity>,
    pub endpoint: Option<Endpoint>,
    pub current: Option<Arc<Session>>,
    pub staged: VecDeque<Vec<u8>>,
}

/// A datagram on its way out.
pub struct Out {
    pub to: Endpoint,
    pub bytes: Vec<u8>,
    pub tos: u8,
}

pub struct Node {
    pub device: Device,
    pub key: PrivateKey,
    pub address: SocketAddr,
    pub peers: BTreeMap<PeerIndex, WorkerPeer>,
    pub sessions: BTreeMap<u32, Arc<Session>>,
    /// Packets that came out of the tunnel.
    pub delivered: Vec<Vec<u8>>,
    /// What became of the handshake datagrams.
    pub handled: Vec<Handled>,
    /// Updates by name, in order.
    pub updates: Vec<Update>,
    pub out: Vec<Out>,
    /// Peers of which the device must be told.
    pub notes: Vec<PeerIndex>,
    /// How often it was told.
    pub told: usize,
    /// What the node adds to the wall clock of the world, in seconds.
    pub wall_offset: i64,
    /// Handshake datagrams that are said to wait behind each one.
    pub queued: usize,
    /// Address of the session and counter of all that was sealed; the sessions are kept, so that addresses stay theirs.
    used: HashSet<(usize, u64)>,
    kept: Vec<Arc<Session>>,
}

impl Node {
    pub fn new(seed: u8, address: SocketAddr) -> Node {
        Node {
            device: Device::new(2, [seed; 32]),
            key: PrivateKey::from_bytes([seed.wrapping_mul(37).wrapping_add(1); 32]),
            address,
            peers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            delivered: Vec::new(),
            handled: Vec::new(),
            updates: Vec::new(),
            out: Vec::new(),
            notes: Vec::new(),
            told: 0,
            wall_offset: 0,
            queued: 0,
            used: HashSet::new(),
            kept: Vec::new(),
        }
    }

    pub fn public_key(&self) -> PublicKey {
        self.key.public_key()
    }

    /// The same host after a restart: its key and its clock are what is left.
    pub fn restarted(&self, seed: u8, now: Time) -> Node {
        let mut node = Node::new(seed, self.address);
        node.key = self.key.clone();
        node.wall_offset = self.wall_offset;
        let wall = node.wall(now);
        node.device.set_private_key(Some(node.key.clone()), now, wall);
        node.device.set_up(true, now, wall);
        node
    }

    pub fn wall(&self, now: Time) -> WallTime {
        let secs = 1_700_000_000 + (now.as_nanos() / 1_000_000_000) as i64 + self.wall_offset;
        WallTime::from_parts(secs as u64, (now.as_nanos() % 1_000_000_000) as u32)
    }

    /// A packet from the tunnel interface.
    pub fn send(&mut self, peer: PeerIndex, packet: &[u8], now: Time) {
        self.stage(peer, packet.to_vec());
        self.flush(peer, now);
    }

    fn stage(&mut self, peer: PeerIndex, packet: Vec<u8>) {
        let peer = self.peers.get_mut(&peer).unwrap();
        if peer.staged.len() == STAGED_MAX {
            peer.staged.pop_front();
        }
        peer.staged.push_back(packet);
    }

    /// Seals what is staged, or asks for a session.
    pub fn flush(&mut self, index: PeerIndex, now: Time) {
        while let Some(packet) = self.peers.get_mut(&index).and_then(|peer| peer.staged.pop_front()) {
            let peer = &self.peers[&index];
            let sealed = peer.endpoint.zip(peer.current.clone()).and_then(|(to, session)| {
                let counter = session.reserve(1, now).ok()?;
                Some((to, session, counter))
            });
            let Some((to, session, counter)) = sealed else {
                let peer = self.peers.get_mut(&index).unwrap();
                peer.staged.push_front(packet);
                return self.tell(index, News::SessionWanted);
            };
            self.note_use(&session, counter);
            let mut bytes = vec![0; DATA_OVERHEAD_BYTES + padded_bytes(packet.len(), 1420)];
            bytes[16..16 + packet.len()].copy_from_slice(&packet);
            session.seal(counter, &mut bytes);
            let activity = Arc::clone(&self.peers[&index].activity);
            if activity.data_sent(1, bytes.len() as u64, now) {
                self.notes.push(index);
            }
            self.out.push(Out { to, bytes, tos: 0 });
            if session.rekey_due_on_send(now) && activity.ask_to_rekey(now) {
                self.notes.push(index);
            }
        }
    }

    fn note_use(&mut self, session: &Arc<Session>, counter: u64) {
        let id = Arc::as_ptr(session) as usize;
        assert!(self.used.insert((id, counter)), "counter {counter} used twice");
        if !self.kept.iter().any(|kept| Arc::ptr_eq(kept, session)) {
            self.kept.push(Arc::clone(session));
        }
    }

    pub fn tell(&mut self, peer: PeerIndex, news: News) {
        if self.peers[&peer].activity.tell(news) {
            self.notes.push(peer);
        }
    }

    /// A datagram from the network.
    pub fn receive(&mut self, bytes: &[u8], from: SocketAddr, now: Time) {
        let from = Endpoint { remote: from, local: Some(self.address.ip()) };
        if let Some(Kind::Data { receiver, counter }) = classify(bytes) {
            self.open(receiver, counter, bytes.to_vec(), from, now);
        } else {
            let handled = self.device.handle_datagram(bytes, from, self.queued, now, self.wall(now));
            self.handled.push(handled);
        }
    }

    fn open(&mut self, receiver: u32, counter: u64, mut bytes: Vec<u8>, from: Endpoint, now: Time) {
        let Some(session) = self.sessions.get(&receiver).cloned() else {
            return;
        };
        let Ok(text) = session.open(counter, &mut bytes, now) else {
            return;
        };
        if session.window().accept(counter).is_err() {
            return;
        }
        let index = session.peer();
        if session.confirm() {
            self.tell(index, News::Confirmed);
        }
        let peer = &self.peers[&index];
        if peer.endpoint != Some(from) {
            self.device.handle_roamed(receiver, from);
        }
        let peer = &self.peers[&index];
        if peer.activity.received(1, bytes.len() as u64, !text.is_empty(), now) {
            self.notes.push(index);
        }
        // As the workers do: the session it came on counts.
        if session.rekey_due_on_receive(now) && peer.activity.ask_to_rekey(now) {
            self.notes.push(index);
        }
        if !text.is_empty() {
            self.delivered.push(bytes[text].to_vec());
        }
    }

    /// Brings the worker to what the device says; datagrams go to `out`.
    pub fn settle(&mut self, now: Time) {
        loop {
            let notes = std::mem::take(&mut self.notes);
            let wall = self.wall(now);
            self.told += notes.len();
            notes.iter().for_each(|peer| self.device.handle_news(*peer, now, wall));
            self.drain(now);
            if self.notes.is_empty() {
                return;
            }
        }
    }

    /// Takes what the device has to say.
    pub fn drain(&mut self, now: Time) {
        while let Some(update) = self.device.poll_update() {
            self.updates.push(update.clone());
            self.obey(update, now);
        }
        while let Some(transmit) = self.device.poll_transmit() {
            let bytes = transmit.bytes.to_vec();
            if let Some(Kind::Data { counter, .. }) = classify(&bytes)
                && let Some(session) = transmit.peer.and_then(|peer| self.peers[&peer].current.clone())
            {
                self.note_use(&session, counter);
            }
            self.out.push(Out { to: transmit.to, bytes, tos: transmit.tos });
        }
    }

    fn obey(&mut self, update: Update, now: Time) {
        match update {
            // By this workers judge mac1; here the device does alone.
            Update::LocalKey { .. } => {}
            Update::PeerAdded { peer, activity, .. } => {
                let fresh = WorkerPeer { activity, endpoint: None, current: None, staged: VecDeque::new() };
                assert!(self.peers.insert(peer, fresh).is_none(), "peer {peer} added twice");
            }
            Update::PeerRemoved { peer } => {
                self.peers.remove(&peer).unwrap();
                assert!(
                    self.sessions.values().all(|session| session.peer() != peer),
                    "a session outlives its peer"
                );
            }
            Update::Endpoint { peer, endpoint } => self.peers.get_mut(&peer).unwrap().endpoint = endpoint,
            Update::SessionAdded(session) => {
                assert!(
                    self.sessions.insert(session.local_index(), session).is_none(),
                    "an index used twice"
                );
            }
            Update::SessionRemoved { local_index } => {
                self.sessions.remove(&local_index).expect("the session was added before");
            }
            Update::Current { peer, session } => {
                let ours =
                    session.as_ref().is_none_or(|session| self.sessions.contains_key(&session.local_index()));
                assert!(ours, "a session that cannot be opened");
                let flows = session.is_some();
                self.peers.get_mut(&peer).unwrap().current = session;
                if flows {
                    self.flush(peer, now);
                }
            }
            Update::DropStaged { peer } => self.peers.get_mut(&peer).unwrap().staged.clear(),
        }
    }
}
