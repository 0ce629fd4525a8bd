//! IPv4 and IPv6 header view: version, lengths, addresses, transport.
//!
//! Source: RFC 791 §3.1; RFC 8200 §3, §4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Malformed, read_u16, write_u16};

/// Bytes of an IPv4 header without options.
pub const V4_HEADER_BYTES: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub const V6_HEADER_BYTES: usize = 40;
/// IPv6 extension headers we walk at most; behind more the transport counts as unknown.
pub const EXTENSION_HEADERS_MAX: usize = 8;

/// IPPROTO_TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IPPROTO_UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IPPROTO_NONE: what [`IpView::protocol`] says when there is no transport header to be found.
pub const PROTOCOL_NONE: u8 = 59;

/// Where IPv4 keeps the length of the whole packet.
pub const V4_TOTAL_LENGTH: usize = 2;
/// Where IPv4 keeps the identification.
pub const V4_ID: usize = 4;
/// Where IPv4 keeps flags (DF, MF) and fragment offset, one 16-bit field.
pub const V4_FRAGMENT: usize = 6;
/// Where IPv4 keeps its header checksum.
pub const V4_CHECKSUM: usize = 10;
/// The bit of the field at [`V4_FRAGMENT`] that forbids fragmenting.
pub const V4_DONT_FRAGMENT: u16 = 0x4000;
/// Where IPv6 keeps the length of what follows its header.
pub const V6_PAYLOAD_LENGTH: usize = 4;

/// Bits of the ECN field.
pub const ECN_MASK: u8 = 0b11;
/// The sender understands ECN.
pub const ECN_ECT_0: u8 = 0b10;
/// Congestion was met on the way.
pub const ECN_CE: u8 = 0b11;

const V4_MORE_FRAGMENTS: u16 = 0x2000;
const V4_OFFSET: u16 = 0x1fff;
const EXTENSION_HOP_BY_HOP: u8 = 0;
const EXTENSION_ROUTING: u8 = 43;
const EXTENSION_FRAGMENT: u8 = 44;
const EXTENSION_DESTINATION: u8 = 60;

/// What the data plane needs to know of an IP packet. All offsets in bytes from the packet's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpView {
    /// Where the packet comes from.
    pub source: IpAddr,
    /// Where the packet goes.
    pub destination: IpAddr,
    /// Bytes of the IP header, IPv4 options and IPv6 extension headers included: where the transport header starts.
    pub header_bytes: u16,
    /// Bytes of the whole packet by its own length field; at most the bytes given to `parse`.
    pub total_bytes: u32,
    /// The transport protocol (IPPROTO_*) behind all extension headers; 59 (no next header) when unknown or a later fragment.
    pub protocol: u8,
    /// Whether this is a fragment (first, middle or last).
    pub fragment: bool,
}

impl IpView {
    /// Reads the header at the start of `packet`. Bytes behind `total_bytes` are padding and not part of the packet.
    ///
    /// Looks at no more than [`EXTENSION_HEADERS_MAX`] extension headers. One that is cut off does not make the packet
    /// malformed: routers forward such packets, so do we, with an unknown transport.
    ///
    /// # Errors
    /// [`Malformed::Short`], [`Malformed::NotIp`], [`Malformed::BadLength`].
    pub fn parse(packet: &[u8]) -> Result<IpView, Malformed> {
        match packet.first().ok_or(Malformed::Short)? >> 4 {
            4 => parse_v4(packet),
            6 => parse_v6(packet),
            _ => Err(Malformed::NotIp),
        }
    }

    /// Whether the packet is IPv4.
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Bytes of the transport header and its payload.
    pub fn transport_bytes(&self) -> u32 {
        self.total_bytes.saturating_sub(self.header_bytes as u32)
    }

    /// Whether there are IPv4 options or IPv6 extension headers.
    pub fn has_options(&self) -> bool {
        let plain = if self.is_v4() { V4_HEADER_BYTES } else { V6_HEADER_BYTES };
        self.header_bytes as usize != plain
    }
}

/// The ECN field of the packet's header. RFC 3168 §5: the low two bits of IPv4's TOS and of IPv6's traffic class.
pub fn ecn(packet: &[u8]) -> u8 {
    match packet {
        [first, second, ..] if first >> 4 == 4 => second & ECN_MASK,
        [_, second, ..] => (second >> 4) & ECN_MASK,
        _ => 0,
    }
}

/// Marks the packet as having met congestion, if its sender understands that; false if not, RFC 3168 §5.
pub fn mark_congestion(packet: &mut [u8]) -> bool {
    let ecn = ecn(packet);
    if ecn == 0 || ecn == ECN_CE {
        return ecn == ECN_CE;
    }
    if packet[0] >> 4 == 4 {
        let before = read_u16(packet, 0);
        packet[1] |= ECN_CE;
        // RFC 1624: the checksum follows the word that changed.
        let checksum = !read_u16(packet, V4_CHECKSUM);
        let sum = u32::from(checksum) + u32::from(!before) + u32::from(read_u16(packet, 0));
        let folded = (sum & 0xffff) + (sum >> 16);
        write_u16(packet, V4_CHECKSUM, !((folded & 0xffff) + (folded >> 16)) as u16);
    } else {
        packet[1] |= ECN_CE << 4;
    }
    true
}

fn parse_v4(packet: &[u8]) -> Result<IpView, Malformed> {
    let header = packet.first_chunk::<V4_HEADER_BYTES>().ok_or(Malformed::Short)?;
    let header_bytes = (header[0] & 0x0f) as usize * 4;
    if header_bytes < V4_HEADER_BYTES {
        return Err(Malformed::NotIp);
    }
    if header_bytes > packet.len() {
        return Err(Malformed::Short);
    }
    let total_bytes = read_u16(header, V4_TOTAL_LENGTH) as usize;
    if total_bytes < header_bytes || total_bytes > packet.len() {
        return Err(Malformed::BadLength);
    }
    let fragment = read_u16(header, V4_FRAGMENT);
    let first = fragment & V4_OFFSET == 0;
    Ok(IpView {
        source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
        destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
        header_bytes: header_bytes as u16,
        total_bytes: total_bytes as u32,
        protocol: if first { header[9] } else { PROTOCOL_NONE },
        fragment: !first || fragment & V4_MORE_FRAGMENTS != 0,
    })
}

fn parse_v6(packet: &[u8]) -> Result<IpView, Malformed> {
    let header = packet.first_chunk::<V6_HEADER_BYTES>().ok_or(Malformed::Short)?;
    let total_bytes = V6_HEADER_BYTES + read_u16(header, V6_PAYLOAD_LENGTH) as usize;
    let packet = packet.get(..total_bytes).ok_or(Malformed::BadLength)?;
    let address = |at: usize| -> IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&header[at..at + 16]);
        Ipv6Addr::from(octets).into()
    };
    let transport = walk_extensions(packet, header[6]);
    Ok(IpView {
        source: address(8),
        destination: address(24),
        header_bytes: transport.start as u16,
        total_bytes: total_bytes as u32,
        protocol: transport.protocol,
        fragment: transport.fragment,
    })
}

/// Where the walk along the extension headers ended.
struct Transport {
    start: usize,
    protocol: u8,
    fragment: bool,
}

fn walk_extensions(packet: &[u8], next_header: u8) -> Transport {
    let mut at = Transport { start: V6_HEADER_BYTES, protocol: next_header, fragment: false };
    // One round more than headers allowed: the last only looks whether the transport is reached.
    for _ in 0..=EXTENSION_HEADERS_MAX {
        let bytes = match at.protocol {
            EXTENSION_HOP_BY_HOP | EXTENSION_ROUTING | EXTENSION_DESTINATION => {
                packet.get(at.start + 1).map(|units| 8 + *units as usize * 8)
            }
            EXTENSION_FRAGMENT => Some(8),
            _ => return at,
        };
        let Some(extension) = bytes.and_then(|bytes| packet.get(at.start..at.start + bytes)) else {
            break;
        };
        if at.protocol == EXTENSION_FRAGMENT {
            // An offset and the M bit; both zero is an "atomic" fragment, a whole packet. RFC 6946.
            let field = read_u16(extension, 2);
            at.fragment |= field & 0xfff9 != 0;
            if field & 0xfff8 != 0 {
                at.start += extension.len();
                break;
            }
        }
        at.protocol = extension[0];
        at.start += extension.len();
    }
    Transport { protocol: PROTOCOL_NONE, ..at }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn v4(ihl: u8, total: u16, fragment: u16, len: usize) -> Vec<u8> {
        let mut packet = vec![0; len.max(20)];
        packet[0] = 0x40 | ihl;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = PROTOCOL_UDP;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet.truncate(len);
        packet
    }

    /// An IPv6 packet whose extension headers are `(type, bytes)`, followed by `next` and 8 bytes of it.
    fn v6(extensions: &[(u8, Vec<u8>)], next: u8) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[6] = extensions.first().map_or(next, |(kind, _)| *kind);
        for (index, (_, bytes)) in extensions.iter().enumerate() {
            let mut bytes = bytes.clone();
            bytes[0] = extensions.get(index + 1).map_or(next, |(kind, _)| *kind);
            packet.extend(bytes);
        }
        packet.extend([0; 8]);
        let payload_bytes = packet.len() as u16 - 40;
        packet[4..6].copy_from_slice(&payload_bytes.to_be_bytes());
        packet
    }

    fn options(units: u8) -> Vec<u8> {
        let mut bytes = vec![0; 8 + units as usize * 8];
        bytes[1] = units;
        bytes
    }

    #[test]
    fn an_ipv4_packet_is_as_long_as_it_says_and_the_rest_is_padding() {
        let ip = IpView::parse(&v4(6, 30, 0, 48)).unwrap();
        assert_eq!((ip.header_bytes, ip.total_bytes, ip.protocol, ip.fragment), (24, 30, 17, false));
        assert_eq!(ip.source, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(ip.destination, "10.0.0.2".parse::<IpAddr>().unwrap());
        assert!(ip.is_v4() && ip.has_options());
    }

    #[test]
    fn runts_foreign_versions_and_lying_lengths_are_refused() {
        assert_eq!(IpView::parse(&[]), Err(Malformed::Short));
        assert_eq!(IpView::parse(&v4(5, 19, 0, 19)), Err(Malformed::Short));
        assert_eq!(IpView::parse(&v6(&[], 6)[..39]), Err(Malformed::Short));
        assert_eq!(IpView::parse(&[0; 64]), Err(Malformed::NotIp));
        assert_eq!(IpView::parse(&[0x50; 64]), Err(Malformed::NotIp));
        assert_eq!(IpView::parse(&v4(0, 40, 0, 40)), Err(Malformed::NotIp));
        assert_eq!(IpView::parse(&v4(15, 40, 0, 40)), Err(Malformed::Short));
        assert_eq!(IpView::parse(&v4(10, 39, 0, 48)), Err(Malformed::BadLength));
        assert_eq!(IpView::parse(&v4(5, 49, 0, 48)), Err(Malformed::BadLength));
        assert_eq!(IpView::parse(&v6(&[], 6)[..47]), Err(Malformed::BadLength));
    }

    #[test]
    fn a_first_fragment_knows_its_transport_and_a_later_one_does_not() {
        let first = IpView::parse(&v4(5, 28, 0x2000, 28)).unwrap();
        assert_eq!((first.protocol, first.fragment), (PROTOCOL_UDP, true));
        let last = IpView::parse(&v4(5, 28, 0x0001, 28)).unwrap();
        assert_eq!((last.protocol, last.fragment), (PROTOCOL_NONE, true));
        let unfragmentable = IpView::parse(&v4(5, 28, 0x4000, 28)).unwrap();
        assert!(!unfragmentable.fragment);
    }

    #[test]
    fn up_to_eight_extension_headers_are_walked() {
        let mut fragment = options(0);
        let chain = vec![(0, options(1)), (60, options(0)), (43, options(2)), (44, fragment.clone())];
        let ip = IpView::parse(&v6(&chain, PROTOCOL_TCP)).unwrap();
        assert_eq!((ip.header_bytes, ip.protocol, ip.fragment), (40 + 16 + 8 + 24 + 8, PROTOCOL_TCP, false));

        let eight: Vec<_> = (0..8).map(|_| (60, options(0))).collect();
        let ip = IpView::parse(&v6(&eight, PROTOCOL_UDP)).unwrap();
        assert_eq!((ip.header_bytes, ip.protocol), (40 + 64, PROTOCOL_UDP));
        let nine: Vec<_> = (0..9).map(|_| (60, options(0))).collect();
        assert_eq!(IpView::parse(&v6(&nine, PROTOCOL_UDP)).unwrap().protocol, PROTOCOL_NONE);

        fragment[3] = 1;
        let first = IpView::parse(&v6(&[(44, fragment.clone())], PROTOCOL_UDP)).unwrap();
        assert_eq!((first.protocol, first.fragment), (PROTOCOL_UDP, true));
        fragment[2] = 1;
        let later = IpView::parse(&v6(&[(44, fragment)], PROTOCOL_UDP)).unwrap();
        assert_eq!((later.protocol, later.fragment), (PROTOCOL_NONE, true));
    }

    #[test]
    fn an_extension_header_that_is_cut_off_hides_the_transport() {
        let mut packet = v6(&[(60, options(0))], PROTOCOL_UDP);
        packet[41] = 200;
        let ip = IpView::parse(&packet).unwrap();
        assert_eq!((ip.header_bytes, ip.protocol), (40, PROTOCOL_NONE));
    }
}
