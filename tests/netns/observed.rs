//! What a peer sees of an encrypted tunnel: which messages come, and what is in them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::daemon::Daemon;
use crate::raw_peer::{Identity, RawPeer, Stamp};
use crate::raw_session::{Session, echo_reply, number};
use crate::rig::{Family, PATIENCE, Rig, outer, wait_equal, wait_until};

/// How long nothing may come where nothing must.
pub const SILENCE: Duration = Duration::from_millis(150);

/// Sends a UDP packet of `bytes` in all, numbered, from the daemon's host to `peer`.
pub fn emit(from: &UdpSocket, peer: &RawPeer, number: u32, bytes: usize) {
    let mut payload = vec![7; bytes - 28];
    payload[..4].copy_from_slice(&number.to_le_bytes());
    from.send_to(&payload, (peer.inner, 9)).unwrap();
}

/// The number of a packet that [`emit`] sent.
pub fn emitted(packet: &[u8]) -> u32 {
    number(&packet[28..32])
}

#[test]
fn the_responder_is_silent_until_the_initiator_has_shown_that_it_has_the_keys() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let inside = daemon.inner_socket();
    let initiation = peer.initiation(1, Stamp::now());
    peer.send(&initiation.message);
    let response = peer.hear(2);
    let mut session = peer.session(initiation, &response.bytes).unwrap();
    for count in 0..5 {
        emit(&inside, &peer, count, 100);
    }
    peer.hears_nothing(SILENCE);
    assert_eq!(daemon.show("latest-handshakes", &peer), "0");
    peer.send(&session.seal(&[]));
    for count in 0..5 {
        let (counter, packet) = session.open(&peer.hear(4).bytes).unwrap();
        assert_eq!((counter, emitted(&packet)), (u64::from(count), count));
    }
    assert_ne!(daemon.show("latest-handshakes", &peer), "0");
    daemon.stop();
}

#[test]
fn the_initiator_confirms_at_once_and_its_handshake_counts_from_the_response() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer_at(&rig, 2);
    daemon.set_peer(&peer, "persistent-keepalive 600");
    let initiation = peer.hear(1);
    let mut response = peer.respond(&initiation.bytes, 9);
    assert_eq!(response.initiator, daemon.public_key());
    assert_eq!(daemon.show("latest-handshakes", &peer), "0");
    peer.send(&response.message);
    let confirmation = peer.hear(4);
    assert_eq!(response.session.open(&confirmation.bytes), Some((0, vec![])));
    assert_ne!(daemon.show("latest-handshakes", &peer), "0");
    peer.ping(&mut response.session);
    daemon.stop();
}

#[test]
fn counters_begin_at_zero_and_none_is_left_out_or_used_twice() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer_at(&rig, 2);
    // Several flows, so that both workers seal.
    let flows: Vec<_> = (0..16).map(|_| daemon.inner_socket()).collect();
    emit(&flows[0], &peer, 0, 100);
    let initiation = peer.hear(1);
    let response = peer.respond(&initiation.bytes, 1);
    peer.send(&response.message);
    let mut heard = vec![peer.hear(4)];
    for round in 0..40 {
        for flow in &flows {
            emit(flow, &peer, round, 100 + round as usize);
        }
        // Not faster than they are taken.
        heard.extend(peer.hear_all(Duration::from_millis(10)));
    }
    heard.extend(peer.hear_many(641 - heard.len(), SILENCE));
    let counters: Vec<u64> =
        heard.iter().map(|heard| response.session.open(&heard.bytes).unwrap().0).collect();
    let distinct: BTreeSet<u64> = counters.iter().copied().collect();
    assert_eq!(distinct.len(), counters.len());
    assert!(distinct.into_iter().eq(0..=640), "{counters:?}");
    let report = daemon.stop();
    assert_eq!(report.total("sent_datagrams"), 641);
}

#[test]
fn every_handshake_has_an_index_and_an_ephemeral_key_that_tell_nothing() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peers: Vec<RawPeer> = (2..42).map(|last| daemon.peer(&rig, last)).collect();
    let mut seen = BTreeSet::new();
    let mut ones = 0;
    for _ in 0..5 {
        for peer in &peers {
            // They take turns, so that each keeps its distance of 20 ms.
            let initiation = peer.initiation(1, Stamp::now());
            peer.send(&initiation.message);
            let response = peer.hear_within(PATIENCE).expect("a response");
            ones += number(&response.bytes[4..8]).count_ones();
            assert!(
                seen.insert(response.bytes[4..8].to_vec()) && seen.insert(response.bytes[12..44].to_vec())
            );
        }
        thread::sleep(Duration::from_millis(30));
    }
    // 6400 fair coins: six standard deviations of 40.
    assert!((3200 - 240..=3200 + 240).contains(&ones), "{ones} of 6400 bits are set");
    daemon.stop();
}

#[test]
fn stamps_rise_when_the_daemon_is_started_again_and_are_whitened() {
    let Some(rig) = Rig::pair() else { return };
    let mut daemon = Daemon::start(&rig, "");
    let peer = daemon.peer_at(&rig, 2);
    let mut stamps = Vec::new();
    for _ in 0..3 {
        emit(&daemon.inner_socket(), &peer, 0, 100);
        stamps.push(peer.respond(&peer.hear(1).bytes, 1).stamp);
        daemon = daemon.restart(&rig);
        daemon.set_peer(
            &peer,
            &format!("allowed-ips {}/32 endpoint {}", peer.inner, peer.socket.local_addr().unwrap()),
        );
    }
    assert!(stamps.is_sorted_by(|earlier, later| earlier < later), "{stamps:?}");
    assert!(stamps.iter().all(|stamp| stamp.nanos().is_multiple_of(1 << 24)), "{stamps:?}");
    daemon.stop();
}

#[test]
fn the_endpoint_follows_every_authentic_message() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let mut peer = daemon.peer(&rig, 2);
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    let inside = daemon.inner_socket();
    for round in 0..3 {
        peer.socket = daemon.stranger(&rig.hosts[1], Ipv4Addr::new(192, 0, 2, 2)).socket;
        match round {
            0 => peer.send(&session.seal(&[])),
            1 => peer.send(&session.seal(&peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[]).0)),
            _ => session = peer.handshake(2),
        }
        let here = peer.socket.local_addr().unwrap().to_string();
        wait_until("the endpoint follows", || daemon.show("endpoints", &peer) == here);
        emit(&inside, &peer, 77, 100);
        let give_up = Instant::now() + PATIENCE;
        while !session
            .open(&peer.hear(4).bytes)
            .is_some_and(|(_, packet)| packet.len() > 90 && emitted(&packet) == 77)
        {
            assert!(Instant::now() < give_up);
        }
    }
    // A response from somewhere else.
    let mut other = daemon.peer_at(&rig, 3);
    emit(&inside, &other, 1, 100);
    let initiation = other.hear(1);
    other.socket = daemon.stranger(&rig.hosts[1], Ipv4Addr::new(192, 0, 2, 2)).socket;
    other.send(&other.respond(&initiation.bytes, 1).message);
    other.hear(4);
    assert_eq!(daemon.show("endpoints", &other), other.socket.local_addr().unwrap().to_string());
    daemon.stop();
}

#[test]
fn packets_are_padded_with_zeros_to_sixteen_and_never_beyond_the_mtu() {
    let Some(rig) = Rig::pair() else { return };
    for io in crate::tunnel::DRIVERS {
        let daemon = Daemon::start(&rig, &format!("--io {io} --mtu 1415"));
        let peer = daemon.peer(&rig, 2);
        let mut session = peer.handshake(1);
        peer.ping(&mut session);
        let inside = daemon.inner_socket();
        for bytes in [33, 47, 48, 49, 64, 100, 1000, 1391, 1392, 1393, 1399, 1400, 1401, 1409, 1414, 1415] {
            emit(&inside, &peer, bytes as u32, bytes);
            let heard = peer.hear(4);
            let (_, text) = session.open(&heard.bytes).unwrap();
            assert_eq!(text.len(), bytes.next_multiple_of(16).min(1415), "{bytes}");
            assert_eq!(heard.bytes.len(), text.len() + 32);
            assert_eq!((usize::from(text[2]) << 8) | usize::from(text[3]), bytes);
            assert!(text[bytes..].iter().all(|byte| *byte == 0), "{bytes}: {text:?}");
        }
        daemon.stop();
    }
}

#[test]
fn bytes_are_counted_as_the_kernel_counts_them() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let mut session = peer.handshake(1);
    // As ping(8) sends them: 84 bytes.
    for _ in 0..10 {
        let (request, number) = peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[0; 56]);
        peer.send(&session.seal(&request));
        assert_eq!(
            session.open(&peer.hear(4).bytes).and_then(|(_, packet)| echo_reply(&packet)),
            Some(number)
        );
    }
    // What was sent is counted when the kernel says so, which may be after it was heard.
    wait_equal("bytes", "1460\t1372".to_owned(), || daemon.show("transfer", &peer));
    daemon.stop();
}

#[test]
fn show_tells_what_passed_between_us_and_a_peer_and_what_of_it_was_dropped() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let mut session = peer.handshake(1);
    let keepalive = session.seal(&[]);
    (0..3).for_each(|_| peer.send(&keepalive));
    let mut forged = session.seal(&[]);
    *forged.last_mut().unwrap() ^= 1;
    peer.send(&forged);
    let stranger = daemon.stranger(&rig.hosts[1], Ipv4Addr::new(192, 0, 2, 2));
    peer.send(&session.seal(&stranger.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[]).0));
    peer.ping(&mut session);
    let mut shown = daemon.shown();
    // What was sent is counted when the kernel says so, which may be after it was heard. Workers send no responses.
    wait_until("the same of what was sent", || {
        shown = daemon.shown();
        shown.peers[0].tx_packets == shown.counters["sent_datagrams"] + 1
    });
    let json = serde_json::to_string(&shown).unwrap();
    let [told] = &shown.peers[..] else { panic!("one peer: {json}") };
    let drops = [("bad_tag", 1), ("replayed", 2), ("source_not_allowed", 1)];
    assert!(told.drops.iter().map(|(reason, packets)| (reason.as_str(), *packets)).eq(drops), "{json}");
    let of_all: u64 = shown.drops.iter().map(|dropped| dropped.packets).sum();
    assert_eq!(of_all, 4, "{json}");
    // The forged message and the two copies did not come from the peer.
    assert_eq!(told.rx_packets, shown.counters["in_datagrams"] - 3, "{json}");
    let handshakes = shown.distributions.iter().find(|row| row.name == "handshake").unwrap();
    assert_eq!((told.handshakes, handshakes.count), (1, 1), "{json}");
    assert!(told.handshake_ns_last > 0 && told.handshake_ns_last == told.handshake_ns_min, "{json}");
    assert!(told.keypair_age_seconds >= told.handshake_age_seconds.map(|age| age - 1.0), "{json}");
    daemon.stop();
}

#[test]
fn handshakes_are_marked_af41_and_congestion_bits_cross_both_ways() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer_at(&rig, 2);
    let inside = daemon.inner_socket();
    for (tos, outside) in [(0, 0), (0xb8, 0), (2, 2), (0xb9, 1)] {
        setsockopt(&inside, sockopt::Ipv4Tos, &tos).unwrap();
        emit(&inside, &peer, 0, 100);
        let mut heard = peer.hear_within(PATIENCE).unwrap();
        if heard.kind() == 1 {
            assert_eq!(heard.tos, 0x88);
            peer.send(&peer.respond(&heard.bytes, 1).message);
            heard = peer.hear(4);
        }
        assert_eq!(heard.tos, outside, "{tos:#x}");
    }
    thread::sleep(Duration::from_millis(60));
    let initiation = peer.initiation(2, Stamp::now());
    peer.send(&initiation.message);
    let response = peer.hear(2);
    assert_eq!(response.tos, 0x88);
    let mut session = peer.session(initiation, &response.bytes).unwrap();
    setsockopt(&inside, sockopt::IpRecvTos, &true).unwrap();
    let port = inside.local_addr().unwrap().port();
    for (outer, inner, delivered) in
        [(0, 0, 0), (2, 0, 0), (3, 2, 3), (3, 1, 3), (3, 0, 0), (0x88, 1, 1), (3, 0xba, 0xbb)]
    {
        setsockopt(&peer.socket, sockopt::Ipv4Tos, &outer).unwrap();
        let mut packet = Vec::new();
        let mut header = etherparse::Ipv4Header::new(
            12,
            64,
            etherparse::IpNumber::UDP,
            peer.inner.octets(),
            [10, 9, 0, 1],
        )
        .unwrap();
        header.dscp = etherparse::IpDscp::try_new(inner >> 2).unwrap();
        header.ecn = etherparse::IpEcn::try_new(inner & 3).unwrap();
        header.header_checksum = header.calc_header_checksum();
        header.write(&mut packet).unwrap();
        for word in [9, port, 12, 0, 0x6563, 0x6e21] {
            packet.extend(word.to_be_bytes());
        }
        peer.send(&session.seal(&packet));
        let came = crate::raw_peer::hear_on(&inside, PATIENCE).unwrap();
        assert_eq!((came.tos, &came.bytes[..]), (delivered, &b"ecn!"[..]), "{outer:#x} around {inner:#x}");
    }
    daemon.stop();
}

#[test]
fn answers_leave_from_the_address_that_was_addressed() {
    let Some(rig) = Rig::pair() else { return };
    rig.hosts[0].run("ip address add 192.0.2.3/24 dev to-b");
    let daemon = Daemon::start(&rig, "--queues 2");
    let mut peer = daemon.peer(&rig, 2);
    let inside = daemon.inner_socket();
    for last in [3, 1, 3] {
        thread::sleep(Duration::from_millis(60));
        peer.remote = SocketAddr::from((Ipv4Addr::new(192, 0, 2, last), crate::daemon::PORT));
        let initiation = peer.initiation(1, Stamp::now());
        peer.send(&initiation.message);
        let response = peer.hear(2);
        assert_eq!(response.from, peer.remote);
        let mut session = peer.session(initiation, &response.bytes).unwrap();
        peer.send(&session.seal(&[]));
        peer.ping(&mut session);
        emit(&inside, &peer, 0, 100);
        assert_eq!(peer.hear(4).from, peer.remote);
    }
    daemon.stop();
}

#[test]
fn while_the_interface_is_down_nothing_leaves_and_nobody_is_answered() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    daemon.host.run(&format!("ip link set {} down", daemon.interface));
    wait_until("it is noticed", || daemon.process.output().contains(" is down: pausing"));
    peer.hear_all(SILENCE);
    daemon.set_peer(&peer, "persistent-keepalive 1");
    peer.send(&session.seal(&peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[]).0));
    peer.send(&peer.initiation(2, Stamp::now()).message);
    peer.hears_nothing(Duration::from_millis(1500));
    daemon.host.run(&format!("ip link set {} up", daemon.interface));
    let initiation = peer.hear(1);
    let mut response = peer.respond(&initiation.bytes, 3);
    peer.send(&response.message);
    peer.hear(4);
    daemon.set_peer(&peer, "persistent-keepalive 0");
    peer.hear_all(SILENCE);
    peer.ping(&mut response.session);
    daemon.stop();
}

#[test]
fn another_private_key_ends_every_session_and_begins_handshakes_at_once() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let mut peers = [2, 3].map(|last| daemon.peer(&rig, last));
    let mut sessions: Vec<Session> = peers.iter().map(|peer| peer.handshake(1)).collect();
    for (peer, session) in peers.iter().zip(&mut sessions) {
        peer.ping(session);
    }
    let identity = Identity::new();
    daemon.set_private_key(&identity);
    for (peer, session) in peers.iter_mut().zip(&mut sessions) {
        peer.remote_key = identity.public;
        let initiation = peer.hear(1);
        let mut response = peer.respond(&initiation.bytes, 2);
        assert_eq!(response.initiator, identity.public);
        peer.send(&session.seal(&peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[]).0));
        peer.hears_nothing(SILENCE);
        peer.send(&response.message);
        peer.hear(4);
        peer.ping(&mut response.session);
    }
    daemon.stop();
}

#[test]
fn over_ipv6_it_is_the_same() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let here = outer(Family::V6, 1, 2);
    let peer = RawPeer { socket: daemon.stranger(&rig.hosts[1], here).socket, ..daemon.peer(&rig, 2) };
    let peer = RawPeer { remote: SocketAddr::new(outer(Family::V6, 1, 1), crate::daemon::PORT), ..peer };
    let initiation = peer.initiation(1, Stamp::now());
    for mut bad in [initiation.message.clone(), vec![1; 148], vec![4; 60_000]] {
        bad[1] = 1;
        peer.send(&bad);
    }
    peer.hears_nothing(SILENCE);
    peer.send(&initiation.message);
    let response = peer.hear(2);
    assert_eq!((response.tos, response.from), (0x88, peer.remote));
    let mut session = peer.session(initiation, &response.bytes).unwrap();
    peer.pings_alone(&mut session);
    assert_eq!(daemon.show("endpoints", &peer), peer.socket.local_addr().unwrap().to_string());
    let inside = daemon.inner_socket();
    setsockopt(&inside, sockopt::Ipv4Tos, &0xb9).unwrap();
    emit(&inside, &peer, 3, 100);
    let heard = peer.hear(4);
    assert_eq!((heard.tos, emitted(&session.open(&heard.bytes).unwrap().1)), (1, 3));
    daemon.stop();
}
