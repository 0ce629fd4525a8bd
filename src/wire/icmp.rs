//! The ICMP error that tells a sender that its packet has nowhere to go.
//!
//! Type and code are those of kernel WireGuard (drivers/net/wireguard/device.c `wg_xmit`): destination unreachable, and of
//! that host unreachable (IPv4) or address unreachable (IPv6). An answer is headers of its own and, as quote, the beginning
//! of the packet it answers, which stays where it lies.
//!
//! # Who answers
//!
//! The answer's source is the packet's destination. An address of the interface, which the kernel would take and RFC 4443
//! §2.2 asks for, would not do: a host that is handed an IPv4 packet with one of its own addresses as source throws it away
//! (net/ipv4/fib_frontend.c `fib_validate_source`), and IPv6 is to behave alike. The destination is routed to where the
//! answer comes from, so a reverse path filter (RFC 3704) lets it in, and to connection tracking the quote is what counts.
//!
//! # Who is not answered
//!
//! ICMP errors, fragments but the first, and whatever hides that it may be one; what goes to, or comes from, an address that
//! is never one host's. That an address is a network's broadcast address cannot be told from it.
//!
//! Source: RFC 792; RFC 1122 §3.2.2; RFC 1812 §4.3.2; RFC 4443 §2.4, §3.1.

use std::net::IpAddr;

use super::checksum::{pseudo_header, sum};
use super::ip::{
    IpView, PROTOCOL_NONE, V4_CHECKSUM, V4_DONT_FRAGMENT, V4_FRAGMENT, V4_HEADER_BYTES, V4_TOTAL_LENGTH,
    V6_HEADER_BYTES, V6_PAYLOAD_LENGTH,
};
use super::write_u16;

/// IPPROTO_ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IPPROTO_ICMPV6.
pub const PROTOCOL_ICMPV6: u8 = 58;
/// IPPROTO_AH.
pub const PROTOCOL_AH: u8 = 51;

/// Bytes of an IPv4 answer at most. RFC 1812 §4.3.2.3.
pub const V4_ANSWER_BYTES_MAX: usize = 576;
/// Bytes of an IPv6 answer at most: the smallest MTU there is. RFC 4443 §2.4 (c).
pub const V6_ANSWER_BYTES_MAX: usize = 1280;

const ICMP_HEADER_BYTES: usize = 8;
const ICMP_CHECKSUM: usize = 2;
const V4_HEADERS_BYTES: usize = V4_HEADER_BYTES + ICMP_HEADER_BYTES;
const V6_HEADERS_BYTES: usize = V6_HEADER_BYTES + ICMP_HEADER_BYTES;

/// Destination unreachable, host unreachable. RFC 792.
const V4_HOST_UNREACHABLE: [u8; 2] = [3, 1];
/// Destination unreachable, address unreachable. RFC 4443 §3.1.
const V6_ADDRESS_UNREACHABLE: [u8; 2] = [1, 3];
/// Precedence of errors, internetwork control; the type of service is the packet's. RFC 1812 §4.3.2.5.
const V4_PRECEDENCE: u8 = 0xc0;
const V4_TYPE_OF_SERVICE: u8 = 0x1c;
/// The default of RFC 1700.
const HOPS: u8 = 64;

/// An ICMP error for one packet.
#[derive(Clone, Copy, Debug)]
pub struct IcmpError {
    headers: [u8; V6_HEADERS_BYTES],
    header_bytes: u8,
    quoted_bytes: u16,
}

impl IcmpError {
    /// Tells the sender of `packet` that it cannot reach its destination; `None` if `packet` must not be answered. Bytes
    /// behind the packet by its own length are not part of it.
    ///
    /// Makes at most one pass over [`V6_ANSWER_BYTES_MAX`] bytes.
    pub fn unreachable(packet: &[u8]) -> Option<IcmpError> {
        let ip = IpView::parse(packet).ok()?;
        let packet = &packet[..ip.total_bytes as usize];
        let answerable = is_host(ip.source) && is_host(ip.destination) && is_no_error(packet, &ip);
        answerable.then(|| if ip.is_v4() { v4(packet) } else { v6(packet, &ip) })
    }

    /// IP and ICMP header.
    pub fn headers(&self) -> &[u8] {
        &self.headers[..self.header_bytes.into()]
    }

    /// How many bytes of the packet follow the headers.
    pub fn quoted_bytes(&self) -> u16 {
        self.quoted_bytes
    }
}

/// Whether `address` is that of one host: neither a group, nor everybody, nor nobody, nor oneself. RFC 1122 §3.2.2 asks that
/// of a packet's source; of its destination, too, which becomes the answer's source.
fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => matches!(v4.octets()[0], 1..=126 | 128..=223),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast()),
    }
}

/// Whether `packet` is certainly no ICMP error. A later fragment, and a transport behind more extension headers than we
/// look at, may be part of one.
fn is_no_error(packet: &[u8], ip: &IpView) -> bool {
    let kind = packet.get(usize::from(ip.header_bytes)).copied();
    match (ip.is_v4(), ip.protocol) {
        // What follows an authentication header is not looked at.
        (_, PROTOCOL_NONE | PROTOCOL_AH) => false,
        // Those that ask and answer: RFC 792, 950, 1256, 8335. A type that we do not know may be an error.
        (true, PROTOCOL_ICMP) => matches!(kind, Some(0 | 8..=10 | 13..=18 | 42 | 43)),
        // 137 is a redirect. RFC 4443 §2.1, §2.4 (e.2).
        (false, PROTOCOL_ICMPV6) => kind.is_some_and(|kind| kind >= 128 && kind != 137),
        _ => true,
    }
}

fn v4(packet: &[u8]) -> IcmpError {
    let quote = &packet[..packet.len().min(V4_ANSWER_BYTES_MAX - V4_HEADERS_BYTES)];
    let mut headers = [0; V6_HEADERS_BYTES];
    let (header, icmp) = headers.split_at_mut(V4_HEADER_BYTES);
    let tos = V4_PRECEDENCE | packet[1] & V4_TYPE_OF_SERVICE;
    (header[0], header[1], header[8], header[9]) = (0x45, tos, HOPS, PROTOCOL_ICMP);
    write_u16(header, V4_TOTAL_LENGTH, (V4_HEADERS_BYTES + quote.len()) as u16);
    // Not fragmented, it needs no identification. RFC 6864 §4.1.
    write_u16(header, V4_FRAGMENT, V4_DONT_FRAGMENT);
    header[12..16].copy_from_slice(&packet[16..20]);
    header[16..20].copy_from_slice(&packet[12..16]);
    let checksum = sum(header).finish();
    write_u16(header, V4_CHECKSUM, checksum);
    icmp[..2].copy_from_slice(&V4_HOST_UNREACHABLE);
    let checksum = (sum(&icmp[..ICMP_HEADER_BYTES]) + sum(quote)).finish();
    write_u16(icmp, ICMP_CHECKSUM, checksum);
    IcmpError { headers, header_bytes: V4_HEADERS_BYTES as u8, quoted_bytes: quote.len() as u16 }
}

fn v6(packet: &[u8], ip: &IpView) -> IcmpError {
    let quote = &packet[..packet.len().min(V6_ANSWER_BYTES_MAX - V6_HEADERS_BYTES)];
    let message_bytes = ICMP_HEADER_BYTES + quote.len();
    let mut headers = [0; V6_HEADERS_BYTES];
    let (header, icmp) = headers.split_at_mut(V6_HEADER_BYTES);
    (header[0], header[6], header[7]) = (0x60, PROTOCOL_ICMPV6, HOPS);
    write_u16(header, V6_PAYLOAD_LENGTH, message_bytes as u16);
    header[8..24].copy_from_slice(&packet[24..40]);
    header[24..40].copy_from_slice(&packet[8..24]);
    icmp[..2].copy_from_slice(&V6_ADDRESS_UNREACHABLE);
    let pseudo = pseudo_header(ip.destination, ip.source, PROTOCOL_ICMPV6, message_bytes as u32);
    let checksum = (pseudo + sum(icmp) + sum(quote)).finish();
    write_u16(icmp, ICMP_CHECKSUM, checksum);
    IcmpError { headers, header_bytes: V6_HEADERS_BYTES as u8, quoted_bytes: quote.len() as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From 10.9.0.1 to 10.9.0.77, with `protocol` and `payload`.
    fn v4_packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0];
        packet.extend([10, 9, 0, 1, 10, 9, 0, 77]);
        packet.extend(payload);
        let total_bytes = packet.len() as u16;
        write_u16(&mut packet, V4_TOTAL_LENGTH, total_bytes);
        packet
    }

    /// From fd09::1 to fd09::77.
    fn v6_packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let address = |low: u8| [&[0xfd, 9][..], &[0; 13], &[low]].concat();
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next_header, 64];
        packet.extend([address(1), address(0x77)].concat());
        packet.extend(payload);
        write_u16(&mut packet, V6_PAYLOAD_LENGTH, payload.len() as u16);
        packet
    }

    fn is_answered(packet: &[u8]) -> bool {
        IcmpError::unreachable(packet).is_some()
    }

    #[test]
    fn the_answer_to_an_ipv4_packet_is_host_unreachable_from_where_it_was_to_go() {
        let mut packet = v4_packet(17, &[7; 20]);
        // Class and congestion: the first is the answer's as far as it is a type of service, the second is not.
        packet[1] = 0xb8 | 3;
        let answer = IcmpError::unreachable(&packet).unwrap();
        assert_eq!(answer.quoted_bytes(), 40);
        let (header, icmp) = answer.headers().split_at(V4_HEADER_BYTES);
        assert_eq!(header[..10], [0x45, 0xd8, 0, 68, 0, 0, 0x40, 0, 64, 1]);
        assert_eq!(header[12..], [10, 9, 0, 77, 10, 9, 0, 1]);
        assert!(sum(header).verifies());
        assert_eq!((icmp.len(), &icmp[..2], &icmp[4..]), (8, &[3, 1][..], &[0; 4][..]));
        assert!((sum(icmp) + sum(&packet)).verifies());
    }

    #[test]
    fn the_answer_to_an_ipv6_packet_is_address_unreachable_from_where_it_was_to_go() {
        let packet = v6_packet(17, &[7; 21]);
        let answer = IcmpError::unreachable(&packet).unwrap();
        assert_eq!(answer.quoted_bytes(), 61);
        let (header, icmp) = answer.headers().split_at(V6_HEADER_BYTES);
        assert_eq!(header[..8], [0x60, 0, 0, 0, 0, 69, 58, 64]);
        assert_eq!([&header[8..24], &header[24..]], [&packet[24..40], &packet[8..24]]);
        assert_eq!((icmp.len(), &icmp[..2], &icmp[4..]), (8, &[1, 3][..], &[0; 4][..]));
        let ip = IpView::parse(&packet).unwrap();
        let pseudo = pseudo_header(ip.destination, ip.source, 58, 69);
        assert!((pseudo + sum(icmp) + sum(&packet)).verifies());
    }

    #[test]
    fn as_much_is_quoted_as_fits_576_or_1280_bytes_and_no_padding() {
        let bytes = |packet: &[u8]| {
            let answer = IcmpError::unreachable(packet).unwrap();
            answer.headers().len() + usize::from(answer.quoted_bytes())
        };
        assert_eq!(bytes(&v4_packet(6, &[1; 1400])), 576);
        assert_eq!(bytes(&v6_packet(6, &[1; 1400])), 1280);
        assert_eq!(bytes(&[v4_packet(6, &[1; 30]), vec![9; 100]].concat()), 28 + 50);
        assert_eq!(bytes(&[v6_packet(6, &[1; 30]), vec![9; 100]].concat()), 48 + 70);
    }

    #[test]
    fn an_icmp_error_is_never_answered() {
        let answered = |packet: fn(u8, &[u8]) -> Vec<u8>, protocol| {
            (0..=u8::MAX).filter(|kind| is_answered(&packet(protocol, &[*kind; 8]))).collect::<Vec<_>>()
        };
        let queries = [0, 8, 9, 10, 13, 14, 15, 16, 17, 18, 42, 43];
        assert_eq!(answered(v4_packet, PROTOCOL_ICMP), queries);
        assert_eq!(
            answered(v6_packet, PROTOCOL_ICMPV6),
            (128..=255).filter(|k| *k != 137).collect::<Vec<_>>()
        );
        // Nothing says what it is.
        assert!(
            !is_answered(&v4_packet(PROTOCOL_ICMP, &[])) && !is_answered(&v6_packet(PROTOCOL_ICMPV6, &[]))
        );
        assert!(
            !is_answered(&v4_packet(PROTOCOL_AH, &[0; 32]))
                && !is_answered(&v6_packet(PROTOCOL_AH, &[0; 32]))
        );
        // Behind extension headers it is one as well.
        let behind =
            |kind| v6_packet(60, &[&[PROTOCOL_ICMPV6, 0, 1, 4, 0, 0, 0, 0][..], &[kind; 8]].concat());
        assert!(!is_answered(&behind(1)) && is_answered(&behind(128)));
    }

    #[test]
    fn of_a_fragmented_packet_only_the_first_fragment_is_answered() {
        for (field, answered) in [(0x2000u16, true), (0x2001, false), (0x0001, false), (0x4000, true)] {
            let mut packet = v4_packet(17, &[0; 16]);
            write_u16(&mut packet, V4_FRAGMENT, field);
            assert_eq!(is_answered(&packet), answered, "{field:#x}");
        }
        for (offset, answered) in [(0u8, true), (8, false)] {
            let packet = v6_packet(44, &[&[17, 0, 0, offset | 1, 0, 0, 0, 1][..], &[0; 16]].concat());
            assert_eq!(is_answered(&packet), answered, "{offset}");
        }
    }

    #[test]
    fn only_one_host_is_answered_for_another() {
        let groups = [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "224.0.0.251",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
        ];
        let groups_v6 = ["::", "::1", "ff02::1", "ff05::2"];
        for (v4, address) in
            groups.map(|text| (true, text)).into_iter().chain(groups_v6.map(|text| (false, text)))
        {
            let octets = match address.parse().unwrap() {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            for at in if v4 { [12, 16] } else { [8, 24] } {
                let mut packet = if v4 { v4_packet(17, &[0; 8]) } else { v6_packet(17, &[0; 8]) };
                assert!(is_answered(&packet));
                packet[at..at + octets.len()].copy_from_slice(&octets);
                assert!(!is_answered(&packet), "{address} at {at}");
            }
        }
    }
}
