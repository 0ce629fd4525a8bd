//! What configuration does to peers and sessions.

use uringvpn::proto::keys::{PresharedKey, PrivateKey, PublicKey};
use uringvpn::proto::output::{RoundTrips, Update};
use uringvpn::time::Span;

use super::net::{A, B, DATA, INITIATION, Net, PEER, RESPONSE, address, millis, secs};

fn key(byte: u8) -> PrivateKey {
    PrivateKey::from_bytes([byte; 32])
}

#[test]
fn a_peer_is_added_once_and_never_with_our_own_key() {
    let mut net = Net::pair();
    let (own, known) = (net.nodes[A].public_key(), net.nodes[B].public_key());
    net.with(A, |node, _| {
        assert_eq!(node.device.add_peer(own), None);
        assert_eq!(node.device.add_peer(known), Some(PEER));
    });
    assert_eq!(net.nodes[A].device.peers().count(), 1);
}

#[test]
fn a_peer_whose_key_becomes_ours_is_removed() {
    let mut net = Net::connected();
    let theirs = net.nodes[B].key.clone();
    net.set_private_key(A, Some(theirs));
    assert_eq!(net.nodes[A].device.peers().count(), 0);
    assert!(net.nodes[A].updates.iter().any(|update| matches!(update, Update::PeerRemoved { peer: PEER })));
    net.run(secs(10));
    assert_eq!(net.sent(A, INITIATION).len(), 1);
}

#[test]
fn another_private_key_ends_all_sessions_and_begins_handshakes_at_once() {
    let mut net = Net::connected();
    net.nodes[A].key = key(77);
    let new = net.nodes[A].public_key();
    net.with(B, |node, _| {
        let peer = node.device.add_peer(new).unwrap();
        node.device.set_endpoint(peer, address(A));
    });
    net.set_private_key(A, Some(key(77)));
    assert_eq!(net.nodes[A].sessions.len(), 0);
    assert_eq!(net.sent(A, INITIATION).len(), 2);
    net.run(millis(100));
    net.send(A, b"with the new key");
    net.run(millis(100));
    assert_eq!(net.delivered(B), 2);
}

#[test]
fn the_same_private_key_again_changes_nothing() {
    let mut net = Net::connected();
    let same = net.nodes[A].key.clone();
    net.set_private_key(A, Some(same));
    assert_eq!((net.sent(A, INITIATION).len(), net.nodes[A].sessions.len()), (1, 1));
}

#[test]
fn after_a_change_of_key_many_peers_begin_one_after_the_other() {
    let mut net = Net::new(1, 1);
    net.with(A, |node, _| {
        for byte in 0..200 {
            let mut other = [9; 32];
            other[0] = byte;
            let peer = node.device.add_peer(PublicKey::from_bytes(other)).unwrap();
            node.device.set_endpoint(peer, address(B));
        }
    });
    net.set_private_key(A, Some(key(77)));
    assert_eq!(net.sent(A, INITIATION).len(), 64);
    net.run(millis(100));
    assert_eq!(net.sent(A, INITIATION).len(), 200);
}

#[test]
fn a_changed_preshared_key_leaves_the_session_alone_and_counts_at_the_next_handshake() {
    let mut net = Net::connected();
    net.run(secs(100));
    for node in [A, B] {
        net.with(node, |node, _| node.device.set_preshared_key(PEER, PresharedKey::from_bytes([5; 32])));
    }
    net.assert_both_ways(millis(50));
    assert_eq!(net.sent(A, INITIATION).len(), 1);
    net.run(secs(25));
    net.assert_both_ways(secs(1));
    assert_eq!(net.sent(A, INITIATION).len(), 2);
    assert_eq!(net.nodes[A].sessions.len(), 2);
    net.with(B, |node, _| node.device.set_preshared_key(PEER, PresharedKey::NONE));
    net.run(secs(125));
    net.assert_both_ways(secs(1));
    assert_eq!(net.nodes[A].sessions.len(), 2, "the handshake with different keys made none");
}

#[test]
fn a_removed_peer_takes_everything_with_it() {
    let mut net = Net::connected();
    net.set_keepalive(B, 5);
    net.with(B, |node, _| node.device.remove_peer(PEER));
    assert_eq!((net.nodes[B].sessions.len(), net.timeout(B)), (0, None));
    let sent = net.sent(B, DATA).len() + net.sent(B, RESPONSE).len();
    net.send(A, b"data");
    net.run(secs(30));
    assert_eq!(net.sent(B, DATA).len() + net.sent(B, RESPONSE).len(), sent);
    assert_eq!(net.delivered(B), 1);
}

#[test]
fn a_peer_that_was_removed_and_added_again_begins_anew() {
    let mut net = Net::connected();
    for _ in 0..50 {
        net.with(B, |node, _| node.device.remove_peer(PEER));
        assert_eq!(net.introduce(B, A), PEER, "the index is used again");
        net.send(B, b"from the new one");
        net.run(millis(100));
    }
    assert_eq!(net.delivered(A), 50);
    assert_eq!(net.nodes[B].sessions.len(), 1);
    net.assert_both_ways(millis(50));
}

#[test]
fn news_of_a_peer_that_is_gone_are_nobodys() {
    let mut net = Net::connected();
    net.with(A, |node, now| {
        node.device.remove_peer(PEER);
        node.device.handle_news(PEER, now, node.wall(now));
        node.device.handle_news(12345, now, node.wall(now));
    });
    assert_eq!(net.timeout(A), None);
}

#[test]
fn a_handshake_that_is_wanted_begins_when_the_endpoint_is_known() {
    let mut net = Net::new(2, 1);
    net.introduce(B, A);
    let public = net.nodes[B].public_key();
    net.with(A, |node, _| node.device.add_peer(public));
    net.send(A, b"waits");
    net.run(secs(60));
    assert_eq!((net.log.len(), net.timeout(A)), (0, None));
    net.with(A, |node, _| node.device.set_endpoint(PEER, address(B)));
    net.run(millis(100));
    assert_eq!(net.delivered(B), 1);
}

#[test]
fn a_new_endpoint_is_used_from_the_next_packet_on() {
    let mut net = Net::connected();
    let there = std::net::SocketAddr::from(([203, 0, 113, 1], 1));
    net.with(A, |node, _| node.device.set_endpoint(PEER, there));
    net.send(A, b"data");
    assert_eq!(net.log.last().unwrap().to, there);
}

#[test]
fn bytes_are_counted_as_the_kernel_counts_them() {
    let mut net = Net::pair();
    let ping = [0x45; 84];
    for _ in 0..10 {
        net.send(A, &ping);
        net.run(millis(50));
        net.send(B, &ping);
        net.run(millis(50));
    }
    // Ten pings, and one message of the handshake each way.
    for (node, received, sent) in [(A, 1372, 1428), (B, 1428, 1372)] {
        let activity = net.nodes[node].device.peer(PEER).unwrap().activity;
        assert_eq!((activity.rx_bytes(), activity.tx_bytes()), (received, sent));
        assert_eq!((activity.rx_packets(), activity.tx_packets()), (11, 11));
    }
}

/// Count, last and least; and what the device told of them since the last call.
fn round_trips(net: &mut Net, node: usize) -> ((u64, Span, Span), Vec<Span>) {
    let device = &mut net.nodes[node].device;
    let told = std::iter::from_fn(|| device.poll_round_trip()).collect();
    let RoundTrips { count, last, least } = device.peer(PEER).unwrap().round_trips;
    ((count, last, least), told)
}

#[test]
fn a_handshake_takes_as_long_as_the_answer_to_the_message_that_was_answered() {
    let mut net = Net::pair();
    assert_eq!(round_trips(&mut net, A), ((0, Span::ZERO, Span::ZERO), vec![]));
    // The first initiation is lost, and so is the answer to the second.
    let mut lost = 0;
    net.lose(move |flight| {
        lost += 1;
        (flight.kind() == INITIATION && lost == 1) || (flight.kind() == RESPONSE && lost == 3)
    });
    net.send(A, b"data");
    net.run(secs(15));
    assert_eq!((net.sent(A, INITIATION).len(), net.sent(B, RESPONSE).len()), (3, 2));
    for node in [A, B] {
        assert_eq!(round_trips(&mut net, node), ((1, millis(20), millis(20)), vec![millis(20)]));
    }
    net.heal();
    net.latency = millis(30);
    net.run(secs(120));
    net.send(A, b"renews");
    net.run(secs(1));
    for node in [A, B] {
        assert_eq!(round_trips(&mut net, node), ((2, millis(60), millis(20)), vec![millis(60)]));
    }
}

#[test]
fn a_keypair_is_as_old_as_the_handshake_that_made_it_on_our_side() {
    let mut net = Net::pair();
    let start = net.now;
    net.send(A, b"data");
    net.run(secs(30));
    let keyed_at = |node: usize| net.nodes[node].device.peer(PEER).unwrap().keyed_at;
    assert_eq!((keyed_at(A), keyed_at(B)), (Some(start + millis(20)), Some(start + millis(10))));
}

#[test]
fn the_handshake_time_is_wall_clock_time() {
    let net = Net::connected();
    let status = net.nodes[A].device.peer(PEER).unwrap();
    assert_eq!(status.last_handshake.unwrap().secs(), 1_700_001_000);
    assert_eq!(*status.public_key, net.nodes[B].public_key());
}

#[test]
fn a_hundred_thousand_peers_are_added_found_and_removed() {
    let mut net = Net::new(1, 1);
    net.with(A, |node, now| {
        let wall = node.wall(now);
        for number in 0..100_000u32 {
            let mut other = [9; 32];
            other[..4].copy_from_slice(&number.to_le_bytes());
            let peer = node.device.add_peer(PublicKey::from_bytes(other)).unwrap();
            assert_eq!(peer, number);
            node.device.set_endpoint(peer, address(B));
            node.device.set_keepalive(peer, if number < 50 { 25 } else { 0 }, now, wall);
        }
    });
    assert_eq!(net.sent(A, INITIATION).len(), 50);
    assert_eq!(net.nodes[A].device.peers().count(), 100_000);
    net.with(A, |node, _| (0..100_000).for_each(|peer| node.device.remove_peer(peer)));
    assert_eq!((net.nodes[A].peers.len(), net.timeout(A)), (0, None));
}
