//! Sessions: renewal, the three slots, their end; roaming. Whitepaper §5.4.6, §6.1 to §6.3.

use std::net::SocketAddr;
use std::sync::Arc;

use uringvpn::proto::activity::News;
use uringvpn::proto::session::{REJECT_AFTER_MESSAGES, REKEY_AFTER_MESSAGES, Role, Session};

use super::net::{A, B, DATA, Flight, INITIATION, Net, PEER, RESPONSE, millis, secs};

fn current(net: &Net, node: usize) -> Option<Arc<Session>> {
    net.nodes[node].peers[&PEER].current.clone()
}

fn remote(net: &Net, node: usize) -> SocketAddr {
    net.nodes[node].device.peer(PEER).unwrap().endpoint.unwrap().remote
}

fn elsewhere() -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 7], 7777))
}

/// The last datagram that `node` has sent.
fn newest(net: &Net, node: usize, kind: u8) -> Flight {
    (*net.sent(node, kind).last().unwrap()).clone()
}

#[test]
fn the_initiator_renews_after_120_seconds_when_it_sends() {
    let mut net = Net::connected();
    net.run(secs(118));
    net.send(A, b"119 s old");
    net.run(millis(500));
    assert_eq!(net.sent(A, INITIATION).len(), 1);
    net.run(millis(700));
    net.send(A, b"120 s old");
    net.run(millis(100));
    assert_eq!(net.sent(A, INITIATION).len(), 2);
    assert_eq!(net.delivered(B), 3, "the old session carries on meanwhile");
}

#[test]
fn the_responder_does_not_renew_by_time() {
    let mut net = Net::connected();
    for _ in 0..16 {
        net.run(secs(10));
        net.send(B, b"data");
    }
    assert_eq!(net.sent(B, INITIATION).len(), 0);
}

#[test]
fn whoever_has_just_answered_does_not_renew_by_itself() {
    let mut net = Net::connected();
    net.run(secs(120));
    net.lose(|flight| flight.kind() == RESPONSE);
    current(&net, B).unwrap().skip_to(REKEY_AFTER_MESSAGES);
    net.send(B, b"renews");
    net.run(millis(100));
    assert_eq!((net.sent(B, INITIATION).len(), net.sent(A, RESPONSE).len()), (1, 1));
    net.send(A, b"would renew");
    net.heal();
    net.run(secs(20));
    assert_eq!((net.sent(B, INITIATION).len(), net.sent(A, INITIATION).len()), (2, 1));
}

#[test]
fn a_worker_that_asks_for_a_session_gets_one_only_if_there_is_none_or_it_ends_now() {
    let mut net = Net::connected();
    net.run(secs(10));
    net.with(A, |node, _| node.tell(PEER, News::SessionWanted));
    assert_eq!(net.sent(A, INITIATION).len(), 1);
    let end = current(&net, A).unwrap().created() + secs(180);
    net.run(end.since(net.now + millis(1)));
    net.with(A, |node, _| node.tell(PEER, News::SessionWanted));
    assert_eq!(net.sent(A, INITIATION).len(), 2, "its clock was a moment ahead");
}

#[test]
fn an_idle_session_is_not_renewed() {
    let mut net = Net::connected();
    net.run(secs(1000));
    assert_eq!(net.sent(A, INITIATION).len() + net.sent(B, INITIATION).len(), 1);
}

#[test]
fn either_side_renews_after_so_many_messages() {
    for node in [A, B] {
        let mut net = Net::connected();
        net.run(secs(10));
        current(&net, node).unwrap().skip_to(REKEY_AFTER_MESSAGES - 1);
        let before = net.sent(node, INITIATION).len();
        net.send(node, b"the last one before");
        net.run(millis(100));
        assert_eq!(net.sent(node, INITIATION).len(), before + 1);
        assert_eq!(current(&net, node).unwrap().role(), Role::Initiator);
    }
}

#[test]
fn counters_begin_at_zero_and_rise_by_one_with_every_data_message() {
    let mut net = Net::pair();
    net.set_keepalive(A, 5);
    for _ in 0..10 {
        net.send(A, b"data");
        net.run(secs(6));
    }
    let counters: Vec<u64> = net
        .sent(A, DATA)
        .iter()
        .map(|flight| u64::from_le_bytes(*flight.bytes[8..].first_chunk().unwrap()))
        .collect();
    assert!(counters.len() > 15, "data and keepalives");
    assert_eq!(counters, (0..counters.len() as u64).collect::<Vec<_>>());
}

#[test]
fn no_counter_from_reject_after_messages_on_is_sent() {
    let mut net = Net::connected();
    net.run(secs(10));
    let old = current(&net, A).unwrap();
    old.skip_to(REJECT_AFTER_MESSAGES);
    net.send(A, b"needs another session");
    assert_eq!(old.sent(), REJECT_AFTER_MESSAGES);
    net.run(millis(100));
    assert_eq!(net.delivered(B), 2);
    assert!(!Arc::ptr_eq(&old, &current(&net, A).unwrap()));
}

#[test]
fn a_keepalive_that_has_no_counter_left_begins_a_handshake() {
    let mut net = Net::connected();
    net.run(secs(10));
    current(&net, A).unwrap().skip_to(REJECT_AFTER_MESSAGES);
    net.set_keepalive(A, 25);
    net.run(millis(100));
    assert_eq!(net.sent(A, INITIATION).len(), 2);
}

#[test]
fn a_session_is_of_no_use_from_180_seconds_on() {
    let mut net = Net::connected();
    net.run(secs(170));
    net.cut();
    net.send(B, b"late");
    let late = newest(&net, B, DATA);
    net.run(secs(10));
    net.deliver(&late);
    assert_eq!(net.delivered(A), 0);
    let data = net.sent(A, DATA).len();
    net.send(A, b"staged");
    assert_eq!(net.sent(A, DATA).len(), data);
    net.heal();
    net.run(secs(6));
    assert_eq!(net.delivered(B), 2);
}

#[test]
fn the_initiator_that_only_receives_renews_once_from_165_seconds_on() {
    let mut net = Net::connected();
    net.run(secs(159));
    for at in 160..=179 {
        net.send(B, b"data");
        net.run(secs(1));
        assert_eq!(net.sent(A, INITIATION).len(), if at <= 165 { 1 } else { 2 }, "{at} s");
    }
    assert_eq!(net.sent(B, INITIATION).len(), 0);
    assert_eq!(current(&net, A).unwrap().role(), Role::Initiator);
}

#[test]
fn what_was_under_way_when_the_session_changed_still_arrives() {
    let mut net = Net::connected();
    net.run(secs(119));
    net.send(A, b"slow");
    let slow = net.under_way.pop().unwrap();
    net.run(secs(1));
    net.send(A, b"renews");
    net.run(secs(1));
    assert_eq!(net.sent(A, INITIATION).len(), 2);
    let before = net.delivered(B);
    net.deliver(&slow);
    assert_eq!(net.delivered(B), before + 1);
    net.deliver(&slow);
    assert_eq!(net.delivered(B), before + 1, "but only once");
}

#[test]
fn two_renewals_later_it_no_longer_does() {
    let mut net = Net::connected();
    net.run(secs(1));
    net.send(A, b"slow");
    let slow = net.under_way.pop().unwrap();
    for _ in 0..2 {
        net.run(secs(5));
        current(&net, A).unwrap().skip_to(REKEY_AFTER_MESSAGES);
        net.send(A, b"renews");
        net.run(secs(1));
    }
    assert_eq!(net.sent(A, INITIATION).len(), 3);
    let before = net.delivered(B);
    net.deliver(&slow);
    assert_eq!(net.delivered(B), before);
    assert_eq!([A, B].map(|node| net.nodes[node].sessions.len()), [2, 2]);
}

#[test]
fn a_responders_new_session_takes_the_place_of_one_never_confirmed() {
    let mut net = Net::pair();
    net.lose(|flight| flight.kind() == RESPONSE);
    net.send(A, b"hello");
    net.run(secs(60));
    assert!(net.sent(B, RESPONSE).len() > 10);
    assert_eq!(net.nodes[B].sessions.len(), 1);
}

#[test]
fn an_unconfirmed_session_does_not_replace_the_current_one() {
    let mut net = Net::connected();
    let old = current(&net, B).unwrap();
    net.lose(|flight| flight.kind() == RESPONSE);
    net.run(secs(120));
    net.send(A, b"renews");
    net.run(secs(1));
    assert_eq!(net.nodes[B].sessions.len(), 2);
    assert!(Arc::ptr_eq(&old, &current(&net, B).unwrap()));
    net.send(B, b"on the old one");
    net.run(secs(1));
    assert_eq!(net.delivered(A), 1);
}

#[test]
fn the_previous_session_goes_when_the_peer_begins_another() {
    let mut net = Net::connected();
    for (round, sessions) in [(1, 2), (2, 2)] {
        net.run(secs(10));
        net.lose(move |flight| flight.kind() == RESPONSE && round == 2);
        current(&net, A).unwrap().skip_to(REKEY_AFTER_MESSAGES);
        net.send(A, b"renews");
        net.run(secs(1));
        assert_eq!(net.nodes[B].sessions.len(), sessions, "renewal {round}");
    }
}

#[test]
fn after_540_seconds_without_a_new_session_all_keys_are_gone() {
    let mut net = Net::connected();
    net.run(secs(538));
    assert_eq!([A, B].map(|node| net.nodes[node].sessions.len()), [1, 1]);
    net.run(secs(2));
    assert_eq!([A, B].map(|node| net.nodes[node].sessions.len()), [0, 0]);
    assert!(current(&net, A).is_none() && current(&net, B).is_none());
    assert_eq!([A, B].map(|node| net.timeout(node)), [None, None]);
}

#[test]
fn keys_of_a_handshake_given_up_are_wiped_too() {
    let mut net = Net::pair();
    net.cut();
    net.send(A, b"hello");
    net.run(secs(104));
    assert_eq!(net.timeout(A).unwrap().1, uringvpn::proto::output::Reason::Wipe);
    net.run(secs(540));
    assert_eq!(net.timeout(A), None);
}

#[test]
fn the_endpoint_follows_initiation_response_and_data() {
    let mut net = Net::pair();
    net.cut();
    net.send(A, b"hello");
    net.deliver_from(&newest(&net, A, INITIATION), elsewhere());
    assert_eq!(remote(&net, B), elsewhere());
    net.deliver_from(&newest(&net, B, RESPONSE).redirected(&net, A), elsewhere());
    assert_eq!(remote(&net, A), elsewhere());
    let there = SocketAddr::from(([203, 0, 113, 1], 1));
    net.deliver_from(&newest(&net, A, DATA).redirected(&net, B), there);
    assert_eq!((net.delivered(B), remote(&net, B)), (1, there));
    let local = net.nodes[B].device.peer(PEER).unwrap().endpoint.unwrap().local;
    assert_eq!(local, Some(net.nodes[B].address.ip()), "answers leave from where it was sent to");
}

#[test]
fn the_endpoint_follows_nothing_forged_or_replayed() {
    let mut net = Net::connected();
    net.send(A, b"data");
    net.run(secs(1));
    let before = remote(&net, B);
    for kind in [INITIATION, DATA] {
        let replayed = newest(&net, A, kind);
        net.deliver_from(&replayed, elsewhere());
        let mut forged = replayed.clone();
        forged.bytes[8] ^= 0x40;
        net.deliver_from(&forged, elsewhere());
    }
    assert_eq!((net.delivered(B), remote(&net, B)), (2, before));
}

#[test]
fn a_forged_message_does_not_close_the_window_to_the_true_one() {
    let mut net = Net::connected();
    net.send(A, b"data");
    let original = net.under_way.pop().unwrap();
    for bit in 0..original.bytes.len() * 8 {
        let mut forged = original.clone();
        forged.bytes[bit / 8] ^= 1 << (bit % 8);
        net.deliver(&forged);
    }
    assert_eq!(net.delivered(B), 1);
    net.deliver(&original);
    assert_eq!(net.delivered(B), 2);
}

#[test]
fn our_own_address_is_forgotten_when_a_message_must_be_sent_again() {
    let mut net = Net::connected();
    let local = |net: &Net| net.nodes[A].device.peer(PEER).unwrap().endpoint.unwrap().local;
    assert!(local(&net).is_some());
    net.cut();
    net.send(A, b"nobody answers");
    net.run(secs(14));
    assert!(local(&net).is_some());
    net.run(secs(2));
    assert!(local(&net).is_none());
}

#[test]
fn our_own_address_is_forgotten_when_an_initiation_is_sent_again() {
    let mut net = Net::connected();
    let local = |net: &Net| net.nodes[A].device.peer(PEER).unwrap().endpoint.unwrap().local;
    net.run(secs(200));
    net.cut();
    net.send(A, b"needs a session");
    net.run(secs(4));
    assert!(local(&net).is_some());
    net.run(secs(2));
    assert_eq!((net.sent(A, INITIATION).len(), local(&net)), (3, None));
}

#[test]
fn a_session_that_was_removed_moves_no_endpoint() {
    let mut net = Net::connected();
    let index = *net.nodes[B].sessions.keys().next().unwrap();
    net.set_private_key(B, Some(uringvpn::proto::keys::PrivateKey::from_bytes([3; 32])));
    let before = remote(&net, B);
    let from = uringvpn::proto::Endpoint::to(elsewhere());
    net.with(B, |node, _| node.device.handle_roamed(index, from));
    assert_eq!(remote(&net, B), before);
}
