//! What is put into one end's interface comes out of the other's, byte by byte, sealed or plain: superpackets of every
//! kind, headers nobody expects, fragments, protocols without ports, groups.

use std::time::Duration;

use crate::kernel::Frames;
use crate::modes::{BEFORE_ROUTES, EVERYTHING, Ends, MODES};
use crate::packets::{ACK, CWR, ECE, FIN, PSH, Packet, ones_complement, payload, split};
use crate::rig::{Rig, wait_until};
use crate::tunnel::DRIVERS;

/// Nobody has these addresses, so nobody answers.
const FROM_V4: [u8; 4] = [10, 9, 0, 77];
const TO_V4: [u8; 4] = [10, 9, 0, 88];
const FROM_V6: [u8; 16] = [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77];
const TO_V6: [u8; 16] = [0xfd, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x88];
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77];

/// One thing to put in, as a TUN read looks: a virtio header of 16 bytes and a packet.
struct Case {
    name: String,
    read: Vec<u8>,
}

fn case(name: impl Into<String>, read: Vec<u8>) -> Case {
    Case { name: name.into(), read }
}

fn with_ends(packet: Packet) -> Packet {
    let ends = if packet.v6 { (FROM_V6.into(), TO_V6.into()) } else { (FROM_V4.into(), TO_V4.into()) };
    Packet { ends: Some(ends), ..packet }
}

fn tcp(v6: bool, bytes: usize) -> Packet {
    with_ends(Packet::tcp(v6, payload(bytes, bytes as u32)))
}

fn udp(v6: bool, bytes: usize) -> Packet {
    with_ends(Packet::udp(v6, payload(bytes, bytes as u32)))
}

fn whole(packet: &[u8]) -> Vec<u8> {
    [&[0; 16], packet].concat()
}

fn superpackets() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let mss = if v6 { 1348 } else { 1368 };
        let flags = ACK | PSH | FIN | CWR | ECE;
        let options = [1; 40].to_vec();
        cases.extend([
            case(format!("20 small segments, {v6}"), tcp(v6, 20 * 100).tun_read(100)),
            case(format!("64 KiB, {v6}"), tcp(v6, 47 * usize::from(mss) - 9).tun_read(mss)),
            case(format!("flags, {v6}"), Packet { flags, ..tcp(v6, 5_000) }.tun_read(1000)),
            case(
                format!("TCP options, {v6}"),
                Packet { tcp_options: options, ..tcp(v6, 5_000) }.tun_read(1000),
            ),
            case(format!("20 datagrams, {v6}"), udp(v6, 20 * 100 - 1).tun_read(100)),
            case(format!("full datagrams, {v6}"), udp(v6, 40 * 1300).tun_read(1300)),
            case(format!("1-byte datagrams, {v6}"), udp(v6, 60).tun_read(1)),
        ]);
    }
    for length in [4, 40] {
        let ip_options = vec![1; length];
        cases.push(case(
            format!("{length} bytes of IP options"),
            Packet { ip_options, ..tcp(false, 4_000) }.tun_read(1000),
        ));
    }
    for kind in [0, 43, 60] {
        let extensions = vec![(kind, vec![0; 8]); if kind == 60 { 8 } else { 1 }];
        cases.push(case(
            format!("extension headers {kind}"),
            Packet { extensions, ..tcp(true, 4_000) }.tun_read(1000),
        ));
    }
    cases
}

fn single_packets() -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        for bytes in [0, 1, 15, 16, 17, 1300] {
            cases.push(case(format!("{bytes} bytes of UDP, {v6}"), whole(&udp(v6, bytes).bytes())));
            let mut begun = tcp(v6, bytes).tun_read(0);
            begun[1] = 0;
            cases.push(case(format!("{bytes} bytes, begun checksum, {v6}"), begun));
        }
    }
    // First, middle, last; with DF; identifications that mean something and that do not.
    for (fragment, id) in [(0x2000, 7), (0x2010, 7), (0x0020, 7), (0x4000, 0), (0x4000, 0xbeef), (0x0000, 0)]
    {
        for packet in [tcp(false, 256), udp(false, 256)] {
            let packet = Packet { fragment, id, ..packet };
            cases.push(case(format!("fragment field {fragment:#x}, id {id}"), whole(&packet.bytes())));
        }
    }
    let fragment_header = vec![0, 0, 0, 1, 0, 0, 0, 9];
    let first = Packet { extensions: vec![(44, fragment_header)], ..udp(true, 256) };
    cases.push(case("an IPv6 fragment", whole(&first.bytes())));
    let mut odd_start = udp(false, 100).tun_read(0);
    odd_start[..10].copy_from_slice(&[1, 0, 0, 0, 0, 0, 21, 0, 16, 0]);
    cases.push(case("a checksum at an odd offset", odd_start));
    cases
}

/// ICMP, IGMP, GRE, ESP, SCTP, one for experiments, none; to a host, a group, everybody.
fn odd_protocols() -> Vec<Case> {
    let mut cases = Vec::new();
    for protocol in [1, 2, 47, 50, 132, 253, 59] {
        for to in [TO_V4, [224, 0, 0, 251], [239, 1, 2, 3], [10, 9, 0, 255], [255; 4]] {
            cases.push(case(
                format!("protocol {protocol} to {to:?}"),
                whole(&v4(protocol, to, &payload(333, 1))),
            ));
        }
        for (from, to) in [(FROM_V6, TO_V6), (FROM_V6, ALL_NODES), (LINK_LOCAL, ALL_NODES)] {
            let packet = v6(protocol, from, to, &payload(333, 1));
            cases.push(case(format!("protocol {protocol} to {to:?}"), whole(&packet)));
        }
    }
    cases
}

fn v4(protocol: u8, to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 9, 0x40, 0, 1, protocol, 0, 0]);
    packet.extend([FROM_V4, to].concat());
    let checksum = !ones_complement(&[&packet]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(payload);
    packet
}

fn v6(protocol: u8, from: [u8; 16], to: [u8; 16], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([protocol, 255]);
    packet.extend([from, to].concat());
    packet.extend(payload);
    packet
}

/// Whether one of `FROM_V4`, `FROM_V6`, `LINK_LOCAL` sent it.
fn is_ours(packet: &[u8]) -> bool {
    match packet[0] >> 4 {
        4 => packet.get(12..16) == Some(&FROM_V4),
        _ => packet.get(8..24).is_some_and(|from| from == FROM_V6 || from == LINK_LOCAL),
    }
}

/// Everything of ours that came out since the last time, taken apart.
fn heard(frames: &Frames) -> Vec<Vec<u8>> {
    let reads = std::iter::from_fn(|| frames.receive()).filter(|(_, packet)| is_ours(packet));
    reads.flat_map(|(vnet, packet)| split(&[&vnet[..], &[0; 6], &packet].concat())).collect()
}

/// Puts `read` in; false if this kernel does not take it.
fn put_in(frames: &Frames, read: &[u8]) -> bool {
    let protocol = if read[16] >> 4 == 4 { 0x0800 } else { 0x86dd };
    frames.send(protocol, &[&read[..10], &read[16..]].concat())
}

#[test]
fn what_goes_into_one_end_comes_out_of_the_other_as_it_was() {
    let Some(rig) = Rig::pair() else { return };
    let cases: Vec<Case> =
        [superpackets(), single_packets(), odd_protocols()].into_iter().flatten().collect();
    for mode in MODES {
        for io in DRIVERS {
            for disable in ["", "--disable tso,uso", "--disable tso,uso,gso,gro"] {
                let ends = Ends::start(&rig, mode, &format!("--io {io} --queues 1 {disable}"), EVERYTHING);
                let [near, far] =
                    [0, 1].map(|end| rig.hosts[end].inside(|| Frames::open_with_vnet_hdr(&ends.links[end])));
                let mut refused = Vec::new();
                for case in &cases {
                    if !put_in(&near, &case.read) {
                        refused.push(&case.name);
                        continue;
                    }
                    let expected = split(&case.read);
                    let mut arrived = Vec::new();
                    wait_until(&format!("{mode:?}, {io} {disable}: {}", case.name), || {
                        arrived.extend(heard(&far));
                        arrived.len() >= expected.len()
                    });
                    assert!(arrived == expected, "{mode:?}, {io} {disable}: {} changed", case.name);
                }
                assert!(refused.len() <= 4, "the kernel refused {refused:?}");
                // Nothing came twice, nothing came back.
                std::thread::sleep(Duration::from_millis(20));
                assert_eq!((heard(&far), heard(&near)), (vec![], vec![]), "{mode:?}, {io} {disable}");
                for report in ends.stop() {
                    assert_eq!(
                        report.dropped_otherwise(&[BEFORE_ROUTES]),
                        0,
                        "{mode:?}, {io} {disable}: {}",
                        report.output
                    );
                }
            }
        }
    }
}
