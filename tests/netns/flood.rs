//! Floods against an encrypted tunnel: cookies, memory that stays as it is, and room for those who are honest.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use uringvpn::stats::drop::DropReason;
use uringvpn::worker::handoff::ARRIVALS_MAX;

use crate::daemon::Daemon;
use crate::hostile::junk;
use crate::raw_peer::{RawPeer, Stamp, send_train};
use crate::raw_session::{Session, Tag, number};
use crate::rig::{PATIENCE, Rig, wait_until};
use crate::spoof::{Wire, udp};
use crate::traffic::Random;

/// What the process may grow by once it has touched its buffers.
const GROWTH_BYTES_MAX: u64 = 4 << 20;
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const ENEMY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
const ANOTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 67);

/// A rig whose second host has two addresses more.
fn rig() -> Option<Rig> {
    let rig = Rig::pair_alone()?;
    for address in [ENEMY, ANOTHER] {
        rig.hosts[1].run(&format!("ip address add {address}/24 dev veth0"));
    }
    Some(rig)
}

/// Messages whose mac1 fits and nothing else.
fn junk_initiations(enemy: &RawPeer, count: usize) -> Vec<Vec<u8>> {
    let mut random = Random(count as u64);
    let junk = |_| {
        let mut message = vec![0; 148];
        random.fill(&mut message);
        message[..4].copy_from_slice(&[1, 0, 0, 0]);
        enemy.write_macs(&mut message, None);
        message
    };
    (0..count).map(junk).collect()
}

/// Something that is done again and again until this is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// `send` sends some datagrams and says how many; `pause` lies between.
    fn start(pause: Duration, mut send: impl FnMut() -> u64 + Send + 'static) -> Flood {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), sent.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                count.fetch_add(send(), Ordering::Relaxed);
                thread::sleep(pause);
            }
        });
        Flood { stop, sent, thread: Some(thread) }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// So many initiations at a time that the daemon is under load, and then it has a rest.
    fn load(enemy: RawPeer) -> Flood {
        let junk = junk_initiations(&enemy, 800);
        Flood::start(Duration::from_millis(300), move || {
            send_train(&enemy.socket, enemy.remote, &junk);
            for heard in enemy.hear_all(Duration::ZERO) {
                assert_eq!((heard.kind(), heard.bytes.len()), (3, 64), "junk gets a cookie or nothing");
            }
            junk.len() as u64
        })
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(thread::panicking() || ended.is_ok());
    }
}

/// A cookie for `peer`: initiations, with a mac2 of another cookie if given, until one of them is answered by one.
#[track_caller]
fn cookie(peer: &RawPeer, other: Option<&Tag>) -> Tag {
    let (give_up, mut sent) = (Instant::now() + PATIENCE, Vec::new());
    while Instant::now() < give_up {
        let mut message = peer.initiation(1, Stamp::now()).message;
        peer.write_macs(&mut message, other);
        peer.send(&message);
        sent.push(message);
        let heard = peer.hear_all(Duration::from_millis(50));
        if let Some(reply) = heard.iter().find(|heard| heard.kind() == 3) {
            assert_eq!((reply.bytes.len(), reply.tos), (64, 0));
            // It may answer an earlier one.
            let opened = sent.iter().find_map(|message| peer.open_cookie(&reply.bytes, message));
            return opened.expect("a cookie that opens");
        }
    }
    panic!("no cookie");
}

/// The session that an initiation with this cookie makes, and how many were sent.
#[track_caller]
fn handshake_with(peer: &RawPeer, cookie: &Tag) -> (Session, usize) {
    let (give_up, mut sent) = (Instant::now() + PATIENCE, Vec::new());
    loop {
        let mut initiation = peer.initiation(sent.len() as u32, Stamp::now());
        peer.write_macs(&mut initiation.message, Some(cookie));
        peer.send(&initiation.message);
        sent.push(initiation);
        // One whose answer is late must not be overtaken by the next: only the newest makes a session that lasts.
        let heard = peer.hear_all(Duration::from_millis(500));
        if let Some(response) = heard.iter().rfind(|heard| heard.kind() == 2) {
            let (tries, answered) = (sent.len(), number(&response.bytes[8..12]));
            let mut session = peer.session(sent.swap_remove(answered as usize), &response.bytes).unwrap();
            peer.send(&session.seal(&[]));
            return (session, tries);
        }
        assert!(Instant::now() < give_up, "no response: {heard:?}");
    }
}

#[test]
fn under_load_a_cookie_shows_that_an_address_and_port_are_ones_own() {
    let Some(rig) = rig() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let load = Flood::load(daemon.stranger(&rig.hosts[1], ENEMY));
    let own = cookie(&peer, None);
    let (mut session, _) = handshake_with(&peer, &own);
    peer.ping(&mut session);
    // Worth nothing from another port or another address: there it is answered by another cookie.
    for address in [PEER, ANOTHER] {
        let elsewhere =
            RawPeer { identity: peer.identity.clone(), ..daemon.stranger(&rig.hosts[1], address) };
        assert_ne!(cookie(&elsewhere, Some(&own)), own);
    }
    // Responses, too; if the load has lapsed for a moment, another peer will see.
    assert!((3..8).any(|last| a_response_needs_a_cookie(&daemon, &daemon.peer_at(&rig, last))));
    drop(load);
    // A second later nobody needs one any more.
    let late = daemon.peer(&rig, 9);
    late.ping(&mut late.handshake(1));
    daemon.stop();
}

/// Lets the daemon begin a handshake and answers it until there is a session; says whether that took a cookie.
fn a_response_needs_a_cookie(daemon: &Daemon<'_>, peer: &RawPeer) -> bool {
    daemon.set_peer(peer, "persistent-keepalive 600");
    let mut answer = peer.respond(&peer.hear(1).bytes, 5);
    let (give_up, mut sent, mut own) = (Instant::now() + PATIENCE, Vec::new(), None);
    loop {
        peer.write_macs(&mut answer.message, own.as_ref());
        peer.send(&answer.message);
        sent.push(answer.message.clone());
        match peer.hear_within(Duration::from_millis(500)) {
            Some(heard) if heard.kind() == 1 => answer = peer.respond(&heard.bytes, 5),
            Some(heard) if heard.kind() == 3 => {
                own = sent.iter().find_map(|message| peer.open_cookie(&heard.bytes, message));
            }
            Some(_) => break,
            None => assert!(Instant::now() < give_up, "neither a cookie nor a session"),
        }
    }
    peer.ping(&mut answer.session);
    own.is_some()
}

#[test]
fn under_load_a_source_gets_five_handshakes_at_once_and_others_are_not_held_up() {
    let Some(rig) = rig() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let mut peers: Vec<RawPeer> = (10..26).map(|last| daemon.peer(&rig, last)).collect();
    let another = RawPeer { socket: daemon.stranger(&rig.hosts[1], ANOTHER).socket, ..daemon.peer(&rig, 9) };
    let socket = daemon.stranger(&rig.hosts[1], PEER).socket;
    for peer in &mut peers {
        peer.socket = socket.try_clone().unwrap();
    }
    let load = Flood::load(daemon.stranger(&rig.hosts[1], ENEMY));
    let mut counts = Vec::new();
    while counts.len() < 120 && !counts.contains(&5) {
        let [own, others] = [&peers[0], &another].map(|peer| cookie(peer, None));
        let messages: Vec<_> = peers
            .iter()
            .map(|peer| {
                let mut initiation = peer.initiation(1, Stamp::now()).message;
                peer.write_macs(&mut initiation, Some(&own));
                initiation
            })
            .collect();
        // A source that was silent has five to spend.
        thread::sleep(Duration::from_millis(300));
        peers[0].hear_all(Duration::ZERO);
        send_train(&socket, Daemon::address(), &messages);
        let (mut session, _) = handshake_with(&another, &others);
        another.ping(&mut session);
        let heard = peers[0].hear_all(Duration::from_millis(100));
        counts.push(heard.iter().filter(|heard| heard.kind() == 2).count());
    }
    println!("responses: {counts:?}");
    // Where the load lapsed for a second they all got theirs; a slow machine may have added one or two.
    assert!(counts.contains(&5), "{counts:?}");
    drop(load);
    daemon.stop();
}

/// What `value` comes to rest at.
fn settled<T: PartialEq>(value: impl Fn() -> T) -> T {
    let mut last = value();
    loop {
        thread::sleep(Duration::from_millis(300));
        let now = value();
        if now == last {
            return now;
        }
        last = now;
    }
}

#[test]
fn an_honest_initiation_is_answered_at_once_behind_junk_that_does_not_know_our_public_key() {
    let Some(rig) = rig() else { return };
    let daemon = Daemon::start(&rig, "--queues 2");
    let enemy = daemon.stranger(&rig.hosts[1], ENEMY);
    let mut random = Random(5);
    let kinds = [(1, 148), (2, 92), (3, 64)];
    for (kind, length) in kinds {
        // Whatever still waits in a socket from before belongs to the kind before.
        let counts =
            || settled(|| [DropReason::BadMac1, DropReason::HandoffFull].map(|of| daemon.dropped(of)));
        let before = counts();
        let junk: Vec<_> = (0..3 * ARRIVALS_MAX).map(|_| junk(&mut random, kind, length, 1)).collect();
        for last in 3..6 {
            let peer = daemon.peer(&rig, 10 * kind + last);
            let initiation = peer.initiation(1, Stamp::now());
            send_train(&enemy.socket, enemy.remote, &junk);
            peer.send(&initiation.message);
            send_train(&enemy.socket, enemy.remote, &junk);
            // Not a cookie: such junk does not mean load.
            let mut session = peer.session(initiation, &peer.hear(2).bytes).unwrap();
            peer.ping(&mut session);
        }
        let after = counts();
        let [refused, no_room] = [after[0] - before[0], after[1] - before[1]];
        println!("type {kind}: {refused} with a wrong mac1, {no_room} found no room");
        // A cookie reply has no mac1.
        assert!(if kind == 3 { refused == 0 } else { refused > ARRIVALS_MAX as u64 && no_room == 0 });
    }
    enemy.hears_nothing(Duration::from_millis(100));
    daemon.stop();
}

#[test]
fn floods_leave_the_tunnel_alive_the_memory_as_it_was_and_the_log_silent() {
    let Some(rig) = rig() else { return };
    // Answers to addresses that nobody has go the way of all others.
    rig.hosts[0].run("ip route add 198.18.0.0/15 via 192.0.2.2");
    let daemon = Daemon::start(&rig, "--queues 2");
    let peer = daemon.peer(&rig, 2);
    let honest = daemon.peer(&rig, 3);
    let mut session = peer.handshake(1);
    peer.ping(&mut session);
    let enemy = || daemon.stranger(&rig.hosts[1], ENEMY);
    let train = |messages: Vec<Vec<u8>>| {
        let enemy = enemy();
        Flood::start(Duration::ZERO, move || {
            send_train(&enemy.socket, enemy.remote, &messages);
            enemy.hear_all(Duration::ZERO);
            messages.len() as u64
        })
    };
    let fitting = junk_initiations(&enemy(), 3000);
    let spoofed = |wire: Wire, messages: Vec<Vec<u8>>| {
        let mut random = Random(1);
        Flood::start(Duration::ZERO, move || {
            for message in &messages {
                let source = Ipv4Addr::from(0xc612_0000 | (random.next() as u32 & 0x1_ffff));
                wire.send(source, 17, 0, 0, &udp(1024 + random.below(60_000) as u16, message));
            }
            messages.len() as u64
        })
    };
    let (mut settled, mut seed) = (0, Random(8));
    for round in 0..2 {
        for kind in [
            "mac1 fits",
            "mac1 does not fit",
            "data of no session",
            "data of our session",
            "sources that nobody has",
        ] {
            let mut messages = fitting.clone();
            let flood = match kind {
                "mac1 fits" => train(messages),
                "sources that nobody has" => spoofed(Wire::open(&rig.hosts[1]), messages),
                _ => {
                    for message in &mut messages {
                        message[16] ^= 1;
                        if kind != "mac1 does not fit" {
                            message[0] = 4;
                        }
                        if kind == "data of our session" {
                            message[4..8].copy_from_slice(&session.remote_index.to_le_bytes());
                            message[8..16].copy_from_slice(&seed.next().to_le_bytes());
                        }
                    }
                    train(messages)
                }
            };
            wait_until("the flood has begun", || flood.sent() > 3000);
            for _ in 0..5 {
                peer.ping(&mut session);
            }
            if round == 1 && ["mac1 fits", "sources that nobody has"].contains(&kind) {
                let own = cookie(&honest, None);
                let (mut fresh, tries) = handshake_with(&honest, &own);
                honest.ping(&mut fresh);
                println!("{kind}: an honest client's handshake took {tries} initiations with its cookie");
            }
            wait_until("enough of the flood", || flood.sent() > 40_000);
            println!("{kind}: {} datagrams", flood.sent());
            drop(flood);
            peer.ping(&mut session);
            daemon.assert_quiet();
        }
        let resident = daemon.process.memory_bytes("VmRSS");
        if round == 0 {
            settled = resident;
        }
        println!("resident: {resident} bytes");
        assert!(resident <= settled + GROWTH_BYTES_MAX, "{settled} bytes, then {resident}");
    }
    let report = daemon.stop();
    println!("{}", report.output);
}
