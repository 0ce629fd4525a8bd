//! Making sessions. Whitepaper §5.1, §5.4.

use uringvpn::proto::keys::{PresharedKey, PrivateKey, PublicKey};
use uringvpn::proto::output::{Handled, Update};
use uringvpn::proto::session::Role;
use uringvpn::time::Time;

use super::craft::{Hand, stamp};
use super::net::{A, B, C, DATA, INITIATION, Net, PEER, RESPONSE, millis, secs};

fn kinds(net: &Net) -> Vec<u8> {
    net.log.iter().map(|flight| flight.kind()).collect()
}

fn gaps(times: &[Time]) -> Vec<f64> {
    times.windows(2).map(|pair| pair[1].since(pair[0]).as_nanos() as f64 / 1e9).collect()
}

fn last_handshakes(net: &Net) -> [bool; 2] {
    [A, B].map(|node| net.nodes[node].device.peer(PEER).unwrap().last_handshake.is_some())
}

#[test]
fn the_first_packet_makes_a_session_and_confirms_it() {
    let mut net = Net::pair();
    net.send(A, b"hello");
    net.run(millis(100));
    assert_eq!(net.nodes[B].delivered[0][..5], *b"hello");
    assert_eq!(kinds(&net), [INITIATION, RESPONSE, DATA]);
}

#[test]
fn without_a_staged_packet_a_keepalive_confirms_at_once() {
    let mut net = Net::pair();
    net.set_keepalive(A, 25);
    net.run(millis(100));
    assert_eq!(net.keepalives(A).len(), 1);
    net.send(B, b"back");
    net.run(millis(20));
    assert_eq!(net.delivered(A), 1);
    assert_eq!(net.sent(B, INITIATION).len(), 0);
}

#[test]
fn the_responder_sends_no_data_before_the_session_is_confirmed() {
    let mut net = Net::pair();
    net.lose(|flight| flight.kind() == DATA);
    net.send(A, b"lost");
    net.run(millis(50));
    net.send(B, b"waits");
    net.run(secs(3));
    assert_eq!(net.sent(B, RESPONSE).len(), 1);
    assert_eq!(net.sent(B, DATA).len(), 0);
    net.heal();
    net.send(A, b"confirms");
    net.run(millis(50));
    assert_eq!(net.delivered(A), 1);
}

#[test]
fn the_handshake_counts_for_the_initiator_at_the_response_and_for_the_responder_at_the_first_data() {
    let mut net = Net::pair();
    net.send(A, b"hello");
    net.run(millis(15));
    assert_eq!(last_handshakes(&net), [false, false]);
    net.run(millis(10));
    assert_eq!(last_handshakes(&net), [true, false]);
    net.run(millis(10));
    assert_eq!(last_handshakes(&net), [true, true]);
}

#[test]
fn an_unanswered_initiation_is_sent_again_after_five_seconds_and_some_jitter() {
    let mut net = Net::pair();
    net.cut();
    net.send(A, b"hello");
    net.run(secs(60));
    let sent = net.sent(A, INITIATION);
    let gaps = gaps(&sent.iter().map(|flight| flight.sent).collect::<Vec<_>>());
    assert!(gaps.len() > 9 && gaps.iter().all(|gap| (5.0..5.334).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().any(|gap| *gap > gaps[0] + 0.01 || *gap < gaps[0] - 0.01), "{gaps:?}");
}

#[test]
fn every_initiation_has_a_new_ephemeral_key_index_and_later_stamp() {
    let mut net = Net::pair();
    net.cut();
    net.send(A, b"hello");
    net.run(secs(60));
    let sent = net.sent(A, INITIATION);
    let key = &net.nodes[B].key;
    for pair in sent.windows(2) {
        assert_ne!(pair[0].bytes[4..8], pair[1].bytes[4..8], "index");
        assert_ne!(pair[0].bytes[8..40], pair[1].bytes[8..40], "ephemeral key");
        let stamps = [0, 1].map(|at: usize| stamp(pair[at], net.nodes[A].public_key(), key));
        assert!(stamps[0] < stamps[1], "stamp");
    }
}

#[test]
fn after_twenty_initiations_it_gives_up_and_staged_packets_die() {
    let mut net = Net::pair();
    net.cut();
    net.send(A, b"hello");
    net.run(secs(300));
    let sent = net.sent(A, INITIATION);
    assert_eq!(sent.len(), 20);
    let took = sent[19].sent.since(sent[0].sent);
    assert!(took >= secs(95) && took <= secs(103), "{took:?}");
    assert!(net.nodes[A].peers[&PEER].staged.is_empty());
    assert!(net.nodes[A].updates.iter().any(|update| matches!(update, Update::DropStaged { peer: PEER })));
    net.heal();
    net.send(A, b"again");
    net.run(millis(100));
    assert_eq!(net.delivered(B), 1);
}

#[test]
fn new_packets_count_the_attempts_from_the_beginning() {
    let mut net = Net::pair();
    net.cut();
    for _ in 0..300 {
        net.send(A, b"hello");
        net.run(secs(1));
    }
    assert!(net.sent(A, INITIATION).len() > 50);
    net.heal();
    net.run(secs(6));
    assert_eq!(net.delivered(B), 128);
}

#[test]
fn a_packet_that_finds_an_initiation_under_way_counts_it_as_the_first() {
    let mut net = Net::pair();
    net.cut();
    net.send(A, b"one");
    net.run(secs(2));
    net.send(A, b"two");
    net.run(secs(300));
    assert_eq!(net.sent(A, INITIATION).len(), 20);
}

#[test]
fn however_much_is_sent_there_is_one_initiation_in_five_seconds() {
    let mut net = Net::pair();
    net.cut();
    for _ in 0..3000 {
        net.send(A, b"hello");
        net.run(millis(10));
    }
    let sent = net.sent(A, INITIATION);
    let gaps = gaps(&sent.iter().map(|flight| flight.sent).collect::<Vec<_>>());
    assert!(sent.len() >= 5 && gaps.iter().all(|gap| *gap >= 5.0), "{gaps:?}");
}

#[test]
fn stamps_rise_when_the_wall_clock_is_set_back() {
    let mut net = Net::pair();
    net.cut();
    net.send(A, b"hello");
    net.run(secs(12));
    net.nodes[A].wall_offset = -1_000_000;
    net.run(secs(12));
    let stamps: Vec<_> = net
        .sent(A, INITIATION)
        .iter()
        .map(|flight| stamp(flight, net.nodes[A].public_key(), &net.nodes[B].key))
        .collect();
    assert!(stamps.len() >= 4 && stamps.is_sorted_by(|one, other| one < other));
}

#[test]
fn stamps_rise_when_a_peer_is_removed_and_added_again() {
    let mut net = Net::connected();
    let key = net.nodes[B].public_key();
    net.nodes[A].wall_offset = -1_000_000;
    net.with(A, |node, _| node.device.remove_peer(PEER));
    net.introduce(A, B);
    net.send(A, b"hello");
    net.run(millis(100));
    assert_eq!(net.delivered(B), 2);
    assert_eq!(net.nodes[A].device.find_peer(&key), Some(PEER));
}

#[test]
fn stamps_rise_when_our_key_changes_back_and_forth() {
    let mut net = Net::connected();
    let key = net.nodes[A].key.clone();
    net.nodes[A].wall_offset = -1_000_000;
    net.set_private_key(A, Some(PrivateKey::from_bytes([7; 32])));
    net.set_private_key(A, Some(key));
    net.run(millis(100));
    net.send(A, b"hello");
    net.run(millis(100));
    assert_eq!(net.delivered(B), 2);
}

#[test]
fn a_replayed_initiation_is_not_answered() {
    let mut net = Net::connected();
    let first = net.sent(A, INITIATION)[0].clone();
    for wait in [millis(0), secs(1), secs(100)] {
        net.run(wait);
        net.deliver(&first);
        assert_eq!(net.nodes[B].handled.last(), Some(&Handled::InitiationReplayed(0)));
    }
    net.run(secs(60));
    net.send(A, b"renews");
    net.run(secs(1));
    net.deliver(&first);
    assert_eq!(net.nodes[B].handled.last(), Some(&Handled::InitiationReplayed(0)));
    assert_eq!(net.sent(B, RESPONSE).len(), 2);
}

#[test]
fn an_older_initiation_is_not_answered_even_if_it_was_never_seen() {
    let mut net = Net::pair();
    net.lose(|flight| flight.kind() == INITIATION);
    net.send(A, b"hello");
    net.run(secs(1));
    net.heal();
    net.run(secs(5));
    assert_eq!(net.delivered(B), 1);
    let older = net.sent(A, INITIATION)[0].clone();
    net.deliver(&older);
    assert_eq!(net.nodes[B].handled.last(), Some(&Handled::InitiationReplayed(0)));
}

#[test]
fn a_replay_stays_one_after_the_keys_were_wiped_and_ours_changed_back() {
    let mut net = Net::connected();
    let first = net.sent(A, INITIATION)[0].clone();
    net.run(secs(600));
    let key = net.nodes[B].key.clone();
    net.set_private_key(B, Some(PrivateKey::from_bytes([9; 32])));
    net.set_private_key(B, Some(key));
    net.deliver(&first);
    assert_eq!(net.nodes[B].handled.last(), Some(&Handled::InitiationReplayed(0)));
}

#[test]
fn the_second_of_two_initiations_within_twenty_milliseconds_is_ignored() {
    let mut net = Net::pair();
    let key = net.nodes[A].key.clone();
    let mut hand = Hand::new(&net, key, A, B);
    let flights: Vec<_> = (1..=3).map(|at| hand.initiation(1_800_000_000 + at, at as u32).0).collect();
    net.deliver(&flights[0]);
    net.run(millis(19));
    net.deliver(&flights[1]);
    net.run(millis(50));
    net.deliver(&flights[2]);
    let accepted = Handled::InitiationAccepted(PEER);
    assert_eq!(net.nodes[B].handled, [accepted, Handled::InitiationTooSoon(0), accepted]);
    assert_eq!(net.sent(B, RESPONSE).len(), 2);
}

#[test]
fn a_key_that_is_no_peers_gets_no_answer() {
    let mut net = Net::pair();
    let mut stranger = Hand::new(&net, PrivateKey::from_bytes([200; 32]), C, B);
    net.deliver(&stranger.initiation(1_800_000_000, 1).0);
    assert_eq!(net.nodes[B].handled, [Handled::UnknownPeer]);
    assert!(net.log.is_empty());
}

#[test]
fn an_initiation_that_only_claims_to_be_a_peers_gets_no_answer() {
    let mut net = Net::pair();
    let key = net.nodes[A].key.clone();
    let mut hand = Hand::new(&net, key, A, B);
    let mut flight = hand.initiation(1_800_000_000, 1).0;
    flight.bytes[90] ^= 1;
    hand.macs.write_macs(&mut flight.bytes, net.now);
    net.deliver(&flight);
    assert_eq!(net.nodes[B].handled, [Handled::InitiationForged(0)]);
    assert!(net.log.is_empty());
    net.send(A, b"the true one");
    net.run(secs(1));
    assert_eq!(net.delivered(B), 1);
}

#[test]
fn peers_with_different_preshared_keys_never_have_a_session() {
    let mut net = Net::pair();
    net.with(A, |node, _| node.device.set_preshared_key(PEER, PresharedKey::from_bytes([5; 32])));
    net.send(A, b"hello");
    net.run(secs(12));
    assert!(net.sent(B, RESPONSE).len() >= 2, "the responder cannot know");
    assert!(net.nodes[A].handled.iter().all(|handled| *handled == Handled::ResponseForged(0)));
    assert_eq!(last_handshakes(&net), [false, false]);
    net.with(B, |node, _| node.device.set_preshared_key(PEER, PresharedKey::from_bytes([5; 32])));
    net.run(secs(6));
    assert_eq!(net.delivered(B), 1);
}

#[test]
fn a_response_to_an_initiation_that_was_followed_by_another_is_refused() {
    let mut net = Net::pair();
    net.lose(|flight| flight.kind() == RESPONSE);
    net.send(A, b"hello");
    net.run(secs(6));
    net.heal();
    let responses: Vec<_> = net.sent(B, RESPONSE).into_iter().cloned().collect();
    assert_eq!(responses.len(), 2);
    net.deliver(&responses[0]);
    net.deliver(&responses[1]);
    net.deliver(&responses[1]);
    let unexpected = Handled::ResponseUnexpected;
    assert_eq!(net.nodes[A].handled, [unexpected, Handled::ResponseAccepted(PEER), unexpected]);
    net.run(secs(1));
    assert_eq!(net.delivered(B), 1);
}

#[test]
fn a_response_from_another_peers_key_is_refused_and_the_true_one_still_accepted() {
    let mut net = Net::new(3, 1);
    net.introduce(A, B);
    net.introduce(A, C);
    net.introduce(B, A);
    net.send(A, b"hello");
    let initiation = net.sent(A, INITIATION)[0].clone();
    // C answers, as well as it can, an initiation that was made for B.
    let key = net.nodes[C].key.clone();
    let mut hand = Hand::new(&net, key, C, A);
    let mut forged = net.nodes[C].key.public_key().as_bytes().to_vec();
    forged.resize(92, 3);
    forged[..4].copy_from_slice(&[RESPONSE, 0, 0, 0]);
    forged[8..12].copy_from_slice(&initiation.bytes[4..8]);
    hand.macs.write_macs(&mut forged, net.now);
    let forged = hand.flight(&forged);
    net.deliver(&forged);
    assert_eq!(net.nodes[A].handled, [Handled::ResponseForged(0)]);
    net.run(millis(100));
    assert_eq!(net.delivered(B), 1);
}

#[test]
fn data_for_a_handshake_that_is_not_done_is_dropped() {
    let mut net = Net::pair();
    net.cut();
    net.send(A, b"hello");
    let initiation = net.sent(A, INITIATION)[0].clone();
    let mut data = initiation.clone();
    data.bytes.truncate(64);
    data.bytes[0] = DATA;
    (data.from, data.to) = (initiation.to, initiation.from);
    net.deliver(&data);
    assert_eq!(net.delivered(A), 0);
    assert!(
        !net.nodes[A]
            .sessions
            .contains_key(&u32::from_le_bytes(*initiation.bytes[4..].first_chunk().unwrap()))
    );
}

#[test]
fn peers_choose_any_index_they_like_and_are_never_mixed_up() {
    let mut net = Net::new(3, 1);
    net.introduce(A, B);
    net.introduce(A, C);
    for (stamp, index) in [(1, 0), (2, u32::MAX), (3, 77)] {
        for (node, peer) in [(B, 0), (C, 1)] {
            let key = net.nodes[node].key.clone();
            let mut hand = Hand::new(&net, key, node, A);
            net.deliver(&hand.initiation(1_800_000_000 + stamp, index).0);
            assert_eq!(net.nodes[A].handled.last(), Some(&Handled::InitiationAccepted(peer)));
            let response = net.log.last().unwrap();
            assert_eq!(
                (response.to, response.bytes[8..12].to_vec()),
                (net.nodes[node].address, index.to_le_bytes().to_vec())
            );
        }
        net.run(millis(30));
    }
    let sessions = &net.nodes[A].sessions;
    assert!(
        sessions.len() == 2
            && sessions.values().any(|one| one.peer() == 0)
            && sessions.values().any(|one| one.peer() == 1)
    );
}

#[test]
fn a_peer_with_a_key_of_low_order_gets_nothing_and_breaks_nothing() {
    let mut net = Net::pair();
    let mut one = [0; 32];
    for first in [0, 1] {
        one[0] = first;
        let peer = net.with(A, |node, _| node.device.add_peer(PublicKey::from_bytes(one)).unwrap());
        net.with(A, |node, _| node.device.set_endpoint(peer, super::net::address(B)));
        net.send_to(A, peer, b"nowhere");
    }
    net.run(secs(60));
    assert!(net.log.is_empty());
    net.assert_both_ways(secs(1));
}

#[test]
fn handshakes_are_marked_af41_and_nothing_else_is() {
    let mut net = Net::connected();
    net.set_keepalive(A, 5);
    net.run(secs(30));
    for flight in &net.log {
        let expected = if [INITIATION, RESPONSE].contains(&flight.kind()) { 0x88 } else { 0 };
        assert_eq!(flight.tos, expected, "type {}", flight.kind());
    }
}

#[test]
fn a_session_belongs_to_the_worker_that_its_index_names() {
    let mut net = Net::new(3, 1);
    for other in [B, C] {
        let peer = net.introduce(A, other);
        net.introduce(other, A);
        net.send_to(A, peer, b"hello");
    }
    net.run(secs(1));
    let sessions = &net.nodes[A].sessions;
    let workers: Vec<_> = sessions.values().map(|one| (one.peer(), one.local_index() & 0xff & 1)).collect();
    assert!(workers.len() == 2 && workers.contains(&(0, 0)) && workers.contains(&(1, 1)), "{workers:?}");
}

#[test]
fn initiations_that_cross_make_one_session_that_both_sides_use() {
    for seed in 0..10 {
        let mut net = Net::pair_with_seed(40 + seed);
        // Each message takes another time, so every order of arrival comes up.
        let mut draws = uringvpn::proto::rng::Rng::from_seed([seed; 32]);
        let delays = (0..1000).map(move |_| draws.below(100)).collect::<Vec<_>>();
        let mut next = delays.into_iter();
        net.fate = Some(Box::new(move |flight| {
            let mut flight = flight.clone();
            flight.arrives = flight.sent + millis(next.next().unwrap());
            vec![flight]
        }));
        net.send(A, b"from A");
        net.send(B, b"from B");
        assert_eq!(kinds(&net), [INITIATION, INITIATION]);
        net.run(millis(1200));
        assert_eq!((net.delivered(A), net.delivered(B)), (1, 1), "seed {seed}");
        net.assert_both_ways(millis(200));
        assert_eq!(net.sent(A, INITIATION).len() + net.sent(B, INITIATION).len(), 2, "seed {seed}");
        let current = [A, B].map(|node| net.nodes[node].peers[&PEER].current.clone().unwrap());
        assert_ne!(current[0].role(), current[1].role(), "seed {seed}: two sessions are left");
    }
}

#[test]
fn without_a_private_key_nobody_is_answered_and_nothing_begins() {
    let mut net = Net::connected();
    net.set_private_key(B, None);
    net.send(B, b"waits");
    net.send(A, b"old session");
    net.run(secs(30));
    assert_eq!((net.delivered(A), net.delivered(B)), (0, 1));
    assert_eq!(net.sent(B, INITIATION).len(), 0);
    assert!(net.nodes[B].handled.contains(&Handled::NoPrivateKey));
    let key = net.nodes[B].key.clone();
    net.set_private_key(B, Some(key));
    net.run(millis(100));
    assert_eq!(net.delivered(A), 1, "the staged packet");
}

#[test]
fn initiations_that_cross_while_a_session_lives_leave_one_in_use() {
    let mut net = Net::connected();
    net.run(secs(10));
    for node in [A, B] {
        let current = net.nodes[node].peers[&PEER].current.clone().unwrap();
        current.skip_to(uringvpn::proto::session::REKEY_AFTER_MESSAGES);
        net.send(node, b"renews");
    }
    assert_eq!((net.sent(A, INITIATION).len(), net.sent(B, INITIATION).len()), (2, 1));
    net.run(secs(1));
    net.assert_both_ways(millis(50));
    let current = [A, B].map(|node| net.nodes[node].peers[&PEER].current.clone().unwrap());
    assert_ne!(current[0].role(), current[1].role());
    assert!(current.iter().all(|session| session.sent() < 100), "both are new");
}

#[test]
fn a_peer_that_forgets_its_initiation_for_ours_is_met_on_ours() {
    // With the lower public key and with the higher one.
    for seed in [1, 2, 3, 4, 5, 6] {
        let mut net = Net::pair_with_seed(seed);
        let key = net.nodes[B].key.clone();
        let mut hand = Hand::new(&net, key, B, A);
        net.cut();
        net.send(A, b"hello");
        let ours = net.sent(A, INITIATION)[0].clone();
        net.deliver(&hand.initiation(1_800_000_000, 1).0);
        assert_eq!(net.sent(A, RESPONSE).len(), 1);
        net.deliver(&hand.response(&ours, 0x0bad_cafe));
        let data = net.sent(A, DATA);
        assert_eq!(data[0].bytes[4..8], 0x0bad_cafe_u32.to_le_bytes());
    }
}

#[test]
fn a_session_that_was_confirmed_a_moment_ago_outlives_the_next_initiation() {
    let mut net = Net::pair();
    let key = net.nodes[A].key.clone();
    let mut hand = Hand::new(&net, key, A, B);
    net.send(A, b"confirms");
    net.run(millis(20));
    let data = net.under_way.pop().unwrap();
    assert_eq!(data.kind(), DATA);
    net.run(millis(20));
    let now = net.now;
    let next = hand.initiation(1_800_000_000, 1).0;
    // The worker opens it, and before the device hears of that there is the next initiation.
    net.nodes[B].receive(&data.bytes, data.from, now);
    net.deliver(&next);
    assert_eq!(net.nodes[B].handled.last(), Some(&Handled::InitiationAccepted(PEER)));
    net.assert_both_ways(millis(50));
}

#[test]
fn the_greatest_stamp_locks_a_key_out_until_its_peer_is_added_again() {
    let mut net = Net::pair();
    let key = net.nodes[A].key.clone();
    let mut hand = Hand::new(&net, key, A, B);
    net.deliver(&hand.initiation(u64::MAX / 4, 1).0);
    net.run(secs(10));
    net.send(A, b"locked out");
    net.run(secs(1));
    assert_eq!(net.nodes[B].handled.last(), Some(&Handled::InitiationReplayed(0)));
    net.with(B, |node, _| node.device.remove_peer(PEER));
    net.introduce(B, A);
    net.run(secs(6));
    assert_eq!(net.delivered(B), 1);
}

#[test]
fn a_response_that_comes_after_the_peer_s_own_handshake_was_done_is_refused() {
    let mut net = Net::pair();
    net.cut();
    net.send(A, b"from A");
    net.send(B, b"from B");
    let [ours, theirs] = [A, B].map(|node| net.sent(node, INITIATION)[0].clone());
    net.deliver(&theirs);
    net.deliver(&net.sent(A, RESPONSE)[0].clone());
    net.deliver(&net.sent(B, DATA)[0].clone());
    let current = net.nodes[A].peers[&PEER].current.clone().unwrap();
    net.run(secs(400));
    net.deliver(&ours);
    let late = net.sent(B, RESPONSE)[0].clone();
    net.deliver(&late);
    assert_eq!(net.nodes[A].handled.last(), Some(&Handled::ResponseUnexpected));
    let now = net.nodes[A].peers[&PEER].current.clone().unwrap();
    assert!(std::sync::Arc::ptr_eq(&current, &now), "what the peer may no longer have replaces nothing");
}

#[test]
fn a_device_that_was_started_anew_is_answered_at_once() {
    for node in [A, B] {
        let mut net = Net::connected();
        net.run(secs(30));
        net.nodes[node] = net.nodes[node].restarted(200, net.now);
        net.introduce(node, 1 - node);
        let before = net.delivered(1 - node);
        net.send(node, b"I am back");
        net.run(millis(100));
        assert_eq!(net.delivered(1 - node), before + 1);
        net.assert_both_ways(millis(50));
    }
}

#[test]
fn a_peer_that_was_started_anew_is_found_within_15_seconds_of_silence() {
    let mut net = Net::connected();
    net.run(secs(30));
    net.nodes[B] = net.nodes[B].restarted(200, net.now);
    net.introduce(B, A);
    let start = net.now;
    net.send(A, b"into the void");
    while net.delivered(B) == 0 {
        net.run(millis(100));
        net.send(A, b"and again");
    }
    let took = net.now.since(start);
    assert!(took >= secs(15) && took < millis(15_600), "{took:?}");
}

#[test]
fn what_is_sent_while_a_handshake_is_under_way_tells_the_device_once_a_second() {
    let mut net = Net::connected();
    net.run(secs(121));
    net.cut();
    let before = net.nodes[A].told;
    for _ in 0..4000 {
        net.send(A, b"data on the old session");
        net.run(millis(1));
    }
    assert_eq!(net.sent(A, INITIATION).len(), 2);
    let told = net.nodes[A].told - before;
    assert!((4..=6).contains(&told), "{told} times in four seconds");
}

#[test]
fn when_each_side_ends_with_the_session_that_the_other_began_it_is_still_renewed_in_time() {
    for only_sender in [A, B] {
        let mut net = Net::pair();
        let lower_first = net.nodes[A].public_key() < net.nodes[B].public_key();
        let (low, high) = if lower_first { (A, B) } else { (B, A) };
        net.cut();
        let newest = |net: &Net, node, kind| (*net.sent(node, kind).last().unwrap()).clone();
        net.send(low, b"from the lower");
        net.send(high, b"from the higher");
        for (node, kind) in [
            (high, INITIATION),
            (low, RESPONSE),
            // The other initiation and what follows from it overtake what came before.
            (low, INITIATION),
            (high, RESPONSE),
            (low, DATA),
            (high, DATA),
        ] {
            let flight = newest(&net, node, kind);
            net.deliver(&flight);
        }
        let current = |net: &Net| [A, B].map(|node| net.nodes[node].peers[&PEER].current.clone().unwrap());
        let before = current(&net);
        for session in &before {
            assert_eq!(session.role(), Role::Responder);
            assert!(session.rekey_due_on_send(net.now + secs(170)));
        }
        net.heal();
        let start = net.now;
        while net.now.since(start) < secs(179) {
            net.run(millis(700));
            net.send(only_sender, b"data");
            let initiations = net.sent(A, INITIATION).len() + net.sent(B, INITIATION).len();
            assert_eq!(initiations > 2, net.now.since(start) >= secs(170));
        }
        assert!(current(&net)[0].created() > before[0].created());
    }
}
