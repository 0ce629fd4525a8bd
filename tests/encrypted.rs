//! Both walks in encrypted mode: what one view seals another opens, and what it must refuse.
#![allow(clippy::unwrap_used)]

mod packets;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use packets::{Packet, payload, split};
use uringvpn::dataplane::Context;
use uringvpn::dataplane::codel::Codel;
use uringvpn::dataplane::inbound::{self, Findings};
use uringvpn::dataplane::outbound::{self, InPlace, Progress, Read, To};
use uringvpn::dataplane::view::{Change, View};
use uringvpn::offload::coalesce::{Coalescer, Gather, Merge};
use uringvpn::offload::stride::Received;
use uringvpn::offload::train::{Train, TrainLimits, Trains};
use uringvpn::proto::Endpoint;
use uringvpn::proto::crypto::Secret;
use uringvpn::proto::keys::PublicKey;
use uringvpn::proto::output::Update;
use uringvpn::proto::session::{Keys, Role, Session};
use uringvpn::stats::counters::{Totals, WorkerCounters};
use uringvpn::stats::drop::{Direction, DropReason};
use uringvpn::time::{Span, Time};
use uringvpn::wire::message::{DATA_HEADER_BYTES, DATA_OVERHEAD_BYTES};

const NOW: Time = Time::from_nanos(1_000_000_000_000);
const MTU: u16 = 1420;
const BUFFER_BYTES: usize = 69_632;
const VNET_BYTES: usize = 16;
const REMOTE: &str = "192.0.2.2:51820";

/// One end: a view that knows one peer, to which everything is routed, and a session with it.
struct End {
    view: View,
    counters: WorkerCounters,
    session: Arc<Session>,
}

impl End {
    fn new(role: Role) -> End {
        let (one, other) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let (local_index, remote_index, sealing, opening) = match role {
            Role::Initiator => (0x1111, 0x2222, one, other),
            Role::Responder => (0x2222, 0x1111, other, one),
        };
        let keys = Keys { peer: 0, local_index, remote_index, role, sealing, opening, created: NOW };
        let session = Arc::new(Session::new(keys));
        let mut view = View::for_wireguard(MTU);
        let endpoint = Endpoint { remote: REMOTE.parse().unwrap(), local: None };
        for update in [
            Update::PeerAdded {
                peer: 0,
                public_key: PublicKey::from_bytes([7; 32]),
                activity: Arc::default(),
            },
            Update::Endpoint { peer: 0, endpoint: Some(endpoint) },
            Update::SessionAdded(session.clone()),
            Update::Current { peer: 0, session: Some(session.clone()) },
        ] {
            view.apply(Change::Peer(update));
        }
        for prefix in ["0.0.0.0/0", "::/0"] {
            view.add_route(prefix.parse().unwrap(), 0);
        }
        End { view, counters: WorkerCounters::default(), session }
    }

    fn pair() -> (End, End) {
        (End::new(Role::Initiator), End::new(Role::Responder))
    }

    fn context(&self) -> Context<'_> {
        Context { view: &self.view, now: NOW, counters: &self.counters }
    }

    /// Sends one TUN read; the datagrams that come of it, and the traffic class they travel with.
    fn seal(&self, read: &[u8]) -> Vec<(Vec<u8>, u8)> {
        let mut buffer = vec![0xee; BUFFER_BYTES];
        buffer[..read.len()].copy_from_slice(read);
        let mut trains = Trains::new(TrainLimits::default());
        trains.give(vec![0xdd; BUFFER_BYTES].into_boxed_slice());
        let read = Read { bytes: read.len(), resume: None, at: NOW };
        match outbound::superpacket(&mut buffer, read, &self.context(), &mut trains) {
            Progress::Train(InPlace { to, start, bytes, segment_bytes, datagrams }) => {
                let buffer = buffer.into_boxed_slice();
                trains.adopt(Train { buffer, start, to, bytes, segment_bytes, datagrams, started: NOW });
            }
            Progress::Done | Progress::Dropped(_) => {}
            other => panic!("the read is {other:?}"),
        }
        let seal = |mut train: Train<_, To>| {
            outbound::reserve(&mut train, &self.context()).unwrap().seal(&mut train);
            let tos = train.to.tos;
            train.split_mut().map(|datagram| (datagram.to_vec(), tos)).collect::<Vec<_>>()
        };
        trains.drain().flat_map(seal).collect()
    }

    /// Receives datagrams, all of one length but the last; what goes to the TUN, without vnet headers and taken apart.
    fn open(&self, datagrams: &[Vec<u8>], tos: u8) -> (Vec<Vec<u8>>, Findings) {
        self.open_late(datagrams, tos, NOW, &mut Codel::default())
    }

    /// The same at `now`, of datagrams that have waited since [`NOW`] in `queue`.
    fn open_late(
        &self,
        datagrams: &[Vec<u8>],
        tos: u8,
        now: Time,
        queue: &mut Codel,
    ) -> (Vec<Vec<u8>>, Findings) {
        let mut buffer = datagrams.concat();
        let received = Received {
            from: REMOTE.parse::<SocketAddr>().unwrap(),
            to: None,
            start: 0,
            bytes: buffer.len() as u32,
            stride: datagrams[0].len() as u16,
            truncated: false,
            overflown: 0,
            at: NOW,
            tos,
        };
        let mut coalescer = Coalescer::new(Merge { tcp: true, udp: true });
        let mut findings = Findings::default();
        let context = Context { now, ..self.context() };
        inbound::datagrams(&mut buffer, 0, &received, &context, queue, &mut coalescer, &mut findings);
        let gathers: Vec<Gather> = coalescer.drain().collect();
        let write = |gather: &Gather| {
            let parts = gather.parts.iter().map(|part| &buffer[part.start as usize..][..part.len as usize]);
            gather.head().iter().chain(parts.flatten()).copied().collect::<Vec<u8>>()
        };
        (gathers.iter().map(write).flat_map(|write| split(&write)).collect(), findings)
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        Totals::of([&self.counters]).dropped(reason)
    }
}

fn bytes(sealed: &[(Vec<u8>, u8)]) -> Vec<Vec<u8>> {
    sealed.iter().map(|(datagram, _)| datagram.clone()).collect()
}

fn single(packet: &Packet) -> Vec<u8> {
    [vec![0; VNET_BYTES], packet.bytes()].concat()
}

#[test]
fn a_superpacket_arrives_as_its_segments() {
    for v6 in [false, true] {
        let (one, other) = End::pair();
        let mss = if v6 { 1348 } else { 1368 };
        let read = Packet::tcp(v6, payload(44 * usize::from(mss) + 100, 1)).tun_read(mss);
        let sealed = bytes(&one.seal(&read));
        assert_eq!(sealed.len(), 45);
        assert!(sealed.iter().all(|datagram| datagram.len() <= usize::from(MTU) + DATA_OVERHEAD_BYTES));
        assert_eq!(other.open(&sealed, 0).0, split(&read));
        assert_eq!(one.session.sent(), 45);
    }
}

#[test]
fn packets_of_every_length_arrive_as_they_were() {
    let (one, other) = End::pair();
    for length in (0..1392).step_by(7).chain([1391, 1392]) {
        let packet = Packet::udp(false, payload(length, 3));
        let sealed = bytes(&one.seal(&single(&packet)));
        assert_eq!(sealed.len(), 1);
        let padded = sealed[0].len() - DATA_OVERHEAD_BYTES;
        assert!(
            padded.is_multiple_of(16) || padded == usize::from(MTU),
            "{length} bytes of payload, {padded} sealed"
        );
        assert_eq!(other.open(&sealed, 0).0, [packet.bytes()], "{length} bytes of payload");
    }
}

#[test]
fn a_packet_too_long_to_be_sealed_is_dropped_and_not_tried_for_ever() {
    let (mut one, _) = End::pair();
    one.view.mtu = u16::MAX;
    // 52 bytes of headers: one segment of 65,535 bytes, then two of which the first is nearly as long.
    let packet = Packet::tcp(false, payload(65_535 - 52, 1));
    for (gso_size, segments) in [(u16::MAX, 1), (65_460, 2)] {
        let before = one.dropped(DropReason::OutTooLong);
        assert!(one.seal(&packet.tun_read(gso_size)).is_empty());
        assert_eq!(one.dropped(DropReason::OutTooLong), before + segments);
    }
    assert_eq!(Totals::of([&one.counters]).check_drained(), Ok(()));
}

#[test]
fn padding_is_zeros_whatever_the_buffer_held() {
    let (one, other) = End::pair();
    let packet = Packet::udp(false, payload(5, 3));
    let mut sealed = bytes(&one.seal(&single(&packet))).remove(0);
    let range = other.session.open(0, &mut sealed, NOW).unwrap();
    assert_eq!(range.len() % 16, 0);
    assert!(sealed[range.start + packet.bytes().len()..range.end].iter().all(|byte| *byte == 0));
}

#[test]
fn a_damaged_datagram_is_dropped_and_the_whole_one_still_accepted() {
    let (one, other) = End::pair();
    let packet = Packet::udp(false, payload(100, 3));
    let sealed = bytes(&one.seal(&single(&packet))).remove(0);
    for bit in (0..sealed.len() * 8).step_by(5) {
        let mut damaged = sealed.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let (packets, findings) = other.open(&[damaged], 0);
        assert!(packets.is_empty() && findings.heard.is_empty(), "bit {bit}");
    }
    assert_eq!(other.open(&[sealed], 0).0, [packet.bytes()]);
}

#[test]
fn a_datagram_is_accepted_once() {
    let (one, other) = End::pair();
    let sealed = bytes(&one.seal(&single(&Packet::udp(false, payload(100, 3)))));
    assert_eq!(other.open(&sealed, 0).0.len(), 1);
    let (packets, findings) = other.open(&sealed, 0);
    assert!(packets.is_empty() && findings.heard.is_empty());
    assert_eq!(other.dropped(DropReason::Replayed), 1);
}

#[test]
fn an_inner_source_of_somebody_else_is_dropped_but_the_peer_was_heard() {
    let (one, mut other) = End::pair();
    other.view.add_route("10.0.0.0/24".parse().unwrap(), 7);
    let source: IpAddr = [10, 0, 0, 1].into();
    let packet = Packet { ends: Some((source, [10, 9, 9, 9].into())), ..Packet::udp(false, payload(10, 1)) };
    let (packets, findings) = other.open(&bytes(&one.seal(&single(&packet))), 0);
    assert!(packets.is_empty());
    assert_eq!(findings.heard.len(), 1);
    assert_eq!(other.dropped(DropReason::SourceNotAllowed), 1);
}

#[test]
fn a_datagram_that_comes_back_to_be_sealed_again_is_dropped() {
    for v6 in [false, true] {
        let end = End::new(Role::Initiator);
        let sealed = bytes(&end.seal(&single(&Packet::udp(v6, payload(100, 1))))).remove(0);
        assert!(end.seal(&single(&Packet::udp(v6, sealed.clone()))).is_empty());
        // The first fragment of one that was too long.
        let first = Packet { fragment: 0x2000, ..Packet::udp(false, sealed.clone()) };
        assert!(end.seal(&single(&first)).is_empty());
        assert_eq!(end.dropped(DropReason::Looped), 2);
        // Another session's datagram: a tunnel in the tunnel.
        let mut other = sealed;
        other[4] ^= 1;
        assert_eq!(end.seal(&single(&Packet::udp(v6, other))).len(), 1);
    }
}

#[test]
fn a_keepalive_is_counted_and_goes_nowhere() {
    let (one, other) = End::pair();
    let mut keepalive = vec![0; DATA_OVERHEAD_BYTES];
    one.session.seal(one.session.reserve(1, NOW).unwrap(), &mut keepalive);
    let (packets, findings) = other.open(&[keepalive], 0);
    assert!(packets.is_empty() && !findings.heard[0].data && findings.heard[0].confirmed);
    let totals = Totals::of([&other.counters]);
    assert_eq!((totals.keepalives, totals.check_drained()), (1, Ok(())));
}

#[test]
fn congestion_met_outside_is_told_inside_and_ecn_is_told_outside() {
    let (one, other) = End::pair();
    for (v6, inner, outer) in
        [(false, 0b00, 0b00), (false, 0b01, 0b01), (true, 0b10, 0b10), (false, 0b11, 0b10)]
    {
        let mut packet = Packet::udp(v6, payload(64, 1)).bytes();
        if v6 {
            packet[1] = inner << 4;
        } else {
            packet[1] = inner;
            fix_header_checksum(&mut packet);
        }
        let sealed = one.seal(&[vec![0; VNET_BYTES], packet.clone()].concat());
        assert_eq!(sealed[0].1, outer);
        let arrived = other.open(&bytes(&sealed), 0b11).0.remove(0);
        let ecn = if v6 { arrived[1] >> 4 } else { arrived[1] } & 0b11;
        assert_eq!(ecn, if inner == 0 { 0 } else { 0b11 });
        if !v6 {
            fix_header_checksum(&mut packet);
            assert_eq!(
                etherparse::Ipv4Header::from_slice(&arrived).unwrap().0.calc_header_checksum(),
                u16::from_be_bytes([arrived[10], arrived[11]])
            );
        }
    }
}

/// What arrives of two times three packets like `packet`, the second time after all have waited for longer than must be.
fn arrives_late(packet: Packet) -> (Vec<Vec<u8>>, Totals) {
    let (one, other) = End::pair();
    let mut queue = Codel::default();
    let mut receive = |now| {
        // It was there at the look before.
        (0..2).for_each(|_| queue.look(now));
        let sealed: Vec<_> =
            [&packet; 3].into_iter().flat_map(|packet| bytes(&one.seal(&single(packet)))).collect();
        other.open_late(&sealed, packet.tos, now, &mut queue).0
    };
    let second = Span::from_secs(1);
    assert_eq!(receive(NOW + second).len(), 3);
    let arrived = receive(NOW + second + second);
    let totals = Totals::of([&other.counters]);
    assert_eq!(totals.in_flight(Direction::Inbound), arrived.len() as i64 + 3);
    (arrived, totals)
}

#[test]
fn a_standing_queue_marks_one_packet_of_a_receive_if_its_sender_understands() {
    let (arrived, totals) = arrives_late(Packet { tos: 0b10, ..Packet::udp(false, payload(100, 1)) });
    assert_eq!(arrived.iter().map(|packet| packet[1] & 0b11).collect::<Vec<_>>(), [0b11, 0b10, 0b10]);
    assert_eq!((totals.congestion_marks, totals.dropped(DropReason::QueueDelay)), (1, 0));
}

#[test]
fn a_standing_queue_drops_one_packet_of_a_receive_if_its_sender_understands_nothing_else() {
    let (arrived, totals) = arrives_late(Packet::tcp(false, payload(100, 1)));
    assert_eq!(arrived.len(), 2);
    assert_eq!((totals.congestion_marks, totals.dropped(DropReason::QueueDelay)), (0, 1));
}

#[test]
fn a_standing_queue_spares_what_would_slow_nobody_down() {
    for packet in [Packet::tcp(false, Vec::new()), Packet::udp(true, payload(100, 1))] {
        let (arrived, totals) = arrives_late(packet);
        assert_eq!(
            (arrived.len(), totals.congestion_marks, totals.dropped(DropReason::QueueDelay)),
            (3, 0, 0)
        );
    }
}

fn fix_header_checksum(packet: &mut [u8]) {
    let checksum = etherparse::Ipv4Header::from_slice(packet).unwrap().0.calc_header_checksum();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

#[test]
fn what_is_no_message_of_a_session_is_dropped_with_its_reason() {
    let (one, other) = End::pair();
    let good = bytes(&one.seal(&single(&Packet::udp(false, payload(100, 3))))).remove(0);
    let with = |at: usize, value: u8| {
        let mut datagram = good.clone();
        datagram[at] = value;
        datagram
    };
    let mut last_counter = good.clone();
    last_counter[8..16].fill(0xff);
    for (datagram, reason) in [
        (with(0, 5), DropReason::NotWireGuard),
        (with(2, 1), DropReason::NotWireGuard),
        (with(4, 0x77), DropReason::UnknownIndex),
        (last_counter, DropReason::CounterExhausted),
        (vec![4; 31], DropReason::NotWireGuard),
        (with(20, good[20] ^ 1), DropReason::BadTag),
    ] {
        let before = other.dropped(reason);
        other.open(&[datagram], 0);
        assert_eq!(other.dropped(reason), before + 1, "{reason:?}");
    }
    assert_eq!(Totals::of([&other.counters]).check_drained(), Ok(()));
}

#[test]
fn handshake_messages_are_found_among_others() {
    let (_, other) = End::pair();
    let mut initiation = vec![0; 148];
    initiation[0] = 1;
    let (packets, findings) = other.open(&[initiation.clone(), initiation], 0);
    assert!(packets.is_empty());
    assert_eq!(findings.handshakes, [0..148, 148..296]);
}

#[test]
fn a_session_of_180_seconds_neither_seals_nor_opens() {
    let (one, other) = End::pair();
    let sealed = bytes(&one.seal(&single(&Packet::udp(false, payload(100, 3)))));
    let late = NOW + Span::from_secs(180);
    let context = |end| Context { now: late, ..End::context(end) };
    let mut read = single(&Packet::udp(false, payload(100, 3)));
    let request = Read { bytes: read.len(), resume: None, at: late };
    let mut trains: Trains<Box<[u8]>, To> = Trains::new(TrainLimits::default());
    assert_eq!(outbound::superpacket(&mut read, request, &context(&one), &mut trains), Progress::Stage(0, 1));
    let mut buffer = sealed.concat();
    let received = Received {
        from: REMOTE.parse().unwrap(),
        to: None,
        start: 0,
        bytes: buffer.len() as u32,
        stride: 0,
        truncated: false,
        overflown: 0,
        at: late,
        tos: 0,
    };
    let mut coalescer = Coalescer::new(Merge { tcp: true, udp: true });
    let mut findings = Findings::default();
    inbound::datagrams(
        &mut buffer,
        0,
        &received,
        &context(&other),
        &mut Codel::default(),
        &mut coalescer,
        &mut findings,
    );
    assert_eq!(other.dropped(DropReason::KeyExpired), 1);
    assert!(findings.heard.is_empty());
}

#[test]
fn headers_are_as_long_as_the_vnet_header() {
    assert_eq!(DATA_HEADER_BYTES, VNET_BYTES);
}
