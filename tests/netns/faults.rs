//! The kernel has no room, no time or no way for our packets: what is lost is counted, and all goes on afterwards.

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use uringvpn::proto::keys::PublicKey;
use uringvpn::stats::drop::DropReason;
use uringvpn::stats::snapshot::Snapshot;

use crate::modes::{BEFORE_ROUTES, EVERYTHING, Ends, MODES, interface, make_key};
use crate::rig::{Family, Host, Rig, inner, wait_equal, wait_until};
use crate::traffic::{Sample, ping, reaches, udp_trains_in_order};
use crate::tunnel::{DRIVERS, PROGRAM, Tunnel};

/// Sends `count` datagrams of `bytes` to port 9 of `to`, as fast as they go; how many the kernel took.
fn flood(from: &Host, to: &str, count: usize, bytes: usize) -> usize {
    let socket = from.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let to: SocketAddr = format!("{to}:9").parse().unwrap();
    let datagram = vec![7; bytes];
    (0..count).filter(|_| socket.send_to(&datagram, to).is_ok()).count()
}

/// What `uringvpn show` tells of the tunnel with the interface `link`.
fn shown(host: &Host, link: &str) -> Snapshot {
    serde_json::from_str(&host.run(&format!("{PROGRAM} show {link} --json"))).unwrap()
}

/// What the kernel has dropped for want of room, as far as the tunnel has heard.
fn overflown(host: &Host, link: &str) -> u64 {
    shown(host, link).kernel_drops.iter().map(|dropped| dropped.packets).sum()
}

/// One ping after a silence, answered however late.
#[track_caller]
fn answers(from: &Host) {
    thread::sleep(Duration::from_millis(50));
    ping(from, inner(Family::V4, 1), 1, 100);
}

#[test]
fn a_process_that_stood_still_goes_on_with_the_next_packet() {
    let Some(rig) = Rig::pair_alone() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    for mode in MODES {
        for io in DRIVERS {
            let ends = Ends::start(&rig, mode, &format!("--io {io} --queues 2"), EVERYTHING);
            let pid = ends.pair.near.pid();
            for _ in 0..3 {
                let before = overflown(near, &ends.links[0]);
                kill(pid, Signal::SIGSTOP).unwrap();
                // More than its buffers, its TUN queues and its sockets hold, from both sides; junk, too.
                flood(near, "10.9.0.2", 8_000, 1300);
                flood(far, "10.9.0.1", 8_000, 1300);
                let stranger = far.inside(|| UdpSocket::bind("192.0.2.2:0").unwrap());
                let junk = || drop(stranger.send_to(&[0x45; 700], "192.0.2.1:51820"));
                (0..20_000).for_each(|_| junk());
                kill(pid, Signal::SIGCONT).unwrap();
                wait_until("the kernel's drops to be told", || {
                    junk();
                    overflown(near, &ends.links[0]) > before
                });
                wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
                answers(near);
            }
            for family in [Family::V4, Family::V6] {
                ping(near, inner(family, 1), 10, 1420);
            }
            // Both end with numbers that add up.
            ends.stop();
        }
    }
}

#[test]
fn a_wire_that_takes_no_more_loses_packets_and_nothing_else() {
    let Some(rig) = Rig::pair_alone() else { return };
    let near = &rig.hosts[0];
    for mode in MODES {
        for io in DRIVERS {
            let ends = Ends::start(&rig, mode, &format!("--io {io} --queues 2"), EVERYTHING);
            near.run("tc qdisc add dev to-b root tbf rate 1mbit burst 5kb limit 10kb");
            flood(near, "10.9.0.2", 5_000, 1300);
            flood(near, "10.9.0.2", 5_000, 60);
            near.run("tc qdisc del dev to-b root");
            wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
            answers(near);
            ping(near, inner(Family::V6, 1), 10, 1420);
            // A queue that holds whatever it gets: what we send fills our own socket buffers.
            near.run("tc qdisc add dev to-b root tbf rate 1mbit burst 70kb limit 100mb");
            wait_until("sends to be refused", || {
                // A busy worker reads only some of them, and the socket takes megabytes.
                flood(near, "10.9.0.2", 2_000, 1300);
                let drops = shown(near, &ends.links[0]).drops;
                drops.iter().any(|dropped| dropped.reason == DropReason::SendError.label())
            });
            near.run("tc qdisc del dev to-b root");
            wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
            answers(near);
            let [near_report, far_report] = ends.stop();
            let expected = [DropReason::SendError, BEFORE_ROUTES];
            assert_eq!(near_report.dropped_otherwise(&expected), 0, "{}", near_report.output);
            assert_eq!(far_report.dropped_otherwise(&[BEFORE_ROUTES]), 0, "{}", far_report.output);
        }
    }
}

#[test]
fn forwarded_packets_cross_however_the_kernel_joined_them() {
    let Some(rig) = Rig::three() else { return };
    let [gateway, far, client] = [&rig.hosts[0], &rig.hosts[1], &rig.hosts[2]];
    for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        gateway.inside(|| std::fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap());
    }
    client.run("ip route add 10.9.0.0/24 via 198.51.100.1");
    client.run("ip -6 route add fd09::/64 via 2001:db8:2::1");
    let sample = Sample::new(4_000_000);
    let (behind, behind_v6) = ("198.51.100.2".parse().unwrap(), "2001:db8:2::2".parse().unwrap());
    for mode in MODES {
        for io in DRIVERS {
            let ends = Ends::start(&rig, mode, &format!("--io {io} --queues 2"), EVERYTHING);
            far.run(&format!("ip route add 198.51.100.0/24 dev {}", ends.links[1]));
            far.run(&format!("ip -6 route add 2001:db8:2::/64 dev {}", ends.links[1]));
            for switches in ["gro off", "gro on", "rx-udp-gro-forwarding on", "rx-gro-list on"] {
                gateway.run(&format!("ethtool -K to-c {switches}"));
                let lost =
                    || -> u64 { [far, client].iter().map(|host| host.counted("Tcp", "RetransSegs")).sum() };
                let before = lost();
                for (there, back) in [(inner(Family::V4, 1), behind), (inner(Family::V6, 1), behind_v6)] {
                    sample.cross(client, far, there);
                    sample.cross(far, client, back);
                }
                udp_trains_in_order(client, far, inner(Family::V4, 1), 1300);
                udp_trains_in_order(far, client, behind_v6, 700);
                // What is refused would be sent again and again.
                let lost = lost() - before;
                assert!(lost < 500, "{mode:?}, {io}, {switches}: {lost} segments sent again");
            }
            gateway.run("ethtool -K to-c gro on rx-udp-gro-forwarding off rx-gro-list off");
            for report in ends.stop() {
                assert_eq!(
                    report.dropped_otherwise(&[BEFORE_ROUTES]),
                    0,
                    "{mode:?}, {io}: {}",
                    report.output
                );
            }
        }
    }
}

#[test]
fn a_vxlan_within_the_tunnel_carries_a_connection() {
    let Some(rig) = Rig::pair_alone() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let sample = Sample::new(4_000_000);
    for mode in MODES {
        for io in DRIVERS {
            let ends = Ends::start(&rig, mode, &format!("--io {io} --queues 2"), EVERYTHING);
            for (host, here, there) in [(near, 1, 2), (far, 2, 1)] {
                let addresses = format!("local 10.9.0.{here} remote 10.9.0.{there}");
                host.run(&format!("ip link add inside type vxlan id 7 {addresses} dstport 4789"));
                host.run(&format!("ip address add 10.77.0.{here}/24 dev inside"));
                host.run("ip link set inside mtu 1370 up");
            }
            let inside = [1, 2].map(|end| std::net::Ipv4Addr::new(10, 77, 0, end).into());
            wait_until("an answer inside", || reaches(near, inside[1]));
            sample.cross(near, far, inside[1]);
            sample.cross(far, near, inside[0]);
            rig.hosts.iter().for_each(|host| drop(host.run("ip link del inside")));
            for report in ends.stop() {
                assert_eq!(
                    report.dropped_otherwise(&[BEFORE_ROUTES]),
                    0,
                    "{mode:?}, {io}: {}",
                    report.output
                );
            }
        }
    }
}

/// A sealed tunnel on `host` with a configuration file of these `peers`, its interface, and the file's directory.
fn configured(host: &Host, options: &str, peers: &str) -> (Tunnel, String, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    make_key(&directory, "key");
    let key = std::fs::read_to_string(directory.path().join("key")).unwrap();
    let link = interface();
    let file = directory.path().join(format!("{link}.conf"));
    let config = format!("[Interface]\nPrivateKey = {key}\nAddress = 10.9.0.1/24\nTable = off\n{peers}");
    std::fs::write(&file, config).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let words = format!("{PROGRAM} -f --config {} --stats-interval 86400 {options}", file.display());
    let tunnel = Tunnel::spawn(&mut host.command(words.split_whitespace()));
    // Its workers know their peers when it can be looked at.
    let socket = format!("/var/run/uringvpn/{link}.sock");
    wait_until("the tunnel is up", || {
        assert!(tunnel.is_alive(), "ended early: {}", tunnel.output());
        std::path::Path::new(&socket).exists()
    });
    host.run(&format!("ip route add 10.20.0.0/14 dev {link}"));
    (tunnel, link, directory)
}

fn peer(number: u32, rest: &str) -> String {
    let mut key = [9; 32];
    key[..4].copy_from_slice(&number.to_le_bytes());
    format!("[Peer]\nPublicKey = {}\n{rest}\n", PublicKey::from_bytes(key))
}

#[test]
fn packets_that_have_nowhere_to_go_are_dropped_for_the_right_reason() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    // The kernel has packets of its own for every interface with IPv6.
    host.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
    let peers = peer(1, "AllowedIPs = 10.20.1.0/24")
        + &peer(2, "AllowedIPs = 10.20.2.0/24\nEndpoint = 192.0.2.99:51820");
    for io in DRIVERS {
        let (tunnel, link, _directory) = configured(host, &format!("--io {io} --queues 1"), &peers);
        for to in ["10.20.1.1", "10.20.2.1", "10.20.3.1"] {
            assert_eq!(flood(host, to, 200, 100), 200);
        }
        wait_equal("all to be read", 600, || shown(host, &link).counters["out_packets"]);
        let report = tunnel.stop();
        let drops =
            [DropReason::NoEndpoint, DropReason::NoRoute, DropReason::StageFull, DropReason::NoSession]
                .map(|reason| report.dropped(reason));
        assert_eq!(drops, [200, 200, 72, 128], "{}", report.output);
    }
}

#[test]
fn five_thousand_dead_peers_cost_little_memory() {
    const PEERS: u32 = 5_000;
    let Some(rig) = Rig::pair_alone() else { return };
    let host = &rig.hosts[0];
    let dead = |number: u32| {
        let [_, _, high, low] = number.to_be_bytes();
        peer(number, &format!("AllowedIPs = 10.20.{high}.{low}/32\nEndpoint = 192.0.2.99:51820"))
    };
    let peers = (0..PEERS).fold(String::new(), |mut peers, number| {
        let _ = write!(peers, "{}", dead(number));
        peers
    });
    let (tunnel, link, _directory) = configured(host, "--queues 1", &peers);
    let before = tunnel.memory_bytes("VmRSS");
    let socket = host.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    // A busy worker reads only some of them.
    wait_until("the stage to be full", || {
        for number in (0..10).flat_map(|_| 0..PEERS) {
            let [_, _, high, low] = number.to_be_bytes();
            let _ = socket.send_to(&[7; 32], (std::net::Ipv4Addr::new(10, 20, high, low), 9));
        }
        let drops = shown(host, &link).drops;
        drops
            .iter()
            .any(|dropped| dropped.reason == DropReason::StageFull.label() && dropped.packets > 10_000)
    });
    let grown = tunnel.memory_bytes("VmRSS").saturating_sub(before);
    println!("{PEERS} dead peers: {before} bytes resident, {grown} more with packets that wait");
    assert!(grown < 48 << 20, "{grown} bytes more");
    let report = tunnel.stop();
    assert!(report.dropped(DropReason::NoSession) > 10_000, "{}", report.output);
}
