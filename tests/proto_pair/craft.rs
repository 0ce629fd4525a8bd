//! Messages made by hand, and what is inside those of others.

use uringvpn::proto::cookie::MacWriter;
use uringvpn::proto::keys::{PresharedKey, PrivateKey, PublicKey};
use uringvpn::proto::noise::{self, Initiated, LocalKeys, RemoteKeys};
use uringvpn::proto::rng::Rng;
use uringvpn::proto::tai64n::Tai64n;
use uringvpn::time::{Time, WallTime};

use super::net::{Flight, INITIATION, Net, address};

/// Someone who speaks the protocol but follows no rules.
pub struct Hand {
    pub local: LocalKeys,
    pub remote: RemoteKeys,
    pub macs: MacWriter,
    pub rng: Rng,
    from: usize,
    to: usize,
}

impl Hand {
    /// The owner of `key`, at the address of node `from`, talking to node `to` of the net.
    pub fn new(net: &Net, key: PrivateKey, from: usize, to: usize) -> Hand {
        let local = LocalKeys::new(key);
        let public = net.nodes[to].public_key();
        let remote = RemoteKeys::new(Some(&local), public, PresharedKey::NONE);
        Hand { local, remote, macs: MacWriter::new(&public), rng: Rng::from_seed([99; 32]), from, to }
    }

    pub fn flight(&self, bytes: &[u8]) -> Flight {
        let now = Time::default();
        let (from, to) = (address(self.from), address(self.to));
        Flight { sent: now, arrives: now, from, to, tos: 0, bytes: bytes.to_vec() }
    }

    /// An initiation whose stamp is `secs` after the epoch.
    pub fn initiation(&mut self, secs: u64, index: u32) -> (Flight, Initiated) {
        let stamp = Tai64n::from_wall(WallTime::from_parts(secs, 0));
        let ephemeral = self.rng.private_key();
        let created = noise::create_initiation(&self.local, &self.remote, ephemeral, stamp, index);
        let (mut bytes, initiated) = created.unwrap();
        self.macs.write_macs(&mut bytes, Time::default());
        (self.flight(&bytes), initiated)
    }

    /// The response to `initiation`.
    pub fn response(&mut self, initiation: &Flight, index: u32) -> Flight {
        let arrived = noise::open_initiation(&self.local, initiation.bytes.first_chunk().unwrap()).unwrap();
        let consumed = noise::consume_initiation(arrived, &self.remote).unwrap();
        let ephemeral = self.rng.private_key();
        let (mut bytes, _) = noise::create_response(&consumed, &self.remote, ephemeral, index).unwrap();
        self.macs.write_macs(&mut bytes, Time::default());
        self.flight(&bytes)
    }

    /// A message of which only mac1 is right.
    pub fn junk(&mut self, kind: u8) -> Flight {
        let mut bytes = vec![0; if kind == INITIATION { 148 } else { 92 }];
        self.rng.fill(&mut bytes);
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        self.macs.write_macs(&mut bytes, Time::default());
        self.flight(&bytes)
    }
}

/// The stamp inside an initiation that `from` sent to the owner of `to`.
pub fn stamp(flight: &Flight, from: PublicKey, to: &PrivateKey) -> Tai64n {
    let local = LocalKeys::new(to.clone());
    let remote = RemoteKeys::new(Some(&local), from, PresharedKey::NONE);
    let arrived = noise::open_initiation(&local, flight.bytes.first_chunk().unwrap()).unwrap();
    noise::consume_initiation(arrived, &remote).unwrap().timestamp
}
