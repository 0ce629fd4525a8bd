//! The protocol and the relay on a network in memory: what is promised when nothing goes wrong, and when the other end is
//! somebody else's.

use uringvpn::expose::auth::Authenticator;
use uringvpn::expose::message::{ClientMessage, ServerMessage, Uuid, frame, parse};
use uringvpn::proto::rng::Rng;
use uringvpn::time::Span;

use crate::world::{World, both_ways, client_config, control, public, secret, server_config};

/// The messages in `bytes` as far as they are complete.
fn frames(bytes: &[u8]) -> Vec<ServerMessage> {
    let mut frames: Vec<_> = bytes.split(|byte| *byte == 0).collect();
    // Behind the last NUL stands what is not complete.
    frames.pop();
    frames.into_iter().map(|frame| parse(frame).unwrap().0).collect()
}

fn visitors(bytes: &[u8]) -> Vec<Uuid> {
    let visitor = |message| match message {
        ServerMessage::Connection(visitor) => Some(visitor),
        _ => None,
    };
    frames(bytes).into_iter().filter_map(visitor).collect()
}

#[test]
fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    for secret in [None, secret("secret"), secret("")] {
        for (mut config, sockets) in both_ways() {
            let mut world = World::new(1, server_config_with(&secret));
            config.secret = secret.clone();
            let port = world.public_client(config);
            let visitor = world.ask(public(port), b"question");
            world.peer.end(visitor);
            world.until("the service has it all", |world| {
                world.service.conns.iter().any(|(_, conn)| conn.ended)
            });
            let (served, conn) = &world.service.conns[0];
            assert_eq!(conn.got, b"question");
            assert!(!world.peer.over(visitor), "the other direction goes on");
            let served = *served;
            world.service.send(served, b"answer, after the question has ended");
            world.service.end(served);
            world.until("the visitor has it all", |world| world.peer.conn(visitor).ended);
            assert_eq!(world.peer.text(visitor), "answer, after the question has ended");
            assert_eq!(world.peer.conn(visitor).failed, None);
            world.until("nothing is left", |world| world.server_sockets() == sockets && world.buffers_home());
            assert_eq!(
                world.clients[0].tcp().open(),
                sockets - 2,
                "the control connection, and perhaps the carrier"
            );
        }
    }
}

fn server_config_with(
    secret: &Option<uringvpn::control::expose::SharedSecret>,
) -> uringvpn::control::expose::ServerConfig {
    uringvpn::control::expose::ServerConfig { secret: secret.clone(), ..server_config() }
}

#[test]
fn a_reset_is_passed_on_as_a_reset_both_ways() {
    for (config, sockets) in both_ways() {
        let mut world = World::new(2, server_config());
        let port = world.public_client(config);
        for by_visitor in [true, false] {
            world.service.conns.clear();
            let visitor = world.ask(public(port), b"hello");
            world.until("it is served", |world| {
                world.service.conns.iter().any(|(_, conn)| conn.got == b"hello")
            });
            let served = world.service.conns[0].0;
            if by_visitor {
                world.peer.reset(visitor);
                world.until("the service hears", |world| world.service.conn(served).failed.is_some());
                assert!(!world.service.conn(served).ended);
            } else {
                world.service.reset(served);
                world.until("the visitor hears", |world| world.peer.conn(visitor).failed.is_some());
                assert!(!world.peer.conn(visitor).ended);
            }
        }
        world.until("nothing is left", |world| world.server_sockets() == sockets && world.buffers_home());
    }
}

#[test]
fn a_service_that_does_not_read_makes_its_visitor_wait_and_nobody_else() {
    for (config, _) in both_ways() {
        let mut world = World::new(3, server_config());
        let port = world.public_client(config);
        world.service.deaf = true;
        let flood = world.peer.connect(public(port));
        let piece = vec![7; 10_000];
        for _ in 0..1000 {
            world.peer.send(flood, &piece);
        }
        world.until("it is served", |world| !world.service.conns.is_empty());
        world.pass(Span::from_secs(5));
        let passed = world.peer.conn(flood).sends_ended * piece.len();
        // Three connections in a row take 100,000 bytes each; each of the two relays may hold 256 KiB.
        assert!(passed >= 300_000, "{passed} bytes are on their way");
        assert!(passed <= 3 * 100_000 + 2 * (256 << 10) + piece.len(), "{passed} bytes are on their way");

        world.service.deaf = false;
        let other = world.ask(public(port), b"me too");
        world.until("the other is served", |world| {
            world.service.conns.iter().any(|(_, conn)| conn.got == b"me too")
        });
        assert!(!world.peer.over(other) && !world.peer.over(flood));
    }
}

#[test]
fn a_stock_client_sees_nothing_that_is_not_bores() {
    let mut world = World::new(4, server_config());
    let client = world.ask(control(), b"{\"Hello\":5000}\0");
    let visitor = world.peer.connect(public(5000));
    world.until("the port is open", |world| world.peer.frames(client) >= 2);
    let early = world.peer.connect(public(5000));
    world.until("the visitor is announced", |world| !visitors(&world.peer.conn(client).got).is_empty());
    let text = world.peer.text(client);
    assert!(text.starts_with("{\"Hello\":5000}\0\"Heartbeat\"\0"), "{text:?}");
    assert!(!text.contains("Lease") && !text.contains(' '), "{text:?}");
    world.pass(Span::from_secs(2));
    let beats =
        frames(&world.peer.conn(client).got).iter().filter(|m| **m == ServerMessage::Heartbeat).count();
    assert!((4..=6).contains(&beats), "{beats} heartbeats in some two seconds");

    // Behind the Accept in one piece come bytes for the visitor, and one that looks like a frame.
    let name = visitors(&world.peer.conn(client).got)[0];
    let mut bytes = frame(&ClientMessage::Accept(name));
    bytes.extend(b"\0{\"Hello\":1}\0");
    let data = world.ask(control(), &bytes);
    world.until("the visitor has them", |world| world.peer.text(early) == "\0{\"Hello\":1}\0");
    world.peer.send(early, b"thanks");
    world.until("the client has the answer", |world| world.peer.text(data) == "thanks");
    assert!(world.peer.conn(visitor).failed.is_some(), "it came before the port was open");

    // A client that is gone leaves nothing behind, what is relayed goes on.
    world.peer.end(client);
    world.until("the port is closed", |world| world.server_sockets() == 3);
    world.peer.send(data, b"more");
    world.until("the relay goes on", |world| world.peer.text(early).ends_with("more"));
}

#[test]
fn our_client_takes_a_stock_server_as_it_is() {
    let mut world = World::new(5, server_config());
    world.kill_server();
    world.peer.listen(control());
    world.start_client(client_config());
    world.until("the client asks", |world| {
        !world.peer.conns.is_empty() && world.peer.frames(world.peer.conns[0].0) == 1
    });
    let link = world.peer.conns[0].0;
    assert_eq!(world.peer.text(link), "{\"Hello\":0} \0", "JSON with white space behind it");
    let name = Uuid::random(&mut Rng::from_seed([9; 32]));
    let said = [
        frame(&ServerMessage::Hello(4242)),
        frame(&ServerMessage::Heartbeat),
        frame(&ServerMessage::Connection(name)),
    ];
    world.peer.send(link, &said.concat());
    world.until("the client takes the visitor", |world| world.peer.conns.len() == 2);
    assert_eq!(world.clients[0].public_port(), Some(4242));
    let data = world.peer.conns[1].0;
    world.until("it says which", |world| world.peer.frames(data) == 1);
    assert_eq!(world.peer.conn(data).got, frame(&ClientMessage::Accept(name)));
    world.peer.send(data, b"from the visitor");
    world.until("the service has it", |world| {
        world.service.conns.iter().any(|(_, conn)| conn.got == b"from the visitor")
    });
}

#[test]
fn a_replayed_proof_and_a_wrong_one_are_refused_and_a_missing_one_is_named() {
    let mut world = World::new(6, server_config_with(&secret("secret")));
    let first = world.peer.connect(control());
    world.until("it is challenged", |world| world.peer.frames(first) == 1);
    let [ServerMessage::Challenge(challenge)] = frames(&world.peer.conn(first).got)[..] else { panic!() };
    let answer = Authenticator::new(b"secret").answer(challenge);
    let proof = frame(&ClientMessage::Authenticate(answer));
    world.peer.send(first, &[&proof[..], b"{\"Hello\":5000}\0"].concat());
    world.until("it has its port", |world| world.peer.text(first).contains("{\"Hello\":5000}"));

    let refused = |world: &mut World, said: &[u8], why: &str| {
        let began = world.network.now();
        let id = world.ask(control(), said);
        world.until("it is refused", |world| world.peer.over(id));
        let text = world.peer.text(id);
        assert!(text.ends_with(&format!("{{\"Error\":\"{why}\"}}\0")), "{text:?}");
        world.network.now().since(began)
    };
    // bore's client sends its request behind the proof without waiting.
    let replayed = refused(&mut world, &[&proof[..], b"{\"Hello\":0}\0"].concat(), "invalid secret");
    let missing = "server requires secret, but no secret was provided";
    let missing = refused(&mut world, b"{\"Hello\":0}\0", missing);
    assert!(replayed <= Span::from_secs(1) && missing <= Span::from_secs(1), "both at once");
    world.until("they are forgotten", |world| world.server_sockets() == 3);
}

#[test]
fn ports_that_cannot_be_had_are_refused_in_bores_words() {
    let mut config = server_config();
    config.ports = 2000..=2001;
    let mut world = World::new(7, config);
    let ask = |world: &mut World, port: &str| {
        let id = world.ask(control(), format!("{{\"Hello\":{port}}}\0").as_bytes());
        world.until("it is answered", |world| world.peer.frames(id) > 0 || world.peer.over(id));
        world.peer.text(id)
    };
    assert_eq!(ask(&mut world, "22"), "{\"Error\":\"client port number not in allowed range\"}\0");
    assert_eq!(ask(&mut world, "70000"), "", "no port at all");
    assert!(ask(&mut world, "2001").starts_with("{\"Hello\":2001}\0"));
    assert_eq!(ask(&mut world, "2001"), "{\"Error\":\"port already in use\"}\0");
    assert!(ask(&mut world, "0").starts_with("{\"Hello\":2000}\0"), "the only one that is free");
    assert_eq!(ask(&mut world, "0"), "{\"Error\":\"failed to find an available port\"}\0");
}

#[test]
fn of_a_hundred_clients_that_ask_for_one_port_exactly_one_gets_it() {
    let mut world = World::new(8, server_config());
    let ids: Vec<_> = (0..100).map(|_| world.ask(control(), b"{\"Hello\":5000}\0")).collect();
    world.until("all are answered", |world| ids.iter().all(|id| world.peer.frames(*id) > 0));
    let won = ids.iter().filter(|id| world.peer.text(**id).starts_with("{\"Hello\":5000}")).count();
    let lost = ids.iter().filter(|id| world.peer.text(**id).contains("port already in use")).count();
    assert_eq!((won, lost), (1, 99));
}

#[test]
fn visitors_and_clients_from_elsewhere_are_turned_away() {
    let mut config = server_config();
    config.allow_visitors = vec!["192.0.2.0/24".parse().unwrap()];
    let mut world = World::new(9, config);
    let port = world.public_client(client_config());
    let visitor = world.peer.connect(public(port));
    world.until("it is turned away", |world| world.peer.conn(visitor).failed.is_some());

    let mut config = server_config();
    config.allow_clients = vec!["192.0.2.0/24".parse().unwrap()];
    let mut world = World::new(9, config);
    let client = world.ask(control(), b"{\"Hello\":5000}\0");
    world.until("it is turned away", |world| world.peer.conn(client).failed.is_some());
    assert_eq!(world.peer.text(client), "");
}

#[test]
fn visitors_above_the_limit_are_turned_away_until_others_go() {
    for (client, sockets) in both_ways() {
        let mut config = server_config();
        config.connections_per_client_max = 2;
        let mut world = World::new(10, config);
        // A stream has one socket, a pair two.
        let one_more = sockets + if client.mux { 1 } else { 2 };
        let port = world.public_client(client);
        let ids: Vec<_> = (0..2).map(|_| world.ask(public(port), b"x")).collect();
        world.until("two are served", |world| world.service.conns.len() == 2);
        let third = world.ask(public(port), b"x");
        world.until("the third is turned away", |world| world.peer.over(third));
        world.peer.reset(ids[0]);
        world.until("one has gone", |world| world.server_sockets() == one_more);
        world.ask(public(port), b"x");
        world.until("another is served", |world| world.service.conns.len() == 3);
    }
}

#[test]
fn silence_ends_a_connection_only_if_that_was_asked_for() {
    for (idle, half_open, over) in [(None, None, false), (Some(30), None, true), (None, Some(30), true)] {
        for (client, _) in both_ways() {
            let mut config = server_config();
            (config.idle, config.half_open) = (idle.map(Span::from_secs), half_open.map(Span::from_secs));
            let mut world = World::new(11, config);
            let port = world.public_client(client);
            let visitor = world.ask(public(port), b"x");
            world.peer.end(visitor);
            world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.ended));
            world.pass(Span::from_secs(29));
            assert!(!world.peer.over(visitor));
            world.pass(Span::from_secs(3));
            assert_eq!(world.peer.over(visitor), over, "{idle:?} {half_open:?}");
        }
    }
}

#[test]
fn a_server_that_drains_lets_nobody_in_and_those_who_are_in_finish() {
    for (config, _) in both_ways() {
        let mut world = World::new(12, server_config());
        let port = world.public_client(config);
        let visitor = world.ask(public(port), b"question");
        world.until("it is served", |world| {
            world.service.conns.iter().any(|(_, conn)| conn.got == b"question")
        });
        world.server.as_mut().unwrap().drain();
        let late = world.peer.connect(public(port));
        world.until("nobody is let in", |world| world.peer.over(late));
        let served = world.service.conns[0].0;
        world.service.send(served, b"answer");
        world.service.end(served);
        world.peer.end(visitor);
        world.until("it is done", |world| world.server.as_ref().unwrap().is_idle());
        assert_eq!(world.peer.text(visitor), "answer");
        world.until("nothing is left", |world| world.server_sockets() == 0);
    }
}

#[test]
fn random_streams_arrive_whole_whatever_ends_first() {
    for seed in 0..20 {
        // Both kinds of clients meet both orders.
        let (config, sockets) = both_ways().into_iter().nth(usize::from(seed / 2 % 2)).unwrap();
        let mut world = World::new(100 + seed, server_config());
        let port = world.public_client(config);
        let mut rng = Rng::from_seed([seed; 32]);
        // The first four bytes name the stream, the rest is its own.
        let plans: Vec<(Vec<u8>, Vec<u8>)> = (0..8u32)
            .map(|number| {
                let mut stream = |bytes: u64| {
                    let mut bytes = vec![0; 4 + rng.below(bytes) as usize];
                    rng.fill(&mut bytes);
                    bytes[..4].copy_from_slice(&number.to_le_bytes());
                    bytes
                };
                (stream(400_000), stream(400_000))
            })
            .collect();
        let ids: Vec<_> = plans.iter().map(|(to, _)| world.ask(public(port), to)).collect();
        for (id, _) in ids.iter().zip(&plans).filter(|_| seed % 2 == 0) {
            world.peer.end(*id);
        }
        let mut answered = vec![false; plans.len()];
        world.until("all have arrived", |world| {
            for index in 0..world.service.conns.len() {
                let (served, conn) = &world.service.conns[index];
                let Some(number) = conn.got.first_chunk::<4>() else { continue };
                let number = u32::from_le_bytes(*number) as usize;
                let served = *served;
                if !std::mem::replace(&mut answered[number], true) {
                    world.service.send(served, &plans[number].1);
                    world.service.end(served);
                }
            }
            ids.iter().all(|id| world.peer.conn(*id).ended)
        });
        ids.iter().filter(|_| seed % 2 == 1).for_each(|id| world.peer.end(*id));
        world.until("the other direction has ended", |world| {
            world.service.conns.iter().all(|(_, conn)| conn.ended)
        });
        for (number, (id, plan)) in ids.iter().zip(&plans).enumerate() {
            assert!(world.peer.conn(*id).got == plan.1, "seed {seed}: the answer of {number}");
            let arrived = world.service.conns.iter().any(|(_, conn)| conn.got == plan.0);
            assert!(arrived, "seed {seed}: the question of {number}");
        }
        world.until("nothing is left", |world| world.server_sockets() == sockets && world.buffers_home());
    }
}

#[test]
fn the_local_service_is_told_where_a_visitor_comes_from_if_it_wants_to_know() {
    for (mut config, sockets) in both_ways() {
        let mut world = World::new(13, server_config());
        config.proxy_protocol = true;
        let port = world.public_client(config);
        let visitor = world.ask(public(port), b"hello");
        world.until("it is served", |world| {
            world.service.conns.iter().any(|(_, conn)| conn.got.ends_with(b"hello"))
        });
        let got = &world.service.conns[0].1.got;
        assert_eq!(&got[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
        // From a node of the network to the public port.
        assert_eq!((&got[16..19], &got[20..24]), (&[10, 0, 0][..], &[10, 1, 0, 1][..]));
        assert_eq!((&got[26..28], &got[28..]), (&port.to_be_bytes()[..], &b"hello"[..]));
        let served = world.service.conns[0].0;
        world.service.send(served, b"hello, you");
        world.service.end(served);
        world.peer.end(visitor);
        world.until("the visitor has it all", |world| world.peer.conn(visitor).ended);
        assert_eq!(world.peer.text(visitor), "hello, you");
        world.until("it is over", |world| world.server_sockets() == sockets && world.buffers_home());
    }
}
