//! Keepalives and silence. Whitepaper §6.4, §6.5; persistent keepalives.

use uringvpn::proto::output::Reason;
use uringvpn::time::{Span, Time};

use super::net::{A, B, DATA, INITIATION, Net, PEER, address, millis, secs};

/// When the keepalives of `node` were sent after `start`.
fn keepalives_after(net: &Net, node: usize, start: Time) -> Vec<Span> {
    net.keepalives(node).iter().filter(|one| one.sent > start).map(|one| one.sent.since(start)).collect()
}

/// A pair in which nothing is owed and nothing expected, and its time.
fn quiet() -> (Net, Time) {
    let mut net = Net::connected();
    net.send(B, b"answer");
    net.run(secs(40));
    let now = net.now;
    (net, now)
}

#[test]
fn data_that_nobody_answers_is_answered_by_a_keepalive_after_ten_seconds() {
    let (mut net, start) = quiet();
    net.send(A, b"data");
    net.run(secs(60));
    assert_eq!(keepalives_after(&net, B, start), [millis(10_010)]);
    assert_eq!(keepalives_after(&net, A, start), [], "a keepalive is not answered");
    assert_eq!(net.sent(A, INITIATION).len() + net.sent(B, INITIATION).len(), 1);
}

#[test]
fn more_data_does_not_put_the_keepalive_off_but_asks_for_another() {
    let (mut net, start) = quiet();
    for _ in 0..8 {
        net.send(A, b"data");
        net.run(secs(1));
    }
    net.run(secs(60));
    assert_eq!(keepalives_after(&net, B, start), [millis(10_010), millis(20_010)]);
}

#[test]
fn whoever_answers_with_data_sends_no_keepalive() {
    let (mut net, start) = quiet();
    net.send(A, b"data");
    net.run(secs(5));
    net.send(B, b"answer");
    net.run(secs(9));
    assert_eq!(keepalives_after(&net, B, start), []);
    net.run(secs(60));
    assert_eq!(keepalives_after(&net, A, start), [millis(15_010)]);
}

#[test]
fn a_peer_that_is_silent_for_15_seconds_after_data_is_sent_an_initiation() {
    let (mut net, start) = quiet();
    net.cut();
    for _ in 0..14 {
        net.send(A, b"data");
        net.run(secs(1));
    }
    net.run(secs(4));
    let sent = net.sent(A, INITIATION).last().unwrap().sent.since(start);
    assert!(sent >= secs(15) && sent < millis(15_334), "{sent:?}");
}

#[test]
fn a_keepalive_is_answer_enough() {
    let (mut net, _) = quiet();
    for _ in 0..70 {
        net.send(A, b"data");
        net.run(secs(1));
    }
    assert_eq!(net.sent(A, INITIATION).len(), 1);
}

#[test]
fn keepalives_alone_are_not_expected_to_be_answered() {
    let (mut net, start) = quiet();
    net.set_keepalive(A, 5);
    net.lose(|flight| flight.from == address(B));
    net.run(secs(70));
    assert_eq!(net.sent(A, INITIATION).len(), 1);
    assert_eq!(keepalives_after(&net, A, start).len(), 14);
}

#[test]
fn a_persistent_keepalive_is_sent_at_once_and_then_every_interval() {
    let (mut net, start) = quiet();
    net.set_keepalive(A, 7);
    assert_eq!(net.keepalives(A).last().unwrap().sent, start);
    net.run(secs(22));
    assert_eq!(keepalives_after(&net, A, start), [secs(7), secs(14), secs(21)]);
}

#[test]
fn a_persistent_keepalive_is_not_sent_while_anything_passes_in_either_direction() {
    let (mut net, _) = quiet();
    net.set_keepalive(A, 7);
    let before = net.keepalives(A).len();
    for round in 0..14 {
        net.send(if round % 2 == 0 { A } else { B }, b"data");
        net.run(secs(5));
    }
    assert_eq!(net.keepalives(A).len(), before);
}

#[test]
fn a_changed_interval_counts_from_the_change_and_zero_ends_it() {
    let (mut net, _) = quiet();
    net.set_keepalive(A, 3600);
    net.run(secs(10));
    net.set_keepalive(A, 5);
    let start = net.now;
    net.run(secs(11));
    assert_eq!(keepalives_after(&net, A, start), [secs(5), secs(10)]);
    net.set_keepalive(A, 0);
    net.run(secs(100));
    assert_eq!(keepalives_after(&net, A, start).len(), 2);
}

#[test]
fn persistent_keepalives_make_and_renew_sessions() {
    let mut net = Net::pair();
    net.set_keepalive(A, 25);
    net.run(secs(3600));
    let initiations = net.sent(A, INITIATION).len();
    assert!((24..=30).contains(&initiations), "{initiations} in an hour");
    assert!(!net.nodes[B].peers[&PEER].current.as_ref().unwrap().expired(net.now));
}

#[test]
fn persistent_keepalives_try_again_after_handshakes_were_given_up() {
    let mut net = Net::pair();
    net.cut();
    net.set_keepalive(A, 25);
    net.run(secs(900));
    assert!(net.sent(A, INITIATION).len() > 60);
    net.heal();
    net.run(secs(31));
    assert_eq!(
        net.keepalives(A).len() + net.sent(B, DATA).len(),
        1 + usize::from(net.keepalives(A).len() > 1)
    );
    assert!(net.nodes[A].peers[&PEER].current.is_some());
}

#[test]
fn each_timer_is_named() {
    let mut net = Net::pair();
    assert_eq!(net.timeout(A), None);
    net.cut();
    net.send(A, b"data");
    assert_eq!(net.timeout(A).unwrap().1, Reason::Initiation);
    net.heal();
    net.run(secs(6));
    assert_eq!(net.timeout(A).unwrap().1, Reason::Traffic);
    net.run(secs(60));
    assert_eq!(net.timeout(A).unwrap().1, Reason::Wipe);
    net.set_keepalive(A, 20);
    assert_eq!(net.timeout(A).unwrap().1, Reason::PersistentKeepalive);
}

#[test]
fn busy_traffic_costs_one_look_in_ten_seconds() {
    let (mut net, _) = quiet();
    let mut looks = 0;
    let mut last = None;
    for _ in 0..1000 {
        net.send(A, b"data");
        net.send(B, b"data");
        net.run(millis(100));
        let next = net.timeout(A);
        looks += usize::from(next != last);
        last = next;
    }
    assert!(looks <= 12, "{looks}");
}

#[test]
fn while_the_interface_is_down_nothing_is_sent() {
    let mut net = Net::connected();
    net.set_keepalive(A, 5);
    net.send(B, b"data");
    net.run(millis(100));
    net.set_up(A, false);
    let sent = net.log.iter().filter(|flight| flight.from == net.nodes[A].address).count();
    assert_eq!((net.timeout(A), net.nodes[A].sessions.len()), (None, 0));
    net.send(A, b"staged");
    net.send(B, b"data");
    net.run(secs(60));
    assert_eq!(net.log.iter().filter(|flight| flight.from == net.nodes[A].address).count(), sent);
}

#[test]
fn when_the_interface_comes_up_persistent_keepalives_begin_at_once() {
    let mut net = Net::connected();
    net.set_keepalive(A, 5);
    net.run(secs(1));
    for _ in 0..20 {
        net.set_up(A, false);
        net.run(millis(50));
        net.set_up(A, true);
        net.run(millis(150));
        net.assert_both_ways(millis(50));
    }
}

#[test]
fn a_packet_that_comes_before_the_news_that_the_interface_is_up_begins_a_handshake_then() {
    let mut net = Net::connected();
    net.set_up(A, false);
    let before = net.sent(A, INITIATION).len();
    net.send(A, b"only one");
    net.run(secs(1));
    assert_eq!(net.sent(A, INITIATION).len(), before);
    net.set_up(A, true);
    net.run(secs(1));
    assert_eq!(net.sent(A, INITIATION).len(), before + 1);
    assert_eq!(net.nodes[A].sessions.len(), 1);
    // What was staged before it went down went with it.
    net.set_up(A, false);
    net.set_up(A, true);
    net.run(secs(60));
    assert_eq!(net.sent(A, INITIATION).len(), before + 1);
}

#[test]
fn a_fact_noted_while_nobody_watches_any_more_is_still_seen() {
    let mut net = Net::connected();
    net.run(millis(9_300));
    assert_eq!(net.keepalives(B).len(), 1, "after which B has nothing to wait for");
    // As a worker does that has just seen B watching.
    let activity = std::sync::Arc::clone(&net.nodes[B].peers[&PEER].activity);
    activity.set_owed(Some(net.now));
    net.run(secs(30));
    assert_eq!(net.keepalives(B).len(), 2);
}

#[test]
fn traffic_noted_while_the_interface_was_down_is_told_again_when_it_is_up() {
    let mut net = Net::connected();
    net.set_up(A, false);
    // A worker that has not heard of it yet.
    let activity = std::sync::Arc::clone(&net.nodes[A].peers[&PEER].activity);
    assert!(activity.data_sent(1, 100, net.now));
    net.with(A, |node, _| node.notes.push(PEER));
    net.set_up(A, true);
    net.send(A, b"hello");
    net.run(secs(1));
    net.cut();
    let before = net.sent(A, INITIATION).len();
    net.send(A, b"nobody answers");
    net.run(secs(16));
    assert_eq!(net.sent(A, INITIATION).len(), before + 1);
}
