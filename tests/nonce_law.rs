//! The nonce law on real threads: however many workers seal with one session at once, no counter is used twice, none is
//! left out, and every flow comes out in order. A nonce used twice would give both packets away.
#![allow(clippy::unwrap_used)]

mod packets;

use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use packets::{Packet, payload};
use uringvpn::dataplane::Context;
use uringvpn::dataplane::outbound::{self, InPlace, Progress, Read, To};
use uringvpn::dataplane::view::{Change, View};
use uringvpn::offload::train::{Train, TrainLimits, Trains};
use uringvpn::proto::Endpoint;
use uringvpn::proto::crypto::Secret;
use uringvpn::proto::keys::PublicKey;
use uringvpn::proto::output::Update;
use uringvpn::proto::session::{Keys, Role, Session};
use uringvpn::stats::counters::WorkerCounters;
use uringvpn::time::Time;
use uringvpn::wire::message::{DATA_HEADER_BYTES, KEEPALIVE_BYTES};

const NOW: Time = Time::from_nanos(1_000_000_000_000);
const BUFFER_BYTES: usize = 69_632;
const VNET_BYTES: usize = 16;
/// IPv4 and UDP headers.
const HEADERS_BYTES: usize = 28;
const WORKERS: usize = 4;
/// Rounds of each worker: a superpacket of one flow, some single packets of another.
const ROUNDS: u32 = 4_000;
const SEGMENTS: usize = 60;
const SEGMENT_BYTES: usize = 64;
const SINGLES: u32 = 5;
const KEEPALIVES: u32 = 10_000;
const DATA_MESSAGES: usize = WORKERS * ROUNDS as usize * (SEGMENTS + SINGLES as usize);
const _: () = assert!(DATA_MESSAGES >= 1_000_000);

/// The two ends of one session.
fn pair() -> (Arc<Session>, Session) {
    let keys = |role, local_index, remote_index, sealing, opening| Keys {
        peer: 0,
        local_index,
        remote_index,
        role,
        sealing: Secret::new([sealing; 32]),
        opening: Secret::new([opening; 32]),
        created: NOW,
    };
    let sealing = Session::new(keys(Role::Initiator, 1, 2, 3, 4));
    (Arc::new(sealing), Session::new(keys(Role::Responder, 2, 1, 4, 3)))
}

/// Datagrams in the order in which they left.
type Sent = Vec<Vec<u8>>;

/// A worker's outbound half: the shipped walk, without a driver.
struct Worker {
    view: View,
    counters: WorkerCounters,
    trains: Trains<Box<[u8]>, To>,
    buffer: Vec<u8>,
}

impl Worker {
    fn new(session: &Arc<Session>) -> Worker {
        let mut view = View::for_wireguard(1420);
        let endpoint = Endpoint { remote: "192.0.2.2:51820".parse().unwrap(), local: None };
        for update in [
            Update::PeerAdded {
                peer: 0,
                public_key: PublicKey::from_bytes([7; 32]),
                activity: Arc::default(),
            },
            Update::Endpoint { peer: 0, endpoint: Some(endpoint) },
            Update::Current { peer: 0, session: Some(session.clone()) },
        ] {
            view.apply(Change::Peer(update));
        }
        view.add_route("0.0.0.0/0".parse().unwrap(), 0);
        let mut trains = Trains::new(TrainLimits::default());
        trains.give(vec![0; BUFFER_BYTES].into_boxed_slice());
        Worker { view, counters: WorkerCounters::default(), trains, buffer: vec![0; BUFFER_BYTES] }
    }

    /// One TUN read; a superpacket leaves as a train of its own.
    fn walk(&mut self, read: &[u8], sent: &mut Sent) {
        self.buffer[..read.len()].copy_from_slice(read);
        let context = Context { view: &self.view, now: NOW, counters: &self.counters };
        let request = Read { bytes: read.len(), resume: None, at: NOW };
        match outbound::superpacket(&mut self.buffer, request, &context, &mut self.trains) {
            Progress::Done => {}
            Progress::Train(InPlace { to, start, bytes, segment_bytes, datagrams }) => {
                let buffer = std::mem::take(&mut self.buffer).into_boxed_slice();
                let train = Train { buffer, start, to, bytes, segment_bytes, datagrams, started: NOW };
                self.buffer = self.send(train, sent).into();
            }
            other => panic!("the read is {other:?}"),
        }
    }

    /// What single packets have become a train of.
    fn flush(&mut self, sent: &mut Sent) {
        let trains: Vec<_> = self.trains.drain().collect();
        for train in trains {
            let buffer = self.send(train, sent);
            self.trains.give(buffer);
        }
    }

    /// Seals a train and gives its buffer back.
    fn send(&self, mut train: Train<Box<[u8]>, To>, sent: &mut Sent) -> Box<[u8]> {
        let context = Context { view: &self.view, now: NOW, counters: &self.counters };
        outbound::reserve(&mut train, &context).unwrap().seal(&mut train);
        sent.extend(train.split_mut().map(|datagram| datagram.to_vec()));
        train.buffer
    }

    fn work(mut self, number: u32, out: &Sender<Sent>) {
        let (bulk, small) = (2 * number, 2 * number + 1);
        let mut superpacket =
            Packet::udp(false, payload(SEGMENTS * SEGMENT_BYTES, 1)).tun_read(SEGMENT_BYTES as u16);
        let mut single = Packet::udp(false, payload(SEGMENT_BYTES, 1)).tun_read(0);
        single[1] = 0;
        for round in 0..ROUNDS {
            let mut sent = Sent::new();
            let first = round * SEGMENTS as u32;
            let segments = superpacket[VNET_BYTES + HEADERS_BYTES..].chunks_mut(SEGMENT_BYTES);
            segments.zip(first..).for_each(|(segment, number)| mark(segment, bulk, number));
            self.walk(&superpacket, &mut sent);
            for index in 0..SINGLES {
                mark(&mut single[VNET_BYTES + HEADERS_BYTES..], small, round * SINGLES + index);
                self.walk(&single, &mut sent);
            }
            self.flush(&mut sent);
            out.send(sent).unwrap();
        }
    }
}

/// Writes flow and number where [`marks`] reads them. The checksum is only begun, so the payload may change.
fn mark(payload: &mut [u8], flow: u32, number: u32) {
    payload[..4].copy_from_slice(&flow.to_be_bytes());
    payload[4..8].copy_from_slice(&number.to_be_bytes());
}

fn marks(payload: &[u8]) -> (usize, u32) {
    let word = |at: usize| u32::from_be_bytes(*payload[at..].first_chunk().unwrap());
    (word(0) as usize, word(4))
}

/// As the protocol thread does between all that.
fn send_keepalives(session: &Session, out: &Sender<Sent>) {
    for _ in 0..KEEPALIVES {
        let mut message = vec![0; KEEPALIVE_BYTES];
        session.seal(session.reserve(1, NOW).unwrap(), &mut message);
        out.send(vec![message]).unwrap();
    }
}

/// Opens everything, or ends all by dropping the receiver; no counter may come twice, and no packet out of its place in its flow.
fn judge(session: &Session, sent: Receiver<Sent>) {
    let total = DATA_MESSAGES + KEEPALIVES as usize;
    let mut seen = vec![false; total];
    let mut next = [0; 2 * WORKERS];
    for mut message in sent.iter().flatten() {
        assert_eq!(message[4..8], 2u32.to_le_bytes());
        let counter = u64::from_le_bytes(*message[8..].first_chunk().unwrap());
        let seen = seen.get_mut(counter as usize).expect("as many counters as messages");
        assert!(!std::mem::replace(seen, true), "counter {counter} was used twice");
        let packet = session.open(counter, &mut message, NOW).unwrap();
        if packet.is_empty() {
            continue;
        }
        let (flow, number) = marks(&message[DATA_HEADER_BYTES + HEADERS_BYTES..]);
        assert_eq!(number, next[flow], "flow {flow}");
        next[flow] += 1;
    }
    assert!(seen.iter().all(|seen| *seen), "a counter was reserved and never used");
    let expected = [ROUNDS * SEGMENTS as u32, ROUNDS * SINGLES];
    assert!(next.chunks(2).all(|flows| flows == expected), "{next:?}");
}

#[test]
fn a_million_messages_of_four_workers_share_one_session_and_no_counter() {
    let (sealing, opening) = pair();
    let (out, sent) = bounded(64);
    thread::scope(|scope| {
        for number in 0..WORKERS as u32 {
            let (worker, out) = (Worker::new(&sealing), out.clone());
            scope.spawn(move || worker.work(number, &out));
        }
        let session = &sealing;
        scope.spawn(move || send_keepalives(session, &out));
        judge(&opening, sent);
    });
    assert_eq!(sealing.sent(), DATA_MESSAGES as u64 + u64::from(KEEPALIVES));
}
