//! What a vnet header may ask for: odd but possible requests are carried out, impossible ones refused.
#![allow(clippy::unwrap_used)]

mod packets;

use packets::*;
use uringvpn::offload::split::Split;
use uringvpn::wire::Malformed;
use uringvpn::wire::ip::IpView;
use uringvpn::wire::vnet_hdr::VnetHdr;

fn plan(vnet: VnetHdr, packet: &[u8]) -> Result<Split, Malformed> {
    Split::plan(&vnet, packet, &IpView::parse(packet).unwrap())
}

fn assert_refused(vnet: VnetHdr, packet: &[u8]) {
    assert_eq!(plan(vnet, packet).unwrap_err(), Malformed::BadOffload, "{vnet:?}");
}

/// A packet, and a vnet header that fits it.
fn fitting(packet: Packet) -> (VnetHdr, Vec<u8>) {
    let vnet = packet.vnet(100);
    let bytes = packet.bytes();
    assert!(plan(vnet, &bytes).is_ok());
    (vnet, bytes)
}

#[test]
fn an_offload_of_another_version_or_protocol_is_refused() {
    for (v6, udp, types) in [
        (false, false, [4, 0x84, 5]),
        (true, false, [1, 0x81, 5]),
        (false, true, [1, 4, 0x85]),
        (true, true, [1, 4, 3]),
    ] {
        let (vnet, packet) = fitting(Packet { udp, ..Packet::tcp(v6, payload(1_000, 1)) });
        for gso_type in types {
            assert_refused(VnetHdr { gso_type, ..vnet }, &packet);
        }
    }
}

#[test]
fn segments_without_payload_are_refused() {
    let (vnet, packet) = fitting(Packet::tcp(false, payload(1_000, 1)));
    assert_refused(VnetHdr { gso_size: 0, ..vnet }, &packet);
}

#[test]
fn a_fragment_is_never_cut() {
    let (vnet, _) = fitting(Packet::tcp(false, payload(1_000, 1)));
    assert_refused(vnet, &Packet { fragment: 0x2000, ..Packet::tcp(false, payload(1_000, 1)) }.bytes());
    assert_refused(vnet, &Packet { fragment: 0x0001, ..Packet::tcp(false, payload(1_000, 1)) }.bytes());
}

#[test]
fn a_transport_header_that_does_not_fit_is_refused() {
    let (vnet, mut packet) = fitting(Packet::tcp(false, Vec::new()));
    packet[32] = 0xf0;
    assert_refused(vnet, &packet);
    packet[32] = 0x40;
    assert_refused(vnet, &packet);
    let (vnet, mut datagram) = fitting(Packet::udp(false, Vec::new()));
    datagram[3] -= 1;
    assert_refused(vnet, &datagram);
}

#[test]
fn a_connections_begin_and_reset_are_never_repeated() {
    for flags in [SYN, SYN | ACK, RST | ACK] {
        let packet = Packet { flags, ..Packet::tcp(false, payload(100, 1)) };
        assert!(plan(packet.vnet(100), &packet.bytes()).is_ok());
        assert_refused(packet.vnet(99), &packet.bytes());
    }
}

#[test]
fn datagrams_come_in_no_more_pieces_than_the_kernel_makes() {
    let packet = Packet::udp(false, payload(1_280, 1));
    assert_eq!(plan(packet.vnet(10), &packet.bytes()).unwrap().count(), 128);
    assert_refused(packet.vnet(9), &packet.bytes());
    let packet = Packet::tcp(false, payload(1_280, 1));
    assert_eq!(plan(packet.vnet(1), &packet.bytes()).unwrap().count(), 1_280);
}

#[test]
fn a_checksum_that_starts_elsewhere_does_not_fit_a_superpacket() {
    let (vnet, packet) = fitting(Packet::tcp(false, payload(1_000, 1)));
    assert_refused(VnetHdr { csum_start: 24, ..vnet }, &packet);
}

#[test]
fn a_superpacket_of_one_segment_is_completed() {
    for gso_size in [500, 501, u16::MAX] {
        for packet in [Packet::tcp(true, payload(500, 1)), Packet::udp(false, payload(500, 1))] {
            assert_eq!(split(&packet.tun_read(gso_size)), [packet.bytes()]);
        }
    }
    let bare = Packet::tcp(false, Vec::new());
    assert_eq!(split(&bare.tun_read(100)), [bare.bytes()]);
}

#[test]
fn segment_lengths_add_up() {
    let packet = Packet::tcp(false, payload(1_050, 1));
    let split = plan(packet.vnet(100), &packet.bytes()).unwrap();
    assert_eq!((split.count(), split.full_segment_bytes()), (11, 152));
    assert_eq!((split.segment_bytes(0), split.segment_bytes(9), split.segment_bytes(10)), (152, 152, 102));
}

#[test]
fn a_checksum_at_an_odd_offset_is_placed_where_asked() {
    let packet = Packet::tcp(false, payload(50, 1)).bytes();
    let vnet = VnetHdr { flags: 1, csum_start: 21, csum_offset: 16, ..VnetHdr::default() };
    let mut expected = packet.clone();
    expected[37..39].copy_from_slice(&(!ones_complement(&[&packet[21..]])).to_be_bytes());
    assert_eq!(split(&[&vnet.emit()[..], &packet].concat()), [expected]);
}

#[test]
fn a_checksum_outside_the_packet_or_within_the_ip_header_is_refused() {
    let packet = Packet::tcp(false, payload(50, 1)).bytes();
    let len = packet.len() as u16;
    let whole = |csum_start, csum_offset| VnetHdr { flags: 1, csum_start, csum_offset, ..VnetHdr::default() };
    assert!(plan(whole(20, len - 22), &packet).is_ok());
    assert!(plan(whole(len - 2, 0), &packet).is_ok());
    for (start, offset) in [(20, len - 21), (len - 1, 0), (len, 0), (0, 10), (19, 16), (u16::MAX, u16::MAX)] {
        assert_refused(whole(start, offset), &packet);
    }
}

#[test]
fn a_udp_checksum_of_zero_is_sent_as_ones() {
    // A payload word that makes the sum come out as all ones: what the checksum would be without it.
    let mut packet = Packet::udp(false, vec![0, 0]);
    let checksum = packet.bytes()[26..28].to_vec();
    packet.payload = checksum;
    assert_eq!(packet.bytes()[26..28], [0xff, 0xff]);
    assert_eq!(split(&packet.tun_read(100)), [packet.bytes()], "cut into one");
    let mut whole = packet.tun_read(0);
    whole[1] = 0;
    assert_eq!(split(&whole), [packet.bytes()], "not cut");
}

#[test]
fn the_sum_left_by_the_kernel_knows_the_final_destination_behind_a_routing_header() {
    let routing = vec![0, 2, 4, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2];
    let packet = Packet { extensions: vec![(43, routing)], ..Packet::tcp(true, payload(250, 1)) };
    let mut read = packet.tun_read(100);
    // The header names the first hop; the sum was made with the address the builder gave it before.
    let hop = 16 + 24..16 + 40;
    read[hop.clone()].fill(0xab);
    let segments = split(&read);
    assert_eq!(segments.len(), 3);
    let with_final_destination = |mut segment: Vec<u8>| {
        segment[24..40].copy_from_slice(&packet.bytes()[24..40]);
        segment
    };
    let expected = split(&packet.tun_read(100));
    assert_eq!(segments.into_iter().map(with_final_destination).collect::<Vec<_>>(), expected);
}
