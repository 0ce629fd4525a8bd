//! What may be shown of peers, and the answer to `show` that is made of it.
//!
//! Ten thousand peers are to be told while every processor has other work, so their JSON is written by hand: nothing in it needs
//! escaping, no string lies in between, and the whole answer is reserved before.

use std::io::{self, Write};
use std::net::SocketAddr;

use ipnet::IpNet;

use crate::proto::keys::PublicKey;
use crate::stats::drop::DropReason;
use crate::stats::snapshot::{PeerSnapshot, Snapshot};

/// What the JSON of a peer takes that has an endpoint, a few prefixes and some drops. More makes the answer grow once more.
const PEER_BYTES: usize = 512;

/// A peer without its secrets: a [`PeerSnapshot`] that is not text yet.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct WatchedPeer {
    pub public_key: PublicKey,
    pub endpoint: Option<SocketAddr>,
    pub allowed_ips: Vec<IpNet>,
    pub handshake_age_seconds: Option<f64>,
    pub keypair_age_seconds: Option<f64>,
    pub handshakes: u64,
    pub handshake_ns_last: u64,
    pub handshake_ns_min: u64,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub drops: Vec<(DropReason, u64)>,
    pub persistent_keepalive: u16,
}

/// The JSON of `tunnel`, which has no peers by itself, with `peers`.
///
/// # Errors
/// None in practice: it goes to memory.
pub fn json(tunnel: &Snapshot, peers: &[WatchedPeer]) -> io::Result<Vec<u8>> {
    assert!(tunnel.peers.is_empty(), "{} peers would be told twice", tunnel.peers.len());
    let mut out = serde_json::to_vec(tunnel)?;
    out.reserve(peers.len() * PEER_BYTES);
    // The object goes on.
    out.pop();
    out.extend_from_slice(b",\"peers\":[");
    for (index, peer) in peers.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"" } else { b"," });
        peer.write(&mut out)?;
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

impl WatchedPeer {
    /// As text, for those who tell of few.
    pub fn snapshot(&self) -> PeerSnapshot {
        PeerSnapshot {
            public_key: self.public_key.to_string(),
            endpoint: self.endpoint.map(|endpoint| endpoint.to_string()),
            allowed_ips: self.allowed_ips.iter().map(IpNet::to_string).collect(),
            handshake_age_seconds: self.handshake_age_seconds,
            keypair_age_seconds: self.keypair_age_seconds,
            handshakes: self.handshakes,
            handshake_ns_last: self.handshake_ns_last,
            handshake_ns_min: self.handshake_ns_min,
            rx_bytes: self.rx_bytes,
            rx_packets: self.rx_packets,
            tx_bytes: self.tx_bytes,
            tx_packets: self.tx_packets,
            drops: self.drops.iter().map(|(reason, packets)| (reason.label().to_owned(), *packets)).collect(),
            persistent_keepalive: self.persistent_keepalive,
        }
    }

    fn write(&self, out: &mut Vec<u8>) -> io::Result<()> {
        write!(out, "{{\"public_key\":\"{}\"", self.public_key)?;
        match self.endpoint {
            Some(endpoint) => write!(out, ",\"endpoint\":\"{endpoint}\"")?,
            None => out.extend_from_slice(b",\"endpoint\":null"),
        }
        out.extend_from_slice(b",\"allowed_ips\":[");
        for (index, prefix) in self.allowed_ips.iter().enumerate() {
            write!(out, "{}\"{prefix}\"", if index == 0 { "" } else { "," })?;
        }
        out.extend_from_slice(b"],\"drops\":{");
        for (index, (reason, packets)) in self.drops.iter().enumerate() {
            write!(out, "{}\"{}\":{packets}", if index == 0 { "" } else { "," }, reason.label())?;
        }
        out.extend_from_slice(b"}");
        for (name, seconds) in [
            (",\"handshake_age_seconds\":", self.handshake_age_seconds),
            (",\"keypair_age_seconds\":", self.keypair_age_seconds),
        ] {
            out.extend_from_slice(name.as_bytes());
            serde_json::to_writer(&mut *out, &seconds)?;
        }
        for (name, count) in [
            (",\"handshakes\":", self.handshakes),
            (",\"handshake_ns_last\":", self.handshake_ns_last),
            (",\"handshake_ns_min\":", self.handshake_ns_min),
            (",\"rx_bytes\":", self.rx_bytes),
            (",\"rx_packets\":", self.rx_packets),
            (",\"tx_bytes\":", self.tx_bytes),
            (",\"tx_packets\":", self.tx_packets),
            (",\"persistent_keepalive\":", self.persistent_keepalive.into()),
        ] {
            out.extend_from_slice(name.as_bytes());
            serde_json::to_writer(&mut *out, &count)?;
        }
        out.push(b'}');
        Ok(())
    }
}
