//! What `wg` changes while the tunnel runs: ports, marks, peers, keys, under traffic, and in great number.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread;

use uringvpn::proto::keys::{PresharedKey, PrivateKey, PublicKey};

use crate::ends::{End, Keys, Program, ours};
use crate::rig::{Family, Rig, inner, wait_equal, wait_until};
use crate::traffic::{Stream, ping, reaches};
use crate::tunnel::Tunnel;

/// The answer to a request of the configuration protocol.
fn ask(end: &End, request: &str) -> String {
    let mut stream = UnixStream::connect(end.socket()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_port_that_is_taken_for_a_moment_is_waited_for_and_nobody_else_waits() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    let end = End::start(Program::Ours, host, 0, &Keys::new(), "--queues 2");
    let waits_and_gets_it = || {
        let holder = host.inside(|| UdpSocket::bind("0.0.0.0:52000").unwrap());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| ask(&end, "set=1\nlisten_port=52000\nfwmark=7\n\n"));
            // Asked again until the answer has passed the request that waits.
            for _ in 0..5 {
                assert!(ask(&end, "get=1\n\n").contains("listen_port=51820\nfwmark=0\n"));
                assert_eq!(ask(&end, "set=1\n\n"), "errno=0\n\n");
            }
            let waits = !waiting.is_finished();
            drop(holder);
            waiting.join().unwrap() == "errno=0\n\n" && waits
        })
    };
    // It waits for a second, in which a busy machine may not come to all that.
    assert!((0..10).any(|_| waits_and_gets_it()));
    assert!(ask(&end, "get=1\n\n").contains("listen_port=52000\nfwmark=7\n"));
    let _holder = host.inside(|| UdpSocket::bind("0.0.0.0:52001").unwrap());
    assert_eq!(ask(&end, "set=1\nlisten_port=52001\nfwmark=8\n\n"), "errno=-98\n\n");
    assert!(ask(&end, "get=1\n\n").contains("listen_port=52000\nfwmark=7\n"), "all stays as it was");
}

#[test]
fn port_mark_peers_and_keys_change_under_traffic_and_the_tunnel_goes_on() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let answers = || reaches(near, inner(Family::V4, 1));
    wait_until("an answer", answers);
    let streams = [Stream::start(near, 0, 1), Stream::start(far, 1, 0)];
    let other = Keys::new().public;
    let psk = keys[0].file("psk");
    for round in 0..20 {
        let port = if round % 2 == 0 { 51999 } else { 51820 };
        ends[0].wg(near, &format!("listen-port {port} fwmark {round}"));
        let sockets = near.run(&format!("ss -Huane sport = :{port}"));
        assert_eq!(sockets.lines().count(), 4, "two workers, two families: {sockets}");
        let marked = sockets.matches(&format!("fwmark:{round:#x}")).count();
        assert_eq!(marked, if round == 0 { 0 } else { 4 }, "{sockets}");
        ends[0].wg(near, &format!("peer {other} allowed-ips 10.88.0.0/16 endpoint 192.0.2.9:9"));
        ends[0].wg(near, &format!("peer {other} remove"));
        let file = if round % 2 == 0 { psk.to_str().unwrap() } else { "/dev/null" };
        for (index, end) in ends.iter().enumerate() {
            end.wg(&rig.hosts[index], &format!("peer {} preshared-key {file}", keys[1 - index].public));
        }
    }
    wait_until("an answer", answers);
    wait_until("the endpoint", || ends[1].endpoint(far, &keys[0]).ends_with(":51820"));
    assert!(streams.iter().all(|stream| stream.sent() > 100));
    drop(streams);
    ping(near, inner(Family::V4, 1), 10, 1420);
    assert_eq!(near.run("ss -Huan sport = :51999"), "", "old sockets are closed");
    for end in ends {
        end.process.end(nix::sys::signal::Signal::SIGTERM);
    }
}

fn key(number: u32) -> PublicKey {
    let mut bytes = [7; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    PublicKey::from_bytes(bytes)
}

/// Never all the same byte, so that no other bytes look like it.
fn secret(number: u32) -> PresharedKey {
    PresharedKey::from_bytes(std::array::from_fn(|at| {
        (number.wrapping_mul(0x9e37_79b1) >> (at % 4 * 8)) as u8 ^ at as u8
    }))
}

/// A request that adds these peers, each with a preshared key if `psk`.
fn peers(numbers: std::ops::Range<u32>, psk: bool) -> String {
    let mut request = "set=1\n".to_owned();
    for number in numbers {
        let [_, a, b, c] = number.to_be_bytes();
        writeln!(request, "public_key={}\nallowed_ip=10.{a}.{b}.{c}/32", key(number).to_hex()).unwrap();
        if psk {
            writeln!(request, "preshared_key={}", secret(number).to_hex()).unwrap();
        }
    }
    request + "\n"
}

#[test]
fn ten_thousand_idle_peers_take_at_most_two_kib_each_and_are_listed() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    let end = End::start(Program::Ours, host, 0, &Keys::new(), "--queues 2");
    let before = end.process.memory_bytes("VmRSS");
    assert_eq!(ask(&end, &peers(0..10_000, false)), "errno=0\n\n");
    assert_eq!(end.show(host, "peers").lines().count(), 10_000);
    // Clients have hung up: what their requests took is not the peers'.
    let per_peer = (end.process.memory_bytes("VmRSS") - before) / 10_000;
    println!("{per_peer} bytes per peer");
    assert!(per_peer <= 2048, "{per_peer} bytes per idle peer");
}

#[test]
fn a_client_that_never_reads_twenty_thousand_peers_keeps_nobody_waiting() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, _keys) = ours(&rig, "--queues 1");
    wait_until("an answer", || reaches(&rig.hosts[0], inner(Family::V4, 1)));
    assert_eq!(ask(&ends[0], &peers(0..20_000, true)), "errno=0\n\n");
    let mut deaf: Vec<_> = (0..3).map(|_| UnixStream::connect(ends[0].socket()).unwrap()).collect();
    deaf.iter_mut().for_each(|deaf| deaf.write_all(b"get=1\n\n").unwrap());
    for _ in 0..3 {
        assert_eq!(ask(&ends[0], "get=1\n\n").matches("public_key=").count(), 20_001);
        assert_eq!(ask(&ends[0], "set=1\n\n"), "errno=0\n\n");
        ping(&rig.hosts[0], inner(Family::V4, 1), 5, 1420);
    }
    assert!(ends[0].process.is_alive());
}

/// How many of these byte strings are in the process's memory.
fn found_in_memory(process: &Tunnel, wanted: &[Vec<u8>]) -> usize {
    let maps = fs::read_to_string(format!("/proc/{}/maps", process.pid())).unwrap();
    let memory = File::open(format!("/proc/{}/mem", process.pid())).unwrap();
    let mut found = vec![false; wanted.len()];
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, rest) = line.split_once('-').unwrap();
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let (start, end) = (number(start), number(rest.split(' ').next().unwrap()));
        let mut bytes = vec![0; (end - start) as usize];
        // What is shared with the kernel cannot be read; nothing of ours is there.
        let Ok(()) = memory.read_exact_at(&mut bytes, start) else { continue };
        for (wanted, found) in wanted.iter().zip(&mut found).filter(|(_, found)| !**found) {
            *found = contains(&bytes, wanted);
        }
    }
    found.iter().filter(|found| **found).count()
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let mut rest = bytes;
    // Quick where the first byte is rare: memory is mostly zeros.
    while let Some(at) = rest.iter().position(|byte| *byte == wanted[0]) {
        if rest[at..].starts_with(wanted) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// Their keys, as bytes and as digits.
fn secrets(numbers: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    numbers
        .flat_map(|number| [secret(number).expose().to_vec(), secret(number).to_hex().into_bytes()])
        .collect()
}

#[test]
fn of_keys_that_were_replaced_and_of_peers_that_are_gone_nothing_stays_in_memory() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    let keys = Keys::new();
    let end = End::start(Program::Ours, host, 0, &keys, "--queues 1");
    let mut wanted = secrets(500..508);
    // Its own key, too.
    let own: PrivateKey = fs::read_to_string(keys.file("key")).unwrap().trim().parse().unwrap();
    wanted.extend([own.expose().to_vec(), own.to_hex().into_bytes()]);
    assert_eq!(ask(&end, &peers(0..1000, true)), "errno=0\n\n");
    assert_eq!(found_in_memory(&end.process, &wanted), 9, "while they are there they can be found, as bytes");
    assert!(ask(&end, "get=1\n\n").contains(&secret(500).to_hex()));
    let others = format!("set=1\nprivate_key={}\nreplace_peers=true\n\n", "77".repeat(32));
    assert_eq!(ask(&end, &others), "errno=0\n\n");
    wait_equal("keys in memory", 0, || found_in_memory(&end.process, &wanted));
}
