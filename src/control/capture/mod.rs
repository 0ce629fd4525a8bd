//! `uringvpn capture`: what goes through a running tunnel, as a file for Wireshark.
//!
//! ```text
//! command ([`client`]) ── "capture {…}" ──▶ observer ── [`Request`] ──▶ capture thread ── taps ──▶ workers
//!    file ◀── copies ── socket ◀──────────── pcapng ───────────────────────┘ ◀── packets ────────────┘
//! ```
//! The socket goes over to the capture thread ([`crate::worker::capture`]), which answers with a whole file; a refusal is one
//! line of JSON, as for other questions. The command ends a capture by closing its half of the connection, and reads on
//! until the file is whole.

pub mod client;

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::{Deserialize, Serialize};

use crate::proto::keys::{KeyError, PublicKey};
use crate::stats::drop::Direction;

/// Which packets are wanted, and how much of each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Only this way; otherwise both.
    pub direction: Option<Direction>,
    /// Only to and from this peer.
    pub peer: Option<PeerName>,
    /// Only those that are dropped.
    pub drops: bool,
    /// Bytes of each packet; 0 for all.
    pub snap: u32,
}

/// What a capture is to hold, and when it is to end by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wanted {
    /// Which packets.
    pub filter: Filter,
    /// After so many of them.
    pub count: Option<u64>,
    /// After so long, in seconds.
    pub seconds: Option<u32>,
}

/// A peer by the name that everybody knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PeerName {
    /// Its public key.
    Key(PublicKey),
    /// Where it is, in plaintext mode, which has no keys.
    Address(SocketAddr),
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerName::Key(key) => key.fmt(f),
            PeerName::Address(address) => address.fmt(f),
        }
    }
}

impl From<PeerName> for String {
    fn from(peer: PeerName) -> String {
        peer.to_string()
    }
}

impl FromStr for PeerName {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PeerName, KeyError> {
        text.parse().map(PeerName::Address).or_else(|_| text.parse().map(PeerName::Key))
    }
}

impl TryFrom<String> for PeerName {
    type Error = KeyError;

    fn try_from(text: String) -> Result<PeerName, KeyError> {
        text.parse()
    }
}

/// Somebody who is to be given a file.
#[derive(Debug)]
pub struct Request {
    /// What it is to hold.
    pub wanted: Wanted,
    /// Where it goes. Does not block.
    pub client: UnixStream,
}

/// The way to the capture thread, for one capture at a time.
#[derive(Clone, Debug)]
pub struct Captures {
    requests: Sender<Request>,
    busy: Arc<AtomicBool>,
}

/// Both ends of the way to the capture thread.
pub fn channel() -> (Captures, Desk) {
    let (requests_in, requests) = bounded(1);
    let busy = Arc::new(AtomicBool::new(false));
    (Captures { requests: requests_in, busy: busy.clone() }, Desk { requests, busy })
}

impl Captures {
    /// Hands over; false, and nothing done, while another capture runs.
    pub fn begin(&self, request: Request) -> bool {
        // Pairs with the Release store in Desk::finished.
        if self.busy.swap(true, Ordering::Acquire) {
            return false;
        }
        // Fails only when the capture thread has ended, and then the client sees its connection closed.
        let _ = self.requests.try_send(request);
        true
    }
}

/// The capture thread's end.
#[derive(Debug)]
pub struct Desk {
    requests: Receiver<Request>,
    busy: Arc<AtomicBool>,
}

impl Desk {
    /// Waits for the next request; `None` when there will be none.
    pub fn next(&self) -> Option<Request> {
        self.requests.recv().ok()
    }

    /// Lets the next one in. To be said before the client of the last can see its end, so that whoever saw it is not refused.
    pub fn finished(&self) {
        self.busy.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";

    #[test]
    fn a_peer_is_named_by_its_key_or_its_address() {
        for name in [KEY, "192.0.2.1:51820", "[2001:db8::1]:51820"] {
            let peer: PeerName = name.parse().expect("a name");
            assert_eq!(peer.to_string(), name);
            assert_eq!(matches!(peer, PeerName::Key(_)), name == KEY);
        }
        assert_eq!("192.0.2.1".parse::<PeerName>(), Err(KeyError::Base64));
    }

    #[test]
    fn what_is_wanted_is_read_as_it_was_written() {
        let filter =
            Filter { direction: Some(Direction::Inbound), peer: KEY.parse().ok(), drops: true, snap: 96 };
        let wanted = Wanted { filter, count: Some(7), seconds: None };
        let text = serde_json::to_string(&wanted).expect("JSON");
        assert_eq!(serde_json::from_str::<Wanted>(&text).expect("the same"), wanted);
        assert!(serde_json::from_str::<Wanted>(&text.replace(KEY, "nobody")).is_err());
    }

    #[test]
    fn the_next_capture_is_let_in_when_the_last_has_finished() {
        let (captures, desk) = channel();
        let request = || {
            let (client, _) = UnixStream::pair().expect("sockets");
            Request { wanted: Wanted::default(), client }
        };
        assert!(captures.begin(request()) && !captures.begin(request()));
        assert!(desk.next().is_some() && !captures.begin(request()));
        desk.finished();
        assert!(captures.begin(request()) && desk.next().is_some());
        drop(captures);
        assert!(desk.next().is_none());
    }
}
