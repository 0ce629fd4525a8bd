//! What nobody should send, from either side: each is counted under its reason, and the tunnel goes on.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder};
use nix::sys::socket::{setsockopt, sockopt};
use uringvpn::stats::drop::DropReason;

use crate::kernel::Frames;
use crate::modes::{Ends, MODES};
use crate::rig::{FAMILIES, Family, Host, Rig, inner, wait_until};
use crate::traffic::{Random, ping, reaches};
use crate::tunnel::{DRIVERS, Tunnel};

/// Largest UDP payload over IPv4.
const DATAGRAM_BYTES_MAX: usize = 65_507;
/// What a process may grow by once it has touched its buffers.
const GROWTH_BYTES_MAX: u64 = 6 << 20;

/// Both ends, each accepting only the other's two addresses.
fn strict(rig: &Rig, io: &str) -> [Tunnel; 2] {
    [0u8, 1].map(|index| {
        let there = 1 - index;
        let [v4, v6] = FAMILIES.map(|family| inner(family, index));
        let [peer_v4, peer_v6] = FAMILIES.map(|family| inner(family, there));
        let options = format!(
            "--io {io} --queues 2 --address {v4}/24 --address {v6}/64 \
             --peer 192.0.2.{}:51820,allowed-ips={peer_v4}+{peer_v6}",
            there + 1
        );
        Tunnel::start(&rig.hosts[usize::from(index)], &options)
    })
}

/// Bytes that are no packet, or one that lies, or one that is merely odd.
fn junk(random: &mut Random, bytes_max: usize) -> Vec<u8> {
    let length = match random.below(4) {
        0 => random.below(64),
        1 | 2 => random.below(1500),
        _ => random.below(bytes_max + 1),
    }
    .min(bytes_max);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    let kind = random.below(8);
    match kind {
        0 | 1 => {}
        // A version that promises a header, and then anything.
        2 if length > 0 => bytes[0] = 0x45,
        3 if length > 0 => bytes[0] = 0x60,
        4 if length > 0 => bytes[0] = 0x40 | random.below(16) as u8,
        // The right header for a wrong number of bytes.
        5 | 6 => {
            let mut packet = from_peer(random, &bytes[..length.min(1000)]);
            let at = random.below(packet.len());
            packet.truncate(at);
            bytes = packet;
        }
        _ => bytes = from_peer(random, &bytes[..length.min(1000)]),
    }
    bytes
}

/// A packet with the peer's inner source and a protocol nobody speaks; sometimes a fragment.
fn from_peer(random: &mut Random, payload: &[u8]) -> Vec<u8> {
    let protocol = IpNumber(random.below(256) as u8);
    let mut packet = Vec::new();
    if random.below(2) == 0 {
        let mut header =
            Ipv4Header::new(payload.len() as u16, 64, protocol, [10, 9, 0, 2], [10, 9, 0, 1]).unwrap();
        if random.below(2) == 0 {
            header.more_fragments = random.below(2) == 0;
            header.fragment_offset = IpFragOffset::try_new(random.below(1 << 13) as u16).unwrap();
        }
        header.header_checksum = header.calc_header_checksum();
        header.write(&mut packet).unwrap();
    } else {
        let [source, destination] = [2, 1].map(|last| [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        let payload_length = payload.len() as u16;
        let header = Ipv6Header {
            source,
            destination,
            payload_length,
            next_header: protocol,
            hop_limit: 64,
            ..Default::default()
        };
        header.write(&mut packet).unwrap();
    }
    packet.extend_from_slice(payload);
    packet
}

/// A proper packet from an address that is not the peer's.
fn from_stranger_inside(random: &mut Random) -> Vec<u8> {
    let mut packet = Vec::new();
    let payload = vec![0; random.below(1000)];
    let source = [172, 16, random.below(256) as u8, 1];
    PacketBuilder::ipv4(source, [10, 9, 0, 1], 64).udp(1, 2).write(&mut packet, &payload).unwrap();
    packet
}

/// Sends what `make` returns, slowly enough for everything to be read; returns how many datagrams left.
fn send_all(socket: &UdpSocket, count: usize, mut make: impl FnMut() -> Vec<u8>) -> u64 {
    let target: SocketAddr = "192.0.2.1:51820".parse().unwrap();
    let mut sent = 0;
    for number in 0..count {
        sent += u64::from(socket.send_to(&make(), target).is_ok());
        if number % 16 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
    sent
}

fn socket_from(host: &Host, address: &str) -> UdpSocket {
    host.inside(|| UdpSocket::bind((address, 0)).unwrap())
}

#[test]
fn junk_from_strangers_and_from_the_peer_is_counted_and_nothing_else_happens() {
    let Some(rig) = Rig::pair_alone() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    far.run("ip address add 192.0.2.66/24 dev veth0");
    for io in DRIVERS {
        // On a busy machine packets are lost in front of the tunnel: on the wire, whose backlog is short, and at its sockets.
        // A train counts as one there.
        let lost = || near.counted("Udp", "RcvbufErrors") + far.statistic("veth0", "tx_dropped");
        let lost_before = lost();
        let [target, sender] = strict(&rig, io);
        wait_until("ping through the tunnel", || reaches(near, inner(Family::V4, 1)));
        let mut random = Random(7);
        let (mut strangers, mut forged, mut all) = (0, 0, 0);
        let mut settled_bytes = 0;
        for round in 0..3 {
            // New sockets, new source ports: both workers get their share.
            let stranger = socket_from(far, "192.0.2.66");
            let peer = socket_from(far, "192.0.2.2");
            let unknown = send_all(&stranger, 500, || junk(&mut random, DATAGRAM_BYTES_MAX));
            let claimed = send_all(&peer, 300, || from_stranger_inside(&mut random));
            let junk_sent = send_all(&peer, 1500, || junk(&mut random, DATAGRAM_BYTES_MAX));
            strangers += unknown;
            forged += claimed;
            all += unknown + claimed + junk_sent;
            all += send_trains(&peer, &mut random);
            assert!(target.is_alive(), "{}", target.output());
            ping(far, inner(Family::V4, 0), 5, 1420);
            ping(far, inner(Family::V6, 0), 5, 1420);
            if round == 0 {
                settled_bytes = target.memory_bytes("VmRSS");
            }
        }
        let grown_bytes = target.memory_bytes("VmRSS").saturating_sub(settled_bytes);
        println!("{io}: {all} junk datagrams, resident {settled_bytes} bytes, then {grown_bytes} more");
        assert!(grown_bytes <= GROWTH_BYTES_MAX, "{io}: grew by {grown_bytes} bytes");
        near.wait_read(51820);
        ping(far, inner(Family::V4, 0), 1, 100);
        let honest = sender.stop().total("sent_datagrams");
        let report = target.stop();
        let lost = lost() - lost_before;
        let missing = |sent: u64, counted: u64| sent.checked_sub(counted).expect("no more than was sent");
        let missing_in_all = missing(all + honest, report.total("in_datagrams"));
        let unheard = missing(strangers, report.dropped(DropReason::UnknownSource));
        println!(
            "{io}: {missing_in_all} datagrams are missing, {unheard} of strangers; {lost} packets were lost"
        );
        assert!(lost > 0 || missing_in_all == 0, "{missing_in_all} missing: {}", report.output);
        assert!(unheard <= lost, "{unheard} missing: {}", report.output);
        assert!(report.dropped(DropReason::SourceNotAllowed) + lost >= forged, "{}", report.output);
        assert!(report.dropped(DropReason::InMalformed) > 1000, "{}", report.output);
        let expected = [DropReason::UnknownSource, DropReason::SourceNotAllowed, DropReason::InMalformed];
        // The rest was well-formed enough for the TUN, which may still refuse it.
        let refused = DropReason::TunWriteError;
        println!("{io}: {} refused by the TUN", report.dropped(refused));
        assert_eq!(report.dropped_otherwise(&[&expected[..], &[refused]].concat()), 0, "{}", report.output);
    }
}

/// Junk that arrives joined: equal pieces sent as one train.
fn send_trains(socket: &UdpSocket, random: &mut Random) -> u64 {
    let target: SocketAddr = "192.0.2.1:51820".parse().unwrap();
    let mut sent = 0;
    for _ in 0..100 {
        let segment_bytes = 20 + random.below(1200);
        let count = 1 + random.below(40);
        let mut train = Vec::new();
        for _ in 0..count {
            let mut packet = match random.below(3) {
                0 => from_stranger_inside(random),
                1 => from_peer(random, &[9; 100]),
                _ => junk(random, 1400),
            };
            packet.resize(segment_bytes, 0);
            train.extend_from_slice(&packet);
        }
        setsockopt(socket, sockopt::UdpGsoSegment, &(segment_bytes as i32)).unwrap();
        sent += if socket.send_to(&train, target).is_ok() { count as u64 } else { 0 };
        thread::sleep(Duration::from_millis(1));
    }
    setsockopt(socket, sockopt::UdpGsoSegment, &0).unwrap();
    sent
}

#[test]
fn garbage_on_the_tun_side_is_counted_and_nothing_else_happens() {
    const ETH_P: [u16; 5] = [0x0800, 0x86dd, 0x0806, 0x88cc, 0xffff];
    let Some(rig) = Rig::pair_alone() else { return };
    let [near, far] = [&rig.hosts[0], &rig.hosts[1]];
    for (mode, io) in MODES.into_iter().flat_map(|mode| DRIVERS.map(|io| (mode, io))) {
        let allowed = ["10.9.0.2+fd09::2", "10.9.0.1+fd09::1"];
        let ends = Ends::start(&rig, mode, &format!("--io {io} --queues 2"), allowed);
        let mut random = Random(11);
        let frames = near.inside(|| Frames::open(&ends.links[0]));
        let mut sent = 0;
        for number in 0..3000 {
            let mut bytes = junk(&mut random, 1420);
            if random.below(4) == 0 {
                // Source and destination change places: now it is for the peer.
                if bytes.len() >= 20 && bytes[0] >> 4 == 4 {
                    bytes[16..20].copy_from_slice(&[10, 9, 0, 2]);
                }
            }
            sent += u64::from(frames.send(ETH_P[random.below(ETH_P.len())], &bytes));
            if number % 16 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        // Large pings go as fragments, and must be answered.
        for family in FAMILIES {
            near.run(&format!("ping -n -q -c 3 -i 0.05 -W 5 -s 60000 {}", inner(family, 1)));
        }
        ping(far, inner(Family::V6, 0), 5, 1420);
        let not_read = near.statistic(&ends.links[0], "tx_dropped");
        let [report, _] = ends.stop();
        println!("{mode:?}, {io}: {sent} frames; {}", report.output);
        // What finds no room on a busy machine is thrown away in front of the tunnel.
        let read = report.total("tun_reads") + not_read;
        assert!(sent > 2000 && read >= sent, "{sent} frames, {not_read} not read: {}", report.output);
        assert!(report.dropped(DropReason::OutMalformed) > 500, "{}", report.output);
        assert!(report.dropped(DropReason::NoRoute) > 100, "{}", report.output);
        let expected = [DropReason::OutMalformed, DropReason::NoRoute];
        assert_eq!(report.dropped_otherwise(&expected), 0, "{}", report.output);
    }
}
