//! Datagrams of both drivers on real sockets, opposite plain ones.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use nix::errno::Errno;
use uringvpn::io::clock;
use uringvpn::io::tcp::datagrams::{Endpoint, Udp};
use uringvpn::io::tcp::epoll::Syscall;
use uringvpn::io::tcp::uring::Uring;
use uringvpn::io::tcp::{Close, Event, Id, Wait};
use uringvpn::io::wake::Waker;
use uringvpn::time::Span;

use crate::drivers::{ANY, uring_is_here};
use crate::rig::{has_ipv6, random};

/// Runs `test` with each driver that this kernel lets us have.
fn with_both(test: impl Fn(&mut dyn Udp)) {
    test(&mut Syscall::new(Waker::new().unwrap()).unwrap());
    if uring_is_here() {
        test(&mut Uring::new(Waker::new().unwrap()).unwrap());
    }
}

/// Events until one is wanted, for thirty seconds at most; those before it are dropped.
#[track_caller]
fn wait_for<R>(udp: &mut dyn Udp, what: &str, mut wanted: impl FnMut(&mut dyn Udp, Event) -> Option<R>) -> R {
    let give_up = clock::now() + Span::from_secs(30);
    let mut events = Vec::new();
    while clock::now() < give_up {
        udp.turn(Wait::Until(clock::now() + Span::from_millis(100)), &mut events).unwrap();
        for event in std::mem::take(&mut events) {
            if let Some(found) = wanted(udp, event) {
                return found;
            }
        }
    }
    panic!("waited in vain for: {what}");
}

fn visitor(to: SocketAddr) -> UdpSocket {
    // Bound to one address, its port takes nobody else's at another one.
    let any = if to.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // Only answers from there are heard.
    socket.connect(to).unwrap();
    socket
}

/// The next datagram that comes: where, from whom, and its payload.
#[track_caller]
fn next(udp: &mut dyn Udp) -> (Id, Endpoint, Vec<u8>) {
    wait_for(udp, "a datagram", |udp, event| match event {
        Event::Datagram { id, from, chunk } => {
            let payload = chunk.to_vec();
            udp.give_back(chunk);
            Some((id, from, payload))
        }
        _ => None,
    })
}

#[test]
fn datagrams_of_every_length_arrive_whole_both_ways() {
    with_both(|udp| {
        for address in &["127.0.0.1:0", "[::1]:0"][..1 + usize::from(has_ipv6())] {
            let (id, bound) = udp.bind(address.parse().unwrap()).unwrap();
            let visitor = visitor(bound);
            let longest = if bound.is_ipv4() { 65_507 } else { 65_527 };
            for bytes in [0, 1, 1472, 9000, longest] {
                let payload = random(1, bytes);
                visitor.send(&payload).unwrap();
                let (to, from, got) = next(udp);
                assert_eq!((to, from.remote), (id, visitor.local_addr().unwrap()));
                assert!(got == payload, "{} bytes of {bytes}", got.len());
                udp.send_datagram(id, Some(from), &payload).unwrap();
                let mut back = vec![0; 70_000];
                let count = visitor.recv(&mut back).unwrap();
                assert!(back[..count] == payload, "{count} bytes of {bytes}");
            }
            let from = next_from(udp, &visitor);
            let sent = udp.send_datagram(id, Some(from), &vec![0; longest + 1]);
            assert_eq!(sent, Err(Errno::EMSGSIZE));
            udp.close(id, Close::Finish);
        }
    });
}

fn next_from(udp: &mut dyn Udp, visitor: &UdpSocket) -> Endpoint {
    visitor.send(b"who am I").unwrap();
    next(udp).1
}

#[test]
fn the_answer_comes_from_the_address_that_was_asked() {
    with_both(|udp| {
        let all: &[(&str, &[&str])] =
            &[("0.0.0.0:0", &["127.0.0.78"]), ("[::]:0", &["127.0.0.1", "127.0.0.77", "::1"])];
        for (bound, asked) in &all[..1 + usize::from(has_ipv6())] {
            let (id, bound) = udp.bind(bound.parse().unwrap()).unwrap();
            for asked in *asked {
                let visitor = visitor(SocketAddr::new(asked.parse().unwrap(), bound.port()));
                visitor.send(b"question").unwrap();
                let (_, from, _) = next(udp);
                udp.send_datagram(id, Some(from), b"answer").unwrap();
                assert_eq!(visitor.recv(&mut [0; 100]).unwrap(), 6, "{asked}");
            }
        }
    });
}

#[test]
fn an_associated_socket_hears_its_peer_only_and_that_nobody_is_there() {
    with_both(|udp| {
        let service = UdpSocket::bind((crate::rig::address(), 0)).unwrap();
        service.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let address = service.local_addr().unwrap();
        let id = udp.associate(address).unwrap();
        udp.send_datagram(id, None, b"hello").unwrap();
        let (count, from) = service.recv_from(&mut [0; 100]).unwrap();
        assert_eq!(count, 5);
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"forged", from).unwrap();
        service.send_to(b"genuine", from).unwrap();
        let (_, source, got) = next(udp);
        assert_eq!((source.remote, &got[..]), (address, &b"genuine"[..]));

        drop(service);
        udp.send_datagram(id, None, b"anybody?").unwrap();
        let refused = |wanted: Id| {
            move |_: &mut dyn Udp, event: Event| match event {
                Event::Undelivered { id, error } if id == wanted => Some(error),
                _ => None,
            }
        };
        assert_eq!(wait_for(udp, "a refusal", refused(id)), Errno::ECONNREFUSED);
        // The refusal of one datagram does not take the next one along.
        udp.send_datagram(id, None, b"lost").unwrap();
        // When another one behind it was refused, so was this one: nobody is too early.
        let other = visitor(address);
        other.send(b"anybody?").unwrap();
        assert_eq!(other.recv(&mut [0; 10]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let service = UdpSocket::bind(address).unwrap();
        service.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        udp.send_datagram(id, None, b"back again").unwrap();
        let mut got = [0; 100];
        let count = service.recv(&mut got).unwrap();
        assert_eq!(&got[..count], b"back again");
        assert_eq!(wait_for(udp, "a refusal", refused(id)), Errno::ECONNREFUSED);
        udp.close(id, Close::Finish);
        assert_eq!(udp.send_datagram(id, None, b"closed"), Err(Errno::EBADF));
    });
}

#[test]
fn the_port_of_a_closed_socket_is_free_at_once_and_tcp_has_its_own() {
    with_both(|udp| {
        let (id, address) = udp.bind((crate::rig::address(), 0).into()).unwrap();
        udp.turn(Wait::Not, &mut Vec::new()).unwrap();
        assert_eq!(udp.bind(address).unwrap_err(), Errno::EADDRINUSE);
        let (listener, _) = udp.listen(address, &ANY).unwrap();
        udp.close(id, Close::Finish);
        let (again, _) = udp.bind(address).unwrap();
        assert_ne!(id, again);
        visitor(address).send(b"hello").unwrap();
        assert_eq!(next(udp).0, again);
        udp.close(listener, Close::Finish);
    });
}

#[test]
fn what_a_full_socket_has_no_room_for_is_counted_once_more_comes() {
    with_both(|udp| {
        let (shared, bound) = udp.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let enemy = visitor(bound);
        overflow(udp, shared, &|payload| assert!(enemy.send(payload).is_ok()));

        let service = UdpSocket::bind((crate::rig::address(), 0)).unwrap();
        let associated = udp.associate(service.local_addr().unwrap()).unwrap();
        udp.send_datagram(associated, None, b"hello").unwrap();
        let (_, us) = service.recv_from(&mut [0; 100]).unwrap();
        overflow(udp, associated, &|payload| assert!(service.send_to(payload, us).is_ok()));
        // Each socket has a count of its own, and again.
        overflow(udp, shared, &|payload| assert!(enemy.send(payload).is_ok()));
    });
}

/// Sends more than the socket `wanted` has room for: each comes or is told of as lost, and nothing twice.
#[track_caller]
fn overflow(udp: &mut dyn Udp, wanted: Id, send: &dyn Fn(&[u8])) {
    (0..100).for_each(|_| send(&[7; 60_000]));
    let (mut sent, mut came, mut lost) = (100, 0, 0);
    let give_up = clock::now() + Span::from_secs(30);
    while lost == 0 || came + lost != sent {
        assert!(clock::now() < give_up, "{came} came and {lost} were lost of {sent}");
        // The kernel tells with a datagram of those before it.
        send(b"more");
        sent += 1;
        let mut events = Vec::new();
        udp.turn(Wait::Until(clock::now() + Span::from_millis(10)), &mut events).unwrap();
        for event in events {
            match event {
                Event::Datagram { id, chunk, .. } => {
                    assert_eq!(id, wanted);
                    came += 1;
                    udp.give_back(chunk);
                }
                Event::Overflown { id, count } => {
                    assert_eq!(id, wanted);
                    lost += count;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(lost > 10, "{lost}");
}

#[test]
fn a_flood_at_one_socket_keeps_no_other_waiting_and_no_buffer_is_lost() {
    with_both(|udp| {
        let (flooded, address) = udp.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (quiet, other) = udp.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (enemy, friend) = (visitor(address), visitor(other));
        let (mut events, mut waiting) = (Vec::new(), 0);
        for round in 0..200 {
            for _ in 0..20 {
                enemy.send(&[7; 100]).unwrap();
            }
            if round % 10 == 0 {
                // The kernel may bring it a little later; behind all of the flood it would come after dozens of turns.
                assert_eq!(waiting, 0, "kept waiting");
                friend.send(b"me too").unwrap();
                waiting += 1;
            }
            udp.turn(Wait::Not, &mut events).unwrap();
            let mut count = 0;
            for event in events.drain(..) {
                let Event::Datagram { id, chunk, .. } = event else { continue };
                (waiting, count) = (waiting - usize::from(id == quiet), count + usize::from(id == flooded));
                udp.give_back(chunk);
            }
            assert!(count <= 8, "{count} datagrams of one socket in one turn");
        }
        assert_eq!(waiting, 0, "kept waiting");
        // Nothing waits for ever: all that the kernel kept comes, and then there is silence.
        let mut silent = 0;
        while silent < 3 {
            udp.turn(Wait::Not, &mut events).unwrap();
            silent = if events.is_empty() { silent + 1 } else { 0 };
            for event in events.drain(..) {
                if let Event::Datagram { chunk, .. } = event {
                    udp.give_back(chunk);
                }
            }
        }
        friend.send(b"still there").unwrap();
        wait_for(udp, "whoever is still there", |udp, event| {
            let Event::Datagram { id, chunk, .. } = event else { return None };
            udp.give_back(chunk);
            (id == quiet).then_some(())
        });
    });
}
