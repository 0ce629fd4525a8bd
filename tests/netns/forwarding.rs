//! Packets cross, all of them, in order and unharmed.

use std::thread;

use uringvpn::stats::drop::DropReason;

use crate::rig::{FAMILIES, Family, Host, Rig, inner, outer, wait_until};
use crate::traffic::{Iperf, Sample, is_silent, ping, reaches, udp_trains_in_order};
use crate::tunnel::{DRIVERS, Pair, TUN, Tunnel};

const QUEUES: [u8; 3] = [1, 2, 4];
/// Bytes of a transfer that shall notice anything wrong.
const SMALL_FILE_BYTES: usize = 20_000_000;

#[test]
fn ping_crosses_in_either_family_over_either_family_with_both_drivers() {
    let Some(rig) = Rig::pair() else { return };
    for io in DRIVERS {
        for queues in QUEUES {
            for outer in FAMILIES {
                let pair = Pair::start(&rig, outer, &format!("--io {io} --queues {queues}"));
                for inside in FAMILIES {
                    ping(&rig.hosts[0], inner(inside, 1), 10, 84);
                    ping(&rig.hosts[1], inner(inside, 0), 10, 1420);
                }
                for report in pair.stop() {
                    assert_eq!(report.total("workers"), u64::from(queues));
                    assert_eq!(report.dropped_otherwise(&[]), 0, "{}", report.output);
                    assert!(report.total("out_packets") >= 40 && report.total("in_datagrams") >= 40);
                }
            }
        }
    }
}

#[test]
fn iperf3_crosses_both_ways_without_loss_or_reordering() {
    let Some(rig) = Rig::pair_alone() else { return };
    let iperf = Iperf::start(&rig.hosts[1]);
    // Rotates through the inner families so that each driver meets each combination with some number of queues.
    let mut turn = 0;
    for io in DRIVERS {
        for queues in QUEUES {
            for outer in FAMILIES {
                let pair = Pair::start(&rig, outer, &format!("--io {io} --queues {queues}"));
                for (tcp, options) in [
                    (true, ""),
                    (true, "--reverse"),
                    (false, ""),
                    (false, "--reverse"),
                    (true, "--parallel 4"),
                ] {
                    let inside = FAMILIES[turn % 2];
                    turn += 1;
                    let case =
                        format!("{io}, {queues} queues, {outer:?} outside, {inside:?} inside, {options}");
                    if tcp {
                        tcp_in_order(&rig, &iperf, inside, options, &case);
                    } else {
                        udp_without_loss(&rig, &iperf, inside, options, &case);
                    }
                }
                for report in pair.stop() {
                    assert_eq!(report.dropped_otherwise(&[]), 0, "{io}, {queues} queues: {}", report.output);
                }
            }
            turn += 1;
        }
    }
}

#[track_caller]
fn tcp_in_order(rig: &Rig, iperf: &Iperf, inside: Family, options: &str, case: &str) {
    const BYTES: f64 = 60e6;
    let lost = || -> u64 { rig.hosts.iter().map(|host| host.counted("Tcp", "RetransSegs")).sum() };
    let out_of_order = || -> u64 { rig.hosts.iter().map(|host| host.counted("TcpExt", "TCPOFOQueue")).sum() };
    let before = (lost(), out_of_order());
    let measured = iperf.run(&rig.hosts[0], inner(inside, 1), &format!("--bytes 60M {options}"));
    let (lost, out_of_order) = (lost() - before.0, out_of_order() - before.1);
    let received = measured.number("sum_received", "bytes");
    println!(
        "{case}: {:.2} Gbit/s, {lost} retransmitted, {out_of_order} out of order",
        measured.number("sum_received", "bits_per_second") / 1e9
    );
    // The receiver stops counting when the sender has sent everything, whatever is still on the way.
    assert!(received >= 0.5 * BYTES, "{case}: {received} bytes arrived");
    // After a loss the following segments are out of order by definition.
    assert!(lost > 0 || out_of_order == 0, "{case}: {out_of_order} segments out of order without any loss");
}

#[track_caller]
fn udp_without_loss(rig: &Rig, iperf: &Iperf, inside: Family, options: &str, case: &str) {
    let options = format!("--udp --bitrate 10M --length 1200 --bytes 1M {options}");
    let overflowed = || {
        let both = rig.hosts.iter().map(|host| host.overflowed(51820));
        both.fold((0, 0), |sum, host| (sum.0 + host.0, sum.1 + host.1))
    };
    // The kernel's: it holds 500 packets for each of our queues.
    let not_read = || rig.hosts.iter().map(|host| host.statistic(TUN, "tx_dropped")).sum::<u64>();
    let (before, not_read_before) = (overflowed(), not_read());
    let measured = iperf.run(&rig.hosts[0], inner(inside, 1), &options);
    let number = |name| measured.number("sum", name);
    let (after, not_read) = (overflowed(), not_read() - not_read_before);
    assert_eq!(after.1 - before.1, 0, "{case}: lost in front of the tunnel");
    // iperf3's own buffer holds some 80 ms: what overflows there on a busy machine has crossed the tunnel. The very last ones
    // it does not miss.
    let read_too_late = (after.0 - before.0 + not_read) as f64;
    let lost = number("lost_packets");
    assert!(lost <= read_too_late, "{case}: {lost} lost, {read_too_late} of them elsewhere");
    assert_eq!(number("out_of_order"), 0.0, "{case}");
    assert!(number("packets") >= 750.0, "{case}: {} packets", number("packets"));
}

#[test]
fn five_hundred_megabytes_cross_both_ways_at_once_with_their_hash() {
    let Some(rig) = Rig::pair_alone() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let sample = Sample::new(500_000_000);
    for (io, outer, inside) in [("uring", Family::V4, Family::V6), ("syscall", Family::V6, Family::V4)] {
        let pair = Pair::start(&rig, outer, &format!("--io {io} --queues 2"));
        thread::scope(|scope| {
            scope.spawn(|| sample.cross(near, far, inner(inside, 1)));
            scope.spawn(|| sample.cross(far, near, inner(inside, 0)));
        });
        for report in pair.stop() {
            assert!(report.total("written_bytes") > 500_000_000, "{}", report.output);
            assert_eq!(report.dropped_otherwise(&[]), 0, "{}", report.output);
        }
    }
}

#[test]
fn full_sized_packets_and_a_file_cross_at_every_mtu() {
    let Some(rig) = Rig::pair_alone() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let sample = Sample::new(SMALL_FILE_BYTES);
    let short = Sample::new(200_000);
    for mtu in [68, 576, 1280, 1420, 8900, 65000] {
        for (io, outer) in DRIVERS.into_iter().zip(FAMILIES) {
            let pair = Pair::start(&rig, outer, &format!("--io {io} --queues 2 --mtu {mtu}"));
            let began = std::time::Instant::now();
            for inside in FAMILIES.into_iter().take(if mtu < 1280 { 1 } else { 2 }) {
                ping(near, inner(inside, 1), 5, mtu);
                ping(far, inner(inside, 0), 5, mtu);
                // TCP on the smallest MTU sends less than its own headers per packet.
                if mtu == 68 { &short } else { &sample }.cross(near, far, inner(inside, 1));
            }
            println!("MTU {mtu}, {io}: {:.1} s", began.elapsed().as_secs_f64());
            for report in pair.stop() {
                assert_eq!(report.dropped_otherwise(&[]), 0, "MTU {mtu}: {}", report.output);
            }
        }
    }
}

#[test]
fn a_file_and_udp_superpackets_cross_whatever_offload_is_left_out() {
    let Some(rig) = Rig::pair_alone() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let sample = Sample::new(SMALL_FILE_BYTES);
    for (io, outer) in DRIVERS.into_iter().zip(FAMILIES) {
        for disabled in ["", "tso", "uso", "gso", "gro", "tso,uso,gso,gro"] {
            let disable = if disabled.is_empty() { String::new() } else { format!("--disable {disabled}") };
            let pair = Pair::start(&rig, outer, &format!("--io {io} --queues 2 {disable}"));
            for inside in FAMILIES {
                sample.cross(near, far, inner(inside, 1));
                udp_trains_in_order(near, far, inner(inside, 1), 1000);
            }
            for report in pair.stop() {
                assert_eq!(report.dropped_otherwise(&[]), 0, "without {disabled}: {}", report.output);
                if disabled.contains("tso,uso") {
                    // One datagram per call: that is what was asked for.
                    assert_eq!(report.total("trains"), report.total("sent_datagrams"));
                    assert_eq!(report.total("receives"), report.total("in_datagrams"));
                }
            }
        }
    }
}

#[test]
fn udp_superpackets_of_every_size_cross_in_order() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    for io in DRIVERS {
        let pair = Pair::start(&rig, Family::V4, &format!("--io {io} --queues 4"));
        for inside in FAMILIES {
            for segment_bytes in [1, 2, 17, 100, 1200, 1372] {
                udp_trains_in_order(near, far, inner(inside, 1), segment_bytes);
                udp_trains_in_order(far, near, inner(inside, 0), segment_bytes);
            }
        }
        for report in pair.stop() {
            assert_eq!(report.dropped_otherwise(&[]), 0, "{}", report.output);
        }
    }
}

#[test]
fn each_peer_gets_what_its_allowed_ips_say_and_cannot_speak_for_another() {
    let Some(rig) = Rig::three() else { return };
    let [hub, b, c] = [&rig.hosts[0], &rig.hosts[1], &rig.hosts[2]];
    for io in DRIVERS {
        let peer = |wire: u8| {
            let [v4, v6] = FAMILIES.map(|family| inner(family, wire));
            format!("--peer {}:51820,allowed-ips={v4}+{v6}", outer(Family::V4, wire, 2))
        };
        let options = format!("--io {io} --queues 2 --address 10.9.0.1/24 --address fd09::1/64");
        let middle = Tunnel::start(hub, &format!("{options} {} {}", peer(1), peer(2)));
        let spokes = [(b, 1), (c, 2)].map(|(host, index): (&Host, u8)| {
            let [v4, v6] = FAMILIES.map(|family| inner(family, index));
            let to = outer(Family::V4, index, 1);
            let options =
                format!("--io {io} --queues 2 --address {v4}/24 --address {v6}/64 --peer {to}:51820");
            Tunnel::start(host, &options)
        });
        for index in [1, 2] {
            wait_until("the peer answers", || reaches(hub, inner(Family::V4, index)));
            for family in FAMILIES {
                ping(hub, inner(family, index), 5, 1400);
            }
        }
        // b claims c's address. Its packets must die here, and c must not hear of them.
        let c_heard = |host: &Host| host.counted("Icmp", "InEchoReps");
        let before = c_heard(c);
        b.run("ip address add 10.9.0.3/32 dev uvt0");
        let forged = ["ping", "-n", "-q", "-c", "5", "-i", "0.01", "-W", "1", "-I", "10.9.0.3", "10.9.0.1"];
        assert!(!b.command(forged).output().unwrap().status.success());
        assert_eq!(c_heard(c), before);
        // And an address that is nobody's has no peer to go to.
        assert!(is_silent(hub, "10.9.0.77".parse().unwrap()));
        let report = middle.stop();
        assert_eq!(report.dropped(DropReason::SourceNotAllowed), 5, "{}", report.output);
        assert!(report.dropped(DropReason::NoRoute) >= 1, "{}", report.output);
        let expected = [DropReason::SourceNotAllowed, DropReason::NoRoute];
        assert_eq!(report.dropped_otherwise(&expected), 0, "{}", report.output);
        spokes.into_iter().for_each(|spoke| drop(spoke.stop()));
    }
}
