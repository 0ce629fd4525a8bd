//! Encrypted tunnels of every size: large and small MTUs, changes under traffic, outer fragments.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket,
};
use uringvpn::stats::drop::DropReason;

use crate::ends::{End, Keys, PORT, Program, join, ours};
use crate::filter;
use crate::rig::{FAMILIES, Family, Host, Rig, inner, outer, wait_until};
use crate::traffic::{Iperf, Random, Sample, Stream, answered, ping, reaches};

/// The tunnel MTU of the reference implementation's own tests.
const LARGE: u32 = 34_736;

fn set_mtu(rig: &Rig, ends: &[End; 2], mtu: u32) {
    for (host, end) in rig.hosts.iter().zip(ends) {
        host.run(&format!("ip link set {} mtu {mtu}", end.interface));
    }
}

#[test]
fn a_tunnel_of_a_large_mtu_carries_packets_of_every_size() {
    let Some(rig) = Rig::pair() else { return };
    rig.hosts[0].run("ip link set to-b mtu 65535");
    rig.hosts[1].run("ip link set veth0 mtu 65535");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let sample = Sample::new(10_000_000);
    for family in FAMILIES {
        let (ends, keys) = ours(&rig, "--queues 2");
        set_mtu(&rig, &ends, LARGE);
        join(&rig, &ends, &keys, family, true);
        wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
        for bytes in [1420, 1421, 9000, 32_768, LARGE - 17, LARGE - 16, LARGE - 1, LARGE] {
            ping(near, inner(Family::V4, 1), 2, bytes);
            ping(far, inner(Family::V6, 0), 2, bytes);
        }
        sample.cross(near, far, inner(Family::V4, 1));
        sample.cross(far, near, inner(Family::V6, 0));
        for end in ends {
            end.process.stop();
        }
    }
}

#[test]
fn a_packet_as_large_as_ip_allows_does_no_harm() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, _keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    set_mtu(&rig, &ends, 65_535);
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    // The largest that with padding, header and tag still fits a datagram of 65,507 bytes.
    ping(near, inner(Family::V4, 1), 2, 65_472);
    assert_eq!(answered(near, inner(Family::V4, 1), 3, "-M do -s 65507"), 0);
    ping(far, inner(Family::V4, 0), 2, 1420);
    for end in ends {
        end.process.stop();
    }
}

/// Counts on the far host the datagrams longer than those of packets of `mtu` bytes, and all of them.
fn count_longer_than(far: &Host, mtu: u32) {
    let bytes = 8 + 32 + mtu;
    filter::load(
        far,
        &format!(
            "counter longer {{ }}; counter every {{ }}; chain in {{ type filter hook input priority filter;
             udp dport {PORT} counter name every; udp dport {PORT} udp length > {bytes} counter name longer; }}"
        ),
    );
}

#[test]
fn padding_stays_within_the_mtu_also_when_it_changes_under_traffic() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, _keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    // Trains would cross the wire whole.
    near.run("ethtool -K to-b tx-udp-segmentation off");
    // Few fragments at the smallest MTU: no queue overflows while a busy machine keeps the tunnel from reading.
    let stream = Stream::start_with(near, 0, 1, 100, Duration::from_millis(5));
    let to = inner(Family::V4, 1);
    for mtu in [1299, 68, 576, 1280, 1420, 9000, 1420, 1299] {
        set_mtu(&rig, &ends, mtu);
        count_longer_than(far, mtu);
        let sizes = [mtu - 15, mtu - 2, mtu - 1, mtu];
        let count_anew = || {
            for name in ["every", "longer"] {
                filter::count_anew(far, name);
            }
        };
        let none_longer = || {
            count_anew();
            let reached = |bytes| answered(near, to, 1, &format!("-M do -s {}", bytes - 28)) == 1;
            sizes.into_iter().all(reached) && filter::counted(far, "longer") == 0
        };
        // Packets that were read before the news of another MTU are padded as before, and each worker hears it by itself.
        wait_until("the MTU to be known", || (0..4).all(|_| none_longer()));
        count_anew();
        sizes.into_iter().for_each(|bytes| ping(near, to, 5, bytes));
        assert!(filter::counted(far, "every") >= 4 * 5);
        assert_eq!(filter::counted(far, "longer"), 0, "MTU {mtu}");
        assert_eq!(
            answered(near, to, 1, &format!("-M do -W 0.2 -s {}", mtu - 27)),
            0,
            "longer than {mtu} bytes"
        );
    }
    assert!(stream.sent() > 100);
    drop(stream);
    // A route narrower than the interface.
    set_mtu(&rig, &ends, 1420);
    near.run(&format!("ip route add {to}/32 dev {} mtu 1299", ends[0].interface));
    for bytes in [1297, 1298, 1299] {
        ping(near, to, 2, bytes);
    }
    let sample = Sample::new(2_000_000);
    sample.cross(near, far, to);
    sample.cross(far, near, inner(Family::V4, 0));
    for end in ends {
        end.process.stop();
    }
}

#[test]
fn a_connection_survives_changes_of_the_mtu() {
    let Some(rig) = Rig::pair() else { return };
    let (ends, _keys) = ours(&rig, "--queues 2");
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let sample = Sample::new(60_000_000);
    std::thread::scope(|scope| {
        let transfer = scope.spawn(|| sample.cross(near, far, inner(Family::V4, 1)));
        for mtu in [1280, 9000, 576, 1420, 20_000, 1300].into_iter().cycle() {
            if transfer.is_finished() {
                break;
            }
            set_mtu(&rig, &ends, mtu);
            sleep(Duration::from_millis(20));
        }
    });
    for end in ends {
        end.process.stop();
    }
}

/// Counts on the near host the outer fragments that leave, and outer packets that forbid fragmenting.
fn count_fragments(near: &Host) {
    filter::load(
        near,
        "counter fragments { }; counter forbidden { }; chain out { type filter hook postrouting priority filter;
         ip protocol udp ip frag-off & 0x4000 != 0 counter name forbidden; }",
    );
}

#[test]
fn packets_whose_datagrams_exceed_the_wires_mtu_arrive_in_fragments() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let sample = Sample::new(3_000_000);
    for family in FAMILIES {
        let (ends, keys) = ours(&rig, "--queues 2");
        set_mtu(&rig, &ends, 4000);
        join(&rig, &ends, &keys, family, false);
        wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
        count_fragments(near);
        let group = if family == Family::V4 { "Ip" } else { "Ip6" };
        let before = created(near, group);
        for bytes in [1440, 1441, 1500, 3000, 4000] {
            ping(near, inner(Family::V4, 1), 3, bytes);
            ping(far, inner(Family::V6, 0), 3, bytes);
        }
        sample.cross(near, far, inner(Family::V4, 1));
        sample.cross(far, near, inner(Family::V6, 0));
        Iperf::start(far).run(near, inner(Family::V4, 1), "--bytes 3M");
        assert!(created(near, group) - before > 1000);
        assert_eq!(filter::counted(near, "forbidden"), 0, "outer packets may be fragmented");
        for end in ends {
            end.process.stop();
        }
    }
}

/// Fragments this host has made.
fn created(host: &Host, group: &str) -> u64 {
    if group == "Ip" {
        return host.counted("Ip", "FragCreates");
    }
    let text = host.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap());
    let line = text.lines().find_map(|line| line.strip_prefix("Ip6FragCreates")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn a_narrow_wire_behind_a_router_is_no_obstacle() {
    let Some(rig) = Rig::three() else { return };
    let [router, near, far] = [&rig.hosts[0], &rig.hosts[1], &rig.hosts[2]];
    router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    router.run("ip link set to-c mtu 1300");
    far.run("ip link set veth0 mtu 1300");
    for (host, wire) in [(near, 1), (far, 2)] {
        for (family, flag) in FAMILIES.into_iter().zip(["-4", "-6"]) {
            host.run(&format!("ip {flag} route add default via {}", outer(family, wire, 1)));
        }
    }
    let sample = Sample::new(3_000_000);
    for family in FAMILIES {
        let keys = [Keys::new(), Keys::new()];
        let ends = [
            End::start(Program::Ours, near, 0, &keys[0], "--queues 2"),
            End::start(Program::Ours, far, 1, &keys[1], "--queues 2"),
        ];
        ends[0].meet(near, &keys[1], 1, Some(SocketAddr::new(outer(family, 2, 2), PORT)), "");
        ends[1].meet(far, &keys[0], 0, None, "");
        // Over IPv6 the first long datagram is lost: a router there says so instead of cutting it.
        wait_until("a long packet to pass", || answered(near, inner(Family::V4, 1), 1, "-M do -s 1392") == 1);
        for bytes in [1200, 1240, 1300, 1420] {
            ping(near, inner(Family::V4, 1), 3, bytes);
            ping(far, inner(Family::V6, 0), 3, bytes);
        }
        sample.cross(near, far, inner(Family::V4, 1));
        sample.cross(far, near, inner(Family::V6, 0));
        for end in ends {
            end.process.stop();
        }
    }
}

/// An IPv4 fragment of a UDP datagram to the tunnel's port on `to`: `offset` in units of eight bytes. From an address that
/// nobody has, so that none is taken for one of the tunnel's own fragments, which may have any `id`.
fn fragment(to: IpAddr, id: u16, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let IpAddr::V4(to) = to else { panic!("not IPv4: {to}") };
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend(id.to_be_bytes());
    packet.extend((offset | u16::from(more) << 13).to_be_bytes());
    packet.extend([64, 17, 0, 0]);
    packet.extend(Ipv4Addr::new(192, 0, 2, 9).octets());
    packet.extend(to.octets());
    let words = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(payload);
    packet
}

#[test]
fn junk_in_fragments_harms_nothing() {
    let Some(rig) = Rig::pair() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    let (ends, _keys) = ours(&rig, "--queues 2");
    set_mtu(&rig, &ends, 4000);
    wait_until("an answer", || reaches(near, inner(Family::V4, 1)));
    let to = outer(Family::V4, 1, 2);
    let reassembled = far.counted("Ip", "ReasmReqds");
    let mut random = Random(7);
    let wire = near.inside(|| {
        socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw).unwrap()
    });
    let send = |packet: &[u8]| {
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        assert_eq!(sendto(wire.as_raw_fd(), packet, &to, MsgFlags::empty()), Ok(packet.len()));
    };
    let mut before = 0;
    for id in 0..800u16 {
        // By then all buffers have been touched, in pages as large as the kernel likes.
        if id == 400 {
            ping(near, inner(Family::V4, 1), 5, 4000);
            ping(far, inner(Family::V4, 0), 5, 1420);
            before = ends[1].process.memory_bytes("VmRSS");
        }
        let mut first = vec![0; 64];
        random.fill(&mut first);
        first[..8].copy_from_slice(&[0xca, 0x6c, 0xca, 0x6c, 1, 0, 0, 0]);
        first[8..12].copy_from_slice(&[4, 0, 0, 0]);
        // Never completed; overlapping; complete, and nonsense.
        send(&fragment(to, id, 0, true, &first));
        match id % 3 {
            0 => {}
            1 => send(&fragment(to, id, 4, false, &first)),
            _ => send(&fragment(to, id, 8, false, &[9; 192])),
        }
    }
    // Each of the five long pings came in three fragments.
    assert_eq!(far.counted("Ip", "ReasmReqds") - reassembled, 800 + 533 + 5 * 3);
    ping(near, inner(Family::V4, 1), 5, 4000);
    ping(far, inner(Family::V4, 0), 5, 1420);
    let grown = ends[1].process.memory_bytes("VmRSS").saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes");
    let [_, far_end] = ends;
    let report = far_end.process.stop();
    assert_eq!(report.dropped(DropReason::UnknownIndex), 266, "{}", report.output);
}
