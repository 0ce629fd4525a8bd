//! The TCP and UDP fields that segmentation and coalescing need.
//!
//! Source: RFC 9293 §3.1; RFC 768.

use super::ip::{IpView, PROTOCOL_TCP};
use super::{Malformed, read_u16, read_u32};

/// Bytes of a TCP header without options.
pub const TCP_HEADER_BYTES: usize = 20;
/// Bytes of a UDP header.
pub const UDP_HEADER_BYTES: usize = 8;

/// Where TCP keeps the sequence number.
pub const TCP_SEQUENCE: usize = 4;
/// Where TCP keeps the acknowledgment number.
pub const TCP_ACKNOWLEDGMENT: usize = 8;
/// Where TCP keeps data offset, reserved bits and flags, one 16-bit field.
pub const TCP_OFFSET_FLAGS: usize = 12;
/// Where TCP keeps its flags ([`TCP_FIN`] and the others).
pub const TCP_FLAGS: usize = 13;
/// Where TCP keeps the window.
pub const TCP_WINDOW: usize = 14;
/// Where TCP keeps its checksum.
pub const TCP_CHECKSUM: usize = 16;
/// Where TCP keeps the urgent pointer.
pub const TCP_URGENT: usize = 18;
/// Where UDP keeps the length of header and payload.
pub const UDP_LENGTH: usize = 4;
/// Where UDP keeps its checksum.
pub const UDP_CHECKSUM: usize = 6;

/// TCP flag: no more data from the sender.
pub const TCP_FIN: u8 = 0x01;
/// TCP flag: the connection begins.
pub const TCP_SYN: u8 = 0x02;
/// TCP flag: the connection is reset.
pub const TCP_RST: u8 = 0x04;
/// TCP flag: hand over to the application now.
pub const TCP_PSH: u8 = 0x08;
/// TCP flag: the acknowledgment number counts.
pub const TCP_ACK: u8 = 0x10;
/// TCP flag: congestion was experienced. RFC 3168.
pub const TCP_ECE: u8 = 0x40;
/// TCP flag: the congestion window was reduced. RFC 3168.
pub const TCP_CWR: u8 = 0x80;

/// A TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpView {
    /// Source port in the upper half, destination port in the lower.
    pub ports: u32,
    /// The sequence number of the first payload byte.
    pub sequence: u32,
    /// Bytes of the header, options included.
    pub header_bytes: u8,
    /// [`TCP_FIN`] and the others.
    pub flags: u8,
}

impl TcpView {
    /// Reads the header at the start of `segment`.
    ///
    /// # Errors
    /// [`Malformed::Short`] when the bytes end before the header does, [`Malformed::BadLength`] for a data offset below 5.
    pub fn parse(segment: &[u8]) -> Result<TcpView, Malformed> {
        let header = segment.first_chunk::<TCP_HEADER_BYTES>().ok_or(Malformed::Short)?;
        let header_bytes = (header[TCP_OFFSET_FLAGS] >> 4) * 4;
        if (header_bytes as usize) < TCP_HEADER_BYTES {
            return Err(Malformed::BadLength);
        }
        if header_bytes as usize > segment.len() {
            return Err(Malformed::Short);
        }
        Ok(TcpView {
            ports: read_u32(header, 0),
            sequence: read_u32(header, TCP_SEQUENCE),
            header_bytes,
            flags: header[TCP_FLAGS],
        })
    }
}

/// Whether `packet`, with this header, is a TCP segment that carries more than an acknowledgment. False for fragments.
pub fn carries_tcp_data(packet: &[u8], ip: &IpView) -> bool {
    let segment = packet.get(ip.header_bytes.into()..ip.total_bytes as usize);
    let segment = segment.filter(|_| ip.protocol == PROTOCOL_TCP && !ip.fragment);
    segment.is_some_and(|segment| {
        TcpView::parse(segment).is_ok_and(|tcp| segment.len() > usize::from(tcp.header_bytes))
    })
}

/// A UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpView {
    /// Source port in the upper half, destination port in the lower.
    pub ports: u32,
    /// Bytes of header and payload as the header says; nothing is checked against it here.
    pub length_bytes: u16,
    /// The checksum; 0 means the sender made none.
    pub checksum: u16,
}

impl UdpView {
    /// Reads the header at the start of `datagram`.
    ///
    /// # Errors
    /// [`Malformed::Short`].
    pub fn parse(datagram: &[u8]) -> Result<UdpView, Malformed> {
        let header = datagram.first_chunk::<UDP_HEADER_BYTES>().ok_or(Malformed::Short)?;
        Ok(UdpView {
            ports: read_u32(header, 0),
            length_bytes: read_u16(header, UDP_LENGTH),
            checksum: read_u16(header, UDP_CHECKSUM),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcp_header_is_as_long_as_its_data_offset_says() {
        let mut segment = [0; 40];
        segment[..8].copy_from_slice(&[0, 80, 1, 2, 0, 0, 0, 9]);
        segment[12] = 0x80;
        segment[13] = TCP_ACK | TCP_PSH;
        let tcp = TcpView { ports: 80 << 16 | 258, sequence: 9, header_bytes: 32, flags: TCP_ACK | TCP_PSH };
        assert_eq!(TcpView::parse(&segment), Ok(tcp));
        assert_eq!(TcpView::parse(&segment[..31]), Err(Malformed::Short));
        assert_eq!(TcpView::parse(&segment[..19]), Err(Malformed::Short));
        segment[12] = 0x40;
        assert_eq!(TcpView::parse(&segment), Err(Malformed::BadLength));
    }

    #[test]
    fn a_udp_header_needs_eight_bytes() {
        assert_eq!(
            UdpView::parse(&[0, 53, 0, 54, 0, 9, 1, 2, 7]),
            Ok(UdpView { ports: 53 << 16 | 54, length_bytes: 9, checksum: 258 })
        );
        assert_eq!(UdpView::parse(&[0; 7]), Err(Malformed::Short));
    }
}
