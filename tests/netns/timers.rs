//! Promises of an encrypted tunnel that take seconds to see. All are watched at once, by one raw peer each.

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use uringvpn::stats::drop::DropReason;

use crate::daemon::{Daemon, base64};
use crate::observed::{SILENCE, emit, emitted};
use crate::raw_peer::{Heard, RawPeer, now};
use crate::rig::{PATIENCE, Rig, wait_equal};

/// What a busy machine may add to a time.
const LATE: Duration = Duration::from_secs(4);

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// A time that a timer fixes: never early, and late only as the machine is.
#[track_caller]
fn assert_about(what: &str, time: Duration, least: f64, most: f64) {
    println!("{what}: {:.3} s", time.as_secs_f64());
    // What it is counted from may have been late, too.
    assert!(time >= seconds(least - 0.7) && time <= seconds(most) + LATE, "{what}: {time:?}");
}

#[test]
fn timers_that_take_seconds_are_kept() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let watchers: [fn(&Rig, &Daemon<'_>, RawPeer); 8] = [
        an_unanswered_initiation_is_sent_again_new_and_only_then,
        data_that_nobody_answers_is_answered_by_a_keepalive,
        a_deaf_peer_is_sent_an_initiation,
        persistent_keepalives_come_and_not_while_anything_passes,
        a_good_cookie_makes_mac2_and_a_bad_one_nothing,
        the_newest_128_packets_wait_in_order,
        a_keepalive_is_never_answered,
        an_old_persistent_keepalive_is_switched_off,
    ];
    thread::scope(|scope| {
        for (watch, last) in watchers.into_iter().zip(2..) {
            let peer = daemon.peer_at(&rig, last);
            let (rig, daemon) = (&rig, &daemon);
            scope.spawn(move || watch(rig, daemon, peer));
        }
    });
    daemon.stop();
}

fn an_unanswered_initiation_is_sent_again_new_and_only_then(_: &Rig, daemon: &Daemon<'_>, peer: RawPeer) {
    let inside = daemon.inner_socket();
    let mut heard: Vec<Heard> = Vec::new();
    let give_up = Instant::now() + PATIENCE;
    while heard.len() < 3 && Instant::now() < give_up {
        // However much there is to send.
        for count in 0..20 {
            emit(&inside, &peer, count, 100);
        }
        heard.extend(peer.hear_within(Duration::from_millis(50)));
    }
    assert_eq!(heard.len(), 3, "initiations");
    for (first, second) in heard.iter().zip(&heard[1..]) {
        assert_eq!((first.kind(), second.kind()), (1, 1));
        assert_about("initiation again", second.at - first.at, 5.0, 5.334);
        let [old, new] = [first, second].map(|heard| peer.respond(&heard.bytes, 1));
        assert!(old.stamp < new.stamp);
        assert!([old.stamp, new.stamp].iter().all(|stamp| stamp.nanos().is_multiple_of(1 << 24)), "whitened");
        assert_ne!(first.bytes[4..8], second.bytes[4..8], "index");
        assert_ne!(first.bytes[8..40], second.bytes[8..40], "ephemeral key");
    }
    // The answer to an older one is none.
    peer.send(&peer.respond(&heard[1].bytes, 1).message);
    peer.hears_nothing(SILENCE);
    let response = peer.respond(&heard[2].bytes, 2);
    peer.send(&response.message);
    let staged = peer.hear(4);
    assert!(response.session.open(&staged.bytes).is_some());
}

fn data_that_nobody_answers_is_answered_by_a_keepalive(_: &Rig, daemon: &Daemon<'_>, peer: RawPeer) {
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    // UDP to a port that nobody answers for: the first data owed an answer counts.
    let quiet = daemon.inner_socket();
    let mut packet = Vec::new();
    let to = quiet.local_addr().unwrap().port();
    etherparse::PacketBuilder::ipv4(peer.inner.octets(), [10, 9, 0, 1], 64)
        .udp(9, to)
        .write(&mut packet, &[1; 40])
        .unwrap();
    let sent = now();
    for _ in 0..3 {
        peer.send(&session.seal(&packet));
        thread::sleep(Duration::from_millis(700));
    }
    let heard = peer.hear_within(PATIENCE).expect("a keepalive");
    assert_eq!((heard.kind(), heard.bytes.len()), (4, 32));
    assert_about("keepalive", heard.at - sent, 10.0, 10.1);
}

fn a_deaf_peer_is_sent_an_initiation(_: &Rig, daemon: &Daemon<'_>, peer: RawPeer) {
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    let inside = daemon.inner_socket();
    emit(&inside, &peer, 0, 100);
    let sent = peer.hear(4).at;
    let mut heard = Vec::new();
    while heard.is_empty() && now() - sent < PATIENCE {
        emit(&inside, &peer, 1, 100);
        let others = peer.hear_all(Duration::from_millis(200));
        heard.extend(others.into_iter().filter(|heard| heard.kind() == 1));
    }
    assert_about("initiation to a deaf peer", heard[0].at - sent, 15.0, 15.334);
}

fn persistent_keepalives_come_and_not_while_anything_passes(_: &Rig, daemon: &Daemon<'_>, peer: RawPeer) {
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    daemon.set_peer(&peer, "persistent-keepalive 2");
    let first = peer.hear(4);
    assert_eq!(first.bytes.len(), 32, "at once when it is switched on");
    let second = peer.hear(4);
    assert_about("persistent keepalive", second.at - first.at, 2.0, 2.0);
    // Whatever passes puts it off. On a machine so busy that we pause, one may come all the same.
    let began = Instant::now();
    let (mut heard, mut longest, mut last) = (Vec::new(), Duration::ZERO, Instant::now());
    while began.elapsed() < Duration::from_secs(5) {
        peer.send(&session.seal(&[]));
        longest = longest.max(last.elapsed());
        last = Instant::now();
        heard.extend(peer.hear_within(Duration::from_millis(200)));
    }
    assert!(heard.is_empty() || longest > Duration::from_millis(1500), "{heard:?}");
    daemon.set_peer(&peer, "persistent-keepalive 0");
}

fn an_old_persistent_keepalive_is_switched_off(_: &Rig, daemon: &Daemon<'_>, peer: RawPeer) {
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    daemon.set_peer(&peer, "persistent-keepalive 1");
    let times: Vec<Duration> = (0..4).map(|_| peer.hear(4).at).collect();
    assert_about("three persistent keepalives", times[3] - times[0], 3.0, 3.0);
    daemon.set_peer(&peer, "persistent-keepalive 0");
    peer.hear_all(SILENCE);
    peer.hears_nothing(Duration::from_secs(2));
}

fn a_keepalive_is_never_answered(_: &Rig, _daemon: &Daemon<'_>, peer: RawPeer) {
    let mut session = peer.handshake(1);
    let began = Instant::now();
    let mut heard = Vec::new();
    while began.elapsed() < Duration::from_secs(12) {
        peer.send(&session.seal(&[]));
        heard.extend(peer.hear_within(Duration::from_millis(300)));
    }
    assert!(heard.is_empty(), "{heard:?}");
}

fn a_good_cookie_makes_mac2_and_a_bad_one_nothing(rig: &Rig, daemon: &Daemon<'_>, peer: RawPeer) {
    let inside = daemon.inner_socket();
    emit(&inside, &peer, 0, 100);
    let first = peer.hear(1).bytes;
    assert_eq!(first[132..], [0; 16], "no mac2 without a cookie");
    let good = peer.cookie_reply(&first, [9; 16]);
    for place in [4, 7, 8, 31, 32, 47, 48, 63] {
        let mut bad = good.clone();
        bad[place] ^= 1;
        peer.send(&bad);
    }
    let second = peer.hear_within(PATIENCE).expect("a second initiation").bytes;
    assert_eq!(second[132..], [0; 16], "a forged cookie");
    // The reply to the message before is too late; the right one may come from anywhere, and counts once.
    peer.send(&good);
    let other = daemon.stranger(&rig.hosts[1], Ipv4Addr::new(192, 0, 2, 2));
    for cookie in [[7; 16], [8; 16]] {
        other.send(&peer.cookie_reply(&second, cookie));
        thread::sleep(Duration::from_millis(20));
    }
    let third = peer.hear_within(PATIENCE).expect("a third initiation").bytes;
    assert_eq!(third[132..], RawPeer::mac2(&third, &[7; 16]));
    let mut response = peer.respond(&third, 2);
    peer.send(&response.message);
    peer.hear(4);
    peer.ping(&mut response.session);
    assert_eq!(daemon.show("endpoints", &peer), peer.socket.local_addr().unwrap().to_string());
}

fn the_newest_128_packets_wait_in_order(_: &Rig, daemon: &Daemon<'_>, peer: RawPeer) {
    let inside = daemon.inner_socket();
    for count in 0..500 {
        emit(&inside, &peer, count, 200);
        // A TUN queue is not without bounds.
        thread::sleep(Duration::from_micros(200));
    }
    let initiation = peer.hear(1).bytes;
    // The others are dropped when all have been read.
    wait_equal("dropped packets", 500 - 128, || {
        let key = base64(&peer.identity.public);
        let peers = daemon.shown().peers;
        let told = peers.iter().find(|told| told.public_key == key).unwrap();
        told.drops.get(DropReason::StageFull.label()).copied().unwrap_or(0)
    });
    let response = peer.respond(&initiation, 1);
    peer.send(&response.message);
    let heard = peer.hear_many(128, Duration::from_millis(500));
    let opened: Vec<(u64, u32)> = heard
        .iter()
        .map(|heard| {
            response.session.open(&heard.bytes).map(|(counter, packet)| (counter, emitted(&packet))).unwrap()
        })
        .collect();
    let expected: Vec<(u64, u32)> = (0..).zip(372..500).collect();
    assert_eq!(opened, expected);
}
