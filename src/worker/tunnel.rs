//! The tunnel as its operator sees it: keys, peers, allowed IPs. What a configuration request does to it.
//!
//! Two parts make it up: the [`Device`] speaks the protocol and knows nothing of routes; the allowed IPs lie here, once as
//! the table that workers use and once per peer as the operator lists them. Pure: the protocol thread ([`super::protocol`])
//! gives it time and carries its words.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use zeroize::Zeroize;

use crate::control::uapi::{DeviceState, PeerChange, PeerState, SetRequest};
use crate::control::watched::WatchedPeer;
use crate::dataplane::allowed_ips::{AllowedIps, PeerIndex};
use crate::dataplane::view::Change;
use crate::proto::device::Device;
use crate::proto::keys::PublicKey;
use crate::proto::output::Update;
use crate::time::{Time, WallTime};

/// Keys, peers, sessions, allowed IPs.
pub struct Tunnel {
    /// Who speaks the protocol.
    pub device: Device,
    routes: Arc<AllowedIps>,
    /// The same by peer. One set for all: most peers have one prefix, and a set of its own would take 200 bytes for it.
    prefixes: BTreeSet<(PeerIndex, IpNet)>,
    /// Workers do not know the newest routes yet.
    routes_are_news: bool,
}

impl Tunnel {
    /// Without key and peers, for `workers` workers; `seed` makes all random choices.
    pub fn new(workers: usize, mut seed: [u8; 32]) -> Tunnel {
        let device = Device::new(workers, seed);
        seed.zeroize();
        Tunnel { device, routes: Arc::default(), prefixes: BTreeSet::new(), routes_are_news: false }
    }

    /// Applies a request, all but its port and mark, which belong to whoever owns the sockets. Cannot fail: what can be wrong
    /// with a request was found when it was read. By reference, so that its keys are wiped where they lie.
    ///
    /// Our own key as a peer is passed over, as in the kernel.
    pub fn apply(&mut self, request: &SetRequest, now: Time, wall: WallTime) {
        if let Some(key) = &request.private_key {
            // The device removes a peer by itself when it has the key that becomes our own.
            let ourselves = key.as_ref().and_then(|key| self.device.find_peer(&key.public_key()));
            self.device.set_private_key(key.clone(), now, wall);
            ourselves.into_iter().for_each(|peer| self.take_all_prefixes(peer));
        }
        if request.replace_peers {
            let peers: Vec<_> = self.device.peers().map(|(peer, _)| peer).collect();
            peers.into_iter().for_each(|peer| self.remove_peer(peer));
        }
        for change in &request.peers {
            self.apply_to_peer(change, now, wall);
        }
    }

    fn apply_to_peer(&mut self, change: &PeerChange, now: Time, wall: WallTime) {
        let known = self.device.find_peer(&change.public_key);
        if change.remove {
            return known.into_iter().for_each(|peer| self.remove_peer(peer));
        }
        let found = if change.update_only { known } else { self.device.add_peer(change.public_key) };
        let Some(peer) = found else { return };
        if let Some(key) = &change.preshared_key {
            self.device.set_preshared_key(peer, key.clone());
        }
        if let Some(remote) = change.endpoint {
            self.device.set_endpoint(peer, remote);
        }
        if change.replace_allowed_ips {
            self.take_all_prefixes(peer);
        }
        for ip in &change.allowed_ips {
            if ip.remove { self.take_prefix(peer, ip.prefix) } else { self.give_prefix(peer, ip.prefix) }
        }
        // Last: a keepalive that this starts needs all of the above.
        if let Some(seconds) = change.persistent_keepalive {
            self.device.set_keepalive(peer, seconds, now, wall);
        }
    }

    /// The peer is to be found there from now on, until it roams; nothing if it is gone.
    pub fn set_endpoint(&mut self, key: &PublicKey, remote: SocketAddr) {
        if let Some(peer) = self.device.find_peer(key) {
            self.device.set_endpoint(peer, remote);
        }
    }

    fn remove_peer(&mut self, peer: PeerIndex) {
        self.take_all_prefixes(peer);
        self.device.remove_peer(peer);
    }

    fn give_prefix(&mut self, peer: PeerIndex, prefix: IpNet) {
        let former = Arc::make_mut(&mut self.routes).insert(prefix, peer);
        self.routes_are_news = true;
        if let Some(former) = former
            && former != peer
        {
            self.prefixes.remove(&(former, prefix.trunc()));
        }
        self.prefixes.insert((peer, prefix.trunc()));
    }

    /// Nothing if the prefix belongs to another peer.
    fn take_prefix(&mut self, peer: PeerIndex, prefix: IpNet) {
        if self.prefixes.remove(&(peer, prefix.trunc())) {
            Arc::make_mut(&mut self.routes).remove(prefix);
            self.routes_are_news = true;
        }
    }

    fn take_all_prefixes(&mut self, peer: PeerIndex) {
        let prefixes: Vec<_> = self.prefixes_of(peer).collect();
        prefixes.into_iter().for_each(|prefix| self.take_prefix(peer, prefix));
    }

    fn prefixes_of(&self, peer: PeerIndex) -> impl Iterator<Item = IpNet> {
        let (first, last) =
            (IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::from(Ipv6Addr::from(u128::MAX))));
        self.prefixes.range((peer, first)..=(peer, last)).map(|(_, prefix)| *prefix)
    }

    /// What workers must be told next. Routes come last: they name peers that were told before.
    pub fn poll_change(&mut self) -> Option<Change> {
        if let Some(update) = self.device.poll_update() {
            return Some(Change::Peer(update));
        }
        std::mem::take(&mut self.routes_are_news).then(|| Change::Routes(self.routes.clone()))
    }

    /// What may be shown of the peers. Both peers and prefixes lie in the order of the peers' indices, so one look at each will
    /// do.
    pub fn watched_peers(&self, now: Time, wall: WallTime) -> Vec<WatchedPeer> {
        // A clock that was set back makes it no younger than just now.
        let age = |handshake: WallTime| (wall.as_secs_f64() - handshake.as_secs_f64()).max(0.0);
        let mut prefixes = self.prefixes.iter().peekable();
        let peers = self.device.peers().map(|(peer, status)| WatchedPeer {
            public_key: *status.public_key,
            endpoint: status.endpoint.map(|endpoint| endpoint.remote),
            allowed_ips: std::iter::from_fn(|| prefixes.next_if(|(owner, _)| *owner == peer))
                .map(|(_, prefix)| *prefix)
                .collect(),
            handshake_age_seconds: status.last_handshake.map(age),
            keypair_age_seconds: status.keyed_at.map(|keyed_at| now.since(keyed_at).as_secs_f64()),
            handshakes: status.round_trips.count,
            handshake_ns_last: status.round_trips.last.as_nanos(),
            handshake_ns_min: status.round_trips.least.as_nanos(),
            rx_bytes: status.activity.rx_bytes(),
            rx_packets: status.activity.rx_packets(),
            tx_bytes: status.activity.tx_bytes(),
            tx_packets: status.activity.tx_packets(),
            drops: status.activity.drops().collect(),
            persistent_keepalive: status.keepalive,
        });
        peers.collect()
    }

    /// Everything, as a `get` tells it.
    pub fn state(&self, listen_port: u16, fwmark: u32) -> Box<DeviceState> {
        let peers = self.device.peers().map(|(peer, status)| PeerState {
            public_key: *status.public_key,
            preshared_key: status.preshared_key.clone(),
            endpoint: status.endpoint.map(|endpoint| endpoint.remote),
            last_handshake: status.last_handshake.unwrap_or_default(),
            tx_bytes: status.activity.tx_bytes(),
            rx_bytes: status.activity.rx_bytes(),
            persistent_keepalive: status.keepalive,
            allowed_ips: self.prefixes_of(peer).collect(),
        });
        let private_key = self.device.private_key().cloned();
        Box::new(DeviceState { private_key, listen_port, fwmark, peers: peers.collect() })
    }
}

/// What a worker's view is told when a peer's handshake was given up; of interest to whoever looks for names again.
pub fn gave_up(change: &Change) -> Option<PeerIndex> {
    match change {
        Change::Peer(Update::DropStaged { peer }) => Some(*peer),
        _ => None,
    }
}
