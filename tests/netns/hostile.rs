//! What an enemy may send to an encrypted tunnel: no answer to strangers, no harm to the session beside.
//!
//! "It lives" is a ping through the session that was there before.

use std::net::Ipv4Addr;
use std::thread;
use std::time::Duration;

use uringvpn::stats::drop::DropReason;

use crate::daemon::Daemon;
use crate::raw_peer::{RawPeer, Stamp, send_train};
use crate::raw_session::echo_reply;
use crate::rig::{PATIENCE, Rig, wait_equal, wait_until};
use crate::traffic::Random;

/// How long nothing may come where nothing must.
const SILENCE: Duration = Duration::from_millis(150);
const DATAGRAM_BYTES_MAX: usize = 65_507;

fn random(random: &mut Random, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

/// `length` random bytes that claim to be of `kind`, for the session `receiver`.
pub fn junk(random: &mut Random, kind: u8, length: usize, receiver: u32) -> Vec<u8> {
    let header = [&[kind, 0, 0, 0], &receiver.to_le_bytes()[..]].concat();
    let mut bytes = self::random(random, length);
    let known = length.min(header.len());
    bytes[..known].copy_from_slice(&header[..known]);
    bytes
}

#[test]
fn nobody_is_answered_who_has_not_shown_that_he_knows_the_key() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    let stranger = daemon.stranger(&rig.hosts[1], Ipv4Addr::new(192, 0, 2, 2));
    // Connected, so that an ICMP error would show.
    stranger.socket.connect(Daemon::address()).unwrap();
    let mut random = Random(3);
    let mut bad = Vec::new();
    for length in [0, 1, 2, 3, 4, 8, 15, 16, 31] {
        bad.push(junk(&mut random, 4, length, session.remote_index));
    }
    for (kind, lengths) in [
        (0, [32, 148, 1000]),
        (5, [32, 64, 148]),
        (255, [32, 92, 148]),
        (1, [147, 149, DATAGRAM_BYTES_MAX]),
        (2, [91, 93, DATAGRAM_BYTES_MAX]),
        (3, [63, 65, DATAGRAM_BYTES_MAX]),
        (4, [32, 1500, DATAGRAM_BYTES_MAX]),
    ] {
        bad.extend(lengths.map(|length| junk(&mut random, kind, length, session.remote_index)));
    }
    for kind in 1..=4 {
        let length = [148, 92, 64, 80][kind - 1];
        bad.push(junk(&mut random, kind as u8, length, session.remote_index));
    }
    bad.push(self::random(&mut random, DATAGRAM_BYTES_MAX));
    // Right but for the reserved bytes: the MACs cover them and are made anew.
    for place in 1..4 {
        let mut initiation = peer.initiation(5, Stamp::now()).message;
        initiation[place] = 1;
        peer.write_macs(&mut initiation, None);
        bad.push(initiation);
        for mut message in [junk(&mut random, 2, 92, 1), junk(&mut random, 2, 92, session.remote_index)] {
            message[place] = 0x80;
            peer.write_macs(&mut message, None);
            bad.push(message);
        }
        let mut cookie = peer.cookie_reply(&peer.initiation(6, Stamp::now()).message, [1; 16]);
        cookie[place] = 1;
        let mut data = session.seal(&peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[]).0);
        data[place] = 1;
        bad.extend([cookie, data]);
    }
    // A right initiation but for mac1.
    for place in [116, 131] {
        let mut initiation = peer.initiation(7, Stamp::now()).message;
        initiation[place] ^= 1;
        bad.push(initiation);
    }
    for message in &bad {
        stranger.socket.send(message).unwrap();
        peer.send(message);
    }
    stranger.hears_nothing(SILENCE);
    peer.pings_alone(&mut session);
    let report = daemon.stop();
    let expected =
        [DropReason::NotWireGuard, DropReason::UnknownIndex, DropReason::BadTag, DropReason::BadMac1];
    assert_eq!(report.dropped_otherwise(&expected), 0, "{}", report.output);
}

#[test]
fn what_comes_joined_to_junk_is_still_taken() {
    let Some(rig) = Rig::pair() else { return };
    for io in crate::tunnel::DRIVERS {
        let daemon = Daemon::start(&rig, &format!("--queues 2 --io {io}"));
        let peer = daemon.peer(&rig, 2);
        let mut session = peer.handshake(1);
        peer.ping(&mut session);
        let mut random = Random(4);
        for kind in [0, 1, 2, 3, 4, 255] {
            for index in [session.remote_index, !session.remote_index] {
                let (request, number) = peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[3; 100]);
                let good = session.seal(&request);
                let mut train = vec![junk(&mut random, kind, good.len(), index); 20];
                train.insert(7, good);
                peer.send(&self::random(&mut random, DATAGRAM_BYTES_MAX));
                send_train(&peer.socket, peer.remote, &train);
                let reply = peer.hear(4);
                assert_eq!(
                    session.open(&reply.bytes).and_then(|(_, packet)| echo_reply(&packet)),
                    Some(number)
                );
            }
        }
        peer.hears_nothing(SILENCE);
        daemon.stop();
    }
}

#[test]
fn an_initiation_is_answered_once_and_no_older_one_ever() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let pause = || thread::sleep(Duration::from_millis(60));
    let (older, first) = (peer.initiation(1, Stamp::now()), peer.initiation(2, Stamp::now()));
    // mac2 is nobody's business while there is no load.
    let mut message = first.message.clone();
    message[132..].fill(0xa5);
    peer.send(&message);
    let response = peer.hear(2);
    let mut session = peer.session(first, &response.bytes).unwrap();
    peer.ping(&mut session);
    pause();
    for replay in [&message, &older.message] {
        peer.send(replay);
    }
    peer.hears_nothing(SILENCE);
    let newer = peer.initiation(3, Stamp::now());
    peer.send(&newer.message);
    peer.hear(2);
    pause();
    for replay in [&message, &newer.message, &older.message] {
        peer.send(replay);
        let stranger = daemon.stranger(&rig.hosts[1], Ipv4Addr::new(192, 0, 2, 2));
        stranger.send(replay);
        stranger.hears_nothing(SILENCE / 3);
    }
    peer.pings_alone(&mut session);
    daemon.stop();
}

#[test]
fn of_initiations_that_come_at_once_one_is_answered() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let mut answers = Vec::new();
    // A machine with much else to do may need longer than 20 ms for some of them.
    while !answers.contains(&1) && answers.len() < 20 {
        let burst: Vec<_> = (0..8).map(|number| peer.initiation(number, Stamp::now()).message).collect();
        send_train(&peer.socket, peer.remote, &burst);
        answers.push(peer.hear_all(SILENCE).len());
    }
    assert!(answers.ends_with(&[1]) && !answers.contains(&8), "{answers:?}");
    peer.ping(&mut peer.handshake(9));
    daemon.stop();
}

#[test]
fn the_greatest_stamp_locks_a_key_out_until_its_peer_is_added_again() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "");
    let peer = daemon.peer(&rig, 2);
    let last = peer.initiation(1, Stamp::LAST);
    peer.send(&last.message);
    let response = peer.hear(2);
    let mut session = peer.session(last, &response.bytes).unwrap();
    peer.ping(&mut session);
    thread::sleep(Duration::from_millis(60));
    for stamp in [Stamp::now(), Stamp::LAST] {
        peer.send(&peer.initiation(2, stamp).message);
    }
    peer.hears_nothing(SILENCE);
    peer.ping(&mut session);
    daemon.set_peer(&peer, "remove");
    daemon.set_peer(&peer, &format!("allowed-ips {}/32", peer.inner));
    peer.ping(&mut peer.handshake(3));
    daemon.stop();
}

#[test]
fn an_unknown_key_gets_nothing_and_a_wrong_preshared_key_no_session() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "");
    let mut peer = daemon.peer(&rig, 2);
    let stranger = daemon.stranger(&rig.hosts[1], Ipv4Addr::new(192, 0, 2, 2));
    stranger.send(&stranger.initiation(1, Stamp::now()).message);
    stranger.hears_nothing(SILENCE);
    daemon.set_psk(&peer, &[5; 32]);
    let wrong = peer.initiation(1, Stamp::now());
    peer.send(&wrong.message);
    let response = peer.hear(2);
    assert!(peer.session(wrong, &response.bytes).is_none());
    assert_eq!(daemon.show("latest-handshakes", &peer), "0");
    thread::sleep(Duration::from_millis(60));
    peer.psk = [5; 32];
    let mut session = peer.handshake(2);
    peer.ping(&mut session);
    assert_ne!(daemon.show("latest-handshakes", &peer), "0");
    // A changed one counts at the next handshake.
    daemon.set_psk(&peer, &[6; 32]);
    peer.ping(&mut session);
    thread::sleep(Duration::from_millis(60));
    let old = peer.initiation(3, Stamp::now());
    peer.send(&old.message);
    let response = peer.hear(2);
    assert!(peer.session(old, &response.bytes).is_none());
    peer.psk = [6; 32];
    thread::sleep(Duration::from_millis(60));
    peer.ping(&mut peer.handshake(4));
    daemon.stop();
}

/// Makes the daemon begin a handshake with `peer`, whose endpoint it knows.
fn initiation_to(daemon: &Daemon<'_>, peer: &RawPeer) -> Vec<u8> {
    daemon.inner_socket().send_to(&[0; 50], (peer.inner, 9)).unwrap();
    peer.hear(1).bytes
}

#[test]
fn only_the_right_response_makes_a_session_and_only_once() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let [peer, other] = [2, 3].map(|last| daemon.peer_at(&rig, last));
    let [initiation, others] = [&peer, &other].map(|peer| initiation_to(&daemon, peer));
    // The other peer answers in the name of the first.
    let mut foreign = other.respond(&others, 7).message;
    foreign[8..12].copy_from_slice(&initiation[4..8]);
    other.write_macs(&mut foreign, None);
    let mut right = peer.respond(&initiation, 8);
    let mut bad = vec![foreign];
    for place in [12, 43, 44, 59] {
        let mut message = right.message.clone();
        message[place] ^= 4;
        peer.write_macs(&mut message, None);
        bad.push(message);
    }
    let unknown = u32::from_le_bytes(initiation[4..8].try_into().unwrap()) ^ 0x0100_0000;
    let mut message = right.message.clone();
    message[8..12].copy_from_slice(&unknown.to_le_bytes());
    peer.write_macs(&mut message, None);
    bad.push(message);
    for message in &bad {
        other.send(message);
        peer.send(message);
    }
    // Data for the handshake that is not done.
    peer.send(&right.session.seal_at(0, &peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[]).0));
    peer.hears_nothing(SILENCE);
    other.hears_nothing(Duration::ZERO);
    assert_eq!(daemon.show("latest-handshakes", &peer), "0");
    peer.send(&right.message);
    let staged = peer.hear(4);
    assert_eq!(right.session.open(&staged.bytes).unwrap().0, 0);
    peer.ping(&mut right.session);
    peer.send(&right.message);
    peer.pings_alone(&mut right.session);
    let mut second = other.respond(&others, 9);
    other.send(&second.message);
    other.hear(4);
    other.ping(&mut second.session);
    let report = daemon.stop();
    assert_eq!(report.dropped(DropReason::UnknownIndex), 1, "{}", report.output);
}

#[test]
fn data_is_taken_only_for_a_session_that_is_there() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let [peer, other] = [2, 3].map(|last| daemon.peer(&rig, last));
    let [mut session, mut others] = [peer.handshake(1), other.handshake(1)];
    peer.ping(&mut session);
    other.ping(&mut others);
    let (request, _) = peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[]);
    for wrong in [0, u32::MAX, session.remote_index ^ 2, others.remote_index] {
        let mut message = session.seal(&request);
        message[4..8].copy_from_slice(&wrong.to_le_bytes());
        peer.send(&message);
        other.send(&message);
    }
    peer.pings_alone(&mut session);
    other.pings_alone(&mut others);
    daemon.set_peer(&other, "remove");
    for _ in 0..20 {
        other.send(&others.seal(&other.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[]).0));
    }
    other.send(&other.initiation(2, Stamp::now()).message);
    other.hears_nothing(SILENCE);
    peer.ping(&mut session);
    wait_equal("all to be judged", [2, 6 + 20], || {
        [DropReason::BadTag, DropReason::UnknownIndex].map(|reason| daemon.dropped(reason))
    });
    daemon.stop();
}

#[test]
fn ten_thousand_keepalives_are_not_answered() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    for _ in 0..10 {
        let burst: Vec<_> = (0..1000).map(|_| session.seal(&[])).collect();
        send_train(&peer.socket, peer.remote, &burst);
        // By then there is room again in the socket.
        peer.pings_alone(&mut session);
        let mut bad = session.seal(&[]);
        bad[31] ^= 1;
        peer.send(&bad);
    }
    peer.hears_nothing(SILENCE);
    peer.pings_alone(&mut session);
    let report = daemon.stop();
    assert!(report.total("keepalives") > 5000, "{}", report.output);
    assert_eq!(report.dropped(DropReason::BadTag), 10, "{}", report.output);
}

#[test]
fn peers_choose_any_index_they_like_and_are_never_mixed_up() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peers = [2, 3, 4, 5].map(|last| daemon.peer(&rig, last));
    for index in [0, u32::MAX, 7] {
        thread::sleep(Duration::from_millis(60));
        let mut sessions = [0, 1, 2, 3].map(|place: usize| peers[place].handshake(index));
        for (peer, session) in peers.iter().zip(&mut sessions) {
            // The first answers may still be sealed with the session before.
            peer.ping(session);
            peer.pings_alone(session);
        }
    }
    let report = daemon.stop();
    assert_eq!(report.dropped_otherwise(&[]), 0, "{}", report.output);
}

#[test]
fn initiations_that_cross_end_in_a_session_for_both_directions() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    // The lower and the higher public key behave differently, so there must be some of each.
    for round in 0..10 {
        let peer = daemon.peer_at(&rig, 2 + round);
        let theirs = initiation_to(&daemon, &peer);
        let mine = peer.initiation(1, Stamp::now());
        peer.send(&mine.message);
        let mut answer = peer.respond(&theirs, 2);
        peer.send(&answer.message);
        let (mut began, mut staged) = (None, false);
        let mut mine = Some(mine);
        while began.is_none() || !staged {
            let heard = peer.hear_within(PATIENCE).expect("a response and the staged packet");
            if heard.kind() == 2 {
                began = peer.session(mine.take().unwrap(), &heard.bytes);
            } else {
                let sessions = [Some(&answer.session), began.as_ref()];
                staged |= sessions
                    .iter()
                    .flatten()
                    .any(|session| session.open(&heard.bytes).is_some_and(|(_, packet)| !packet.is_empty()));
            }
        }
        // Only now: a response that another worker brings behind the first use of the other session would be refused.
        let mut began = began.unwrap();
        peer.send(&began.seal(&[]));
        // Whichever of the two it seals with, both open.
        for session in [&mut answer.session, &mut began] {
            let (request, _) = peer.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[]);
            peer.send(&session.seal(&request));
            peer.hear(4);
        }
        peer.hear_all(SILENCE / 5);
    }
    daemon.stop();
}

#[test]
fn a_cookie_reply_moves_no_endpoint() {
    let Some(rig) = Rig::pair() else { return };
    let daemon = Daemon::start(&rig, "");
    let peer = daemon.peer_at(&rig, 2);
    let initiation = initiation_to(&daemon, &peer);
    let endpoint = daemon.show("endpoints", &peer);
    let stranger = daemon.stranger(&rig.hosts[1], Ipv4Addr::new(192, 0, 2, 2));
    stranger.send(&peer.cookie_reply(&initiation, [9; 16]));
    let mut answer = peer.respond(&initiation, 3);
    peer.send(&answer.message);
    peer.hear(4);
    wait_until("the handshake", || daemon.show("latest-handshakes", &peer) != "0");
    assert_eq!(daemon.show("endpoints", &peer), endpoint);
    peer.ping(&mut answer.session);
    daemon.stop();
}
