//! What is counted and timed is what happened, exactly: on the network in memory, whose clock stands where the test puts it.

use std::sync::Arc;

use uringvpn::expose::message::{ClientMessage, frame};
use uringvpn::stats::exposed::Kind;
use uringvpn::stats::exposed::reasons::{Ended, Reason, Refused, TurnedAway};
use uringvpn::stats::exposed::recorder::{DISTRIBUTIONS, Recorder};
use uringvpn::stats::exposed::snapshot::{ExposedSnapshot, PortSnapshot, Sums};
use uringvpn::stats::snapshot::Quantiles;
use uringvpn::time::Span;

use crate::world::{SERVICE, World, client_config, control, public, secret, server_config, udp_config};

fn snapshot(recorder: &Arc<Recorder>, kind: Kind) -> ExposedSnapshot {
    let mut snapshot = Sums::of([recorder.as_ref()]).snapshot(kind);
    snapshot.ports = recorder.ports().iter().map(|port| PortSnapshot::of(port)).collect();
    snapshot
}

fn of_server(world: &World) -> ExposedSnapshot {
    snapshot(&world.server.as_ref().unwrap().recorder(), Kind::Server)
}

fn of_client(world: &World) -> ExposedSnapshot {
    snapshot(&world.clients[0].recorder(), Kind::Local)
}

fn count(snapshot: &ExposedSnapshot, reason: &str) -> u64 {
    let all = [&snapshot.ended, &snapshot.turned_away, &snapshot.refused];
    let found = all.iter().flat_map(|counts| counts.iter()).filter(|count| count.reason == reason);
    found.map(|count| count.count).sum()
}

fn row<'a>(snapshot: &'a ExposedSnapshot, name: &str) -> &'a Quantiles {
    snapshot.distributions.iter().find(|row| row.name == name).unwrap()
}

/// The law, of both sides.
#[track_caller]
fn assert_all_accounted_for(world: &World) {
    for told in [of_server(world)].into_iter().chain((!world.clients.is_empty()).then(|| of_client(world))) {
        let counted = |name: &str| told.counters.get(name).copied().unwrap_or_default();
        let turned_away: u64 = told.turned_away.iter().map(|count| count.count).sum();
        let ended: u64 = told.ended.iter().map(|count| count.count).sum();
        let sum = counted("joined") + turned_away + counted("left") + told.present["waiting"];
        assert_eq!(counted("visitors"), sum, "{told:#?}");
        assert_eq!(counted("joined"), told.present["open"] + ended, "{told:#?}");
        for name in ["join", "duration", "in_bytes"] {
            let expected = if name == "join" { counted("joined") } else { ended };
            assert_eq!(row(&told, name).count, expected, "{name}");
        }
    }
}

#[test]
fn bytes_ends_and_times_of_connections_are_those_that_happened() {
    let mut world = World::new(11, server_config());
    let port = world.public_client(client_config());
    let [finished, broken, open] =
        [b"abc".as_slice(), b"x", b"yy"].map(|bytes| world.ask(public(port), bytes));
    world.until("the service got all", |world| {
        world.service.conns.iter().map(|(_, conn)| conn.got.len()).sum::<usize>() == 6
    });
    // The service takes a second to answer the first.
    world.pass(Span::from_secs(1));
    let at_service = |world: &World, got: &[u8]| {
        world.service.conns.iter().find(|(_, conn)| conn.got == got).map(|(id, _)| *id).unwrap()
    };
    let answering = at_service(&world, b"abc");
    world.service.send(answering, &[7; 1000]);
    world.until("the answer", |world| world.peer.conn(finished).got.len() == 1000);
    for told in [of_server(&world), of_client(&world)] {
        assert_eq!(
            (told.present["open"], told.counters["in_bytes"], told.counters["out_bytes"]),
            (3, 6, 1000)
        );
        assert_eq!(told.ports.len(), 1);
        let PortSnapshot { open, visitors, in_bytes, out_bytes, .. } = told.ports[0];
        assert_eq!((told.ports[0].port, open, visitors, in_bytes, out_bytes), (port, 3, 3, 6, 1000));
    }
    world.service.end(answering);
    world.peer.end(finished);
    world.peer.reset(broken);
    world.until("two are over", |world| {
        of_server(world).present["open"] == 1 && of_client(world).present["open"] == 1
    });
    for told in [of_server(&world), of_client(&world)] {
        assert_eq!([count(&told, "finished"), count(&told, "broken"), count(&told, "idle")], [1, 1, 0]);
        let first_byte = row(&told, "first_byte");
        assert_eq!(first_byte.count, 1, "of three, one was answered");
        assert!((1_000_000_000..1_300_000_000).contains(&first_byte.max), "{first_byte:?}");
        assert!(row(&told, "join").max < 300_000_000);
        let (sizes_in, sizes_out) = (row(&told, "in_bytes"), row(&told, "out_bytes"));
        assert_eq!((sizes_in.count, sizes_in.max, sizes_in.min), (2, 3, 1));
        assert!(sizes_out.max.abs_diff(1000) < 10 && sizes_out.min == 0, "{sizes_out:?}");
        assert!((1_000_000_000..2_000_000_000).contains(&row(&told, "duration").max));
    }
    assert_eq!(row(&of_client(&world), "connect").count, 3);
    assert_all_accounted_for(&world);
    assert!(!world.peer.over(open));
}

#[test]
fn who_is_turned_away_or_leaves_is_counted_by_reason() {
    let mut config = server_config();
    config.connections_per_client_max = 2;
    let mut world = World::new(12, config);
    // A stock client that takes nobody.
    let owner = world.ask(control(), b"{\"Hello\":2000}\0");
    world.until("the port", |world| world.peer.frames(owner) > 0);
    let [leaves, _waits, too_many] = [(); 3].map(|()| world.peer.connect(public(2000)));
    world.until("the third is turned away", |world| world.peer.over(too_many));
    world.peer.reset(leaves);
    world.until("the first has left", |world| of_server(world).counters["left"] == 1);
    let told = of_server(&world);
    assert_eq!((told.present["waiting"], told.counters["visitors"]), (1, 3));
    assert_eq!(count(&told, TurnedAway::TooManyOfClient.label()), 1);
    world.pass(Span::from_secs(11));
    assert_eq!(count(&of_server(&world), TurnedAway::NotTaken.label()), 1);
    let last = world.peer.connect(public(2000));
    world.until("another waits", |world| of_server(world).present["waiting"] == 1);
    world.peer.reset(owner);
    world.until("the port is closed", |world| world.peer.over(last));
    let told = of_server(&world);
    assert_eq!((count(&told, TurnedAway::PortClosed.label()), told.ports.len()), (1, 0));
    assert_eq!((told.present["ports_open"], told.counters["lost"], told.counters["opened"]), (0, 1, 1));
    assert_all_accounted_for(&world);
}

#[test]
fn a_visitor_of_a_service_that_is_down_is_the_services_fault_on_the_client_and_joined_nowhere() {
    let mut world = World::new(13, server_config());
    let port = world.public_client(client_config());
    world.service.tcp.close_all();
    let visitor = world.peer.connect(public(port));
    world.until("it hears of it", |world| world.peer.over(visitor));
    world.until("both have noticed", |world| of_client(world).present["waiting"] == 0);
    let told = of_client(&world);
    assert_eq!((count(&told, TurnedAway::LocalUnreachable.label()), told.counters["visitors"]), (1, 1));
    assert_eq!((row(&told, "connect").count, row(&told, "join").count), (0, 0));
    assert_eq!(told.ports[0].turned_away, 1);
    assert_all_accounted_for(&world);
}

#[test]
fn refused_callers_are_counted_by_reason() {
    let mut config = server_config();
    (config.secret, config.ports) = (secret("hush"), 2000..=2999);
    let mut world = World::new(14, config);
    let proof = b"{\"Authenticate\":\"00\"}\0";
    let said: [&[u8]; 4] = [proof, b"{\"Hello\":2000}\0", &[b'x'; 300], b""];
    let callers = said.map(|bytes| world.ask(control(), bytes));
    world.until("all are refused", |world| callers.iter().all(|caller| world.peer.over(*caller)));
    let told = of_server(&world);
    for reason in [Refused::WrongSecret, Refused::NoSecret, Refused::NotTheProtocol, Refused::Silent] {
        assert_eq!(count(&told, reason.label()), 1, "{reason:?}");
    }
    let refused: u64 = told.refused.iter().map(|count| count.count).sum();
    assert_eq!((told.counters["callers"], refused, told.present["pending_callers"]), (4, 4, 0));
}

#[test]
fn a_client_that_comes_back_is_counted_on_both_sides_and_its_port_goes_on() {
    let mut world = World::new(15, server_config());
    let port = world.public_client(client_config());
    let first = world.ask(public(port), b"1");
    world.until("it is joined", |world| of_server(world).present["open"] == 1);
    world.kill_server();
    world.until("the client notices", |world| of_client(world).counters["lost"] > 0);
    let told = of_client(&world);
    assert_eq!((told.present["ports_open"], told.present["ports_held"]), (0, 1));
    assert_eq!(told.ports[0].state, "held");
    world.start_server(server_config());
    world.until("it is back", |world| world.clients[0].public_port() == Some(port));
    world.step();
    let told = of_client(&world);
    assert_eq!((told.counters["reconnects"], told.counters["opened"]), (1, 1));
    assert_eq!((told.ports[0].state.as_str(), told.ports[0].visitors), ("open", 1));
    assert_eq!((told.present["ports_open"], told.present["ports_held"]), (1, 0));
    assert!(world.peer.over(first));
    assert_all_accounted_for(&world);
}

#[test]
fn a_port_that_is_held_is_told_as_such_until_its_client_is_back() {
    let mut world = World::new(16, server_config());
    let port = world.public_client(client_config());
    let told = of_server(&world);
    assert_eq!((told.ports[0].state.as_str(), told.present["ports_open"]), ("open", 1));
    world.kill_client(0);
    world.until("it is held", |world| of_server(world).present["ports_held"] == 1);
    let told = of_server(&world);
    assert_eq!((told.ports[0].port, told.ports[0].state.as_str()), (port, "held"));
    assert_eq!((told.present["ports_open"], told.counters["lost"]), (0, 1));
    world.pass(Span::from_secs(61));
    let told = of_server(&world);
    assert!(told.ports.is_empty() && told.present["ports_held"] == 0);
}

#[test]
fn silence_ends_a_connection_and_is_counted_as_that() {
    let mut config = server_config();
    config.idle = Some(Span::from_secs(5));
    let mut world = World::new(17, config);
    let port = world.public_client(client_config());
    let visitor = world.ask(public(port), b"1");
    world.until("it ends", |world| world.peer.over(visitor));
    let told = of_server(&world);
    assert_eq!((count(&told, Ended::Idle.label()), count(&told, Ended::Broken.label())), (1, 0));
    let duration = row(&told, "duration");
    assert!((5_000_000_000..6_000_000_000).contains(&duration.max), "{duration:?}");
    world.until("the client has noticed", |world| of_client(world).present["open"] == 0);
    assert_eq!(count(&of_client(&world), Ended::Broken.label()), 1);
    assert_all_accounted_for(&world);
}

#[test]
fn each_distribution_says_what_it_includes() {
    for (_, info) in DISTRIBUTIONS {
        assert!(info.help.len() > 40 && info.help.ends_with('.'), "{}", info.name);
    }
}

#[test]
fn visitors_of_a_udp_port_are_counted_like_those_of_a_tcp_port() {
    let mut world = World::new(14, server_config());
    world.service.serve_datagrams(SERVICE);
    world.service.echoes = true;
    let port = world.public_client(udp_config(5000));
    let visitors: Vec<_> = (0..3).map(|_| world.peer.datagrams_to(public(port))).collect();
    for visitor in &visitors {
        world.peer.send_datagram(*visitor, &[7; 100]);
        world.peer.send_datagram(*visitor, &[]);
    }
    world.until("the echoes", |world| visitors.iter().all(|id| world.peer.came_to(*id).len() == 2));
    for told in [of_server(&world), of_client(&world)] {
        assert_eq!(
            (told.present["open"], told.counters["in_bytes"], told.counters["out_bytes"]),
            (3, 300, 300)
        );
        let [port] = &told.ports[..] else { panic!("{:?}", told.ports) };
        assert_eq!((port.name().as_str(), port.open, port.visitors), ("5000/udp", 3, 3));
        assert_eq!((port.in_bytes, port.out_bytes), (300, 300));
        assert_eq!(row(&told, "first_byte").count, 3);
    }
    assert_all_accounted_for(&world);
    world.pass(Span::from_secs(61));
    world.until("they are over", |world| {
        of_server(world).present["open"] + of_client(world).present["open"] == 0
    });
    assert_all_accounted_for(&world);
    // Whichever looks first; the other hears of an end.
    assert_eq!(count(&of_server(&world), "idle") + count(&of_client(&world), "idle"), 3);
    assert_eq!(row(&of_client(&world), "out_bytes").count, 3);
    assert_eq!(row(&of_server(&world), "in_bytes").max, 100);
}

#[test]
fn a_visitor_of_a_udp_port_that_nobody_takes_is_turned_away_once() {
    let mut world = World::new(15, server_config());
    let client = world.ask(control(), &frame(&ClientMessage::Datagrams(5000)));
    world.until("it has its port", |world| world.peer.text(client).contains("Hello"));
    let visitor = world.peer.datagrams_to(public(5000));
    (0..20).for_each(|_| world.peer.send_datagram(visitor, b"hello"));
    world.until("it waits", |world| of_server(world).present["waiting"] == 1);
    world.pass(Span::from_secs(11));
    let told = of_server(&world);
    assert_eq!((told.present["waiting"], count(&told, "not_taken")), (0, 1));
    let lost: Vec<_> = told.lost_datagrams.iter().filter(|count| count.count > 0).collect();
    let [early, turned_away] = &lost[..] else { panic!("{lost:?}") };
    assert_eq!((early.reason.as_str(), early.count), ("early", 4), "sixteen were kept");
    assert_eq!((turned_away.reason.as_str(), turned_away.count), ("turned_away", 16));
    assert_all_accounted_for(&world);
}
