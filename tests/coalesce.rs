//! What may become one superpacket and what must not: a table of pairs, then the limits.
#![allow(clippy::unwrap_used)]

mod packets;

use packets::*;
use uringvpn::offload::coalesce::{
    Coalescer, Gather, LOOK_BACK_MAX, Merge, SEGMENTS_MAX, SUPERPACKET_BYTES_MAX,
};
use uringvpn::time::Time;
use uringvpn::wire::ip::IpView;

const ALL: Merge = Merge { tcp: true, udp: true };

fn coalesce(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    Received::new(packets).coalesce(&mut Coalescer::new(ALL))
}

/// What is written for a packet that stays alone.
fn alone(packet: &[u8]) -> Vec<u8> {
    [&[0; 16], packet].concat()
}

fn assert_stay_apart(first: &[u8], second: &[u8]) {
    let writes = coalesce(&[first.to_vec(), second.to_vec()]);
    assert_eq!(writes, [alone(first), alone(second)]);
}

/// One test per pair: the second packet follows the first, up to what the closure changes.
macro_rules! must_not_merge {
    ($($name:ident: $start:expr, |$first:ident, $second:ident| $change:expr;)*) => {
        mod must_not_merge {
            use super::*;
            $(#[test]
            fn $name() {
                #[allow(unused_mut)]
                let mut $first = $start;
                #[allow(unused_mut)]
                let mut $second = $first.next($first.payload.clone());
                assert_eq!(coalesce(&[$first.bytes(), $second.bytes()]).len(), 1, "unchanged they merge");
                #[allow(clippy::redundant_closure_call)]
                (|| $change)();
                assert_stay_apart(&$first.bytes(), &$second.bytes());
            })*
        }
    };
}

fn tcp4() -> Packet {
    Packet::tcp(false, payload(100, 1))
}

fn tcp6() -> Packet {
    Packet::tcp(true, payload(100, 1))
}

fn udp4() -> Packet {
    Packet::udp(false, payload(100, 1))
}

fn udp6() -> Packet {
    Packet::udp(true, payload(100, 1))
}

must_not_merge! {
    a_changed_ttl: tcp4(), |a, b| b.ttl -= 1;
    a_changed_hop_limit: tcp6(), |a, b| b.ttl -= 1;
    a_changed_dscp: tcp4(), |a, b| b.tos = 0x20;
    a_congestion_mark: tcp4(), |a, b| b.tos = 3;
    a_changed_traffic_class: tcp6(), |a, b| b.tos = 3;
    a_changed_flow_label: tcp6(), |a, b| b.flow_label = 1;
    a_changed_dont_fragment: tcp4(), |a, b| b.fragment = 0;
    a_reserved_ip_flag: tcp4(), |a, b| b.fragment = 0xc000;
    a_first_fragment: tcp4(), |a, b| b.fragment = 0x2000;
    two_first_fragments: tcp4(), |a, b| (a.fragment, b.fragment) = (0x2000, 0x2000);
    a_later_fragment: udp4(), |a, b| b.fragment = 0x0010;
    ip_options: tcp4(), |a, b| b.ip_options = vec![1; 4];
    ip_options_in_both: tcp4(), |a, b| (a.ip_options, b.ip_options) = (vec![1; 4], vec![1; 4]);
    an_extension_header: tcp6(), |a, b| b.extensions = vec![(60, vec![0; 8])];
    an_extension_header_in_both: udp6(), |a, b| {
        a.extensions = vec![(60, vec![0; 8])];
        b.extensions = vec![(60, vec![0; 8])];
    };
    a_skipped_id: tcp4(), |a, b| b.id += 1;
    an_id_that_stays_without_dont_fragment: tcp4(), |a, b| {
        (a.fragment, b.fragment) = (0, 0);
        b.id = a.id;
    };
    an_id_that_goes_back: udp4(), |a, b| b.id = a.id - 1;
    changed_tcp_option_bytes: tcp4(), |a, b| b.tcp_options[7] ^= 1;
    fewer_tcp_options: tcp4(), |a, b| b.tcp_options.truncate(4);
    more_tcp_options: tcp6(), |a, b| b.tcp_options.extend([1; 4]);
    a_changed_acknowledgment: tcp4(), |a, b| b.acknowledgment += 1;
    a_changed_window: tcp6(), |a, b| b.window += 1;
    a_changed_urgent_pointer: tcp4(), |a, b| b.urgent = 1;
    a_changed_reserved_bit: tcp4(), |a, b| b.reserved = 1;
    a_push_in_the_middle: tcp4(), |a, b| a.flags |= PSH;
    an_urgent_packet: tcp4(), |a, b| b.flags |= URG;
    two_urgent_packets: tcp4(), |a, b| (a.flags, b.flags) = (ACK | URG, ACK | URG);
    a_syn: tcp4(), |a, b| a.flags |= SYN;
    a_fin: tcp6(), |a, b| b.flags |= FIN;
    a_reset: tcp4(), |a, b| b.flags |= RST;
    a_reduced_congestion_window: tcp4(), |a, b| b.flags |= CWR;
    a_first_with_reduced_congestion_window: tcp4(), |a, b| a.flags |= CWR;
    an_echo_of_congestion_that_begins: tcp4(), |a, b| b.flags |= ECE;
    no_acknowledgment: tcp4(), |a, b| (a.flags, b.flags) = (0, 0);
    a_gap: tcp4(), |a, b| b.sequence += 1;
    an_overlap: tcp4(), |a, b| b.sequence -= 1;
    a_duplicate: tcp4(), |a, b| b.sequence = a.sequence;
    out_of_order: tcp4(), |a, b| std::mem::swap(&mut a, &mut b);
    a_longer_payload: tcp4(), |a, b| b.payload.push(1);
    a_longer_datagram: udp4(), |a, b| b.payload.push(1);
    no_payload: tcp4(), |a, b| b.payload.clear();
    an_empty_datagram: udp6(), |a, b| b.payload.clear();
    two_empty_datagrams: udp4(), |a, b| (a.payload, b.payload) = (Vec::new(), Vec::new());
    another_source_port: tcp4(), |a, b| b.source_port += 1;
    another_destination_port: udp4(), |a, b| b.destination_port += 1;
    another_host: tcp4(), |a, b| b.host += 1;
    another_protocol: tcp4(), |a, b| b.udp = true;
    a_changed_ttl_of_datagrams: udp4(), |a, b| b.ttl += 1;
    a_congestion_mark_on_a_datagram: udp6(), |a, b| b.tos = 3;
}

/// Two packets that would merge, one of them with a byte changed after its checksums were made.
fn assert_corruption_keeps_apart(start: Packet, at: usize) {
    let (first, second) = (start.bytes(), start.next(start.payload.clone()).bytes());
    let flipped = |packet: &[u8]| {
        let mut packet = packet.to_vec();
        packet[at] ^= 0x10;
        packet
    };
    assert_stay_apart(&flipped(&first), &second);
    assert_stay_apart(&first, &flipped(&second));
}

#[test]
fn a_bad_checksum_is_never_repaired_by_merging() {
    assert_corruption_keeps_apart(tcp4(), 36); // the TCP checksum
    assert_corruption_keeps_apart(tcp4(), 90); // payload
    assert_corruption_keeps_apart(tcp6(), 150);
    assert_corruption_keeps_apart(udp4(), 26);
    assert_corruption_keeps_apart(udp6(), 147);
}

#[test]
fn a_bad_ip_header_checksum_is_never_repaired_by_merging() {
    assert_corruption_keeps_apart(tcp4(), 10);
    assert_corruption_keeps_apart(udp4(), 11);
}

#[test]
fn a_datagram_without_a_checksum_stays_alone() {
    let (first, second) = (udp4(), udp4().next(payload(100, 2)));
    let mut without = second.bytes();
    without[26..28].fill(0);
    assert_stay_apart(&first.bytes(), &without);
}

#[test]
fn a_datagram_whose_length_field_lies_stays_alone() {
    let (first, second) = (udp4().bytes(), udp4().next(payload(100, 2)).bytes());
    let mut lying = second.clone();
    lying[25] -= 1;
    lying[27] += 1;
    assert_stay_apart(&first, &lying);
}

#[test]
fn merged_headers_are_those_of_the_superpacket() {
    for first in [tcp4(), tcp6(), udp4(), udp6()] {
        let second = first.next(payload(60, 2));
        let writes = coalesce(&[first.bytes(), second.bytes()]);
        let whole = Packet { payload: [first.payload.clone(), second.payload].concat(), ..first };
        assert_eq!(writes, [whole.tun_read(100)]);
    }
}

#[test]
fn a_shorter_packet_joins_and_ends_the_superpacket() {
    let a = tcp4();
    let b = a.next(payload(99, 2));
    let c = b.next(payload(99, 3));
    let d = c.next(payload(99, 4));
    let writes = coalesce(&[a.bytes(), b.bytes(), c.bytes(), d.bytes()]);
    assert_eq!(writes.len(), 2);
    assert_eq!([split(&writes[0]), split(&writes[1])].concat(), [&a, &b, &c, &d].map(Packet::bytes));
}

#[test]
fn a_pushed_packet_joins_and_ends_the_superpacket() {
    let a = tcp4();
    let b = Packet { flags: ACK | PSH, ..a.next(payload(100, 2)) };
    let c = Packet { flags: ACK, ..b.next(payload(100, 3)) };
    let writes = coalesce(&[a.bytes(), b.bytes(), c.bytes()]);
    assert_eq!(writes.len(), 2);
    assert_eq!(split(&writes[0]), [a.bytes(), b.bytes()]);
    assert_eq!(writes[1], alone(&c.bytes()));
}

#[test]
fn an_echo_of_congestion_in_all_packets_merges() {
    let a = Packet { flags: ACK | ECE, ..tcp4() };
    assert_eq!(coalesce(&[a.bytes(), a.next(payload(100, 2)).bytes()]).len(), 1);
}

#[test]
fn with_dont_fragment_the_id_may_stay_but_not_change_its_mind() {
    let a = tcp4();
    let b = Packet { id: a.id, ..a.next(payload(100, 2)) };
    let c = b.next(payload(100, 3));
    let writes = coalesce(&[a.bytes(), b.bytes(), c.bytes()]);
    assert_eq!(writes.len(), 2);
    assert_eq!(writes[1], alone(&c.bytes()));
}

#[test]
fn a_packet_joins_only_the_newest_entry_of_its_flow() {
    let a = tcp4();
    let b = a.next(payload(100, 2));
    let later = Packet { sequence: b.sequence + 5_000, ..b.clone() };
    assert_eq!(coalesce(&[a.bytes(), later.bytes(), b.bytes()]), [&a, &later, &b].map(|p| alone(&p.bytes())));
}

#[test]
fn an_acknowledgment_in_between_holds_back_what_follows() {
    let a = tcp4();
    let b = a.next(payload(100, 2));
    let ack = Packet { payload: Vec::new(), ..b.clone() };
    assert_eq!(coalesce(&[a.bytes(), ack.bytes(), b.bytes()]).len(), 3);
}

#[test]
fn an_unreadable_transport_holds_back_all_flows_between_its_addresses() {
    let (a, b) = (tcp4(), tcp4().next(payload(100, 2)));
    let fragment = Packet { fragment: 0x0010, ..udp4() };
    assert_eq!(coalesce(&[a.bytes(), fragment.bytes(), b.bytes()]).len(), 3);
    let of_another = Packet { host: 9, ..fragment };
    let writes = coalesce(&[a.bytes(), of_another.bytes(), b.bytes()]);
    assert_eq!(writes.iter().map(|write| split(write).len()).collect::<Vec<_>>(), [2, 1]);
}

#[test]
fn flows_in_turn_get_a_superpacket_each() {
    let mut flows: Vec<Packet> = vec![tcp4(), tcp6(), udp4(), udp6()];
    let mut packets = Vec::new();
    for round in 0..5 {
        for flow in &mut flows {
            packets.push(flow.bytes());
            *flow = flow.next(payload(100, round));
        }
    }
    let writes = coalesce(&packets);
    assert_eq!(writes.iter().map(|write| split(write).len()).collect::<Vec<_>>(), [5, 5, 5, 5]);
}

#[test]
fn the_look_back_is_bounded() {
    let (a, b) = (tcp4(), tcp4().next(payload(100, 2)));
    for (others, writes) in [(LOOK_BACK_MAX - 1, LOOK_BACK_MAX), (LOOK_BACK_MAX, LOOK_BACK_MAX + 2)] {
        let mut packets = vec![a.bytes()];
        packets.extend((0..others as u16).map(|port| Packet { source_port: port, ..tcp4() }.bytes()));
        packets.push(b.bytes());
        assert_eq!(coalesce(&packets).len(), writes);
    }
}

#[test]
fn a_superpacket_has_at_most_as_many_segments_as_the_kernel_takes() {
    for mut packet in [tcp4(), udp6()] {
        let mut packets = Vec::new();
        for round in 0..SEGMENTS_MAX as u32 + 2 {
            packets.push(packet.bytes());
            packet = packet.next(payload(100, round));
        }
        let writes = coalesce(&packets);
        assert_eq!(writes.iter().map(|write| split(write).len()).collect::<Vec<_>>(), [SEGMENTS_MAX, 2]);
    }
}

#[test]
fn a_superpacket_stays_short_enough_to_be_forwarded_whole() {
    for mut packet in [tcp4(), tcp6()] {
        packet.payload = payload(1_348, 0);
        // The limit exactly, then one byte more than that.
        let room = SUPERPACKET_BYTES_MAX - packet.header_bytes();
        for (last_bytes, writes) in [(room % 1_348, 1), (room % 1_348 + 1, 2)] {
            let mut packets = Vec::new();
            let mut at = packet.clone();
            for round in 0..(room / 1_348) as u32 {
                packets.push(at.bytes());
                at = at.next(payload(1_348, round));
            }
            at.payload = payload(last_bytes, 9);
            packets.push(at.bytes());
            assert_eq!(coalesce(&packets).len(), writes);
        }
    }
}

#[test]
fn what_the_kernel_did_not_accept_is_not_merged() {
    let (tcp, udp) = (tcp4(), udp4());
    let packets = [&tcp, &udp, &tcp.next(payload(100, 2)), &udp.next(payload(100, 2))].map(Packet::bytes);
    let count = |merge| Received::new(&packets).coalesce(&mut Coalescer::new(merge)).len();
    assert_eq!(count(Merge { tcp: true, udp: false }), 3);
    assert_eq!(count(Merge { tcp: false, udp: true }), 3);
    assert_eq!(count(Merge { tcp: false, udp: false }), 4);
}

#[test]
fn a_write_knows_its_packets_and_when_the_first_was_received() {
    let (a, b) = (tcp4().bytes(), tcp4().next(payload(100, 2)).bytes());
    let received = Received::new([&a, &b]);
    let mut coalescer = Coalescer::new(ALL);
    for (place, nanos) in received.places.iter().zip([70, 80]) {
        let packet = received.at(*place);
        coalescer.push(packet, &IpView::parse(packet).unwrap(), *place, Time::from_nanos(nanos));
    }
    assert_eq!(coalescer.len(), 1);
    let gathers: Vec<Gather> = coalescer.drain().collect();
    assert_eq!((gathers[0].packets, gathers[0].received), (2, Time::from_nanos(70)));
    assert_eq!(gathers[0].parts.iter().map(|part| part.len).collect::<Vec<_>>(), [100, 100]);
}

#[test]
fn a_refused_superpacket_comes_apart_into_the_packets_it_was_made_of() {
    for (first, tcp) in [(tcp4(), true), (tcp6(), true), (udp4(), false), (udp6(), false)] {
        let last = first.next(payload(100, 2));
        let packets = [first.bytes(), last.bytes(), last.next(payload(60, 3)).bytes()];
        let received = Received::new(&packets);
        let mut coalescer = Coalescer::new(ALL);
        for place in &received.places {
            let packet = received.at(*place);
            coalescer.push(packet, &IpView::parse(packet).unwrap(), *place, Time::from_nanos(70));
        }
        let refused = coalescer.drain().next().unwrap();
        assert_eq!((refused.packets, refused.is_tcp()), (3, tcp));
        let apart: Vec<Gather> = coalescer.apart(&refused).collect();
        let writes: Vec<_> = apart.iter().map(|gather| received.written(gather)).collect();
        assert_eq!(writes, packets.each_ref().map(|packet| alone(packet)));
        assert!(apart.iter().all(|one| (one.packets, one.received) == (1, Time::from_nanos(70))));
    }
}

#[test]
fn padding_behind_the_packet_is_not_written() {
    let packet = tcp4().bytes();
    let padded = [&packet[..], &[0xdd; 12]].concat();
    assert_eq!(coalesce(&[padded]), [alone(&packet)]);
}

#[test]
fn the_parts_list_of_a_finished_write_is_used_again() {
    let received = Received::new([&tcp4().bytes()]);
    let mut coalescer = Coalescer::new(ALL);
    let mut lists = Vec::new();
    for _ in 0..3 {
        let packet = received.at(received.places[0]);
        coalescer.push(packet, &IpView::parse(packet).unwrap(), received.places[0], Time::default());
        let gather = coalescer.drain().next().unwrap();
        assert!(gather.parts.capacity() > SEGMENTS_MAX);
        lists.push(gather.parts.as_ptr());
        coalescer.recycle(gather);
    }
    assert_eq!(lists, [lists[0]; 3]);
}
