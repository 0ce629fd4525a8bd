//! Streams through a server and a client of ours, on both drivers.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;
use uringvpn::proto::rng::Rng;

use crate::rig::{PATIENCE, Program, address, client, connect, echo, random, server, service, wait_until};

const MUX: &str = " --mux";

/// With both drivers, visitors with a connection each, and with one that they share.
const WAYS: [&str; 4] = ["--io auto", "--io syscall", "--io auto --mux", "--io syscall --mux"];

/// A server, a client, and the public address of `serve`.
fn exposed(
    driver: &str,
    serve: impl Fn(TcpStream) + Send + Sync + 'static,
) -> (Program, Program, SocketAddr) {
    let address: Ipv4Addr = address();
    let server = server(address, &driver.replace(MUX, ""));
    let (client, public) = client(address, service(address, serve), driver);
    if driver.contains(MUX) {
        server.printed("visitors share one connection");
    }
    (server, client, public)
}

/// Sends `bytes` in pieces of any size, with pauses, and then ends its direction.
fn send_slowly(stream: &mut TcpStream, bytes: &[u8], rng: &mut Rng) {
    let mut rest = bytes;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(rest.len().min(1 + rng.below(100_000) as usize));
        stream.write_all(piece).unwrap();
        rest = later;
        if rng.below(10) == 0 {
            thread::sleep(Duration::from_millis(rng.below(20)));
        }
    }
    stream.shutdown(Shutdown::Write).unwrap();
}

type Digests = Arc<(Mutex<HashMap<u8, Vec<u8>>>, Condvar)>;

/// Reads which stream it is and how long its own is to be; sends that, and notes what comes.
fn answer(mut stream: TcpStream, digests: &Digests) {
    let mut head = [0; 5];
    stream.read_exact(&mut head).unwrap();
    let [seed, length @ ..] = head;
    let mut writer = stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let bytes = random(!seed, u32::from_le_bytes(length) as usize);
        send_slowly(&mut writer, &bytes, &mut Rng::from_seed([seed; 32]));
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    sender.join().unwrap();
    digests.0.lock().unwrap().insert(seed, digest(&SHA256, &got).as_ref().to_vec());
    digests.1.notify_all();
}

#[test]
fn streams_arrive_whole_in_both_directions_whichever_ends_first() {
    for driver in WAYS {
        let digests = Digests::default();
        let noted = digests.clone();
        let (server, _client, public) = exposed(driver, move |stream| answer(stream, &noted));
        let before = server.descriptors();
        thread::scope(|scope| {
            for seed in 0..16u8 {
                scope.spawn(move || {
                    let mut rng = Rng::from_seed([100 + seed; 32]);
                    let lengths = [rng.below(3_000_000), rng.below(3_000_000)].map(|length| length as u32);
                    let mut stream = connect(public);
                    stream.write_all(&[&[seed][..], &lengths[1].to_le_bytes()].concat()).unwrap();
                    let mut writer = stream.try_clone().unwrap();
                    let sender = thread::spawn(move || {
                        send_slowly(&mut writer, &random(seed, lengths[0] as usize), &mut rng);
                    });
                    let mut got = Vec::new();
                    stream.read_to_end(&mut got).unwrap();
                    assert!(got == random(!seed, lengths[1] as usize), "stream {seed}");
                    sender.join().unwrap();
                });
            }
        });
        let (noted, changed) = &*digests;
        let noted = changed.wait_while(noted.lock().unwrap(), |noted| noted.len() < 16).unwrap();
        for seed in 0..16u8 {
            let mut rng = Rng::from_seed([100 + seed; 32]);
            let sent = random(seed, rng.below(3_000_000) as usize);
            assert_eq!(noted[&seed], digest(&SHA256, &sent).as_ref(), "stream {seed}");
        }
        wait_until("all is closed", || server.descriptors() <= before);
    }
}

#[test]
fn a_reset_arrives_as_a_reset_and_an_end_as_an_end() {
    for driver in WAYS {
        let (outbox, inbox) = std::sync::mpsc::channel();
        let outbox = Mutex::new(outbox);
        let (server, _client, public) = exposed(driver, move |mut stream| {
            let outbox = outbox.lock().unwrap().clone();
            let mut order = [0];
            stream.read_exact(&mut order).unwrap();
            if order == *b"r" {
                reset(stream);
            } else {
                stream.write_all(b"?").unwrap();
                outbox.send(stream.read(&mut order).map_err(|error| error.kind())).unwrap();
            }
        });
        let before = server.descriptors();
        let mut visitor = connect(public);
        visitor.write_all(b"r").unwrap();
        assert_eq!(visitor.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));

        for (by_reset, seen) in [(true, Err(ErrorKind::ConnectionReset)), (false, Ok(0))] {
            let mut visitor = connect(public);
            visitor.write_all(b"w").unwrap();
            visitor.read_exact(&mut [0]).unwrap();
            if by_reset {
                reset(visitor);
            } else {
                drop(visitor);
            }
            assert_eq!(inbox.recv_timeout(PATIENCE).unwrap(), seen);
        }
        wait_until("all is closed", || server.descriptors() <= before);
    }
}

fn reset(stream: TcpStream) {
    setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

#[test]
fn a_service_that_never_reads_holds_up_its_own_visitor_only() {
    for driver in WAYS {
        let (server, _client, public) = exposed(driver, |mut stream| {
            let mut order = [0];
            stream.read_exact(&mut order).unwrap();
            if order == *b"e" {
                echo(stream);
            } else {
                // Until the visitor has gone, without reading.
                wait_until("the visitor has gone", || stream.take_error().unwrap().is_some());
            }
        });
        let before = (server.descriptors(), server.resident());
        let floods: Vec<_> = (0..10)
            .map(|_| {
                let mut flood = connect(public);
                flood.write_all(b"f").unwrap();
                flood.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
                while flood.write_all(&[7; 1 << 20]).is_ok() {}
                flood
            })
            .collect();
        for number in 0..10 {
            let mut visitor = connect(public);
            visitor.write_all(b"e").unwrap();
            let bytes = random(number, 100_000);
            visitor.write_all(&bytes).unwrap();
            let mut back = vec![0; bytes.len()];
            visitor.read_exact(&mut back).unwrap();
            assert!(back == bytes);
        }
        let grown = server.resident().saturating_sub(before.1);
        assert!(grown <= 10 * (256 << 10) + (16 << 20), "{grown} bytes more for 10 streams that stand");
        floods.into_iter().for_each(reset);
        wait_until("all is closed", || server.descriptors() <= before.0);
    }
}

#[test]
fn a_visitor_may_pause_for_longer_than_a_dead_peer_is_waited_for() {
    let pause = Duration::from_secs(18);
    let bytes = Arc::new(random(3, 32 << 20));
    let paused = WAYS.map(|driver| {
        let bytes = bytes.clone();
        thread::spawn(move || {
            let sent = bytes.clone();
            // The visitor's reading tells whether all was sent.
            let (_server, _client, public) = exposed(driver, move |mut stream| drop(stream.write_all(&sent)));
            let mut visitor = connect(public);
            let mut got = vec![0; 1000];
            visitor.read_exact(&mut got).unwrap();
            thread::sleep(pause);
            visitor.read_to_end(&mut got).unwrap();
            assert!(got == *bytes, "{driver}: {} of {} bytes", got.len(), bytes.len());
        })
    });
    paused.into_iter().for_each(|visitor| visitor.join().unwrap());
}

#[test]
fn two_thousand_visitors_at_once_are_served_and_cost_little_while_they_wait() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    const COUNT: usize = 2000;
    for driver in WAYS {
        let (server, client, public) = exposed(driver, echo);
        let before = [&server, &client].map(|program| (program.descriptors(), program.resident()));
        let mut visitors: Vec<_> = (0..COUNT).map(|_| connect(public)).collect();
        for (number, visitor) in visitors.iter_mut().enumerate() {
            visitor.write_all(&(number as u32).to_le_bytes()).unwrap();
        }
        for (number, visitor) in visitors.iter_mut().enumerate() {
            let mut back = [0; 4];
            visitor.read_exact(&mut back).unwrap();
            assert_eq!(u32::from_le_bytes(back), number as u32);
        }
        for (program, (_, resident)) in [&server, &client].iter().zip(before) {
            let grown = program.resident().saturating_sub(resident);
            assert!(grown <= COUNT * (20 << 10), "{grown} bytes for {COUNT} idle connections");
        }
        drop(visitors);
        for (program, (descriptors, _)) in [&server, &client].iter().zip(before) {
            wait_until("all is closed", || program.descriptors() <= descriptors);
        }
    }
}

#[test]
fn a_great_flow_beside_many_small_ones_loses_nothing_and_starves_nobody() {
    for driver in WAYS {
        let (_server, _client, public) = exposed(driver, echo);
        let done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut round = 0;
                // Always some megabytes on their way until the others are done.
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    round += 1;
                    let bytes = random(round, 8_000_000);
                    assert!(crate::rig::exchange(public, &bytes) == bytes);
                }
            });
            let small: Vec<_> = (0..8u8)
                .map(|number| {
                    scope.spawn(move || {
                        for round in 0..50 {
                            let mut visitor = connect(public);
                            let bytes = random(number ^ round, 700);
                            visitor.write_all(&bytes).unwrap();
                            let mut back = vec![0; bytes.len()];
                            visitor.read_exact(&mut back).unwrap();
                            assert!(back == bytes);
                        }
                    })
                })
                .collect();
            let results: Vec<_> = small.into_iter().map(thread::ScopedJoinHandle::join).collect();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(results.iter().all(Result::is_ok));
        });
    }
}
