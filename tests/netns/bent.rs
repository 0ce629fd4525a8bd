//! Data messages that an enemy bends, repeats, cuts or fills with nonsense, and errors he makes routers report.
//!
//! What he may do with them: nothing; and the true message is taken afterwards.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use uringvpn::stats::drop::DropReason;

use crate::daemon::Daemon;
use crate::raw_peer::RawPeer;
use crate::raw_session::{Session, echo_reply};
use crate::rig::{PATIENCE, Rig};
use crate::spoof::{Wire, udp};
use crate::traffic::Random;

/// How long nothing may come where nothing must.
const SILENCE: Duration = Duration::from_millis(150);
/// An answer that has not come by then was lost, or there was none.
const LOST: Duration = Duration::from_secs(10);

#[test]
fn no_flipped_bit_is_delivered_moves_the_endpoint_or_shuts_out_the_true_message() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    let endpoint = daemon.show("endpoints", &peer);
    let stranger = daemon.stranger(&rig.hosts[1], Ipv4Addr::new(192, 0, 2, 2));
    let mut random = Random(5);
    for _ in 0..8 {
        let (request, sequence) = peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[1; 20]);
        let good = session.seal(&request);
        for _ in 0..20 {
            let bit = random.below(good.len() * 8);
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            stranger.send(&bad);
        }
        // Bits of the counter: far ahead and far behind.
        for bit in 64..128 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            stranger.send(&bad);
        }
        stranger.hears_nothing(SILENCE / 5);
        assert_eq!(daemon.show("endpoints", &peer), endpoint);
        peer.send(&good);
        let reply = peer.hear(4);
        assert_eq!(session.open(&reply.bytes).and_then(|(_, packet)| echo_reply(&packet)), Some(sequence));
        // Once.
        stranger.send(&good);
        peer.send(&good);
        stranger.hears_nothing(SILENCE / 5);
        assert_eq!(daemon.show("endpoints", &peer), endpoint, "a replay moves nothing");
        peer.pings_alone(&mut session);
    }
    let report = daemon.stop();
    assert_eq!(report.dropped(DropReason::Replayed), 16, "{}", report.output);
    assert!(report.dropped(DropReason::BadTag) > 8 * 64, "{}", report.output);
}

/// Sends pings with these counters, and says which were taken: those that the daemon's host answered. It waits for as many
/// answers as are `expected`, unless some were lost, and then for more.
fn taken(peer: &RawPeer, session: &Session, counters: &[u64], expected: usize) -> Vec<bool> {
    let mut numbers = Vec::new();
    let mut answered = Vec::new();
    let listen = |answered: &mut Vec<u16>, patience| {
        let heard = peer.hear_all(patience);
        answered.extend(heard.iter().filter_map(|heard| echo_reply(&session.open(&heard.bytes)?.1)));
    };
    for counter in counters {
        let (request, number) = peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[]);
        peer.send(&session.seal_at(*counter, &request));
        numbers.push(number);
        listen(&mut answered, Duration::from_millis(2));
    }
    let give_up = Instant::now() + LOST;
    while answered.len() < expected && Instant::now() < give_up {
        listen(&mut answered, Duration::from_millis(20));
    }
    listen(&mut answered, SILENCE);
    numbers.iter().map(|number| answered.contains(number)).collect()
}

#[test]
fn the_replay_window_is_the_kernels() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let check = |last: u8, steps: &[(u64, bool)]| {
        let peer = daemon.peer(&rig, last);
        // The keepalive that confirms takes counter 0, so all are shifted by one.
        let counters: Vec<u64> = steps.iter().map(|(counter, _)| counter + 1).collect();
        let expected: Vec<bool> = steps.iter().map(|(_, expected)| *expected).collect();
        // A machine with much else to do may lose a packet, not three times.
        let fits = (1..=3).any(|index| {
            let session = peer.handshake(index);
            let count = expected.iter().filter(|taken| **taken).count();
            let taken = taken(&peer, &session, &counters, count);
            println!("{steps:?}: {taken:?}");
            taken == expected
        });
        assert!(fits, "{steps:?}");
    };
    // drivers/net/wireguard/selftest/counter.c; the window there is 8192 bits less one word.
    const LIMIT: u64 = 8192 - 64 + 1;
    check(
        2,
        &[
            (0, true),
            (1, true),
            (1, false),
            (9, true),
            (8, true),
            (7, true),
            (7, false),
            (LIMIT, true),
            (LIMIT - 1, true),
            (LIMIT - 1, false),
            (LIMIT - 2, true),
            (2, true),
            (2, false),
            (LIMIT + 16, true),
            (3, false),
            (LIMIT + 16, false),
            (LIMIT * 4, true),
            (LIMIT * 4 - (LIMIT - 1), true),
            (10, false),
            (LIMIT * 4 - LIMIT, false),
            (LIMIT * 4 - (LIMIT + 1), false),
            (LIMIT * 4 - (LIMIT - 2), true),
            (LIMIT * 4 + 1 - LIMIT, false),
            (0, false),
            (u64::MAX - (1 << 13) - 2, true),
            (u64::MAX - (1 << 13) - 1, false),
            (u64::MAX - (1 << 13), false),
            (u64::MAX - 1, false),
            (u64::MAX - (1 << 13) - 3, true),
            (u64::MAX - (1 << 13) - 2, false),
        ],
    );
    check(
        3,
        &[
            (20_000, true),
            (20_000 - 2000, true),
            (20_000 - 8000, true),
            (20_000 - 8128, true),
            (11_800, false),
        ],
    );
    let shuffled: Vec<(u64, bool)> = (0..300).map(|place| ((place * 7) % 300, true)).collect();
    check(4, &shuffled);
    let report = daemon.stop();
    assert!(report.dropped(DropReason::CounterExhausted) >= 3, "{}", report.output);
    assert_eq!(
        report.dropped_otherwise(&[DropReason::Replayed, DropReason::TooOld, DropReason::CounterExhausted]),
        0
    );
}

#[test]
fn outer_fragments_are_put_together_or_forgotten() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    // 9000 bytes inside, through a wire of 1500.
    let receiver = daemon.inner_socket();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let to = receiver.local_addr().unwrap();
    let mut packet = Vec::new();
    let builder = etherparse::PacketBuilder::ipv4(peer.inner.octets(), [10, 9, 0, 1], 64).udp(9, to.port());
    builder.write(&mut packet, &[7; 9000]).unwrap();
    peer.send(&session.seal(&packet));
    assert_eq!(receiver.recv(&mut [0; 10_000]).unwrap(), 9000);
    // First parts without the rest, rests without a first, and parts that overlap.
    let wire = Wire::open(&rig.hosts[1]);
    let source = Ipv4Addr::new(192, 0, 2, 2);
    let here = peer.socket.local_addr().unwrap();
    let (request, _) = peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[4; 900]);
    let datagram = udp(here.port(), &session.seal(&request));
    const MORE: u16 = 0x2000;
    for id in 1..=50 {
        wire.send(source, 17, id, MORE, &datagram[..400]);
        wire.send(source, 17, 100 + id, 50, &datagram[400..]);
        wire.send(source, 17, 200 + id, MORE, &datagram[..400]);
        wire.send(source, 17, 200 + id, 30, &datagram[240..]);
    }
    peer.hears_nothing(SILENCE);
    // Whole, in the wrong order.
    wire.send(source, 17, 999, 50, &datagram[400..]);
    wire.send(source, 17, 999, MORE, &datagram[..400]);
    assert!(session.open(&peer.hear(4).bytes).is_some());
    peer.pings_alone(&mut session);
    daemon.stop();
}

#[test]
fn icmp_errors_stop_nothing() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    let endpoint = daemon.show("endpoints", &peer);
    let wire = Wire::open(&rig.hosts[1]);
    let port = peer.socket.local_addr().unwrap().port();
    for (kind, code, mtu) in
        [(3, 0, 0), (3, 1, 0), (3, 3, 0), (3, 4, 68), (3, 4, 0), (3, 13, 0), (11, 0, 0), (4, 0, 0)]
    {
        // It quotes a datagram of the daemon's.
        let mut quoted = vec![0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        for word in [crate::daemon::PORT, port, 40, 0] {
            quoted.extend(word.to_be_bytes());
        }
        let [high, low] = u16::to_be_bytes(mtu);
        let mut message = [&[kind, code, 0, 0, 0, 0, high, low], &quoted[..]].concat();
        let checksum = etherparse::checksum::Sum16BitWords::new().add_slice(&message).ones_complement();
        message[2..4].copy_from_slice(&checksum.to_ne_bytes());
        for _ in 0..20 {
            wire.send(Ipv4Addr::new(192, 0, 2, 2), 1, 0, 0, &message);
        }
        peer.ping(&mut session);
        let big = peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[5; 1300]).0;
        peer.send(&session.seal(&big));
        peer.hear(4);
    }
    // And a real one: nobody listens at the other's port any more.
    let other = daemon.peer(&rig, 3);
    let mut others = other.handshake(1);
    other.ping(&mut others);
    let there = other.socket.local_addr().unwrap();
    drop(other.socket);
    let inside = daemon.inner_socket();
    for _ in 0..20 {
        inside.send_to(&[0; 100], (other.inner, 9)).unwrap();
    }
    peer.ping(&mut session);
    let again = rig.hosts[1].inside(|| UdpSocket::bind(there).unwrap());
    inside.send_to(&[0; 100], (other.inner, 9)).unwrap();
    again.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(
        others
            .open(&{
                let mut bytes = vec![0; 2000];
                let length = again.recv(&mut bytes).unwrap();
                bytes.truncate(length);
                bytes
            })
            .is_some()
    );
    assert_eq!(daemon.show("endpoints", &peer), endpoint);
    daemon.assert_quiet();
}

/// An IPv4 header of `total` claimed bytes and an answerable ping behind it, with the bytes `change` makes of them.
fn bent(peer: &RawPeer, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut packet = peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[6; 36]).0;
    change(&mut packet);
    if packet.len() >= 20 {
        packet[10..12].fill(0);
        let checksum = etherparse::checksum::Sum16BitWords::new().add_slice(&packet[..20]).ones_complement();
        packet[10..12].copy_from_slice(&checksum.to_ne_bytes());
    }
    packet
}

#[test]
fn what_an_authentic_peer_puts_inside_is_checked_before_it_is_delivered() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    let total = |length: u16| move |packet: &mut Vec<u8>| packet[2..4].copy_from_slice(&length.to_be_bytes());
    let mut malformed: Vec<Vec<u8>> =
        (1..20).map(|length| bent(&peer, |packet| packet.truncate(length))).collect();
    for first in [0x05, 0x55, 0xf5, 0x40, 0x44] {
        malformed.push(bent(&peer, |packet| packet[0] = first));
    }
    // A header of 60 bytes in a packet of 50.
    malformed.push(bent(&peer, |packet| {
        packet.truncate(50);
        (packet[0], packet[3]) = (0x4f, 50);
    }));
    malformed.extend([0, 19, 1000, u16::MAX].map(|length| bent(&peer, total(length))));
    malformed.push(vec![0; 48]);
    for (length, claimed) in [(20, 0), (39, 0), (40, 1), (60, 21), (60, u16::MAX)] {
        let mut packet = vec![0x60; 1];
        packet.resize(length, 0);
        packet[4..6].copy_from_slice(&claimed.to_be_bytes());
        malformed.push(packet);
    }
    for packet in &malformed {
        let counter = session.counter;
        session.counter += 1;
        // Not padded: the length is what it seems.
        peer.send(&session.seal_exactly(counter, packet));
    }
    peer.pings_alone(&mut session);
    // Sources that are not the peer's.
    let other = daemon.peer(&rig, 3);
    daemon.set_peer(&peer, "allowed-ips 10.9.0.0/24");
    peer.ping(&mut session);
    let mut forged = 0;
    for source in
        [[10, 9, 0, 3], [127, 0, 0, 1], [0, 0, 0, 0], [192, 0, 2, 1], [224, 0, 0, 1], [255, 255, 255, 255]]
    {
        peer.send(&session.seal(&bent(&peer, |packet| packet[12..16].copy_from_slice(&source))));
        forged += 1;
    }
    peer.pings_alone(&mut session);
    // Its own inner address as source is the peer's by the allowed IPs; the kernel sees to it.
    peer.send(&session.seal(&bent(&peer, |packet| packet[12..16].copy_from_slice(&[10, 9, 0, 1]))));
    peer.pings_alone(&mut session);
    // More bytes than the packet has are padding, however many.
    let (request, number) = peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[6; 36]);
    let counter = session.counter;
    session.counter += 1;
    peer.send(&session.seal_exactly(counter, &[&request[..], &[0xee; 333]].concat()));
    let (_, reply) = session.open(&peer.hear(4).bytes).unwrap();
    assert_eq!((echo_reply(&reply), reply.len()), (Some(number), 64));
    drop(other);
    let report = daemon.stop();
    assert_eq!(report.dropped(DropReason::InMalformed), malformed.len() as u64, "{}", report.output);
    assert_eq!(report.dropped(DropReason::SourceNotAllowed), forged, "{}", report.output);
}
