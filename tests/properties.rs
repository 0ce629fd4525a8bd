//! Laws: cutting and joining are inverse, every segment is a right packet, checksums are what a slow sum says.
#![allow(clippy::unwrap_used)]

mod packets;

use std::collections::BTreeMap;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use packets::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use uringvpn::offload::coalesce::{Coalescer, Merge, SUPERPACKET_BYTES_MAX};
use uringvpn::offload::split::Split;
use uringvpn::wire::checksum::{copy_and_sum, sum};
use uringvpn::wire::icmp::IcmpError;
use uringvpn::wire::ip::IpView;
use uringvpn::wire::vnet_hdr::VnetHdr;

const ALL: Merge = Merge { tcp: true, udp: true };

prop_compose! {
    /// A packet of any fields, without payload.
    fn headers()(
        (v6, udp, tos, flow_label, id, ttl) in any::<(bool, bool, u8, u32, u16, u8)>(),
        (dont_fragment, host, source_port, destination_port) in any::<(bool, u8, u16, u16)>(),
        (sequence, acknowledgment, window, urgent) in any::<(u32, u32, u16, u16)>(),
        reserved in 0u8..16,
        flags in select(vec![ACK, ACK | PSH, ACK | ECE, ACK | ECE | PSH]),
        tcp_options in vec(any::<[u8; 4]>(), 0..=10),
    ) -> Packet {
        Packet {
            v6, udp, tos, id, ttl, host, source_port, destination_port, sequence, acknowledgment, window, urgent,
            reserved, flags,
            ends: None,
            flow_label: flow_label & 0xf_ffff,
            fragment: if dont_fragment { 0x4000 } else { 0 },
            ip_options: Vec::new(),
            extensions: Vec::new(),
            tcp_options: tcp_options.concat(),
            payload: Vec::new(),
        }
    }
}

prop_compose! {
    /// A superpacket of at least two segments and its payload per segment.
    fn superpackets()(
        headers in headers(), mss in 1usize..3_000, count in 2usize..=128, last in 1usize..3_000, seed in any::<u32>(),
    ) -> (Packet, u16) {
        let count = count.min((SUPERPACKET_BYTES_MAX - headers.header_bytes()) / mss);
        let payload = payload((count - 1) * mss + last.min(mss), seed);
        (Packet { payload, ..headers }, mss as u16)
    }
}

prop_compose! {
    /// The same with everything that is cut but never joined: options, extension headers, FIN, CWR, URG.
    fn awkward_superpackets()(
        (packet, mss) in superpackets(),
        flags in select(vec![ACK | FIN | PSH | CWR | URG, ACK | CWR | ECE, ACK | FIN, PSH, 0]),
        options in vec(any::<[u8; 4]>(), 0..=10),
        extensions in vec((select(vec![0u8, 43, 60, 44]), vec(any::<[u8; 8]>(), 1..4)), 0..=8),
    ) -> (Packet, u16) {
        let extensions = extensions.into_iter().map(|(kind, bytes)| {
            let mut bytes = bytes.concat();
            bytes[1] = (bytes.len() / 8 - 1) as u8;
            if kind == 44 {
                bytes.truncate(8);
                bytes[2..4].fill(0);
            }
            (kind, bytes)
        }).collect();
        let packet = Packet { flags, ip_options: options.concat(), extensions, ..packet };
        // Longer headers leave less room.
        let room = 65_535 - packet.header_bytes();
        let payload = packet.payload[..packet.payload.len().min(room)].to_vec();
        (Packet { payload, ..packet }, mss)
    }
}

/// The segments of a superpacket, built from their fields.
fn expected_segments(packet: &Packet, mss: usize) -> Vec<Vec<u8>> {
    let count = packet.payload.len().div_ceil(mss);
    let segment = |(index, payload): (usize, &[u8])| {
        let mut flags = packet.flags;
        if index > 0 {
            flags &= !CWR;
        }
        if index + 1 < count {
            flags &= !(FIN | PSH);
        }
        let id = packet.id.wrapping_add(index as u16);
        let sequence = packet.sequence.wrapping_add((index * mss) as u32);
        Packet { id, sequence, flags, payload: payload.to_vec(), ..packet.clone() }.bytes()
    };
    packet.payload.chunks(mss).enumerate().map(segment).collect()
}

/// Reads the packet with somebody else's parser and compares all its checksums.
fn assert_sound(packet: &[u8]) {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    match (sliced.net.unwrap(), sliced.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Tcp(tcp)) => {
            let ip = ip.header();
            assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
            let checksum = tcp.calc_checksum_ipv4(ip.source(), ip.destination()).unwrap();
            assert_eq!(tcp.checksum(), checksum);
        }
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let ip = ip.header();
            assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
            let (source, destination) = (ip.source(), ip.destination());
            let checksum =
                udp.to_header().calc_checksum_ipv4_raw(source, destination, udp.payload()).unwrap();
            assert_eq!(udp.checksum(), checksum);
        }
        (NetSlice::Ipv6(ip), TransportSlice::Tcp(tcp)) => {
            let ip = ip.header();
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(ip.source(), ip.destination()).unwrap());
        }
        (NetSlice::Ipv6(ip), TransportSlice::Udp(udp)) => {
            let (source, destination) = (ip.header().source(), ip.header().destination());
            let checksum =
                udp.to_header().calc_checksum_ipv6_raw(source, destination, udp.payload()).unwrap();
            assert_eq!(udp.checksum(), checksum);
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn segments_are_the_packets_their_fields_say((packet, mss) in superpackets()) {
        let segments = split(&packet.tun_read(mss));
        prop_assert_eq!(&segments, &expected_segments(&packet, mss as usize));
        segments.iter().for_each(|segment| assert_sound(segment));
    }

    #[test]
    fn options_and_extension_headers_stay_in_every_segment((packet, mss) in awkward_superpackets()) {
        let mut segments = split(&packet.tun_read(mss));
        prop_assert_eq!(&segments, &expected_segments(&packet, mss as usize));
        // hdr_len is a hint, and a header without NEEDS_CSUM says nothing about the checksum field.
        let mut read = packet.tun_read(mss);
        read[0] = 0;
        read[2..4].fill(0xff);
        segments = split(&read);
        prop_assert_eq!(&segments, &expected_segments(&packet, mss as usize));
    }

    #[test]
    fn spread_out_in_place_the_segments_are_the_same((packet, mss) in awkward_superpackets(), gap in 0usize..33, room in 0usize..9_000) {
        let read = packet.tun_read(mss);
        let (vnet, packet) = VnetHdr::parse(&read).unwrap();
        let plan = Split::plan(&vnet, packet, &IpView::parse(packet).unwrap()).unwrap();
        let stride = plan.full_segment_bytes() + gap;
        let mut buffer = read.clone();
        buffer.resize(read.len() + room, 0xee);
        if plan.spread(&mut buffer, 16, stride) {
            for (index, segment) in split(&read).iter().enumerate() {
                prop_assert_eq!(&buffer[16 + index * stride..][..segment.len()], &segment[..]);
            }
        } else {
            prop_assert_eq!(&buffer[..read.len()], &read[..]);
        }
    }

    #[test]
    fn coalescing_the_segments_gives_the_superpacket_back((packet, mss) in superpackets()) {
        let read = packet.tun_read(mss);
        let writes = Received::new(&split(&read)).coalesce(&mut Coalescer::new(ALL));
        prop_assert_eq!(writes, [read]);
    }

    #[test]
    fn a_single_packet_with_a_partial_checksum_is_completed(packet in headers(), len in 0usize..1_500) {
        let packet = Packet { payload: payload(len, 1), ..packet };
        let mut read = packet.tun_read(0);
        read[1] = 0;
        prop_assert_eq!(split(&read), [packet.bytes()]);
    }

    #[test]
    fn a_packet_without_offload_stays_as_it_is(packet in headers(), len in 0usize..1_500) {
        let packet = Packet { payload: payload(len, 1), ..packet }.bytes();
        prop_assert_eq!(split(&[&[0; 16], &packet[..]].concat()), [packet]);
    }

    #[test]
    fn an_icmp_error_is_a_right_packet_that_quotes_the_beginning_of_what_it_answers(
        packet in headers(), len in 0usize..3_000, padding in 0usize..50,
    ) {
        let packet = Packet { payload: payload(len, 4), ..packet }.bytes();
        let read = [packet.clone(), vec![0xee; padding]].concat();
        let answer = IcmpError::unreachable(&read).unwrap();
        let answer = [answer.headers(), &read[..answer.quoted_bytes().into()]].concat();
        icmp::IcmpError::read(&answer).unwrap().assert_answers(&packet);
        let sliced = SlicedPacket::from_ip(&answer).unwrap();
        match (sliced.net.unwrap(), sliced.transport.unwrap()) {
            (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
                prop_assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
                prop_assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));
            }
            (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
                prop_assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
            }
            other => panic!("no ICMP: {other:?}"),
        }
    }

    #[test]
    fn sums_are_those_of_one_word_at_a_time(
        bytes in prop_oneof![vec(any::<u8>(), 0..300), vec(select(vec![0u8, 0xff]), 0..300), vec(any::<u8>(), 4_000..9_000)],
        start in 0usize..16,
    ) {
        let bytes = &bytes[start.min(bytes.len())..];
        let expected = ones_complement(&[bytes]);
        prop_assert_eq!(sum(bytes).fold(), expected);

        let mut copy = vec![0; bytes.len() + 1];
        prop_assert_eq!(copy_and_sum(bytes, &mut copy[1..]).fold(), expected);
        prop_assert_eq!(&copy[1..], bytes);
    }
}

/// One packet of a mixture: which flow, how much payload, what is odd about it.
#[derive(Clone, Copy, Debug)]
struct Step {
    flow: usize,
    payload_bytes: usize,
    oddity: Oddity,
}

#[derive(Clone, Copy, Debug)]
enum Oddity {
    None,
    Flags(u8),
    BadChecksum,
    Lost,
    Repeated,
    CongestionMark,
    NewWindow,
    Fragment,
    Options,
    Junk,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let oddity = prop_oneof![
        12 => Just(Oddity::None),
        1 => select(vec![PSH, FIN, SYN, URG, CWR, ECE]).prop_map(Oddity::Flags),
        2 => select(vec![
            Oddity::BadChecksum, Oddity::Lost, Oddity::Repeated, Oddity::CongestionMark, Oddity::NewWindow,
            Oddity::Fragment, Oddity::Options, Oddity::Junk,
        ]),
    ];
    let payload_bytes = prop_oneof![6 => Just(700usize), 1 => select(vec![0, 1, 699, 701, 1_400])];
    let step = (0usize..6, payload_bytes, oddity).prop_map(|(flow, payload_bytes, oddity)| Step {
        flow,
        payload_bytes,
        oddity,
    });
    vec(step, 0..300)
}

fn mixture(steps: &[Step]) -> Vec<Vec<u8>> {
    let flow = |index: usize| {
        let packet = Packet {
            host: (index % 2) as u8,
            source_port: index as u16,
            ..Packet::tcp(index.is_multiple_of(3), Vec::new())
        };
        Packet { udp: index >= 4, sequence: u32::MAX - 3_000, id: u16::MAX - 3, ..packet }
    };
    let mut flows: Vec<Packet> = (0..6).map(flow).collect();
    let mut packets = Vec::new();
    for (seed, step) in steps.iter().enumerate() {
        let flow = &mut flows[step.flow];
        let mut packet = Packet { payload: payload(step.payload_bytes, seed as u32), ..flow.clone() };
        *flow = packet.next(Vec::new());
        match step.oddity {
            Oddity::None | Oddity::BadChecksum => {}
            Oddity::Flags(flags) => packet.flags |= flags,
            Oddity::Lost => continue,
            Oddity::Repeated => packets.push(packet.bytes()),
            Oddity::CongestionMark => packet.tos ^= 3,
            Oddity::NewWindow => flow.window = flow.window.wrapping_add(1),
            Oddity::Fragment => packet.fragment = 0x2000,
            Oddity::Options => {
                packet.ip_options = vec![1; 4];
                packet.extensions = vec![(60, vec![0; 8])];
            }
            Oddity::Junk => packet.fragment = 0x0001,
        }
        let mut bytes = packet.bytes();
        if matches!(step.oddity, Oddity::BadChecksum) {
            *bytes.last_mut().unwrap() ^= 1;
        }
        packets.push(bytes);
    }
    packets
}

/// The packet without its identification where that means nothing, which is with DF (RFC 6864 §4.1): constant ones may
/// become counting ones.
fn without_idle_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

/// The packets of each flow in order; packets whose transport is unknown are in every flow of their addresses.
fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<String, Vec<&Vec<u8>>> {
    let known = |packet: &[u8]| {
        let ip = IpView::parse(packet).unwrap();
        let at = ip.header_bytes as usize;
        let addresses = format!("{} {}", ip.source, ip.destination);
        let known = !ip.fragment && !ip.has_options();
        (addresses.clone(), known.then(|| format!("{addresses} {} {:?}", ip.protocol, &packet[at..at + 4])))
    };
    let mut flows: BTreeMap<String, Vec<&Vec<u8>>> =
        packets.iter().filter_map(|packet| known(packet).1).map(|flow| (flow, Vec::new())).collect();
    for packet in packets {
        let (addresses, flow) = known(packet);
        for (name, packets) in &mut flows {
            if flow.as_ref().map_or(name.starts_with(&format!("{addresses} ")), |flow| flow == name) {
                packets.push(packet);
            }
        }
    }
    flows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_mixture_of_flows_keeps_every_packet_and_the_order_of_every_flow(steps in steps()) {
        let packets = mixture(&steps);
        let writes = Received::new(&packets).coalesce(&mut Coalescer::new(ALL));
        let out: Vec<Vec<u8>> = writes.iter().flat_map(|write| split(write)).collect();
        let out: Vec<_> = out.into_iter().map(without_idle_id).collect();
        let packets: Vec<_> = packets.into_iter().map(without_idle_id).collect();
        prop_assert!(by_flow(&out) == by_flow(&packets), "a flow changed");
        let sorted = |packets: &[Vec<u8>]| {
            let mut packets = packets.to_vec();
            packets.sort();
            packets
        };
        prop_assert!(sorted(&out) == sorted(&packets), "a packet was lost, added or changed");
    }
}
