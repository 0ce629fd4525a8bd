//! UDP services on a network in memory: what is promised of datagrams, of their visitors and of the limits.

use nix::errno::Errno;
use uringvpn::control::expose::{ClientConfig, ServerConfig};
use uringvpn::expose::control::ControlError;
use uringvpn::expose::frames;
use uringvpn::expose::message::{ClientMessage, ServerMessage, Uuid, frame, parse};
use uringvpn::expose::news::News;
use uringvpn::io::tcp::Id;
use uringvpn::stats::exposed::reasons::Loss;
use uringvpn::time::Span;

use crate::rig::random;
use crate::world::{SERVICE, World, client_config, control, public, secret, server_config, udp_config};

const PORT: u16 = 5000;

/// A server, a service that sends back what it gets, and a client with a public UDP port.
fn echoing(seed: u8, config: ServerConfig) -> World {
    let mut world = World::new(seed, config);
    world.service.serve_datagrams(SERVICE);
    world.service.echoes = true;
    assert_eq!(world.public_client(udp_config(PORT)), PORT);
    world
}

/// Sends, and waits for the same to come back.
#[track_caller]
fn exchange(world: &mut World, visitor: Id, payload: &[u8]) {
    let before = world.peer.came_to(visitor).len();
    world.peer.send_datagram(visitor, payload);
    world.until("the echo", |world| world.peer.came_to(visitor).len() > before);
    assert!(world.peer.came_to(visitor)[before] == payload, "{} bytes", payload.len());
}

/// A client written for the test that has [`PORT`]: its connection.
fn stranger(world: &mut World) -> Id {
    let client = world.ask(control(), &frame(&ClientMessage::Datagrams(PORT)));
    world.until("it has its port", |world| world.peer.text(client).contains("Hello"));
    client
}

/// The visitors that were announced to `client`.
fn announced(world: &World, client: Id) -> Vec<Uuid> {
    let got = &world.peer.conn(client).got;
    let visitor = |frame: &[u8]| match parse(frame) {
        Ok((ServerMessage::Visitor(name, _), _)) => Some(name),
        _ => None,
    };
    got.split(|byte| *byte == 0).filter_map(visitor).collect()
}

/// What the server has lost for this reason.
fn lost(world: &World, loss: Loss) -> u64 {
    world.server.as_ref().unwrap().recorder().lost.get(loss)
}

/// As many sockets as without visitors: the control port, the public one, and its client's connection.
#[track_caller]
fn nothing_is_left(world: &mut World) {
    world.until("nothing is left", |world| world.server_sockets() == 3 && world.buffers_home());
    assert_eq!(world.clients[0].tcp().open(), 1, "the control connection");
}

#[test]
fn datagrams_keep_their_boundaries_both_ways_and_visitors_are_told_apart() {
    for secret in [None, secret("secret")] {
        let mut world = World::new(1, ServerConfig { secret: secret.clone(), ..server_config() });
        world.service.serve_datagrams(SERVICE);
        world.service.echoes = true;
        world.public_client(ClientConfig { secret, ..udp_config(PORT) });
        let visitors: Vec<_> = (0..3).map(|_| world.peer.datagrams_to(public(PORT))).collect();
        for (number, bytes) in [0, 1, 1472, 9000, 65_507].into_iter().enumerate() {
            let payloads: Vec<_> = (0..3).map(|visitor| random(number as u8 * 3 + visitor, bytes)).collect();
            for (visitor, payload) in visitors.iter().zip(&payloads) {
                world.peer.send_datagram(*visitor, payload);
            }
            world.until("the echoes", |world| {
                visitors.iter().all(|id| world.peer.came_to(*id).len() > number)
            });
            for (visitor, payload) in visitors.iter().zip(&payloads) {
                assert!(world.peer.came_to(*visitor)[number] == payload, "{bytes} bytes");
            }
        }
        let mut sources: Vec<_> = world.service.datagrams.iter().map(|(_, from, _)| *from).collect();
        sources.sort_unstable();
        sources.dedup();
        assert_eq!(sources.len(), 3, "each visitor has a socket of its own at the client");
        world.pass(Span::from_secs(61));
        nothing_is_left(&mut world);
    }
}

#[test]
fn a_service_may_answer_often_and_speak_by_itself_once_it_was_greeted() {
    let mut world = World::new(2, server_config());
    let service = world.service.serve_datagrams(SERVICE);
    world.public_client(udp_config(PORT));
    let visitor = world.peer.datagrams_to(public(PORT));
    world.peer.send_datagram(visitor, b"hello");
    world.until("it is greeted", |world| !world.service.datagrams.is_empty());
    let from = world.service.datagrams[0].1;
    for round in 0..10u8 {
        (0..20).for_each(|number| world.service.answer(service, from, &[round, number]));
        world.until("all came", |world| world.peer.came_to(visitor).len() == usize::from(round + 1) * 20);
        world.pass(Span::from_secs(8));
    }
    let order: Vec<_> = (0..10).flat_map(|round| (0..20).map(move |number| vec![round, number])).collect();
    assert_eq!(world.peer.came_to(visitor), order);
    assert_eq!(world.server.as_ref().unwrap().recorder().lost.total(), 0);
}

#[test]
fn a_flow_ends_in_silence_and_its_visitor_may_come_back() {
    for (idle, answered, seconds) in
        [(None, true, 60), (None, false, 10), (Some(5), true, 5), (Some(90), true, 90)]
    {
        let mut world = World::new(3, ServerConfig { idle: idle.map(Span::from_secs), ..server_config() });
        world.service.serve_datagrams(SERVICE);
        world.service.echoes = answered;
        world.public_client(ClientConfig { idle: idle.map(Span::from_secs), ..udp_config(PORT) });
        let visitor = world.peer.datagrams_to(public(PORT));
        world.peer.send_datagram(visitor, b"one");
        world.until("it is served", |world| world.service.datagrams.len() == 1);
        if answered {
            world.until("the answer", |world| world.peer.came_to(visitor).len() == 1);
            exchange(&mut world, visitor, b"it goes on");
        }
        let before = world.service.datagrams.len();
        world.pass(Span::from_secs(seconds - 1));
        assert_eq!(world.server_sockets(), 4, "{idle:?}: the flow's connection");
        world.pass(Span::from_secs(2));
        nothing_is_left(&mut world);
        world.peer.send_datagram(visitor, b"two");
        world.until("it is served again", |world| world.service.datagrams.len() == before + 1);
        assert_ne!(world.service.datagrams[0].1, world.service.datagrams[before].1, "as somebody else");
    }
}

#[test]
fn what_comes_before_a_visitor_is_taken_is_kept_up_to_a_bound() {
    for (bytes, kept) in [(1, 16), (10_000, 6), (40_000, 1), (0, 16), (65_507, 1)] {
        let mut world = World::new(4, server_config());
        let client = stranger(&mut world);
        let visitor = world.peer.datagrams_to(public(PORT));
        let payloads: Vec<_> = (0..20).map(|number| random(number, bytes)).collect();
        for payload in &payloads {
            world.peer.send_datagram(visitor, payload);
            world.pass(Span::from_millis(20));
        }
        assert_eq!(announced(&world, client).len(), 1);
        assert_eq!(lost(&world, Loss::Early), 20 - kept);
        let data = world.ask(control(), &frame(&ClientMessage::Accept(announced(&world, client)[0])));
        let mut wanted = Vec::new();
        payloads[..kept as usize].iter().for_each(|payload| frames::put(payload, &mut wanted));
        world.until("they come", |world| world.peer.conn(data).got.len() >= wanted.len());
        assert!(world.peer.conn(data).got == wanted);
        // From now on each as it comes.
        let before = wanted.len();
        exchange_by_hand(&mut world, visitor, data, before);
    }
}

/// One datagram each way, with the client at `data` played by the test.
#[track_caller]
fn exchange_by_hand(world: &mut World, visitor: Id, data: Id, before: usize) {
    world.peer.send_datagram(visitor, b"ping");
    world.until("the client has it", |world| world.peer.conn(data).got[before..] == *b"\0\x04ping");
    world.peer.send(data, b"\0\x04po");
    world.pass(Span::from_millis(50));
    assert!(world.peer.came_to(visitor).is_empty(), "half of it");
    world.peer.send(data, b"ng");
    world.until("the visitor has it", |world| world.peer.came_to(visitor) == [b"pong"]);
}

#[test]
fn a_visitor_whom_nobody_takes_is_forgotten_after_ten_seconds() {
    let mut world = World::new(5, server_config());
    let client = stranger(&mut world);
    let visitor = world.peer.datagrams_to(public(PORT));
    world.peer.send_datagram(visitor, b"hello?");
    world.pass(Span::from_secs(11));
    assert!(
        world.heard(|news| matches!(news, News::TurnedAway { reason, .. } if reason.contains("10 seconds")))
    );
    let name = announced(&world, client)[0];
    let data = world.ask(control(), &frame(&ClientMessage::Accept(name)));
    world.until("it is too late", |world| world.peer.over(data));
    world.peer.send_datagram(visitor, b"hello?");
    world.until("it is announced again", |world| announced(world, client).len() == 2);
    let data = world.ask(control(), &frame(&ClientMessage::Accept(announced(&world, client)[1])));
    world.until("one datagram", |world| world.peer.conn(data).got == b"\0\x06hello?");
}

#[test]
fn a_client_that_reads_nothing_costs_so_much_and_no_more_and_loses_what_is_above() {
    let mut world = World::new(6, server_config());
    let client = stranger(&mut world);
    let visitor = world.peer.datagrams_to(public(PORT));
    world.peer.send_datagram(visitor, &[1; 1000]);
    world.until("it is announced", |world| announced(world, client).len() == 1);
    let data = world.ask(control(), &frame(&ClientMessage::Accept(announced(&world, client)[0])));
    world.until("it is taken", |world| world.peer.conn(data).got.len() == 1002);
    world.peer.stop_reading(data);
    for _ in 0..1000 {
        world.peer.send_datagram(visitor, &[2; 1000]);
        world.pass(Span::from_millis(20));
    }
    // 100,000 bytes wait at the client's end, the first receive, and 256 KiB at ours.
    let lost = lost(&world, Loss::Full);
    assert!((1000 - (100_000 + 70_000 + (256 << 10)) / 1002..1000).contains(&lost), "{lost} lost");
    world.peer.reset(data);
    world.until("it is over", |world| world.server_sockets() == 3 && world.buffers_home());
    // What waited at our end is lost with the connection.
    let all_lost = world.server.as_ref().unwrap().recorder().lost.total();
    assert!(all_lost > lost);
    let told = |news: &News| {
        matches!(news, News::FlowEnded { datagrams_in, datagrams_lost, .. }
        if *datagrams_lost == all_lost && datagrams_in + datagrams_lost == 1001)
    };
    assert!(world.heard(told), "every one is accounted for: {:?}", world.news);
}

#[test]
fn what_the_kernel_does_not_send_is_counted_and_the_flow_goes_on() {
    let mut world = echoing(7, server_config());
    let visitor = world.peer.datagrams_to(public(PORT));
    exchange(&mut world, visitor, b"one");
    for (error, loss) in
        [(Errno::EAGAIN, Loss::NoRoom), (Errno::EMSGSIZE, Loss::TooLong), (Errno::EPERM, Loss::Unsent)]
    {
        world.server.as_mut().unwrap().tcp().fail_datagrams(Some(error));
        world.peer.send_datagram(visitor, b"lost on the way back");
        world.until("it is counted", |world| lost(world, loss) == 1);
    }
    world.server.as_mut().unwrap().tcp().fail_datagrams(None);
    exchange(&mut world, visitor, b"two");
    assert_eq!(world.server_sockets(), 4, "one flow");
}

#[test]
fn a_service_that_is_down_loses_datagrams_and_is_found_when_it_is_up() {
    let mut world = World::new(8, server_config());
    world.public_client(udp_config(PORT));
    let visitor = world.peer.datagrams_to(public(PORT));
    for number in 1..4 {
        world.peer.send_datagram(visitor, b"anybody?");
        world.until("it is counted", |world| world.clients[0].recorder().lost.get(Loss::Refused) == number);
    }
    world.service.serve_datagrams(SERVICE);
    world.service.echoes = true;
    exchange(&mut world, visitor, b"there you are");
    assert_eq!(world.service.datagrams.len(), 1);
    assert_eq!(world.server_sockets(), 4, "one flow");
}

#[test]
fn of_the_addresses_of_a_service_the_one_that_answers_is_found_without_a_loss() {
    let mut world = World::new(9, server_config());
    let nobody = [6, 7].map(|host| ([10, 1, 0, host], 80).into());
    world.local = vec![nobody[0], nobody[1], SERVICE];
    world.service.serve_datagrams(SERVICE);
    world.service.echoes = true;
    world.public_client(udp_config(PORT));
    let visitor = world.peer.datagrams_to(public(PORT));
    (0..5).for_each(|number| world.peer.send_datagram(visitor, &[number]));
    world.until("all are answered", |world| world.peer.came_to(visitor).len() == 5);
    assert_eq!(world.clients[0].recorder().lost.total(), 0);
    // Whoever comes next is brought there at once.
    let next = world.peer.datagrams_to(public(PORT));
    exchange(&mut world, next, b"me too");
    assert_eq!(world.clients[0].recorder().lost.total(), 0);
    world.pass(Span::from_secs(61));
    nothing_is_left(&mut world);

    // All are down for a while.
    let mut world = World::new(9, server_config());
    world.local = nobody.into_iter().chain([SERVICE]).collect();
    world.public_client(udp_config(PORT));
    let visitor = world.peer.datagrams_to(public(PORT));
    for number in 1..6 {
        world.peer.send_datagram(visitor, b"anybody?");
        world.until("it is counted", |world| world.clients[0].recorder().lost.get(Loss::Refused) == number);
    }
    world.service.serve_datagrams(SERVICE);
    world.service.echoes = true;
    exchange(&mut world, visitor, b"there you are");
}

#[test]
fn a_newcomer_takes_the_place_of_the_oldest_who_has_not_gone_on_after_an_answer() {
    let config = ServerConfig { connections_per_client_max: 3, ..server_config() };
    let mut world = World::new(10, config);
    let service = world.service.serve_datagrams(SERVICE);
    world.public_client(udp_config(PORT));
    let visitors: Vec<_> = (0..5).map(|_| world.peer.datagrams_to(public(PORT))).collect();
    for (number, visitor) in visitors.iter().enumerate() {
        world.peer.send_datagram(*visitor, &[number as u8]);
        world.until("it is served", |world| world.service.datagrams.len() == number + 1);
    }
    world.until("two have gone", |world| world.server_sockets() == 3 + 3);
    let from = |world: &World, number: usize| world.service.datagrams[number].1;
    for number in [0, 2, 3, 4] {
        let to = from(&world, number);
        world.service.answer(service, to, b"answer");
    }
    world.pass(Span::from_secs(1));
    let answered: Vec<_> = visitors.iter().map(|id| world.peer.came_to(*id).len()).collect();
    assert_eq!(answered, [0, 0, 1, 1, 1]);
    // Those who go on after their answer stay, and a newcomer is turned away.
    visitors[2..].iter().for_each(|visitor| world.peer.send_datagram(*visitor, b"thank you"));
    world.until("they are heard", |world| world.service.datagrams.len() == 8);
    let late = world.peer.datagrams_to(public(PORT));
    world.peer.send_datagram(late, b"late");
    world.until("it is turned away", |world| lost(world, Loss::TurnedAway) == 1);
    assert!(world.heard(|news| matches!(news, News::TurnedAway { .. })));
    assert_eq!(world.service.datagrams.len(), 8);
}

#[test]
fn forged_sources_hold_bounded_memory_and_keep_nobody_out_for_long() {
    let mut world = World::new(11, server_config());
    let client = stranger(&mut world);
    // Nobody takes them; the 513th is one too many.
    for _ in 0..600 {
        let forged = world.peer.datagrams_to(public(PORT));
        world.peer.send_datagram(forged, &[7; 100]);
        world.pass(Span::from_millis(10));
        world.peer.leave(forged);
    }
    world.until("all are seen", |world| lost(world, Loss::TurnedAway) == 600 - 512);
    assert_eq!(world.server_sockets(), 3, "they cost no descriptors");
    world.until("all are announced", |world| announced(world, client).len() == 512);
    world.pass(Span::from_secs(11));
    let visitor = world.peer.datagrams_to(public(PORT));
    world.peer.send_datagram(visitor, b"me");
    world.until("it is announced", |world| announced(world, client).len() == 513);
}

#[test]
fn visitors_from_elsewhere_are_turned_away() {
    let config = ServerConfig { allow_visitors: vec!["192.0.2.0/24".parse().unwrap()], ..server_config() };
    let mut world = echoing(12, config);
    let visitor = world.peer.datagrams_to(public(PORT));
    world.peer.send_datagram(visitor, b"hello");
    world.until("it is turned away", |world| lost(world, Loss::TurnedAway) == 1);
    assert!(world.service.datagrams.is_empty());
}

#[test]
fn a_lost_client_finds_its_port_and_the_visitors_who_waited() {
    for secret in [None, secret("secret")] {
        let mut world = World::new(13, ServerConfig { secret: secret.clone(), ..server_config() });
        world.service.serve_datagrams(SERVICE);
        world.service.echoes = true;
        assert_eq!(
            world.public_client(ClientConfig { secret, ..udp_config(0) }),
            world.clients[0].public_port().unwrap()
        );
        let port = world.clients[0].public_port().unwrap();
        let visitor = world.peer.datagrams_to(public(port));
        exchange(&mut world, visitor, b"before");
        world.clients[0].tcp().break_all(Errno::ECONNRESET);
        world.until("it is away", |world| world.clients[0].public_port().is_none());
        world.peer.send_datagram(visitor, b"meanwhile");
        world.until("it is back", |world| world.clients[0].public_port() == Some(port));
        world.until("what waited is served", |world| {
            world.peer.came_to(visitor).last() == Some(&&b"meanwhile"[..])
        });
        exchange(&mut world, visitor, b"after");
        assert!(world.heard(|news| matches!(news, News::Opened { kept: true, .. })));
    }
}

#[test]
fn a_client_that_ends_gives_its_port_back_when_its_flows_are_silent() {
    let mut world = echoing(14, server_config());
    let visitor = world.peer.datagrams_to(public(PORT));
    exchange(&mut world, visitor, b"one");
    world.clients[0].drain();
    world.pass(Span::from_millis(500));
    exchange(&mut world, visitor, b"what goes on goes on");
    let newcomer = world.peer.datagrams_to(public(PORT));
    world.peer.send_datagram(newcomer, b"too late");
    world.until("it is turned away", |world| lost(world, Loss::TurnedAway) == 1);
    assert!(!world.clients[0].is_idle());
    world.until("it is done", |world| world.clients[0].is_idle() && world.server_sockets() == 1);
    world.kill_client(0);
    assert_eq!(world.public_client(udp_config(PORT)), PORT);
    exchange(&mut world, visitor, b"two");
}

#[test]
fn a_server_that_drains_ends_when_its_flows_are_silent() {
    let mut world = echoing(15, server_config());
    let visitor = world.peer.datagrams_to(public(PORT));
    exchange(&mut world, visitor, b"one");
    world.server.as_mut().unwrap().drain();
    exchange(&mut world, visitor, b"two");
    assert!(!world.server.as_ref().unwrap().is_idle());
    let before = world.network.now();
    world.until("it is done", |world| world.server.as_ref().unwrap().is_idle());
    assert!(world.network.now().since(before) <= Span::from_millis(1100));
    assert_eq!(world.server_sockets(), 0);
}

#[test]
fn a_client_that_speaks_another_language_harms_its_own_flow_only() {
    let mut world = World::new(16, server_config());
    let client = stranger(&mut world);
    let take = |world: &mut World, said: &[u8]| {
        let visitor = world.peer.datagrams_to(public(PORT));
        let before = announced(world, client).len();
        world.peer.send_datagram(visitor, b"hi");
        world.until("it is announced", |world| announced(world, client).len() > before);
        let accept = frame(&ClientMessage::Accept(announced(world, client)[before]));
        (visitor, world.ask(control(), &[&accept[..], said].concat()))
    };
    // A length that no datagram has, in the same piece and later.
    let (_, data) = take(&mut world, &[0xff, 0xff]);
    world.until("it is thrown out", |world| world.peer.conn(data).failed == Some(Errno::ECONNRESET));
    let (visitor, data) = take(&mut world, b"\0\x02ok");
    world.until("it is served", |world| world.peer.came_to(visitor) == [b"ok"]);
    world.peer.send(data, &random(1, 10_000));
    world.peer.send(data, &[0xff; 70_000]);
    world.until("it is thrown out", |world| world.peer.over(data));

    // So many empty datagrams that they would take a turn each: a neighbour is served in between.
    let (_, flood) = take(&mut world, b"");
    (0..4).for_each(|_| world.peer.send(flood, &[0; 50_000]));
    let (visitor, _) = take(&mut world, b"\0\x02ok");
    world.until("it is served", |world| world.peer.came_to(visitor) == [b"ok"]);
    world.peer.end(flood);
    world.until("all have gone through", |world| {
        world.heard(|news| matches!(news, News::FlowEnded { datagrams_out: 100_000, .. }))
    });
    assert!(!world.peer.over(client), "its port is still its own");
}

#[test]
fn a_server_that_serves_no_udp_says_so_and_of_one_that_is_not_ours_we_do() {
    let mut world = World::new(17, ServerConfig { udp: false, ..server_config() });
    world.start_client(udp_config(PORT));
    world.until("it is refused", |world| world.clients[0].failure().is_some());
    let words = "this server serves no UDP".to_owned();
    assert_eq!(world.clients[0].failure(), Some(&ControlError::Refused(words)));

    // As bore does when it does not understand.
    let mut world = World::new(18, server_config());
    world.kill_server();
    world.peer.listen(control());
    world.start_client(udp_config(PORT));
    world.until("it asks", |world| world.peer.conns.iter().any(|(_, conn)| !conn.got.is_empty()));
    let id = world.peer.conns[0].0;
    world.peer.end(id);
    world.until("it gives up", |world| world.clients[0].failure().is_some());
    assert_eq!(world.clients[0].failure(), Some(&ControlError::NoDatagrams));
}

#[test]
fn a_port_is_somebody_elses_for_tcp() {
    let mut world = echoing(19, server_config());
    assert_eq!(world.public_client(ClientConfig { port: PORT, ..client_config() }), PORT);
    let visitor = world.peer.datagrams_to(public(PORT));
    exchange(&mut world, visitor, b"by datagram");
    world.ask(public(PORT), b"by connection");
    world.until("both are served", |world| {
        world.service.conns.iter().any(|(_, conn)| conn.got == b"by connection")
    });
    let other = world.start_client(udp_config(PORT));
    world.until("it is taken", |world| world.clients[other].failure().is_some());
}

#[test]
fn forged_sources_keep_out_neither_tcp_visitors_nor_honest_ones_even_if_they_are_answered() {
    for echoes in [false, true] {
        let mut world = World::new(21, ServerConfig { connections_max: 10, ..server_config() });
        world.service.serve_datagrams(SERVICE);
        world.service.echoes = echoes;
        world.public_client(udp_config(PORT));
        let port = world.public_client(ClientConfig { port: 6000, ..client_config() });
        for _ in 0..10 {
            let forged = world.peer.datagrams_to(public(PORT));
            world.peer.send_datagram(forged, b"forged");
            world.pass(Span::from_millis(200));
            world.peer.leave(forged);
        }
        let visitor = world.ask(public(port), b"hello");
        world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.got == b"hello"));
        world.service.echoes = true;
        let honest = world.peer.datagrams_to(public(PORT));
        exchange(&mut world, honest, b"honest");
        assert!(!world.peer.over(visitor));
    }
}

#[test]
fn udp_ports_that_make_room_go_at_once_although_somebody_still_speaks_there() {
    let mut world = World::new(22, ServerConfig { ports_max: 2, ..server_config() });
    let mut speakers = Vec::new();
    for port in PORT..PORT + 6 {
        let client = world.ask(control(), &frame(&ClientMessage::Datagrams(port)));
        world.until("it has its port", |world| world.peer.text(client).contains("Hello"));
        let speaker = world.peer.datagrams_to(public(port));
        world.peer.send_datagram(speaker, b"x");
        world.until("it is announced", |world| !announced(world, client).is_empty());
        let name = announced(&world, client)[0];
        world.ask(control(), &frame(&ClientMessage::Accept(name)));
        speakers.push(speaker);
        world.peer.reset(client);
        for _ in 0..3 {
            speakers.iter().for_each(|speaker| world.peer.send_datagram(*speaker, b"y"));
            world.pass(Span::from_millis(200));
        }
        let recorder = world.server.as_ref().unwrap().recorder();
        assert!(recorder.ports().len() <= 2, "{:?}", recorder.ports());
        assert_eq!(recorder.present.ports_held.get() as usize, recorder.ports().len());
    }
}

#[test]
fn a_udp_port_whose_lease_has_run_out_is_not_counted_as_held() {
    let mut world = World::new(23, ServerConfig { lease: Span::from_secs(5), ..server_config() });
    let client = stranger(&mut world);
    world.peer.reset(client);
    world.pass(Span::from_secs(1));
    let recorder = world.server.as_ref().unwrap().recorder();
    assert_eq!((recorder.ports().len(), recorder.present.ports_held.get()), (1, 1));
    world.pass(Span::from_secs(10));
    assert_eq!((recorder.ports().len(), recorder.present.ports_held.get()), (0, 0));
}
