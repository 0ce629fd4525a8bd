//! Both drivers of [`Tcp`] on real sockets, opposite plain ones.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::Linger;
use nix::sys::socket::{MsgFlags, send, setsockopt};
use uringvpn::expose::relay::{End, Limits, Relays};
use uringvpn::io::clock;
use uringvpn::io::ring::Features;
use uringvpn::io::tcp::epoll::Syscall;
use uringvpn::io::tcp::pipe::PIPES_MAX;
use uringvpn::io::tcp::uring::Uring;
use uringvpn::io::tcp::{Close, Event, Id, IdMap, Options, Patience, Tcp, Wait};
use uringvpn::io::wake::Waker;
use uringvpn::stats::exposed::recorder::Meter;
use uringvpn::time::Span;

use crate::rig::{free_port, random, wait_until};

pub const ANY: Options = Options {
    patience: Patience {
        idle: Span::from_secs(60),
        interval: Span::from_secs(10),
        probes: 6,
        unacknowledged: None,
    },
    device: None,
};

/// Runs `test` with each driver that this kernel lets us have.
fn with_both(test: impl Fn(&mut dyn Tcp)) {
    test(&mut Syscall::new(Waker::new().unwrap()).unwrap());
    if uring_is_here() {
        test(&mut Uring::new(Waker::new().unwrap()).unwrap());
    }
}

/// Whether this kernel lets us have a ring.
pub fn uring_is_here() -> bool {
    let available = uringvpn::io::ring::available(Features::default());
    available.inspect_err(|error| eprintln!("SKIPPED: io_uring: {error}")).is_ok()
}

/// Events until one is wanted, for a minute at most; those before it are dropped.
#[track_caller]
fn wait_for<R>(tcp: &mut dyn Tcp, what: &str, mut wanted: impl FnMut(&mut dyn Tcp, Event) -> Option<R>) -> R {
    let give_up = clock::now() + Span::from_secs(60);
    let mut events = Vec::new();
    while clock::now() < give_up {
        tcp.turn(Wait::Until(clock::now() + Span::from_millis(100)), &mut events).unwrap();
        for event in std::mem::take(&mut events) {
            if let Some(found) = wanted(tcp, event) {
                return found;
            }
        }
    }
    panic!("waited in vain for: {what}");
}

fn listen(tcp: &mut dyn Tcp) -> (Id, SocketAddr) {
    let (listener, address) = tcp.listen("127.0.0.1:0".parse().unwrap(), &ANY).unwrap();
    tcp.accept(listener);
    (listener, address)
}

fn accepted(_: &mut dyn Tcp, event: Event) -> Option<Id> {
    match event {
        Event::Accepted { id, .. } => Some(id),
        _ => None,
    }
}

/// A connection of the driver's, and its other end.
fn pair(tcp: &mut dyn Tcp) -> (Id, TcpStream) {
    let (listener, address) = listen(tcp);
    let other = TcpStream::connect(address).unwrap();
    let id = wait_for(tcp, "a connection", accepted);
    tcp.close(listener, Close::Finish);
    (id, other)
}

/// The end of this connection is a RST.
fn reset(stream: TcpStream) {
    setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

#[test]
fn many_connections_share_few_buffers_and_none_is_lost() {
    with_both(|tcp| {
        let (_, address) = listen(tcp);
        let others: Vec<_> = (0..200)
            .map(|_| {
                thread::spawn(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                    let bytes = random(1, 50_000);
                    stream.write_all(&bytes).unwrap();
                    let mut back = vec![0; bytes.len()];
                    stream.read_exact(&mut back).unwrap();
                    assert!(back == bytes);
                    stream.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(stream.read(&mut back).unwrap(), 0);
                })
            })
            .collect();
        let mut open = others.len();
        wait_for(tcp, "all have ended", |tcp, event| {
            match event {
                Event::Accepted { id, .. } => tcp.receive(id),
                Event::Received { id, chunk } => {
                    tcp.send(id, chunk);
                    tcp.receive(id);
                }
                Event::Ended(id) => {
                    tcp.shut_down(id);
                    open -= 1;
                }
                Event::Failed { error, .. } => panic!("{error}"),
                _ => {}
            }
            (open == 0).then_some(())
        });
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn what_finds_no_room_goes_out_in_order_when_there_is_room() {
    with_both(|tcp| {
        let (id, mut other) = pair(tcp);
        let bytes = random(2, 20 << 20);
        bytes.chunks(60_000).for_each(|piece| tcp.send_bytes(id, piece));
        tcp.shut_down(id);
        let mut sent = 0;
        let mut events = Vec::new();
        for _ in 0..20 {
            tcp.turn(Wait::Not, &mut events).unwrap();
        }
        sent += events.iter().filter(|event| matches!(event, Event::Sent(_))).count();
        let pieces = bytes.len().div_ceil(60_000);
        assert!(sent < pieces, "nobody has read, and the kernel took it all");
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            other.read_to_end(&mut got).unwrap();
            got
        });
        wait_for(tcp, "all is sent", |_, event| {
            sent += usize::from(matches!(event, Event::Sent(_)));
            (sent == pieces).then_some(())
        });
        assert!(reader.join().unwrap() == bytes);
    });
}

#[test]
fn a_connection_that_is_refused_or_reset_says_so() {
    with_both(|tcp| {
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port(Ipv4Addr::LOCALHOST)));
        let id = tcp.connect(nobody, &ANY).unwrap();
        let failed = |wanted: Id| {
            move |_: &mut dyn Tcp, event: Event| match event {
                Event::Failed { id, error } if id == wanted => Some(error),
                _ => None,
            }
        };
        assert_eq!(wait_for(tcp, "a refusal", failed(id)), Errno::ECONNREFUSED);
        tcp.close(id, Close::Reset);

        let (id, other) = pair(tcp);
        tcp.receive(id);
        reset(other);
        assert_eq!(wait_for(tcp, "a reset", failed(id)), Errno::ECONNRESET);
        tcp.close(id, Close::Reset);

        // Also of somebody from whom nothing is received now.
        let (id, other) = pair(tcp);
        reset(other);
        assert_eq!(wait_for(tcp, "a reset", failed(id)), Errno::ECONNRESET);
    });
}

#[test]
fn what_came_before_a_reset_is_received_before_it() {
    with_both(|tcp| {
        let (id, mut other) = pair(tcp);
        tcp.receive(id);
        let bytes = random(4, 60_000);
        // The kernel takes it all in before anybody looks.
        other.write_all(&bytes).unwrap();
        reset(other);
        let mut got = Vec::new();
        let error = wait_for(tcp, "a reset", |tcp, event| match event {
            Event::Received { id, chunk } => {
                got.extend_from_slice(&chunk);
                tcp.give_back(chunk);
                tcp.receive(id);
                None
            }
            Event::Failed { error, .. } => Some(error),
            Event::Ended(_) => panic!("a reset is no end"),
            _ => None,
        });
        assert_eq!(error, Errno::ECONNRESET);
        assert!(got == bytes, "{} bytes", got.len());
    });
}

#[test]
fn a_closed_connection_is_over_for_the_other_end_as_it_was_meant() {
    with_both(|tcp| {
        for (how, over) in [(Close::Finish, Ok(0)), (Close::Reset, Err(std::io::ErrorKind::ConnectionReset))]
        {
            let (id, mut other) = pair(tcp);
            other.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            if how == Close::Finish {
                tcp.send_bytes(id, b"last words");
            }
            tcp.receive(id);
            tcp.close(id, how);
            let mut events = Vec::new();
            for _ in 0..3 {
                tcp.turn(Wait::Not, &mut events).unwrap();
            }
            assert!(!events.iter().any(|event| matches!(event, Event::Failed { .. } | Event::Ended(_))));
            if how == Close::Finish {
                let mut words = [0; 10];
                other.read_exact(&mut words).unwrap();
                assert_eq!(&words, b"last words");
            }
            assert_eq!(other.read(&mut [0; 10]).map_err(|error| error.kind()), over);
        }
    });
}

#[test]
fn the_port_of_a_closed_listener_is_free_at_once() {
    with_both(|tcp| {
        let (listener, address) = listen(tcp);
        tcp.turn(Wait::Not, &mut Vec::new()).unwrap();
        assert_eq!(tcp.listen(address, &ANY).unwrap_err(), Errno::EADDRINUSE);
        tcp.close(listener, Close::Finish);
        let (again, _) = tcp.listen(address, &ANY).unwrap();
        tcp.accept(again);
        let _other = TcpStream::connect(address).unwrap();
        wait_for(tcp, "a connection", accepted);
    });
}

#[test]
fn a_waker_ends_the_wait() {
    for uring in [false, true] {
        let waker = Waker::new().unwrap();
        let mut tcp: Box<dyn Tcp> = match uring {
            false => Box::new(Syscall::new(waker.clone()).unwrap()),
            true if uringvpn::io::ring::available(Features::default()).is_err() => return,
            true => Box::new(Uring::new(waker.clone()).unwrap()),
        };
        for _ in 0..3 {
            waker.wake();
            wait_for(&mut *tcp, "the bell", |_, event| matches!(event, Event::Woken).then_some(()));
        }
        let mut events = Vec::new();
        tcp.turn(Wait::Until(clock::now() + Span::from_millis(20)), &mut events).unwrap();
        assert!(events.is_empty(), "it rang once: {events:?}");
    }
}

#[test]
fn a_service_that_ends_first_and_a_reader_that_is_slow_lose_nothing() {
    with_both(|tcp| {
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = service.local_addr().unwrap();
        let bytes = random(3, 8 << 20);
        let sent = bytes.clone();
        let served = thread::spawn(move || {
            let (mut stream, _) = service.accept().unwrap();
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            got
        });
        let (id, mut other) = pair(tcp);
        let to_service = tcp.connect(local, &ANY).unwrap();
        wait_for(tcp, "the service", |_, event| matches!(event, Event::Connected(_)).then_some(()));
        let mut relays = Relays::new(Limits::default());
        relays.start(tcp, [id, to_service], None, [0; 2], (), Meter::default());
        let visitor = thread::spawn(move || {
            let mut got = Vec::new();
            // In small pieces, so that the relay has to wait for it.
            let mut piece = [0; 3_000];
            while let Ok(count @ 1..) = other.read(&mut piece) {
                got.extend_from_slice(&piece[..count]);
            }
            other.write_all(b"thank you").unwrap();
            got
        });
        let over = wait_for(tcp, "the end", |tcp, event| relays.handle(tcp, event).ok().flatten());
        assert_eq!((over.end, over.bytes), (End::Finished, [9, bytes.len() as u64]));
        assert!(visitor.join().unwrap() == bytes);
        assert_eq!(served.join().unwrap(), b"thank you");
    });
}

#[test]
fn a_visitor_that_breaks_off_while_nobody_reads_ends_the_service_too() {
    with_both(|tcp| {
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let (id, mut other) = pair(tcp);
        let to_service = tcp.connect(service.local_addr().unwrap(), &ANY).unwrap();
        wait_for(tcp, "the service", |_, event| matches!(event, Event::Connected(_)).then_some(()));
        let (mut served, _) = service.accept().unwrap();
        let mut relays = Relays::new(Limits::default());
        relays.start(tcp, [id, to_service], None, [0; 2], (), Meter::default());
        // The service does not read until the visitor cannot write any more.
        other.set_nonblocking(true).unwrap();
        let mut quiet = 0;
        while quiet < 50 {
            match other.write(&[7; 100_000]) {
                Ok(_) => quiet = 0,
                Err(_) => quiet += 1,
            }
            let mut events = Vec::new();
            tcp.turn(Wait::Until(clock::now() + Span::from_millis(2)), &mut events).unwrap();
            for event in events {
                assert!(relays.handle(tcp, event).unwrap().is_none());
            }
        }
        reset(other);
        let over = wait_for(tcp, "the end", |tcp, event| relays.handle(tcp, event).ok().flatten());
        assert_eq!(over.end, End::Broken(Errno::ECONNRESET));
        wait_until("the service hears", || {
            tcp.turn(Wait::Not, &mut Vec::new()).unwrap();
            served.set_nonblocking(true).unwrap();
            let read = served.read(&mut [0; 1 << 20]).map_err(|error| error.kind());
            read == Err(std::io::ErrorKind::ConnectionReset)
        });
    });
}

#[test]
fn who_brings_nothing_does_not_keep_those_in_line_behind_it_from_being_served() {
    with_both(|tcp| {
        let (_, address) = listen(tcp);
        let (mut others, mut ids) = (Vec::new(), Vec::new());
        while ids.len() < 200 {
            others.push(TcpStream::connect(address).unwrap());
            ids.push(wait_for(tcp, "a connection", accepted));
        }
        // The first take all buffers there are at first, so that the others are put in line.
        let bringing = [0, 1, 2, 3, 199];
        bringing.iter().for_each(|number| others[*number].write_all(b"x").unwrap());
        ids.iter().for_each(|id| tcp.receive(*id));
        let (mut received, mut events) = (0, Vec::new());
        let give_up = clock::now() + Span::from_secs(60);
        while received < bringing.len() && clock::now() < give_up {
            tcp.turn(Wait::Until(give_up), &mut events).unwrap();
            for event in events.drain(..) {
                if let Event::Received { chunk, .. } = event {
                    received += 1;
                    tcp.give_back(chunk);
                }
            }
        }
        assert_eq!(received, bringing.len());
    });
}

#[test]
fn hundreds_that_break_off_while_they_wait_for_a_buffer_are_all_told_of() {
    let (done, heard) = mpsc::channel();
    thread::spawn(move || {
        with_both(|tcp| {
            let (_, address) = listen(tcp);
            let (mut others, mut ids) = (Vec::new(), Vec::new());
            while ids.len() < 400 {
                others.push(TcpStream::connect(address).unwrap());
                ids.push(wait_for(tcp, "a connection", accepted));
            }
            others.iter_mut().for_each(|other| other.write_all(b"x").unwrap());
            others.into_iter().for_each(reset);
            ids.iter().for_each(|id| tcp.receive(*id));
            // Whoever uses them keeps all buffers for a while.
            let (mut early, mut kept) = (Vec::new(), Vec::new());
            for _ in 0..100 {
                tcp.turn(Wait::Not, &mut early).unwrap();
            }
            let (received, failed) = (Cell::new(0), Cell::new(0));
            let count = |tcp: &mut dyn Tcp, event| match event {
                Event::Received { id, chunk } => {
                    received.set(received.get() + 1);
                    tcp.receive(id);
                    Some(chunk)
                }
                Event::Failed { id, .. } => {
                    failed.set(failed.get() + 1);
                    tcp.close(id, Close::Reset);
                    None
                }
                _ => None,
            };
            kept.extend(early.into_iter().filter_map(|event| count(tcp, event)));
            kept.into_iter().for_each(|chunk| tcp.give_back(chunk));
            let give_up = clock::now() + Span::from_secs(60);
            let mut events = Vec::new();
            while failed.get() < ids.len() && clock::now() < give_up {
                tcp.turn(Wait::Until(give_up), &mut events).unwrap();
                for event in events.drain(..) {
                    count(tcp, event).into_iter().for_each(|chunk| tcp.give_back(chunk));
                }
            }
            assert_eq!((received.get(), failed.get()), (ids.len(), ids.len()));
        });
        done.send(()).unwrap();
    });
    // A turn that never ends cannot be waited for by those who take it.
    heard.recv_timeout(Duration::from_secs(120)).unwrap();
}

/// Two connections of the driver's, with their other ends.
fn two_pairs(tcp: &mut dyn Tcp) -> [(Id, TcpStream); 2] {
    [pair(tcp), pair(tcp)]
}

#[test]
fn what_is_passed_on_arrives_whole_and_its_end_behind_it() {
    with_both(|tcp| {
        let [(from, mut sender), (to, mut reader)] = two_pairs(tcp);
        let bytes = random(4, 32 << 20);
        let sent = bytes.clone();
        let (begin, begun) = mpsc::channel();
        let sender = thread::spawn(move || {
            sender.write_all(&sent).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
            sender
        });
        let reader = thread::spawn(move || {
            // Not before some of it has to wait for room.
            begun.recv().unwrap();
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            got
        });
        tcp.pass(from, to);
        let mut passed = 0;
        wait_for(tcp, "the end", |tcp, event| match event {
            Event::Passed { bytes, left, .. } => {
                passed += bytes;
                match left {
                    0 => tcp.pass(from, to),
                    // Told once at least, heard once.
                    _ => drop(begin.send(())),
                }
                None
            }
            // They came while it was looked whether there is urgent data.
            Event::Received { chunk, .. } => {
                passed += chunk.len();
                tcp.send(to, chunk);
                None
            }
            Event::Sent(id) => {
                assert_eq!(id, to);
                tcp.pass(from, to);
                None
            }
            Event::Ended(id) => {
                assert_eq!(id, from);
                tcp.shut_down(to);
                Some(())
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(passed, bytes.len());
        assert!(reader.join().unwrap() == bytes);
        drop(sender);
    });
}

#[test]
fn of_many_who_pass_on_to_those_who_do_not_read_some_find_no_pipe() {
    with_both(|tcp| {
        let (_, address) = listen(tcp);
        let all = 2 * (PIPES_MAX + 8);
        let mut others = Vec::new();
        let mut ids = Vec::new();
        while ids.len() < all {
            others.push(TcpStream::connect(address).unwrap());
            ids.push(wait_for(tcp, "a connection", accepted));
        }
        ids.chunks(2).for_each(|pair| tcp.pass(pair[0], pair[1]));
        // So much that neither the kernel nor a pipe has room for it.
        others.iter().step_by(2).for_each(|other| other.set_nonblocking(true).unwrap());
        let (mut stuck, mut copied) = (IdMap::default(), 0);
        let give_up = clock::now() + Span::from_secs(120);
        while (stuck.len() < PIPES_MAX || copied == 0) && clock::now() < give_up {
            for other in others.iter_mut().step_by(2) {
                // Whatever finds room.
                let _ = other.write(&[7; 100_000]);
            }
            let mut events = Vec::new();
            tcp.turn(Wait::Until(clock::now() + Span::from_millis(5)), &mut events).unwrap();
            for event in events {
                match event {
                    Event::Passed { from, left: 0, .. } => {
                        let place = ids.iter().position(|id| *id == from).unwrap();
                        tcp.pass(from, ids[place + 1]);
                    }
                    Event::Passed { from, .. } => stuck.insert(from, ()),
                    Event::Received { chunk, .. } => {
                        copied += 1;
                        tcp.give_back(chunk);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(stuck.len(), PIPES_MAX);
        assert!(copied > 0);
        // Pipes that hold something go with their connections; there are as many again for others.
        ids.iter().for_each(|id| tcp.close(*id, Close::Reset));
        let [(from, mut sender), (to, mut reader)] = two_pairs(tcp);
        tcp.pass(from, to);
        sender.write_all(b"hello").unwrap();
        wait_for(tcp, "five bytes", |_, event| {
            matches!(event, Event::Passed { bytes: 5, left: 0, .. }).then_some(())
        });
        reader.read_exact(&mut [0; 5]).unwrap();
    });
}

#[test]
fn a_reset_on_either_side_is_heard_while_bytes_are_passed_on() {
    with_both(|tcp| {
        for (stuck, reset_reader) in [(false, false), (false, true), (true, false), (true, true)] {
            let [(from, mut sender), (to, reader)] = two_pairs(tcp);
            tcp.pass(from, to);
            if stuck {
                sender.write_all(&[7; 100_000]).unwrap();
                wait_for(tcp, "no room", |tcp, event| match event {
                    Event::Passed { left: 0, .. } => {
                        tcp.pass(from, to);
                        sender.write_all(&[7; 100_000]).unwrap();
                        None
                    }
                    Event::Passed { .. } => Some(()),
                    // They came while it was looked whether there is urgent data; nobody misses them.
                    Event::Received { chunk, .. } => {
                        tcp.give_back(chunk);
                        tcp.pass(from, to);
                        None
                    }
                    other => panic!("{other:?}"),
                });
            }
            let (broken, kept) = if reset_reader { (reader, sender) } else { (sender, reader) };
            reset(broken);
            let failed = wait_for(tcp, "a failure", |_, event| match event {
                Event::Failed { id, error } => Some((id, error)),
                _ => None,
            });
            assert_eq!(failed, (if reset_reader { to } else { from }, Errno::ECONNRESET));
            tcp.close(from, Close::Reset);
            tcp.close(to, Close::Reset);
            drop(kept);
        }
    });
}

#[test]
fn urgent_data_does_not_stop_what_is_passed_on() {
    with_both(|tcp| {
        let [(from, sender), (to, mut reader)] = two_pairs(tcp);
        let sender = thread::spawn(move || {
            (&sender).write_all(&[1; 1_000_000]).unwrap();
            send(sender.as_raw_fd(), b"!", MsgFlags::MSG_OOB).unwrap();
            (&sender).write_all(&[2; 1_000_000]).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
            sender
        });
        let reader = thread::spawn(move || {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            got.len()
        });
        let mut relays = Relays::new(Limits::default());
        relays.start(tcp, [from, to], None, [0; 2], (), Meter::default());
        let mut events = Vec::new();
        while !reader.is_finished() {
            tcp.turn(Wait::Until(clock::now() + Span::from_millis(10)), &mut events).unwrap();
            events.drain(..).for_each(|event| drop(relays.handle(tcp, event)));
        }
        assert_eq!(reader.join().unwrap(), 2_000_000, "all but the urgent byte, as recv(2) has it");
        drop(sender.join().unwrap());
    });
}
