//! What goes wrong, on a network in memory: silence, garbage, lost and restarted ends, leases.

use nix::errno::Errno;
use uringvpn::expose::auth::Authenticator;
use uringvpn::expose::message::{ClientMessage, ServerMessage, Uuid, frame, parse};
use uringvpn::expose::news::News;
use uringvpn::io::tcp::Id;
use uringvpn::time::Span;

use crate::world::{World, client_config, control, public, secret, server_config};

/// A client that has asked a server of another make, which the test plays, for its port; and the connection it asked on.
fn asked_of_another_make(seed: u8) -> (World, Id) {
    let mut world = World::new(seed, server_config());
    world.kill_server();
    world.peer.listen(control());
    world.start_client(client_config());
    world
        .until("the client asks", |world| world.peer.conns.iter().any(|(_, conn)| conn.got.ends_with(b"\0")));
    let link = world.peer.conns[0].0;
    (world, link)
}

#[test]
fn frames_that_are_none_end_the_connection() {
    let mut world = World::new(1, server_config());
    let long = [vec![b'x'; 257], vec![0]].concat();
    let deep = ["[".repeat(200).into_bytes(), vec![0]].concat();
    let bad: [&[u8]; 8] = [
        &long,
        &vec![b'{'; 1 << 20],
        &deep,
        b"\0",
        b"\xff\xfe\xfd\0",
        b"{\"Hello\":1,\"Hello\":2}\0",
        b"{\"Hello\":99999999999999999999}\0",
        b"\"Release\"\0",
    ];
    for bytes in bad {
        let id = world.ask(control(), bytes);
        let what = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        world.until(&what, |world| world.peer.over(id));
        assert_eq!(world.peer.text(id), "", "{what}");
    }
    let edge = [vec![b' '; 242], b"{\"Hello\":5000}\0".to_vec()].concat();
    let id = world.ask(control(), &edge);
    world.until("256 bytes are a frame", |world| world.peer.text(id).starts_with("{\"Hello\":5000}"));
    world.until("nothing is left of the others", |world| world.server_sockets() == 3 && world.buffers_home());
}

#[test]
fn whoever_says_nothing_or_a_byte_now_and_then_is_dropped_after_three_seconds() {
    let mut config = server_config();
    config.secret = secret("secret");
    let mut world = World::new(2, config);
    let ids: Vec<_> = (0..500).map(|_| world.peer.connect(control())).collect();
    let slow = ids[0];
    world.pass(Span::from_millis(2_900));
    assert!(!world.peer.over(slow));
    world.peer.send(slow, b"{");
    world.pass(Span::from_millis(300));
    assert!(ids.iter().all(|id| world.peer.over(*id)));
    assert_eq!(world.server_sockets(), 1);
}

#[test]
fn of_too_many_silent_callers_the_oldest_go_and_a_client_is_served() {
    let mut world = World::new(3, server_config());
    let ids: Vec<_> = (0..1100).map(|_| world.peer.connect(control())).collect();
    world.until("the oldest is gone", |world| world.peer.over(ids[99]));
    assert!(world.server_sockets() <= 1001);
    assert!(!world.peer.over(ids[100]));
    let port = world.public_client(client_config());
    let visitor = world.ask(public(port), b"hello");
    world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.got == b"hello"));
    assert!(!world.peer.over(visitor));
}

#[test]
fn those_who_are_refused_count_as_callers_until_they_are_gone() {
    let mut config = server_config();
    config.callers_max = 10;
    let mut world = World::new(18, config);
    let ids: Vec<_> = (0..50).map(|_| world.ask(control(), b"{\"Hello\":22}\0")).collect();
    for _ in 0..20 {
        world.step();
        assert!(world.server_sockets() <= 1 + 10, "{} sockets", world.server_sockets());
    }
    let newest = world.peer.text(ids[49]);
    assert!(newest.contains("not in allowed range"), "{newest:?}");
    world.until("all are gone", |world| world.server_sockets() == 1);
}

#[test]
fn a_visitor_is_taken_once_and_by_its_name() {
    let mut world = World::new(4, server_config());
    let client = world.ask(control(), b"{\"Hello\":5000}\0");
    world.until("the port is open", |world| world.peer.frames(client) > 0);
    let visitor = world.ask(public(5000), b"hello");
    let name = announced(&mut world, client, 1)[0];
    let accept = frame(&ClientMessage::Accept(name));
    let taken = world.ask(control(), &accept);
    world.until("it is taken", |world| world.peer.text(taken) == "hello");
    let again = world.ask(control(), &accept);
    let unknown = "{\"Accept\":\"67e55044-10b1-426f-9247-bb680e5fe0c8\"}\0";
    let unknown = world.ask(control(), unknown.as_bytes());
    world.until("nobody else gets it", |world| world.peer.over(again) && world.peer.over(unknown));
    assert!(!world.peer.over(taken) && !world.peer.over(visitor));

    let left = world.peer.connect(public(5000));
    world.pass(Span::from_secs(9));
    assert!(!world.peer.over(left));
    world.pass(Span::from_secs(2));
    assert!(world.peer.over(left), "nobody took it within ten seconds");
}

/// The names of the visitors that were announced on `client`, when there are `count`.
fn announced(world: &mut World, client: Id, count: usize) -> Vec<Uuid> {
    let mut names = Vec::new();
    world.until("visitors are announced", |world| {
        let got = &world.peer.conn(client).got;
        let messages = got.split(|byte| *byte == 0).filter_map(|frame| parse::<ServerMessage>(frame).ok());
        names = messages
            .filter_map(|(message, _)| match message {
                ServerMessage::Connection(name) => Some(name),
                _ => None,
            })
            .collect();
        names.len() >= count
    });
    names
}

#[test]
fn a_visitor_of_a_service_that_is_down_hears_it_within_a_second() {
    let mut world = World::new(5, server_config());
    let port = world.public_client(client_config());
    world.service.tcp.close_all();
    let visitor = world.ask(public(port), b"hello");
    let began = world.network.now();
    world.until("it hears", |world| world.peer.over(visitor));
    assert!(world.network.now().since(began) <= Span::from_secs(1));
    assert!(world.heard(|news| matches!(news, News::Unserved { reason } if reason.contains("service:80"))));
    // It comes back, and so do visitors.
    world.service.listen("10.1.0.2:80".parse().unwrap());
    world.ask(public(port), b"again");
    world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.got == b"again"));
}

#[test]
fn a_server_without_descriptors_goes_on_when_it_has_some() {
    let mut world = World::new(6, server_config());
    let port = world.public_client(client_config());
    world.server.as_mut().unwrap().tcp().fail_accept(Errno::EMFILE);
    world.ask(public(port), b"hello");
    world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.got == b"hello"));
    assert!(world.heard(|news| matches!(news, News::Starved { .. })));
}

#[test]
fn a_client_comes_back_for_the_same_port_when_the_server_was_restarted() {
    let mut world = World::new(7, server_config());
    let port = world.public_client(client_config());
    world.kill_server();
    world.pass(Span::from_secs(60));
    assert_eq!(world.clients[0].public_port(), None);
    world.start_server(server_config());
    world.pass(Span::from_secs(2));
    assert_eq!(world.clients[0].public_port(), Some(port), "two seconds after the server");
    let visitor = world.ask(public(port), b"hello");
    world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.got == b"hello"));
    assert!(!world.peer.over(visitor));
}

#[test]
fn what_is_relayed_outlives_the_control_connection() {
    // A server of another make, which closes the control connection and nothing else.
    let (mut world, link) = asked_of_another_make(8);
    let connection =
        frame(&ServerMessage::Connection("67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap()));
    world.peer.send(link, &[frame(&ServerMessage::Hello(4242)), connection].concat());
    world
        .until("the visitor is taken", |world| world.peer.conns.len() == 2 && world.service.conns.len() == 1);
    let data = world.peer.conns[1].0;
    world.peer.end(link);
    world.until("the client comes again", |world| world.peer.conns.len() == 3);
    let again = world.peer.conns[2].0;
    world.until("for the same port", |world| world.peer.text(again) == "{\"Hello\":4242} \0");
    world.peer.send(data, b"still there?");
    world.until("it is", |world| world.service.conns[0].1.got == b"still there?");
}

#[test]
fn a_client_whose_server_falls_silent_comes_back_after_fifteen_seconds() {
    let (mut world, link) = asked_of_another_make(9);
    world.peer.send(link, &frame(&ServerMessage::Hello(4242)));
    world.pass(Span::from_secs(14));
    assert_eq!(world.clients[0].public_port(), Some(4242));
    world.pass(Span::from_secs(2));
    assert_eq!(world.clients[0].public_port(), None);
    world.until("it comes again", |world| world.peer.conns.len() == 2);
}

#[test]
fn a_client_that_reads_nothing_is_given_up() {
    let mut config = server_config();
    (config.connections_max, config.connections_per_client_max) = (5000, 5000);
    let mut world = World::new(10, config);
    let client = world.ask(control(), b"{\"Hello\":5000} \0");
    world.until("the port is open", |world| world.peer.frames(client) > 0);
    world.peer.stop_reading(client);
    // Two heartbeats a second would take hours to fill what is between us, visitors do it sooner.
    for _ in 0..3000 {
        world.peer.connect(public(5000));
        world.step();
    }
    world.until("it is given up", |world| {
        world.heard(|news| matches!(news, News::Left { reason, .. } if reason == "it reads nothing"))
    });
}

#[test]
fn what_waits_for_a_client_that_reads_nothing_has_a_bound() {
    let mut world = World::new(17, server_config());
    let client = world.ask(control(), b"{\"Hello\":5000} \0");
    world.until("the port is open", |world| world.peer.frames(client) > 0);
    world.peer.stop_reading(client);
    let given_up = |world: &World| {
        world.heard(|news| matches!(news, News::Left { reason, .. } if reason == "it reads nothing"))
    };
    let began = world.network.now();
    // Each is announced, and goes at once.
    let mut visitors = 0;
    while !given_up(&world) {
        let ids: Vec<_> = (0..400).map(|_| world.peer.connect(public(5000))).collect();
        (0..2).for_each(|_| world.step());
        ids.into_iter().for_each(|id| world.peer.reset(id));
        world.peer.conns.retain(|(id, _)| *id == client);
        visitors += 400;
        assert!(visitors < 40_000, "{visitors} visitors are announced to somebody who does not read");
    }
    assert!(visitors > 10_000, "given up after {visitors} visitors");
    assert!(world.network.now().since(began) < Span::from_secs(15), "before it is taken for dead");
}

#[test]
fn a_lost_client_finds_its_port_and_the_visitors_who_waited() {
    for shared in [None, Some("secret")] {
        let mut config = server_config();
        config.secret = shared.and_then(secret);
        let mut world = World::new(11, config);
        let mut config = client_config();
        config.secret = shared.and_then(secret);
        let port = world.public_client(config);
        world.clients[0].tcp().break_all(Errno::ETIMEDOUT);
        world.until("the server notices", |world| world.heard(|news| matches!(news, News::Left { .. })));
        let waiting = world.ask(public(port), b"waited");
        let other = world.ask(control(), format!("{{\"Hello\":{port}}}\0").as_bytes());
        world
            .until("it is back", |world| world.heard(|news| matches!(news, News::Opened { kept: true, .. })));
        world.until("the client knows", |world| world.clients[0].public_port() == Some(port));
        world.until("the visitor is served", |world| {
            world.service.conns.iter().any(|(_, conn)| conn.got == b"waited")
        });
        assert!(!world.peer.over(waiting));
        if shared.is_none() {
            assert!(world.peer.text(other).contains("port already in use"), "a stock client does not get it");
        }
    }
}

#[test]
fn a_lease_is_for_the_one_who_was_given_it() {
    let mut world = World::new(12, server_config());
    let port = world.public_client(client_config());
    world.kill_client(0);
    world.until("the client is lost", |world| world.heard(|news| matches!(news, News::Left { .. })));
    let enemy = world.ask(control(), format!("{{\"Hello\":{port}}} \0").as_bytes());
    world.until("it is challenged", |world| world.peer.frames(enemy) > 0);
    let text = world.peer.text(enemy);
    let challenge: Uuid = text.split('"').nth(3).unwrap().parse().unwrap();
    let answer = Authenticator::for_lease(None, challenge).answer(challenge);
    world.peer.send(enemy, &frame(&ClientMessage::Authenticate(answer)));
    world.until("it is refused", |world| world.peer.over(enemy));
    assert!(world.peer.text(enemy).contains("port already in use"));

    world.pass(Span::from_secs(61));
    assert!(world.heard(|news| matches!(news, News::Freed { .. })));
    let anybody = world.ask(control(), format!("{{\"Hello\":{port}}}\0").as_bytes());
    world.until("the port is free", |world| {
        world.peer.text(anybody).contains(&format!("{{\"Hello\":{port}}}"))
    });
}

#[test]
fn ports_that_are_kept_make_room_for_clients_that_are_there_the_oldest_first() {
    let mut config = server_config();
    config.ports_max = 3;
    let mut world = World::new(19, config);
    let ask = |world: &mut World, port: u16| {
        let id = world.ask(control(), format!("{{\"Hello\":{port}}} \0").as_bytes());
        world.until("it is answered", |world| {
            world.peer.text(id).contains(&format!("{port}")) || world.peer.over(id)
        });
        id
    };
    for port in [5000, 5001, 5002] {
        let id = ask(&mut world, port);
        world.peer.end(id);
        world.until("it is lost", |world| {
            world.heard(|news| matches!(news, News::Left { port: left, .. } if left.number == port))
        });
    }
    // Whoever asks for what cannot be had makes nobody go.
    let refused = ask(&mut world, 22);
    assert!(world.peer.text(refused).contains("not in allowed range"));
    let freed = |world: &World| {
        let freed = world.news.iter().filter_map(|news| match news {
            News::Freed { port } => Some(port.number),
            _ => None,
        });
        freed.collect::<Vec<_>>()
    };
    assert!(freed(&world).is_empty());
    let owners: Vec<_> = (6000..6003).map(|port| ask(&mut world, port)).collect();
    assert_eq!(freed(&world), [5000, 5001, 5002]);
    let another = ask(&mut world, 6003);
    assert!(world.peer.text(another).contains("too many public ports"), "{}", world.peer.text(another));
    assert!(owners.iter().all(|id| !world.peer.over(*id)), "clients that are there keep theirs");
}

#[test]
fn a_client_that_was_killed_and_started_again_has_its_port_if_it_knows_the_secret() {
    for (shared, kept) in [(Some("secret"), true), (None, false)] {
        let mut config = server_config();
        config.secret = shared.and_then(secret);
        let mut world = World::new(20, config);
        let mut config = client_config();
        (config.port, config.secret) = (5000, shared.and_then(secret));
        world.public_client(config.clone());
        let index = world.start_client(config.clone());
        world.until("it ends: the port has an owner", |world| world.clients[index].failure().is_some());
        world.clients.pop();
        world.kill_client(0);
        world.until("the client is lost", |world| world.heard(|news| matches!(news, News::Left { .. })));
        let waiting = world.ask(public(5000), b"waited");
        world.step();
        let index = world.start_client(config);
        world.until("it has its port or ends", |world| {
            let client = &world.clients[index];
            client.public_port().is_some() || client.failure().is_some()
        });
        assert_eq!(world.clients[index].public_port(), kept.then_some(5000));
        if kept {
            world.until("the visitor is served", |world| {
                world.service.conns.iter().any(|(_, conn)| conn.got == b"waited")
            });
            assert!(!world.peer.over(waiting));
        }
    }
}

#[test]
fn a_client_whose_port_was_taken_over_with_the_secret_cannot_take_it_back() {
    let mut config = server_config();
    config.secret = secret("secret");
    let mut world = World::new(21, config);
    let mut config = client_config();
    config.secret = secret("secret");
    let port = world.public_client(config.clone());
    world.clients[0].tcp().break_all(Errno::ETIMEDOUT);
    world.until("the client is lost", |world| world.heard(|news| matches!(news, News::Left { .. })));
    // Away for as long as another one needs.
    let first = world.clients.remove(0);
    config.port = port;
    assert_eq!(world.public_client(config), port);
    world.clients.push(first);
    world.until("the first has another port", |world| {
        world.clients[1].public_port().is_some_and(|now| now != port)
    });
    assert_eq!(world.clients[0].public_port(), Some(port), "nobody took it away again");
}

#[test]
fn a_client_that_ends_gives_its_port_back_at_once() {
    let mut world = World::new(13, server_config());
    let port = world.public_client(client_config());
    world.clients[0].drain();
    world.until("the port is closed", |world| {
        world.heard(
            |news| matches!(news, News::Left { port: left, held_seconds: 0, .. } if left.number == port),
        )
    });
    assert_eq!(world.server_sockets(), 1);
    world.until("it has ended", |world| world.clients[0].is_idle());
    assert_eq!(world.clients[0].tcp().open(), 0);
}

#[test]
fn a_client_that_ends_while_it_gets_its_port_leaves_none_behind() {
    for secret in [None, secret("secret")] {
        let mut opened = 0;
        for steps in 0..20 {
            let mut config = server_config();
            config.secret = secret.clone();
            let mut world = World::new(23, config);
            let mut config = client_config();
            config.secret = secret.clone();
            world.start_client(config);
            (0..steps).for_each(|_| world.step());
            world.clients[0].drain();
            world.until("it has ended", |world| world.clients[0].is_idle());
            world.until("the server has heard it", |world| world.server_sockets() == 1);
            let held = |news: &News| matches!(news, News::Left { held_seconds: 1.., .. });
            assert!(!world.heard(held), "after {steps} steps");
            opened += usize::from(world.heard(|news| matches!(news, News::Opened { .. })));
        }
        assert!((1..20).contains(&opened), "from before the question until after the answer");
    }
}

#[test]
fn a_client_that_ends_while_a_server_without_leases_answers_just_goes() {
    let (mut world, link) = asked_of_another_make(24);
    world.clients[0].drain();
    let asked = world.peer.text(link);
    world.pass(Span::from_millis(100));
    assert!(!world.peer.over(link), "the answer may be a lease");
    world.peer.send(link, &frame(&ServerMessage::Hello(4242)));
    world.until("it has ended", |world| world.clients[0].is_idle() && world.peer.over(link));
    assert_eq!(world.peer.text(link), asked, "bore knows no Release");
}

#[test]
fn a_client_that_ends_while_it_is_cut_off_gives_its_port_back_if_it_can() {
    for reachable in [true, false] {
        let mut world = World::new(22, server_config());
        world.public_client(client_config());
        world.clients[0].tcp().break_all(Errno::ETIMEDOUT);
        world.until("the client is lost", |world| world.heard(|news| matches!(news, News::Left { .. })));
        if !reachable {
            world.network.refuse(control(), Some(Errno::ETIMEDOUT));
        }
        world.clients[0].drain();
        let began = world.network.now();
        world.until("it has ended", |world| world.clients[0].is_idle());
        assert!(world.network.now().since(began) <= Span::from_millis(1_100));
        assert!(world.clients[0].failure().is_none());
        world.pass(Span::from_millis(100));
        let freed = world.heard(|news| matches!(news, News::Left { held_seconds: 0, .. }));
        assert_eq!(freed, reachable);
        assert_eq!(world.clients[0].tcp().open(), 0);
    }
}

#[test]
fn a_port_that_was_given_by_chance_is_exchanged_when_somebody_else_has_it() {
    let mut world = World::new(14, server_config());
    let port = world.public_client(client_config());
    world.kill_server();
    world.start_server(server_config());
    let thief = world.ask(control(), format!("{{\"Hello\":{port}}}\0").as_bytes());
    world.until("the thief has it", |world| world.peer.text(thief).contains("Hello"));
    world.until("the client has another", |world| {
        world.clients[0].public_port().is_some_and(|now| now != port)
    });
}

#[test]
fn a_wrong_secret_or_a_server_that_is_not_there_ends_the_client() {
    let mut config = server_config();
    config.secret = secret("secret");
    let mut world = World::new(15, config);
    for (given, why) in [
        (secret("other"), "invalid secret"),
        (None, "the server asks for a secret; give --secret-file or --secret"),
    ] {
        let mut config = client_config();
        config.secret = given;
        let index = world.start_client(config);
        world.until("it ends", |world| world.clients[index].failure().is_some());
        assert_eq!(world.clients[index].failure().unwrap().to_string(), why);
    }
    world.network.refuse(control(), Some(Errno::ETIMEDOUT));
    let index = world.start_client(client_config());
    world.until("it ends", |world| world.clients[index].failure().is_some());
    assert_eq!(world.clients[index].failure().unwrap().to_string(), "no answer within 3 seconds");
    assert_eq!(world.clients[index].tcp().open(), 0);
}

#[test]
fn many_data_connections_in_turn_are_no_callers_any_more() {
    let mut config = server_config();
    config.callers_max = 3;
    let mut world = World::new(16, config);
    let port = world.public_client(client_config());
    for round in 0..20 {
        world.service.conns.clear();
        let visitor = world.ask(public(port), b"hello");
        world.until("it is served", |world| world.service.conns.iter().any(|(_, conn)| conn.got == b"hello"));
        assert!(!world.peer.over(visitor), "round {round}");
    }
}

#[test]
fn a_server_inside_a_tunnel_that_is_made_again_listens_again() {
    let mut config = server_config();
    config.how.through = Some("tunnel".into());
    let mut world = World::new(23, config);
    let serving =
        |world: &World| world.news.iter().filter(|news| matches!(news, News::Serving { .. })).count();
    world.pass(Span::from_secs(5));
    assert_eq!(serving(&world), 1);
    for times in 2..4 {
        world.network.renew_interfaces();
        world.pass(Span::from_secs(3));
        assert_eq!(serving(&world), times);
        world.public_client(client_config());
    }
    assert_eq!(world.server_sockets(), 1 + 2 * 2, "the old control ports are closed");
}
