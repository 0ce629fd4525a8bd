//! What a worker hands a capture: every packet once, cut as it travels, with its direction, its peer and what became of it.
//! The worker is the shipped one, on a driver in memory.
#![allow(clippy::unwrap_used)]

mod packets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use packets::{Packet, payload, split};
use uringvpn::control::capture::{Filter, PeerName};
use uringvpn::dataplane::view::{Change, View};
use uringvpn::io::driver::Wait;
use uringvpn::io::fake::{Fake, Faults, Incoming};
use uringvpn::offload::coalesce::Merge;
use uringvpn::proto::Endpoint;
use uringvpn::proto::keys::PublicKey;
use uringvpn::proto::output::Update;
use uringvpn::stats::counters::{Totals, WorkerCounters};
use uringvpn::stats::drop::{Direction, DropReason};
use uringvpn::stats::recorder::{self, Reporter};
use uringvpn::time::Time;
use uringvpn::worker::data::{DataWorker, Flags, Parts};
use uringvpn::worker::handoff::{self, Order, Orders};
use uringvpn::worker::tap::{self, Basin};

const PEER: &str = "192.0.2.2:51820";
const KEY: PublicKey = PublicKey::from_bytes([9; 32]);

/// A packet that was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    direction: Direction,
    peer: Option<PeerName>,
    dropped: Option<DropReason>,
    packet_bytes: u32,
    kept: Vec<u8>,
}

/// A worker on a fake driver, and a capture of it.
struct Tapped {
    worker: DataWorker<Fake>,
    counters: Arc<WorkerCounters>,
    orders: Orders,
    basin: Basin,
    flags: Arc<Flags>,
    _stats: crossbeam_channel::Receiver<recorder::Full>,
    _inbox: handoff::Inbox,
}

impl Tapped {
    fn new(view: View, filter: &Filter, faults: Faults) -> Tapped {
        let counters = Arc::new(WorkerCounters::default());
        let (reports, stats) = recorder::channel(1);
        let (outbox, inbox) = handoff::to_protocol();
        let (mut orders, orders_out) = handoff::to_worker(None);
        let flags = Arc::new(Flags::default());
        let parts = Parts {
            view,
            orders: orders_out,
            outbox,
            train_segments_max: 64,
            merge: Merge { tcp: true, udp: true },
            counters: counters.clone(),
            reporter: Reporter::new(0, reports, Time::default()),
            flags: flags.clone(),
            self_check: Arc::default(),
        };
        let (mut taps, basin) = tap::open(filter, 1);
        orders.give(Order::Tap(taps.pop().map(Box::new)));
        let worker = DataWorker::new(Fake::new(faults, 1), parts);
        Tapped { worker, counters, orders, basin, flags, _stats: stats, _inbox: inbox }
    }

    fn carry(&mut self, reads: impl IntoIterator<Item = Vec<u8>>, datagrams: &[Vec<u8>]) {
        let fake = self.worker.driver_mut();
        fake.tun_reads.extend(reads);
        fake.receives.extend(datagrams.iter().map(|bytes| Incoming {
            from: PEER.parse().unwrap(),
            to: None,
            bytes: bytes.clone(),
            stride: 0,
            tos: 0,
        }));
        // One more, since what is queued at a turn's end is carried out in the next, and its end told in that.
        while !self.worker.driver_mut().is_idle() {
            self.worker.turn(Wait::Not).unwrap();
        }
        for _ in 0..3 {
            self.worker.turn(Wait::Not).unwrap();
        }
    }

    /// Ends the capture; all that was taken, and how many were missed.
    fn end(mut self) -> (Vec<Taken>, u64) {
        self.orders.give(Order::Tap(None));
        self.worker.turn(Wait::Not).unwrap();
        let mut taken = Vec::new();
        while let Ok(batch) = self.basin.full.recv() {
            taken.extend(batch.packets().map(|(seen, packet_bytes, kept)| Taken {
                direction: seen.direction,
                peer: seen.peer,
                dropped: seen.dropped,
                packet_bytes,
                kept: kept.to_vec(),
            }));
        }
        (taken, self.basin.missed())
    }
}

fn plain() -> View {
    let mut view = View::default();
    view.add_peer(PEER.parse().ok());
    for prefix in ["0.0.0.0/0", "::/0"] {
        view.add_route(prefix.parse().unwrap(), 0);
    }
    view
}

/// Encrypted, with a peer that has no session.
fn sealed(endpoint: Option<SocketAddr>) -> View {
    let mut view = View::for_wireguard(1420);
    let endpoint = endpoint.map(|remote| Endpoint { remote, local: None });
    view.apply(Change::Peer(Update::PeerAdded { peer: 0, public_key: KEY, activity: Arc::default() }));
    view.apply(Change::Peer(Update::Endpoint { peer: 0, endpoint }));
    view.add_route("0.0.0.0/0".parse().unwrap(), 0);
    view
}

fn all(view: View, faults: Faults) -> Tapped {
    Tapped::new(view, &Filter::default(), faults)
}

fn flow() -> Packet {
    Packet::tcp(false, payload(20_000, 1))
}

/// A read without offload.
fn single(packet: &Packet) -> Vec<u8> {
    [vec![0; 16], packet.bytes()].concat()
}

fn address() -> Option<PeerName> {
    Some(PeerName::Address(PEER.parse().unwrap()))
}

/// What is taken of whole packets.
fn taken(
    packets: &[Vec<u8>],
    direction: Direction,
    peer: Option<PeerName>,
    dropped: Option<DropReason>,
) -> Vec<Taken> {
    let one = |kept: &Vec<u8>| Taken {
        direction,
        peer,
        dropped,
        packet_bytes: kept.len() as u32,
        kept: kept.clone(),
    };
    packets.iter().map(one).collect()
}

#[test]
fn a_superpacket_is_taken_segment_by_segment_as_it_is_sent() {
    let mut tapped = all(plain(), Faults::default());
    let small = Packet::udp(true, payload(30, 2));
    tapped.carry([flow().tun_read(1300), single(&small)], &[]);
    let sent: Vec<_> = tapped.worker.driver_mut().sent.drain(..).map(|datagram| datagram.bytes).collect();
    assert_eq!(sent.len(), split(&flow().tun_read(1300)).len() + 1);
    let (packets, missed) = tapped.end();
    assert_eq!(packets, taken(&sent, Direction::Outbound, address(), None));
    assert_eq!(missed, 0);
}

#[test]
fn joined_packets_are_taken_one_by_one_as_they_came() {
    let mut tapped = all(plain(), Faults::default());
    let mut datagrams = split(&flow().tun_read(1300));
    datagrams.push(Packet::udp(true, payload(30, 2)).bytes());
    tapped.carry([], &datagrams);
    assert!(tapped.worker.driver_mut().written.len() < datagrams.len());
    let (packets, _) = tapped.end();
    assert_eq!(packets, taken(&datagrams, Direction::Inbound, address(), None));
}

#[test]
fn what_the_kernel_dropped_is_counted_by_itself_and_cannot_be_taken() {
    let mut tapped = all(plain(), Faults::default());
    let datagrams = split(&flow().tun_read(1300));
    // Also what is told while nothing can be delivered.
    for (told, paused) in [(5, false), (2, true)] {
        tapped.flags.paused.store(paused, Ordering::Relaxed);
        tapped.worker.driver_mut().overflown = told;
        tapped.carry([], &datagrams);
    }
    let totals = Totals::of([&*tapped.counters]);
    assert_eq!((totals.overflown, totals.in_datagrams), (7, 2 * datagrams.len() as u64));
    assert_eq!(totals.check_drained(), Ok(()));
    assert_eq!(tapped.end().0.len(), datagrams.len());
}

#[test]
fn what_has_no_way_out_is_taken_with_the_reason() {
    let mut nowhere = View::default();
    nowhere.add_peer(PEER.parse().ok());
    let mut tapped = all(nowhere, Faults::default());
    let mut odd = flow().tun_read(1300);
    odd[1] = 0x7f;
    let rubbish = [vec![0; 16], vec![0xff; 40]].concat();
    tapped.carry([flow().tun_read(1300), odd.clone(), rubbish.clone(), vec![0; 3]], &[]);
    let (packets, _) = tapped.end();
    let lost = |packets: &[Vec<u8>], reason| taken(packets, Direction::Outbound, None, Some(reason));
    let expected = [
        lost(&split(&flow().tun_read(1300)), DropReason::NoRoute),
        lost(&[odd[16..].to_vec()], DropReason::OutBadOffload),
        lost(&[rubbish[16..].to_vec(), vec![]], DropReason::OutMalformed),
    ];
    assert_eq!(packets, expected.concat());

    let mut tapped = all(sealed(None), Faults::default());
    tapped.carry([single(&flow())], &[]);
    let expected =
        taken(&[flow().bytes()], Direction::Outbound, Some(PeerName::Key(KEY)), Some(DropReason::NoEndpoint));
    assert_eq!(tapped.end().0, expected);
}

#[test]
fn packets_that_waited_for_a_session_in_vain_are_taken_with_the_reason() {
    let mut tapped = all(sealed(PEER.parse().ok()), Faults::default());
    let packet = |number| Packet::udp(false, payload(100, number));
    tapped.carry((0..130).map(|number| single(&packet(number))), &[]);
    tapped.orders.give(Order::Change(Change::Peer(Update::DropStaged { peer: 0 })));
    let counters = tapped.counters.clone();
    let (packets, _) = tapped.end();
    let lost = |numbers: std::ops::Range<u32>, reason| {
        let packets: Vec<_> = numbers.map(|number| packet(number).bytes()).collect();
        taken(&packets, Direction::Outbound, Some(PeerName::Key(KEY)), Some(reason))
    };
    let expected = [lost(0..2, DropReason::StageFull), lost(2..130, DropReason::NoSession)].concat();
    assert_eq!(packets.len(), expected.len());
    assert_eq!((packets, counters.out_packets.get()), (expected, 130));
}

#[test]
fn a_refused_send_comes_again_with_the_reason_and_without_its_bytes() {
    let mut tapped = all(plain(), Faults { send_error: 100, ..Faults::default() });
    let small = Packet::udp(false, payload(30, 2));
    tapped.carry([single(&small)], &[]);
    let (packets, _) = tapped.end();
    let mut expected = taken(&[small.bytes(), small.bytes()], Direction::Outbound, address(), None);
    expected[1].dropped = Some(DropReason::SendError);
    expected[1].kept.clear();
    assert_eq!(packets, expected);
}

#[test]
fn what_may_not_or_cannot_be_delivered_is_taken_with_the_reason() {
    let mut view = View::default();
    view.add_peer(PEER.parse().ok());
    let mut tapped = all(view, Faults::default());
    let stranger = Packet::udp(false, payload(30, 2)).bytes();
    let rubbish = vec![0xff; 40];
    tapped.carry([], &[stranger.clone(), rubbish.clone()]);
    let refused = |packet, reason| taken(&[packet], Direction::Inbound, address(), Some(reason));
    let expected =
        [refused(stranger, DropReason::SourceNotAllowed), refused(rubbish, DropReason::InMalformed)];
    assert_eq!(tapped.end().0, expected.concat());

    let mut tapped = all(plain(), Faults { tun_down: 100, ..Faults::default() });
    let datagrams = split(&flow().tun_read(1300));
    tapped.carry([], &datagrams);
    let expected = taken(&datagrams, Direction::Inbound, address(), Some(DropReason::TunDown));
    assert_eq!(tapped.end().0, expected);
}

#[test]
fn a_write_that_the_interface_calls_malformed_is_not_taken_for_a_delivered_one() {
    // The fake's interface is up or down; what else a kernel may say is said here.
    let mut tapped = all(plain(), Faults::default());
    let packet = Packet::udp(false, payload(30, 2)).bytes();
    tapped.worker.driver_mut().write_error = Some(Errno::EINVAL);
    tapped.carry([], std::slice::from_ref(&packet));
    let expected = taken(&[packet], Direction::Inbound, address(), Some(DropReason::TunWriteError));
    assert_eq!(tapped.end().0, expected);
}

#[test]
fn only_what_is_wanted_is_taken_and_only_as_much_of_it() {
    let (packet, stranger) = (Packet::udp(false, payload(100, 2)), Packet::udp(true, payload(100, 3)));
    let mut view = View::default();
    view.add_peer(PEER.parse().ok());
    view.add_route("0.0.0.0/0".parse().unwrap(), 0);
    let count = |filter: Filter| {
        let mut tapped = Tapped::new(view.clone(), &filter, Faults::default());
        // Two that go through, one each way, and two that do not.
        tapped.carry([single(&packet), single(&stranger)], &[packet.bytes(), stranger.bytes()]);
        let (packets, missed) = tapped.end();
        assert_eq!(missed, 0);
        let sums = packets.iter().fold((0, 0), |(whole, kept), packet| {
            (whole + packet.packet_bytes as usize, kept + packet.kept.len())
        });
        (packets.len(), sums)
    };
    let (short, long) = (packet.bytes().len(), stranger.bytes().len());
    let everything = 2 * (short + long);
    assert_eq!(count(Filter::default()), (4, (everything, everything)));
    assert_eq!(count(Filter { snap: 50, ..Filter::default() }), (4, (everything, 200)));
    assert_eq!(count(Filter { drops: true, ..Filter::default() }), (2, (2 * long, 2 * long)));
    for direction in Direction::ALL {
        let filter = Filter { direction: Some(direction), ..Filter::default() };
        assert_eq!(count(filter).0, 2);
    }
    let from = |peer| count(Filter { peer, ..Filter::default() }).0;
    // What was refused came from the peer's address; what found no route has no peer.
    assert_eq!((from(address()), from(Some(PeerName::Key(KEY)))), (3, 0));
}

#[test]
fn where_nobody_empties_the_batches_packets_are_missed_and_counted_and_all_are_sent() {
    let filter = Filter { direction: Some(Direction::Outbound), ..Filter::default() };
    let mut tapped = Tapped::new(plain(), &filter, Faults::default());
    let mut packets = 0;
    // Twice what the pool holds.
    for _ in 0..800 {
        tapped.carry([flow().tun_read(1300)], &[]);
        packets += tapped.worker.driver_mut().sent.drain(..).len() as u64;
    }
    assert_eq!(tapped.counters.sent_datagrams.get(), packets);
    let (taken, missed) = tapped.end();
    assert_eq!(taken.len() as u64 + missed, packets);
    assert!(missed > packets / 4 && !taken.is_empty(), "{missed} of {packets}");
}

#[test]
fn emptied_batches_come_round_again() {
    let mut tapped = all(plain(), Faults::default());
    for _ in 0..800 {
        tapped.carry([flow().tun_read(1300)], &[]);
        while let Ok(batch) = tapped.basin.full.try_recv() {
            tapped.basin.give_back(batch);
        }
    }
    assert_eq!(tapped.end().1, 0);
}

#[test]
fn whatever_befalls_packets_as_many_are_taken_as_are_counted() {
    // Before a datagram is opened there is no packet.
    let outer = [DropReason::Truncated, DropReason::UnknownSource];
    let mut seen = BTreeSet::new();
    for seed in 0..40 {
        let faults = Faults {
            late: seed % 40,
            ended: 20,
            short_read: 5,
            truncated: 5,
            receive_error: 5,
            send_error: 10,
            refuses_trains: seed % 2 == 0,
            tun_down: 10,
            refused_write: 20,
        };
        let mut view = View::default();
        view.add_peer(PEER.parse().ok());
        view.add_route("0.0.0.0/0".parse().unwrap(), 0);
        let mut tapped = all(view, faults);
        for v6 in [false, true] {
            let flow = Packet::tcp(v6, payload(20_000, seed.into()));
            let small = Packet::udp(v6, payload(30, seed.into()));
            let mut datagrams = split(&flow.tun_read(1300));
            datagrams.push(small.bytes());
            tapped.carry([flow.tun_read(1300), single(&small), vec![0; 20]], &datagrams);
        }
        while Totals::of([&*tapped.counters]).check_drained().is_err() {
            tapped.worker.turn(Wait::Not).unwrap();
        }
        let totals = Totals::of([&*tapped.counters]);
        let (packets, missed) = tapped.end();
        assert_eq!(missed, 0);

        let mut expected = BTreeMap::new();
        for direction in Direction::ALL {
            let mut passed = totals.passed_on(direction);
            for (reason, count) in totals.drops(direction).filter(|(reason, _)| !outer.contains(reason)) {
                expected.insert(reason.label(), count);
                // They were taken before they were refused, too.
                passed += if reason == DropReason::SendError { count } else { 0 };
            }
            expected.insert(direction.name(), passed);
        }
        let mut found = BTreeMap::new();
        for packet in packets {
            *found.entry(packet.dropped.map_or(packet.direction.name(), DropReason::label)).or_default() += 1;
        }
        assert_eq!(found, expected, "seed {seed}");
        seen.extend(found.into_keys());
    }
    // It did befall them.
    let troubles = ["no_route", "out_malformed", "send_error", "source_not_allowed", "tun_down"];
    assert!(troubles.iter().all(|reason| seen.contains(reason)), "{seen:?}");
}
