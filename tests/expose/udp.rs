//! UDP services through the programs: real sockets, both drivers, and the real bore on the other side.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::rig::{DRIVERS, Program, address, bore, free_port, ours, random, server, wait_until};

/// A service that sends every datagram back, for as long as the test runs.
fn echo(address: Ipv4Addr) -> SocketAddr {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    let bound = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 70_000];
        while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..bytes], from);
        }
    });
    bound
}

/// A client for the UDP service at `local`, and the public address it got.
fn client(address: Ipv4Addr, local: SocketAddr, options: &str) -> (Program, SocketAddr) {
    let (port, host) = (local.port(), local.ip());
    let client =
        Program::start(ours(), &format!("local {port}/udp --local-host {host} --to {address} {options}"));
    let public = client.printed("listening at ");
    (client, public.strip_suffix("/udp").unwrap().parse().unwrap())
}

fn visitor(public: SocketAddr) -> UdpSocket {
    // Bound to one address, its port takes nobody else's at another one.
    let any = if public.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket.connect(public).unwrap();
    socket
}

/// Sends, and takes the same back.
#[track_caller]
fn exchange(visitor: &UdpSocket, payload: &[u8]) {
    visitor.send(payload).unwrap();
    let mut back = vec![0; 70_000];
    let bytes = visitor.recv(&mut back).unwrap();
    assert!(back[..bytes] == *payload, "{bytes} bytes of {}", payload.len());
}

#[test]
fn datagrams_of_every_length_come_back_whole_to_their_own_visitors() {
    for driver in DRIVERS {
        for secret in ["", "--secret abc"] {
            let address = address();
            let _server = server(address, &format!("{driver} {secret}"));
            let (_client, public) = client(address, echo(address), &format!("{driver} {secret}"));
            // The service's socket has no room for many long ones.
            let one_at_a_time = &Mutex::new(());
            thread::scope(|scope| {
                for number in 0..4 {
                    scope.spawn(move || {
                        let visitor = visitor(public);
                        for bytes in [0, 1, 1472, 9000, 65_507] {
                            let _turn = (bytes > 9000).then(|| one_at_a_time.lock().unwrap());
                            exchange(&visitor, &random(number * 8 + bytes as u8 % 8, bytes));
                        }
                    });
                }
            });
        }
    }
}

#[test]
fn both_kinds_of_service_are_public_through_one_command_and_its_answers_come_from_where_it_was_asked() {
    for driver in DRIVERS {
        let address = address();
        let _server = server(address, &format!("{driver} --bind-tunnels ::"));
        let datagrams = echo(address);
        let streams = crate::rig::service(address, crate::rig::echo);
        let arguments = format!(
            "local {}/udp {} --local-host {address} --to {address} {driver} --json",
            datagrams.port(),
            streams.port()
        );
        let client = Program::start(ours(), &arguments);
        client.printed(r#""protocol":"udp""#);
        client.printed(r#""protocol":"tcp""#);
        let port = |protocol: &str| -> u16 {
            let line = client.output().lines().find(|line| line.contains(protocol)).unwrap().to_owned();
            let (_, port) = line.split_once(r#""port":"#).unwrap();
            port.split(',').next().unwrap().parse().unwrap()
        };
        for asked in [address.to_string(), "127.0.0.1".to_owned(), "::1".to_owned()] {
            let visitor = visitor(SocketAddr::new(asked.parse().unwrap(), port("udp")));
            exchange(&visitor, b"question");
        }
        let public = SocketAddr::from((address, port("tcp")));
        assert_eq!(crate::rig::exchange(public, b"stream"), b"stream");
    }
}

#[test]
fn a_burst_of_many_datagrams_arrives_in_order() {
    for driver in DRIVERS {
        let address = address();
        let _server = server(address, driver);
        let (_client, public) = client(address, echo(address), driver);
        let visitor = visitor(public);
        // Before it is taken, only so many are kept.
        exchange(&visitor, b"hello");
        for round in 0..50u32 {
            for number in 0..20u32 {
                visitor.send(&[round.to_be_bytes(), number.to_be_bytes()].concat()).unwrap();
            }
            for number in 0..20u32 {
                let mut back = [0; 100];
                let bytes = visitor.recv(&mut back).unwrap();
                assert_eq!(back[..bytes], [round.to_be_bytes(), number.to_be_bytes()].concat());
            }
        }
    }
}

#[test]
fn flows_that_are_over_leave_nothing_behind() {
    for driver in DRIVERS {
        let address = address();
        let options = format!("{driver} --idle-timeout 3");
        let server = server(address, &options);
        let (client, public) = client(address, echo(address), &options);
        let before = (server.descriptors(), client.descriptors());
        let visitors: Vec<_> = (0..100).map(|_| visitor(public)).collect();
        visitors.iter().for_each(|visitor| exchange(visitor, b"hello"));
        assert!(server.descriptors() > before.0);
        wait_until("all is closed", || server.descriptors() <= before.0 && client.descriptors() <= before.1);
        // They come back.
        visitors.iter().for_each(|visitor| exchange(visitor, b"hello again"));

        client.signal(Signal::SIGKILL);
        wait_until("its flows are over", || server.descriptors() <= before.0);
    }
}

#[test]
fn a_client_that_was_told_to_end_gives_its_port_back() {
    for driver in DRIVERS {
        let address = address();
        // Its port is not one that another test's visitor may be given meanwhile.
        let _server = server(address, &format!("{driver} --max-port 30000"));
        let service = echo(address);
        let (mut first, public) = client(address, service, driver);
        let visitor = visitor(public);
        exchange(&visitor, b"one");
        first.signal(Signal::SIGTERM);
        assert_eq!(first.ended(), Some(0));
        let (_second, again) = client(address, service, &format!("{driver} --port {}", public.port()));
        assert_eq!(again, public);
        exchange(&visitor, b"two");
    }
}

#[test]
fn a_flood_that_nobody_answers_costs_bounded_memory_and_a_friend_is_served() {
    for driver in DRIVERS {
        let address = address();
        let server = server(address, &format!("{driver} --max-connections-per-client 50"));
        let service = echo(address);
        // The flooded service is deaf; the friend's is another port.
        let deaf = UdpSocket::bind((address, 0)).unwrap();
        let (client_of_deaf, flooded) = client(address, deaf.local_addr().unwrap(), driver);
        let (_client, public) = client(address, service, driver);
        let friend = visitor(public);
        exchange(&friend, b"before");
        let before = (server.resident(), client_of_deaf.resident());
        let payload = random(1, 30_000);
        for _ in 0..40 {
            // Fifty sources at most have a place; each is new.
            for _ in 0..25 {
                let enemy = visitor(flooded);
                (0..4).for_each(|_| drop(enemy.send(&payload)));
            }
            exchange(&friend, b"meanwhile");
        }
        let grown =
            [server.resident().saturating_sub(before.0), client_of_deaf.resident().saturating_sub(before.1)];
        // Fifty flows of 256 KiB and what is under way in the kernel's favour, and the buffers of both drivers.
        assert!(grown.iter().all(|bytes| *bytes < 64 << 20), "grown by {grown:?} bytes");
    }
}

#[test]
fn a_service_that_comes_up_later_is_found_and_localhost_is_whichever_answers() {
    for driver in DRIVERS {
        let address = address();
        let _server = server(address, driver);
        let port = free_port(Ipv4Addr::LOCALHOST);
        let client = Program::start(ours(), &format!("local {port}/udp --to {address} {driver}"));
        let public = client.printed("listening at ");
        let visitor = visitor(public.strip_suffix("/udp").unwrap().parse().unwrap());
        visitor.send(b"anybody?").unwrap();
        visitor.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(visitor.recv(&mut [0; 100]).is_err());
        visitor.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let service = UdpSocket::bind(("127.0.0.1", port)).unwrap();
        service.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        visitor.send(b"question").unwrap();
        let mut got = [0; 100];
        let mut next = || {
            let (bytes, from) = service.recv_from(&mut got).unwrap();
            (got[..bytes].to_vec(), from)
        };
        let (mut question, mut from) = next();
        // On a busy machine the first one may not have come so far when nobody was there.
        if question == b"anybody?" {
            (question, from) = next();
        }
        assert_eq!(question, b"question");
        service.send_to(b"answer", from).unwrap();
        assert_eq!(visitor.recv(&mut got).unwrap(), 6);
    }
}

#[test]
fn a_bore_server_is_told_from_one_that_serves_udp() {
    let Some(bore) = bore() else { return };
    for secret in ["", "--secret abc"] {
        let address = address();
        let _server = {
            let server = Program::start(bore.clone(), &format!("server --bind-addr {address} {secret}"));
            server.printed("server listening");
            server
        };
        let mut client = Program::start(ours(), &format!("local 53/udp --to {address} {secret}"));
        client.printed("serves no UDP");
        assert_eq!(client.ended(), Some(1));
    }
    let address = address();
    let _server = server(address, "--no-udp");
    let mut client = Program::start(ours(), &format!("local 53/udp --to {address}"));
    client.printed("this server serves no UDP");
    assert_eq!(client.ended(), Some(1));
}
