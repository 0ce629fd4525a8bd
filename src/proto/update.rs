//! What the protocol thread tells every worker about peers and sessions.

use std::sync::Arc;

use super::activity::Activity;
use super::session::Session;
use super::{Endpoint, PeerIndex};

/// One step. Every worker gets all of them, in the same order.
#[derive(Clone, Debug)]
pub enum Update {
    /// There is a new peer; it has no address and no session yet.
    PeerAdded {
        /// Its index.
        peer: PeerIndex,
        /// Where workers note facts about its traffic.
        activity: Arc<Activity>,
    },
    /// The peer is gone. Its sessions were removed before; its index may be used again.
    PeerRemoved {
        /// Its index.
        peer: PeerIndex,
    },
    /// The peer is to be reached there.
    Endpoint {
        /// Its index.
        peer: PeerIndex,
        /// `None`: not known.
        endpoint: Option<Endpoint>,
    },
    /// This session may open messages from now on.
    SessionAdded(Arc<Session>),
    /// The session with this receiver index opens no more.
    SessionRemoved {
        /// The index.
        local_index: u32,
    },
    /// Packets are sealed with this session from now on, and those that were staged flow.
    Current {
        /// The peer.
        peer: PeerIndex,
        /// `None`: packets are staged until there is one.
        session: Option<Arc<Session>>,
    },
    /// The handshake was given up, or the interface went down: packets staged for the peer die.
    DropStaged {
        /// The peer.
        peer: PeerIndex,
    },
}
