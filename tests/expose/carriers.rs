//! Visitors who share one connection to their client: what is promised beside what [`crate::memory`] shows of both ways.

use nix::errno::Errno;
use proptest::prelude::*;
use uringvpn::expose::message::{ClientMessage, Uuid, frame};
use uringvpn::expose::mux::frames::{Piece, put};
use uringvpn::expose::mux::window::WINDOW_BYTES;
use uringvpn::expose::mux::{Mux, Told};
use uringvpn::expose::news::News;
use uringvpn::expose::relay::Limits;
use uringvpn::io::tcp::fake::Network;
use uringvpn::io::tcp::{Event, Id, Tcp, Wait};
use uringvpn::proto::rng::Rng;
use uringvpn::stats::exposed::reasons::{Refused, TurnedAway};
use uringvpn::stats::exposed::recorder::Meter;
use uringvpn::time::Span;

use crate::drivers::ANY;
use crate::world::{
    SERVICE, World, both_ways, client_config, control, mux_config, public, secret, server_config,
};

/// Sockets of a server with one client that has a carrier.
const AT_REST: usize = 4;

#[test]
fn a_hundred_visitors_need_no_further_connection_between_client_and_server() {
    let mut world = World::new(1, server_config());
    let port = world.public_client(mux_config());
    let visitors: Vec<_> =
        (0..100).map(|number| world.ask(public(port), format!("I am {number:03}").as_bytes())).collect();
    world.until("all are served", |world| {
        world.service.conns.iter().filter(|(_, conn)| conn.got.len() == 8).count() == 100
    });
    assert_eq!(world.server_sockets(), AT_REST + 100);
    for index in 0..100 {
        let (served, conn) = &world.service.conns[index];
        let (served, answer) = (*served, [&conn.got[..], b" too"].concat());
        world.service.send(served, &answer);
    }
    world.until("all have an answer", |world| {
        visitors
            .iter()
            .enumerate()
            .all(|(number, id)| world.peer.text(*id) == format!("I am {number:03} too"))
    });
}

#[test]
fn a_visitor_who_comes_before_the_carrier_has_a_connection_of_its_own_and_both_go_on() {
    let mut world = World::new(2, server_config());
    let index = world.start_client(mux_config());
    world.until("the port is public", |world| world.clients[index].public_port().is_some());
    let port = world.clients[index].public_port().unwrap();
    let early = world.ask(public(port), b"early");
    world.until("visitors share a connection", |world| {
        world.heard(|news| matches!(news, News::Carried { .. }))
    });
    let late = world.ask(public(port), b"late");
    world.until("both are served", |world| {
        world.service.conns.iter().filter(|(_, conn)| !conn.got.is_empty()).count() == 2
    });
    assert!(!world.peer.over(early) && !world.peer.over(late));
    assert_eq!(world.server_sockets(), AT_REST + 2 + 1, "a pair and a stream");
}

#[test]
fn without_a_lease_each_visitor_has_a_connection_and_the_operator_hears_why() {
    let mut config = server_config();
    config.lease = Span::ZERO;
    let mut world = World::new(3, config);
    let index = world.start_client(mux_config());
    world.until("the operator hears", |world| world.heard(|news| matches!(news, News::CarrierLost { .. })));
    let port = world.clients[index].public_port().unwrap();
    world.ask(public(port), b"hello");
    world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.got == b"hello"));
    world.pass(Span::from_secs(100));
    let told = world.news.iter().filter(|news| matches!(news, News::CarrierLost { .. })).count();
    assert_eq!(told, 1, "there is nothing to try again");
}

#[test]
fn when_the_carrier_breaks_its_visitors_hear_of_it_and_the_next_is_served_at_once() {
    for secret in [None, secret("secret")] {
        let mut config = server_config();
        config.secret = secret.clone();
        let mut world = World::new(4, config);
        let mut config = mux_config();
        config.secret = secret;
        let port = world.public_client(config);
        let visitor = world.ask(public(port), b"hello");
        world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.got == b"hello"));
        world.news.clear();
        // Of the control connection too, and of those to the service.
        world.clients[0].tcp().break_all(Errno::ECONNRESET);
        world.until("the visitor hears", |world| world.peer.conn(visitor).failed.is_some());
        let next = world.ask(public(port), b"I waited");
        world.until("the next is served", |world| {
            world.service.conns.iter().any(|(_, conn)| conn.got == b"I waited")
        });
        world.until("there is a carrier again", |world| {
            world.heard(|news| matches!(news, News::Carried { .. }))
        });
        world.peer.reset(next);
        world.until("nothing is left", |world| world.server_sockets() == AT_REST && world.buffers_home());
        assert_eq!(world.clients[0].tcp().open(), 2);
    }
}

#[test]
fn a_client_that_is_killed_and_started_again_carries_its_visitors_again() {
    let mut config = server_config();
    config.secret = secret("secret");
    let mut world = World::new(5, config);
    let config = || {
        let mut config = mux_config();
        (config.secret, config.port) = (secret("secret"), 5000);
        config
    };
    world.public_client(config());
    let visitor = world.ask(public(5000), b"hello");
    world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.got == b"hello"));
    world.kill_client(0);
    world.until("the visitor hears", |world| world.peer.over(visitor));
    world.news.clear();
    assert_eq!(world.public_client(config()), 5000);
    world.ask(public(5000), b"again");
    world
        .until("another is served", |world| world.service.conns.iter().any(|(_, conn)| conn.got == b"again"));
    assert_eq!(world.server_sockets(), AT_REST + 1);
}

#[test]
fn a_client_that_ends_serves_those_it_has_and_takes_nobody_more() {
    let mut world = World::new(6, server_config());
    let port = world.public_client(mux_config());
    let visitor = world.ask(public(port), b"question");
    world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.got == b"question"));
    world.clients[0].drain();
    let late = world.ask(public(port), b"late");
    world.until("nobody is let in", |world| world.peer.over(late));
    assert!(!world.clients[0].is_idle());
    let served = world.service.conns[0].0;
    world.service.send(served, b"answer");
    world.service.end(served);
    world.peer.end(visitor);
    world.until("it is done", |world| world.clients[0].is_idle());
    world.kill_client(0);
    world.until("the visitor has it all", |world| world.peer.conn(visitor).ended);
    assert_eq!(world.peer.text(visitor), "answer");
    world.until("nothing is left", |world| world.server_sockets() == 1 && world.buffers_home());
    let unasked = |news: &News| matches!(news, News::CarrierLost { .. });
    assert!(!world.heard(unasked), "{:?}", world.news);
}

/// The service has ended, a visitor says more, and then ends: all of it and the end are with the service before the server ends.
#[test]
fn a_server_that_drains_ends_when_its_client_has_everything() {
    for (config, _) in both_ways() {
        let mut world = World::new(12, server_config());
        let port = world.public_client(config);
        let visitor = world.ask(public(port), b"question");
        world.until("it is served", |world| {
            world.service.conns.iter().any(|(_, conn)| conn.got == b"question")
        });
        let served = world.service.conns[0].0;
        world.service.end(served);
        world.until("the visitor has the end", |world| world.peer.conn(visitor).ended);
        world.server.as_mut().unwrap().drain();
        world.peer.send(visitor, b" and more");
        world.peer.end(visitor);
        world.until("it is done", |world| world.server.as_ref().unwrap().is_idle());
        world.kill_server();
        world.until("the service has the end", |world| world.service.over(served));
        assert_eq!(world.service.text(served), "question and more");
        assert_eq!(world.service.conn(served).failed, None);
    }
}

/// Both have ended, and the visitor has not read all of it: a part must not look like the whole.
#[test]
fn what_is_broken_off_does_not_look_like_an_end() {
    for (config, _) in both_ways() {
        let mut world = World::new(13, server_config());
        let port = world.public_client(config);
        let visitor = world.ask(public(port), b"question");
        world.peer.stop_reading(visitor);
        world.peer.end(visitor);
        world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.ended));
        let served = world.service.conns[0].0;
        world.service.send(served, &[7; 220_000]);
        world.service.end(served);
        world.pass(Span::from_secs(5));
        world.server.as_mut().unwrap().break_off();
        world.kill_server();
        world.peer.read_again(visitor);
        world.until("the visitor hears", |world| world.peer.over(visitor));
        let conn = world.peer.conn(visitor);
        assert!(
            conn.failed.is_some() && conn.got.len() < 220_000,
            "{} bytes, {:?}",
            conn.got.len(),
            conn.failed
        );
    }
}

#[test]
fn when_the_service_is_down_the_visitor_is_turned_away_and_nothing_is_left() {
    let mut world = World::new(7, server_config());
    let port = world.public_client(mux_config());
    world.network.refuse(SERVICE, Some(Errno::ECONNREFUSED));
    let visitor = world.ask(public(port), b"hello");
    world.until("it is turned away", |world| world.peer.over(visitor));
    let recorder = world.clients[0].recorder();
    assert_eq!(recorder.turned_away.get(TurnedAway::LocalUnreachable), 1);
    world.network.refuse(SERVICE, None);
    world.ask(public(port), b"hello again");
    world.until("the next is served", |world| {
        world.service.conns.iter().any(|(_, conn)| conn.got == b"hello again")
    });
    assert_eq!(world.server_sockets(), AT_REST + 1);
}

#[test]
fn a_visitor_who_leaves_before_the_service_answers_leaves_nothing() {
    let mut world = World::new(8, server_config());
    let port = world.public_client(mux_config());
    for _ in 0..20 {
        let visitor = world.ask(public(port), b"hello");
        world.peer.reset(visitor);
        world.step();
    }
    world.until("nothing is left", |world| {
        world.server_sockets() == AT_REST && world.clients[0].tcp().open() == 2 && world.buffers_home()
    });
    assert!(world.clients[0].is_idle());
}

#[test]
fn whoever_knows_no_lease_carries_nobody() {
    let mut world = World::new(9, server_config());
    let port = world.public_client(mux_config());
    let unknown = ClientMessage::Carry(Uuid::random(&mut Rng::from_seed([3; 32])));
    let enemy = world.ask(control(), &frame(&unknown));
    world.until("it is refused", |world| world.peer.over(enemy));
    let recorder = world.server.as_ref().unwrap().recorder();
    assert_eq!(recorder.refused.get(Refused::UnknownLease), 1);
    world.ask(public(port), b"hello");
    world.until("its client has the visitor", |world| {
        world.service.conns.iter().any(|(_, conn)| conn.got == b"hello")
    });
}

#[test]
fn many_great_streams_on_one_carrier_are_all_served_though_it_is_slow() {
    let mut world = World::new(10, server_config());
    let port = world.public_client(mux_config());
    let visitors: Vec<_> = (0..60).map(|_| world.peer.connect(public(port))).collect();
    for visitor in &visitors {
        world.peer.send(*visitor, &[5; 300_000]);
        world.peer.end(*visitor);
    }
    world.until("all have arrived", |world| {
        world.service.conns.iter().filter(|(_, conn)| conn.ended && conn.got.len() == 300_000).count() == 60
    });
}

#[test]
fn a_stock_client_beside_it_is_not_disturbed() {
    let mut world = World::new(11, server_config());
    world.public_client(mux_config());
    let other = world.public_client(client_config());
    let visitor = world.ask(public(other), b"hello");
    world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.got == b"hello"));
    assert_eq!(world.server_sockets(), AT_REST + 2 + 2, "a connection of its own");
    assert!(!world.peer.over(visitor));
}

/// A carrier to a [`Mux`], and who sends what it likes at the other end of it.
struct Enemy {
    network: Network,
    mux: Mux<()>,
    ours: uringvpn::io::tcp::fake::Fake,
    theirs: uringvpn::io::tcp::fake::Fake,
    at: Id,
    carrier: Id,
}

impl Enemy {
    fn new(accepts: bool) -> Enemy {
        let network = Network::new(1);
        let (mut ours, mut theirs) = (network.node(), network.node());
        let at = "10.1.0.9:1".parse().unwrap();
        let (listener, _) = ours.listen(at, &ANY).unwrap();
        ours.accept(listener);
        let at = theirs.connect(at, &ANY).unwrap();
        let mut mux = Mux::new(Limits::default(), accepts);
        let mut events = Vec::new();
        while !events.iter().any(|event| matches!(event, Event::Accepted { .. })) {
            ours.turn(Wait::Not, &mut events).unwrap();
        }
        let accepted = |event: &Event| match event {
            Event::Accepted { id, .. } => Some(*id),
            _ => None,
        };
        let carrier = events.iter().find_map(accepted).unwrap();
        mux.carry(&mut ours, carrier, None, 0);
        Enemy { network, mux, ours, theirs, at, carrier }
    }

    /// Sends `bytes`; what the other side told until all was read, or until it had enough.
    fn send(&mut self, bytes: &[u8]) -> Vec<Told<()>> {
        if !bytes.is_empty() {
            self.theirs.send_bytes(self.at, bytes);
        }
        let mut told = Vec::new();
        for _ in 0..200 {
            let mut events = Vec::new();
            self.theirs.turn(Wait::Not, &mut Vec::new()).unwrap();
            self.ours.turn(Wait::Not, &mut events).unwrap();
            for event in events {
                // Connected, accepted.
                let _ = self.mux.handle(&mut self.ours, event);
            }
            told.extend(std::iter::from_fn(|| self.mux.take_told()));
            self.mux.flush(&mut self.ours);
            self.network.advance_to(self.network.now() + Span::from_millis(1));
        }
        assert!(self.ours.buffers_home());
        told
    }
}

fn pieces(pieces: &[Piece<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    pieces.iter().for_each(|piece| put(*piece, &mut bytes));
    bytes
}

fn lost(told: &[Told<()>]) -> Option<&str> {
    told.iter().find_map(|told| match told {
        Told::Lost { reason, .. } => Some(&reason[..]),
        _ => None,
    })
}

#[test]
fn whoever_breaks_the_rules_loses_the_carrier_and_is_told_why() {
    let from = "192.0.2.1:80".parse().unwrap();
    let open = |stream| Piece::Open { stream, from };
    let data = |stream, bytes| Piece::Data { stream, bytes };
    let much = vec![0; WINDOW_BYTES];
    let breaches: [(&str, Vec<Piece<'_>>); 9] = [
        ("a stream that was never opened", vec![data(1, b"x")]),
        ("a stream that was never opened", vec![open(1), Piece::Credit { stream: 2, bytes: 1 }]),
        ("a stream opened twice, or by the wrong side", vec![open(1), open(1)]),
        ("a stream opened twice, or by the wrong side", vec![open(5), open(4)]),
        ("more bytes than its window has room for", vec![open(1), data(1, &much), data(1, b"x")]),
        ("more bytes than its window has room for", vec![open(1), Piece::Credit { stream: 1, bytes: 1 }]),
        ("data behind its end", vec![open(1), Piece::End(1), data(1, b"x")]),
        ("data behind its end", vec![open(1), Piece::End(1), Piece::End(1)]),
        ("a stream that was never opened", vec![Piece::Reset(9)]),
    ];
    for (reason, breach) in breaches {
        let told = Enemy::new(true).send(&pieces(&breach));
        assert_eq!(lost(&told), Some(&format!("the other side sent {reason}")[..]), "{breach:?}");
    }
    let told = Enemy::new(false).send(&pieces(&[open(1)]));
    assert_eq!(lost(&told), Some("the other side sent a stream opened twice, or by the wrong side"));
    let told = Enemy::new(true).send(b"GET / HTTP/1.1\r\n\r\n");
    assert_eq!(lost(&told), Some("the other side sent a frame of kind 47"));
}

#[test]
fn a_carrier_that_is_done_is_read_until_the_other_side_is_done_too() {
    let from = "192.0.2.1:80".parse().unwrap();
    let mut enemy = Enemy::new(true);
    let told = enemy.send(&pieces(&[Piece::Open { stream: 1, from }]));
    let [Told::Opened { stream, .. }] = told[..] else { panic!("{told:?}") };
    enemy.mux.refuse(stream);
    enemy.mux.retire(enemy.carrier);
    // What was on its way when it heard.
    let late = [Piece::Data { stream: 1, bytes: b"x" }, Piece::End(1), Piece::Open { stream: 2, from }];
    let told = enemy.send(&pieces(&late));
    assert!(told.is_empty() && enemy.mux.is_empty() && !enemy.mux.is_over(), "{told:?}");
    enemy.theirs.shut_down(enemy.at);
    assert!(enemy.send(b"").is_empty() && enemy.mux.is_over());
    assert_eq!(enemy.ours.open(), 1, "the listener");

    let mut enemy = Enemy::new(true);
    enemy.mux.retire(enemy.carrier);
    enemy.send(b"");
    enemy.network.advance_to(enemy.network.now() + Span::from_secs(16));
    enemy.ours.turn(Wait::Not, &mut Vec::new()).unwrap();
    enemy.mux.expire(&mut enemy.ours);
    assert!(enemy.mux.is_over(), "nobody is waited for who never ends");
}

/// Visitors come and go while nobody reads the carrier.
#[test]
fn no_stream_is_opened_on_a_carrier_that_nobody_reads() {
    let mut enemy = Enemy::new(false);
    let mut opened = 0;
    while enemy.mux.can_open(enemy.carrier) {
        let socket = enemy.ours.connect("10.1.0.9:1".parse().unwrap(), &ANY).unwrap();
        let from = "192.0.2.1:80".parse().unwrap();
        enemy.mux.open(&mut enemy.ours, enemy.carrier, socket, from, (), Meter::default());
        let failed = Event::Failed { id: socket, error: Errno::ECONNRESET };
        enemy.mux.handle(&mut enemy.ours, failed).unwrap();
        while enemy.mux.take_told().is_some() {}
        opened += 1;
        assert!(opened < 10_000, "34 bytes each");
    }
    assert!(enemy.mux.is_empty());
}

#[test]
fn frames_for_a_stream_that_is_over_are_late_and_nothing_else() {
    let from = "192.0.2.1:80".parse().unwrap();
    let over = [Piece::Open { stream: 1, from }, Piece::Reset(1)];
    let late = [
        Piece::Data { stream: 1, bytes: b"x" },
        Piece::Credit { stream: 1, bytes: 9 },
        Piece::End(1),
        Piece::Reset(1),
        Piece::Open { stream: 2, from },
    ];
    let mut enemy = Enemy::new(true);
    let told = enemy.send(&[pieces(&over), pieces(&late)].concat());
    assert!(matches!(told[..], [Told::Opened { .. }, Told::Withdrawn(_), Told::Opened { .. }]), "{told:?}");
    assert_eq!(enemy.mux.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Frames of every kind in any order, and in between what is none.
    #[test]
    fn arbitrary_frames_leave_a_carrier_or_end_it(
        kinds in proptest::collection::vec((0u8..7, 0u32..6, prop_oneof![Just(0u32), Just(4), Just(18), 0u32..400_000]), 0..30),
        accepts in any::<bool>(),
    ) {
        let mut bytes = Vec::new();
        for (kind, stream, length) in kinds {
            bytes.extend(stream.to_be_bytes());
            bytes.extend((u32::from(kind) << 24 | length).to_be_bytes());
            bytes.extend((0..length.min(1000)).map(|byte| byte as u8));
        }
        let mut enemy = Enemy::new(accepts);
        let told = enemy.send(&bytes);
        let opened = told.iter().filter(|told| matches!(told, Told::Opened { .. })).count();
        let gone = told.iter().filter(|told| matches!(told, Told::Withdrawn(_))).count();
        prop_assert_eq!(enemy.mux.len(), opened - gone);
        prop_assert!(lost(&told).is_none() || enemy.mux.is_empty());
    }
}
