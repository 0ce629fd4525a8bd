//! What workers know of the configuration: a read-only snapshot.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use super::allowed_ips::{AllowedIps, PeerIndex};
use super::encap::Encap;

/// Encapsulation, routes and peers, shared read-only by all workers.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// How packets become datagrams.
    pub encap: Encap,
    /// Address to peer.
    pub routes: AllowedIps,
    /// Peers by index.
    pub peers: Vec<PeerView>,
    /// Where datagrams may come from.
    addresses: HashSet<IpAddr>,
}

/// One peer as workers see it.
#[derive(Clone, Copy, Debug)]
pub struct PeerView {
    /// Its UDP address, once known.
    pub endpoint: Option<SocketAddr>,
}

impl View {
    /// Adds a peer and returns its index.
    pub fn add_peer(&mut self, endpoint: Option<SocketAddr>) -> PeerIndex {
        self.addresses.extend(endpoint.map(|endpoint| endpoint.ip()));
        self.peers.push(PeerView { endpoint });
        (self.peers.len() - 1) as PeerIndex
    }

    /// Whether any peer lives at `address`.
    pub fn knows(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// The peer that owns the inner `source`, if it lives at the outer `address`. The port may differ: each worker
    /// of a peer sends from a port of its own.
    pub fn peer_sending(&self, source: IpAddr, address: IpAddr) -> Option<PeerIndex> {
        let peer = self.routes.lookup(source)?;
        let endpoint = self.peers[peer as usize].endpoint?;
        (endpoint.ip() == address).then_some(peer)
    }
}
