//! The network of the encrypted simulation, and whoever sits on it: records everything, sends it again, changes it, makes
//! up messages of its own.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use uringvpn::proto::cookie::MacWriter;
use uringvpn::time::{Span, Time};
use uringvpn::wire::message::{COOKIE_BYTES, INITIATION_BYTES, RESPONSE_BYTES, emit_data_header};

use crate::network::Troubles;
use crate::node::private_key;
use crate::random::Random;

/// How far back the attacker remembers.
const MEMORY: Span = Span::from_secs(600);
/// How many datagrams.
const MEMORY_FLIGHTS: usize = 300;
/// The latest that a datagram comes behind the others.
const LATE_MILLIS: usize = 15_000;

/// What the attacker does, in percent per datagram, or at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hostility {
    /// A bit is another one on arrival.
    pub flipped: u8,
    /// Arrives up to [`LATE_MILLIS`] behind the others.
    pub late: u8,
    /// Arrives from the attacker's address.
    pub relayed: u8,
    /// Datagrams are sent again.
    pub replays: bool,
    /// Messages are made up.
    pub forges: bool,
    /// Handshake messages that know whom they are for, by the hundred.
    pub floods: bool,
}

#[derive(Clone, Debug)]
pub struct Flight {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

pub struct Wire {
    latency: Span,
    attacker: SocketAddr,
    under_way: BTreeMap<(Time, u64), Vec<Flight>>,
    count: u64,
    recorded: VecDeque<(Time, Flight)>,
}

impl Wire {
    pub fn new(attacker: SocketAddr, latency: Span) -> Wire {
        Wire { latency, attacker, under_way: BTreeMap::new(), count: 0, recorded: VecDeque::new() }
    }

    /// Datagrams that left together.
    pub fn carry(
        &mut self,
        flights: Vec<Flight>,
        (troubles, hostility): (&Troubles, &Hostility),
        now: Time,
        random: &mut Random,
    ) {
        self.record(&flights, now);
        let mut together = Vec::new();
        for (flight, copies) in troubles.befall(flights, random) {
            for _ in 0..copies {
                let mut flight = flight.clone();
                flight.bytes = troubles.pad(flight.bytes, random);
                if random.chance(hostility.flipped) {
                    let bit = random.below(flight.bytes.len() * 8);
                    flight.bytes[bit / 8] ^= 1 << (bit % 8);
                }
                if random.chance(hostility.relayed) {
                    flight.from = self.attacker;
                }
                if random.chance(hostility.late) {
                    let late = Span::from_millis(random.below(LATE_MILLIS) as u64);
                    self.launch(vec![flight], now + self.latency + late);
                } else {
                    together.push(flight);
                }
            }
        }
        self.launch(together, now + self.latency);
    }

    fn record(&mut self, flights: &[Flight], now: Time) {
        self.recorded.extend(flights.iter().map(|flight| (now, flight.clone())));
        let crowd = self.recorded.len().saturating_sub(MEMORY_FLIGHTS);
        self.recorded.drain(..crowd);
        while self.recorded.front().is_some_and(|(at, _)| now.since(*at) > MEMORY) {
            self.recorded.pop_front();
        }
    }

    /// These arrive together at `time`.
    pub fn launch(&mut self, flights: Vec<Flight>, time: Time) {
        if !flights.is_empty() {
            self.count += 1;
            self.under_way.insert((time, self.count), flights);
        }
    }

    /// When the next ones arrive.
    pub fn next(&self) -> Option<Time> {
        self.under_way.keys().next().map(|(time, _)| *time)
    }

    /// What has arrived by `now`, one group after the other.
    pub fn arrived(&mut self, now: Time) -> Option<Vec<Flight>> {
        let entry = self.under_way.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// Something was sent before and is sent again, as it was or from another address.
    pub fn replay(&mut self, now: Time, random: &mut Random) {
        if self.recorded.is_empty() {
            return;
        }
        let first = random.below(self.recorded.len());
        let again = self.recorded.iter().skip(first).take(random.between(1, 8));
        let mut again: Vec<Flight> = again.map(|(_, flight)| flight.clone()).collect();
        if random.chance(50) {
            again.iter_mut().for_each(|flight| flight.from = self.attacker);
        }
        self.launch(again, now);
    }

    /// Something nobody sent, for the host at `to` whose number is `host`; `index` is a receiver index of its own.
    pub fn forge(&mut self, to: SocketAddr, host: usize, index: u32, now: Time, random: &mut Random) {
        let mut bytes = match random.below(6) {
            0 => message(1, INITIATION_BYTES, random),
            1 => message(2, RESPONSE_BYTES, random),
            2 => message(3, COOKIE_BYTES, random),
            3 => {
                let count = random.between(0, 200);
                random.bytes(count)
            }
            _ => {
                let count = random.between(32, 200);
                let mut data = random.bytes(count);
                let counter = random.pick(&[0, 1, 1000, 1 << 40, u64::MAX - 8192, u64::MAX]);
                emit_data_header(&mut data, index, counter);
                data
            }
        };
        if random.chance(50) && matches!(bytes.len(), RESPONSE_BYTES | COOKIE_BYTES) {
            let at = if bytes[0] == 2 { 8 } else { 4 };
            bytes[at..at + 4].copy_from_slice(&index.to_le_bytes());
        }
        if random.chance(50) && matches!(bytes.len(), INITIATION_BYTES | RESPONSE_BYTES) {
            sign(&mut bytes, host, now);
        }
        self.launch(vec![Flight { from: self.attacker, to, bytes }], now);
    }

    /// Handshake messages of nobody, more than can be looked at.
    pub fn flood(&mut self, to: SocketAddr, host: usize, now: Time, random: &mut Random) {
        let mut junk = message(1, INITIATION_BYTES, random);
        sign(&mut junk, host, now);
        let flight = Flight { from: self.attacker, to, bytes: junk };
        let count = random.pick(&[600, 600, 600, 4500]);
        self.launch(vec![flight; count], now);
    }
}

fn message(kind: u8, bytes: usize, random: &mut Random) -> Vec<u8> {
    let mut message = random.bytes(bytes);
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    message
}

/// Writes the mac1 that anybody can who knows the host's public key.
fn sign(message: &mut [u8], host: usize, now: Time) {
    MacWriter::new(&private_key(host).public_key()).write_macs(message, now);
}
