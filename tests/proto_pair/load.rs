//! Denial of service: mac1, cookies, limits, junk. Whitepaper §5.3, §5.4.4, §5.4.7.

use std::net::SocketAddr;

use proptest::prelude::*;
use uringvpn::proto::Endpoint;
use uringvpn::proto::output::Handled;
use uringvpn::time::Time;

use super::craft::Hand;
use super::net::{A, B, C, COOKIE, INITIATION, Net, PEER, RESPONSE, address, millis, secs};

/// The queue from which on a device is under load.
const LOADED: usize = 512;

fn from(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, host], port))
}

#[test]
fn under_load_an_initiation_is_answered_by_a_cookie_and_the_next_one_by_a_response() {
    let mut net = Net::pair();
    net.nodes[B].queued = LOADED;
    net.send(A, b"hello");
    net.run(millis(100));
    assert_eq!((net.sent(B, COOKIE).len(), net.sent(B, RESPONSE).len()), (1, 0));
    assert_eq!(net.sent(B, COOKIE)[0].bytes.len(), 64);
    assert_eq!(net.nodes[A].handled, [Handled::CookieAccepted(PEER)]);
    assert_eq!(net.sent(A, INITIATION).len(), 1, "a cookie reply by itself sends nothing");
    net.run(secs(6));
    assert_eq!(net.delivered(B), 1);
    assert_eq!(net.sent(A, INITIATION).len(), 2);
}

#[test]
fn under_load_a_response_needs_a_cookie_as_well() {
    let mut net = Net::pair();
    net.nodes[A].queued = LOADED;
    net.send(A, b"hello");
    net.run(secs(6));
    assert_eq!(net.sent(A, COOKIE).len(), 1);
    assert_eq!(net.nodes[B].handled[1], Handled::CookieAccepted(PEER));
    assert_eq!(net.delivered(B), 1);
}

#[test]
fn load_lasts_a_second_after_the_queue_was_long() {
    let mut net = Net::pair();
    let key = net.nodes[A].key.clone();
    let mut hand = Hand::new(&net, key, A, B);
    net.nodes[B].queued = LOADED;
    net.deliver(&hand.initiation(1_800_000_001, 1).0);
    net.nodes[B].queued = LOADED - 1;
    net.run(millis(999));
    net.deliver(&hand.initiation(1_800_000_002, 2).0);
    net.run(millis(1));
    net.deliver(&hand.initiation(1_800_000_003, 3).0);
    let sent = Handled::CookieSent;
    assert_eq!(net.nodes[B].handled, [sent, sent, Handled::InitiationAccepted(PEER)]);
}

#[test]
fn not_under_load_mac2_is_not_judged() {
    let mut net = Net::pair();
    let key = net.nodes[A].key.clone();
    let mut hand = Hand::new(&net, key, A, B);
    let mut flight = hand.initiation(1_800_000_001, 1).0;
    flight.bytes[132..].fill(0xee);
    net.deliver(&flight);
    assert_eq!(net.nodes[B].handled, [Handled::InitiationAccepted(PEER)]);
}

#[test]
fn a_cookie_is_good_for_one_address_and_port() {
    let mut net = Net::pair();
    net.nodes[B].queued = LOADED;
    net.send(A, b"hello");
    net.run(millis(100));
    net.cut();
    net.run(secs(6));
    let with_cookie = (*net.sent(A, INITIATION).last().unwrap()).clone();
    assert_ne!(with_cookie.bytes[132..], [0; 16]);
    for other in [from(1, 51820), SocketAddr::new(with_cookie.from.ip(), 1)] {
        net.deliver_from(&with_cookie, other);
        assert_eq!(net.nodes[B].handled.last(), Some(&Handled::CookieSent));
    }
    net.deliver(&with_cookie);
    assert_eq!(net.nodes[B].handled.last(), Some(&Handled::InitiationAccepted(PEER)));
}

#[test]
fn a_cookie_is_used_for_115_seconds() {
    let mut net = Net::pair();
    net.nodes[B].queued = LOADED;
    net.send(A, b"hello");
    net.run(millis(100));
    net.cut();
    for _ in 0..13 {
        net.send(A, b"hello");
        net.run(secs(10));
    }
    let with_cookie = |secs: u64| {
        let young = |sent: Time| sent.since(net.log[0].sent).as_nanos() / 1_000_000_000 <= secs;
        net.sent(A, INITIATION)[1..]
            .iter()
            .filter(|one| young(one.sent))
            .all(|one| one.bytes[132..] != [0; 16])
    };
    assert!(with_cookie(114) && !with_cookie(130));
}

#[test]
fn a_cookie_reply_moves_no_endpoint_and_counts_once_for_the_newest_message() {
    let mut net = Net::pair();
    net.nodes[B].queued = LOADED;
    net.lose(|flight| flight.kind() == COOKIE);
    net.send(A, b"hello");
    net.run(secs(6));
    let replies: Vec<_> = net.sent(B, COOKIE).into_iter().cloned().collect();
    assert_eq!(replies.len(), 2);
    let before = net.nodes[A].device.peer(PEER).unwrap().endpoint;
    net.deliver_from(&replies[0], from(1, 1));
    let mut damaged = replies[1].clone();
    damaged.bytes[40] ^= 1;
    net.deliver_from(&damaged, from(1, 1));
    let mut wrong_index = replies[1].clone();
    wrong_index.bytes[4] ^= 1;
    net.deliver_from(&wrong_index, from(1, 1));
    net.deliver_from(&replies[1], from(1, 1));
    let refused = Handled::CookieRefused;
    assert_eq!(net.nodes[A].handled, [refused, refused, refused, Handled::CookieAccepted(PEER)]);
    assert_eq!(net.nodes[A].device.peer(PEER).unwrap().endpoint, before);
}

#[test]
fn under_load_one_source_gets_five_answers_at_once_and_then_one_in_fifty_milliseconds() {
    let mut net = Net::pair();
    net.nodes[B].queued = LOADED;
    let key = net.nodes[A].key.clone();
    let mut hand = Hand::new(&net, key, A, B);
    net.deliver(&hand.initiation(1_800_000_000, 1).0);
    let reply = net.sent(B, COOKIE)[0].bytes.clone();
    assert!(hand.macs.consume_reply(reply.first_chunk().unwrap(), Time::default()));
    net.nodes[B].handled.clear();
    for number in 1..=40 {
        net.deliver(&hand.initiation(1_800_000_000 + number, 1).0);
    }
    let limited = |net: &Net| net.nodes[B].handled.iter().filter(|one| **one == Handled::RateLimited).count();
    assert_eq!(limited(&net), 35);
    net.run(millis(50));
    net.deliver(&hand.initiation(1_800_000_100, 1).0);
    net.deliver(&hand.initiation(1_800_000_101, 1).0);
    assert_eq!(limited(&net), 36);
}

#[test]
fn a_wrong_mac1_gets_no_answer_under_load_or_not() {
    let mut net = Net::pair();
    let key = net.nodes[A].key.clone();
    let mut hand = Hand::new(&net, key, A, B);
    for queued in [0, LOADED] {
        net.nodes[B].queued = queued;
        let mut flight = hand.initiation(1_800_000_000, 1).0;
        flight.bytes[120] ^= 1;
        net.deliver(&flight);
        assert_eq!(net.nodes[B].handled.last(), Some(&Handled::BadMac1));
    }
    assert!(net.log.is_empty());
}

#[test]
fn junk_with_a_valid_mac1_gets_cookies_only_and_leaves_the_tunnel_alive() {
    let mut net = Net::connected();
    let key = net.nodes[A].key.clone();
    let mut hand = Hand::new(&net, key, A, B);
    let before = net.log.len();
    for round in 0..1000 {
        net.nodes[B].queued = if round < 500 { 0 } else { LOADED };
        let kind = if round % 2 == 0 { INITIATION } else { RESPONSE };
        let junk = hand.junk(kind);
        net.deliver_from(&junk, from(round as u8, 1000));
    }
    assert!(net.log[before..].iter().all(|flight| flight.kind() == COOKIE));
    assert_eq!(net.log.len() - before, 500);
    net.nodes[B].queued = 0;
    net.assert_both_ways(millis(100));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_datagrams_are_never_answered(
        kind in 0u8..6,
        length in prop::sample::select(vec![0usize, 1, 3, 4, 31, 32, 63, 64, 65, 91, 92, 93, 147, 148, 149, 1500]),
        bytes in prop::collection::vec(any::<u8>(), 1500),
        queued in 0usize..1024,
    ) {
        let mut net = Net::pair();
        let mut bytes = bytes[..length].to_vec();
        if length >= 4 {
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        }
        let (from, told) = (Endpoint::to(address(C)), net.nodes[B].updates.len());
        net.with(B, |node, now| {
            let handled = node.device.handle_datagram(&bytes, from, queued, now, node.wall(now));
            let refused = [Handled::NotHandshake, Handled::BadMac1, Handled::CookieRefused];
            assert!(refused.contains(&handled), "{handled:?}");
        });
        prop_assert!(net.log.is_empty() && net.nodes[B].updates.len() == told && net.timeout(B).is_none());
    }
}
