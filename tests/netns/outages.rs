//! What befalls an encrypted tunnel: interfaces and wires that go and come, loss, signals under load.

use std::fs;
use std::net::SocketAddr;
use std::thread::{self, sleep};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::ends::{End, Keys, PORT, Program, join, ours};
use crate::filter;
use crate::rig::{Family, Host, PATIENCE, Rig, inner, outer, wait_at_most, wait_equal, wait_until};
use crate::traffic::{Iperf, Random, Sample, Stream, is_silent, ping, reaches};
use crate::tunnel::DRIVERS;

/// Open descriptors and threads of a process.
fn belongings(end: &End) -> [usize; 2] {
    ["fd", "task"].map(|what| fs::read_dir(format!("/proc/{}/{what}", end.process.pid())).unwrap().count())
}

#[test]
fn an_interface_that_goes_down_and_up_under_load_carries_on() {
    let Some(rig) = Rig::pair() else { return };
    for io in DRIVERS {
        let (ends, _keys) = ours(&rig, &format!("--queues 2 --io {io}"));
        let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
        wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
        let before = ends.each_ref().map(belongings);
        let streams = [Stream::start(near, 0, 1), Stream::start(far, 1, 0)];
        let mut random = Random(5);
        for _ in 0..20 {
            let index = random.below(2);
            for state in ["down", "up"] {
                rig.hosts[index].run(&format!("ip link set {} {state}", ends[index].interface));
                sleep(Duration::from_micros(random.below(30_000) as u64));
            }
        }
        wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
        assert!(streams.iter().all(|stream| stream.sent() > 100));
        drop(streams);
        Sample::new(3_000_000).cross(near, far, inner(Family::V4, 1));
        wait_equal("descriptors and threads", before, || ends.each_ref().map(belongings));
        for end in ends {
            assert!(end.process.memory_bytes("VmRSS") < 64 << 20);
            end.process.stop();
        }
    }
}

#[test]
fn while_the_interface_is_down_nothing_is_sent_and_afterwards_keepalives_resume() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    ends[0].wg(near, &format!("peer {} persistent-keepalive 1", keys[1].public));
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    near.run(&format!("ip link set {} down", ends[0].interface));
    filter::load(
        far,
        &format!(
            "counter came {{ }}; chain in {{ type filter hook input priority filter; udp dport {PORT} counter name came; }}"
        ),
    );
    wait_until("it is noticed", || ends[0].process.output().contains(" is down: pausing"));
    sleep(Duration::from_millis(100));
    filter::count_anew(far, "came");
    let before = ends[0].latest_handshake(near, &keys[1]);
    sleep(Duration::from_millis(2500));
    assert_eq!(filter::counted(far, "came"), 0);
    near.run(&format!("ip link set {} up", ends[0].interface));
    wait_until("a handshake for the keepalive", || ends[0].latest_handshake(near, &keys[1]) > before);
    wait_until("keepalives", || filter::counted(far, "came") >= 4);
}

#[test]
fn a_wire_that_fails_and_an_address_that_changes_are_survived() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    for (host, link) in [(near, "to-b"), (far, "veth0")] {
        let stream = Stream::start(near, 0, 1);
        host.run(&format!("ip link set {link} down"));
        sleep(Duration::from_millis(300));
        assert!(is_silent(near, inner(Family::V4, 1)));
        host.run(&format!("ip link set {link} up"));
        wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
        drop(stream);
    }
    // The server moves and speaks: the client follows.
    far.run("ip address del 192.0.2.2/24 dev veth0");
    far.run("ip address add 192.0.2.66/24 dev veth0");
    wait_until("an answer to the server", || reaches(far, inner(Family::V4, 0)));
    wait_equal("the endpoint", format!("192.0.2.66:{PORT}"), || ends[0].endpoint(near, &keys[1]));
    ping(near, inner(Family::V4, 1), 5, 1420);
    for end in ends {
        end.process.stop();
    }
}

#[test]
fn another_default_route_is_taken_when_the_first_leads_nowhere() {
    let Some(rig) = Rig::pair_aside() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    second_wire(near, far);
    let server: SocketAddr = format!("203.0.113.1:{PORT}").parse().unwrap();
    far.run(&format!("ip address add {}/32 dev lo", server.ip()));
    near.run(&format!("ip route add default via {}", outer(Family::V4, 1, 2)));
    let (ends, keys) = ours(&rig, "--queues 2");
    ends[0].wg(near, &format!("peer {} endpoint {server}", keys[1].public));
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let near_as_seen = || ends[1].endpoint(far, &keys[0]);
    wait_equal("the endpoint", format!("{}:{PORT}", outer(Family::V4, 1, 1)), near_as_seen);
    far.run("ip link set veth0 down");
    near.run("ip route replace default via 192.168.7.2");
    // At the latest when the peer has been silent for 15 seconds the source address is chosen anew.
    wait_until("an answer by the other way", || reaches(near, inner(Family::V4, 1)));
    wait_equal("the endpoint", format!("192.168.7.1:{PORT}"), near_as_seen);
    assert_eq!(ends[0].endpoint(near, &keys[1]), server.to_string());
}

/// Joins two hosts by another wire: 192.168.7.1 and 192.168.7.2.
fn second_wire(near: &Host, far: &Host) {
    near.run(&format!("ip link add second type veth peer name second netns {}", far.name()));
    for (host, end) in [(near, 1), (far, 2)] {
        host.run(&format!("ip address add 192.168.7.{end}/24 dev second"));
        host.run("ip link set second up");
    }
}

/// Loses `percent` of what arrives at the tunnel's port, and counts those that carry `payload` bytes of UDP.
fn lose(host: &Host, percent: u32, payload: u32) {
    let length = 8 + payload;
    filter::load(
        host,
        &format!(
            "counter lost {{ }}; chain unlucky {{ udp length {length} counter name lost; drop; }}
             chain in {{ type filter hook input priority filter;
             udp dport {PORT} numgen random mod 100 < {percent} goto unlucky; }}"
        ),
    );
}

/// A tunnel through a wire that loses `percent` both ways.
fn survives_loss(percent: u32) {
    const PINGS: u64 = 300;
    let Some(rig) = Rig::pair_aside() else { return };
    // A ping of 1028 bytes, padded, with header and tag.
    for (host, link) in rig.hosts.iter().zip(["to-b", "veth0"]) {
        lose(host, percent, 1040 + 32);
        // Trains would be lost whole.
        host.run(&format!("ethtool -K {link} tx-udp-segmentation off"));
    }
    let (ends, keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    // Both begin, so that one of the two is lucky soon.
    let near_at = SocketAddr::new(outer(Family::V4, 1, 1), PORT);
    ends[1].wg(far, &format!("peer {} endpoint {near_at}", keys[0].public));
    // Half of the packets lost: one handshake in four completes, and five seconds lie between two.
    wait_at_most(3 * PATIENCE, "an answer", || {
        reaches(near, inner(Family::V4, 1)) || reaches(far, inner(Family::V4, 0))
    });
    // Late answers to those pings are not counted with the following.
    sleep(Duration::from_millis(500));
    // What got lost was lost on the wire.
    let lost = || [near, far].map(|host| filter::counted(host, "lost")).iter().sum::<u64>();
    let answered = || near.counted("Icmp", "InEchoReps");
    let before = answered();
    near.command(format!("ping -n -q -i 0.01 -W 1 -s 1000 -c {PINGS} {}", inner(Family::V4, 1)).split(' '))
        .output()
        .unwrap();
    let told = || answered() - before + lost();
    wait_until(&format!("{PINGS} pings to be answered or lost at {percent} %"), || told() >= PINGS);
    sleep(Duration::from_millis(200));
    assert_eq!(told(), PINGS, "at {percent} %");
    assert!(lost() > 10, "{} lost", lost());
}

#[test]
fn a_handshake_completes_whatever_the_loss_and_the_tunnel_adds_none() {
    thread::scope(|scope| {
        let tests = [10, 30, 50].map(|percent| scope.spawn(move || survives_loss(percent)));
        assert!(tests.into_iter().all(|test| test.join().is_ok()));
    });
}

#[test]
fn a_signal_under_full_load_ends_it_and_leaves_nothing() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    for io in DRIVERS {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let (ends, keys) = ours(&rig, &format!("--queues 2 --io {io}"));
            wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
            let iperf = Iperf::start(far);
            let client = iperf.start_client(near, inner(Family::V4, 1), "--time 60 --parallel 2 --bidir");
            let [_, before] = ends[0].transfer(near, &keys[1]);
            wait_until("load", || ends[0].transfer(near, &keys[1])[1] > before + 2_000_000);
            for end in ends {
                let (interface, socket) = (end.interface.clone(), end.socket());
                kill(end.process.pid(), signal).unwrap();
                // A second one changes nothing, whether it comes before the end or after.
                let _ = kill(end.process.pid(), signal);
                let (status, output) = end.process.wait();
                assert_eq!(status.code(), Some(0), "{output}");
                assert!(!output.contains("panicked") && !output.contains("do not add up"), "{output}");
                assert!(!socket.exists());
                assert!([near, far].iter().all(|host| !host.has_link(&interface)));
            }
            drop(client);
        }
    }
}

#[test]
fn after_sigkill_under_load_it_starts_again_under_the_same_name() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let keys = [Keys::new(), Keys::new()];
    let start =
        |index: usize| End::start(Program::Ours, &rig.hosts[index], index as u8, &keys[index], "--queues 2");
    let mut ends = [start(0), start(1)];
    join(&rig, &ends, &keys, Family::V4, false);
    let iperf = Iperf::start(far);
    for _ in 0..5 {
        wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
        let client = iperf.start_client(near, inner(Family::V4, 1), "--time 60");
        sleep(Duration::from_millis(200));
        let name = ends[0].interface.clone();
        kill(ends[0].process.pid(), Signal::SIGKILL).unwrap();
        let words = Program::Ours.words(&name, "--queues 2");
        let mut command = near.command(words.split_whitespace());
        ends[0] = End::launch(Program::Ours, near, &name, &mut command, &keys[0], PORT);
        near.run(&format!("ip address add {}/24 dev {name}", inner(Family::V4, 0)));
        near.run(&format!("ip link set {name} mtu 1420 up"));
        join(&rig, &ends, &keys, Family::V4, false);
        drop(client);
    }
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    Sample::new(3_000_000).cross(near, far, inner(Family::V4, 1));
    for end in ends {
        end.process.stop();
    }
}
