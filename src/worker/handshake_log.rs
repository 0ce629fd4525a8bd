//! What the log tells of handshakes, at the level debug: with whom, and why one was refused. Keepalives at trace.
//!
//! What strangers sent, what was refused, and what was accepted are places of their own: the log cuts a flood down place by
//! place, so one of strangers takes nothing from what is told of peers.

use super::tunnel::Tunnel;
use crate::dataplane::view::Change;
use crate::proto::keys::PublicKey;
use crate::proto::output::{Handled, Transmit, Update};
use crate::proto::{Endpoint, PeerIndex};
use crate::wire::message::{Handshake, Kind, classify};

/// What became of a message.
pub fn handled(handled: Handled, from: Endpoint, tunnel: &Tunnel) {
    let remote = from.remote;
    match (handled, handled.peer()) {
        (
            Handled::InitiationAccepted(peer)
            | Handled::ResponseAccepted(peer)
            | Handled::CookieAccepted(peer),
            _,
        ) => tracing::debug!(peer = name(peer, tunnel), "from {remote}: {handled}"),
        // Whom it names need not have sent it.
        (_, Some(peer)) => tracing::debug!(peer = name(peer, tunnel), "from {remote}: {handled}"),
        (_, None) => tracing::debug!("handshake message from {remote}: {handled}"),
    }
}

/// What a worker refused of one receive, in one line: it has packets to carry.
pub fn refused(count: u64, handled: Handled, from: Endpoint) {
    tracing::debug!("handshake messages from {}: {count} {handled}", from.remote);
}

/// What workers are told.
pub fn told(change: &Change, tunnel: &Tunnel) {
    let Change::Peer(update) = change else { return };
    match update {
        Update::Endpoint { peer, endpoint: Some(endpoint) } => {
            tracing::debug!(peer = name(*peer, tunnel), "endpoint is {}", endpoint.remote);
        }
        Update::Current { peer, session: Some(_) } => {
            tracing::debug!(peer = name(*peer, tunnel), "packets are sealed with a new session");
        }
        Update::DropStaged { peer } => {
            tracing::debug!(
                peer = name(*peer, tunnel),
                "no session was made: packets that waited are dropped"
            );
        }
        _ => {}
    }
}

/// A message that is sent and answers none: answers are told with what they answer.
pub fn sent(transmit: &Transmit, tunnel: &Tunnel) {
    let (Some(peer), to) = (transmit.peer, transmit.to.remote) else { return };
    match classify(&transmit.bytes) {
        Some(Kind::Handshake(Handshake::Initiation)) => {
            tracing::debug!(peer = name(peer, tunnel), "initiation sent to {to}");
        }
        Some(Kind::Data { .. }) => tracing::trace!(peer = name(peer, tunnel), "keepalive sent to {to}"),
        _ => {}
    }
}

/// As a field: the public key, or nothing of a peer that is gone. Looked up only for lines that are wanted.
fn name(peer: PeerIndex, tunnel: &Tunnel) -> Option<tracing::field::DisplayValue<PublicKey>> {
    tunnel.device.peer(peer).map(|status| tracing::field::display(*status.public_key))
}
