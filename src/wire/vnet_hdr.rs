//! The header in front of every TUN read and write: which offloads apply to the packet behind it.
//!
//! Source: linux/virtio_net.h `struct virtio_net_hdr` (10 bytes, native byte order on a TUN without TUNSETVNETLE).

use super::Malformed;

/// `flags`: the transport checksum is only begun, see [`VnetHdr::csum_start`]. VIRTIO_NET_HDR_F_NEEDS_CSUM.
pub const FLAG_NEEDS_CSUM: u8 = 1;
/// `gso_type`: one packet. VIRTIO_NET_HDR_GSO_NONE.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4. VIRTIO_NET_HDR_GSO_TCPV4.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: TCP over IPv6. VIRTIO_NET_HDR_GSO_TCPV6.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: UDP datagrams (USO). VIRTIO_NET_HDR_GSO_UDP_L4.
pub const GSO_UDP_L4: u8 = 5;
/// `gso_type`, together with a TCP type: the first segment carries CWR. VIRTIO_NET_HDR_GSO_ECN.
pub const GSO_ECN: u8 = 0x80;

/// Bytes of `struct virtio_net_hdr` itself.
pub const VIRTIO_NET_HDR_BYTES: usize = 10;
/// Bytes in front of the packet on our TUN (TUNSETVNETHDRSZ): the header and six bytes of padding, exactly as long as
/// the WireGuard data header, so that a packet is sealed and opened without moving.
pub const VNET_HDR_BYTES: usize = 16;

/// The fields of `struct virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// VIRTIO_NET_HDR_F_*: [`FLAG_NEEDS_CSUM`] and hints we have no use for.
    pub flags: u8,
    /// VIRTIO_NET_HDR_GSO_*, possibly with [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of the headers as the kernel reports them; a hint, never trusted.
    pub hdr_len: u16,
    /// Payload bytes per segment.
    pub gso_size: u16,
    /// Where the checksum starts, in bytes from the packet's start.
    pub csum_start: u16,
    /// Where the checksum field lies, in bytes from `csum_start`.
    pub csum_offset: u16,
}

/// The segmentation a header asks for (gso_type without its ECN bit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gso {
    /// One packet, not to be cut.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either version, cut into datagrams (USO).
    UdpL4,
}

impl VnetHdr {
    /// Reads the header in front of `read` (one TUN read) and returns it with the packet behind it.
    ///
    /// # Errors
    /// [`Malformed::Short`] below [`VNET_HDR_BYTES`].
    pub fn parse(read: &[u8]) -> Result<(VnetHdr, &[u8]), Malformed> {
        let (header, packet) = read.split_first_chunk::<VNET_HDR_BYTES>().ok_or(Malformed::Short)?;
        let field = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let vnet = VnetHdr {
            flags: header[0],
            gso_type: header[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
        };
        Ok((vnet, packet))
    }

    /// The header as it stands in front of a TUN write, padding zero.
    pub fn emit(&self) -> [u8; VNET_HDR_BYTES] {
        let mut header = [0; VNET_HDR_BYTES];
        header[0] = self.flags;
        header[1] = self.gso_type;
        header[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        header[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        header[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        header[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        header
    }

    /// Whether the transport checksum still has to be completed (VIRTIO_NET_HDR_F_NEEDS_CSUM).
    pub fn needs_checksum(&self) -> bool {
        self.flags & FLAG_NEEDS_CSUM != 0
    }

    /// The segmentation asked for.
    ///
    /// # Errors
    /// [`Malformed::BadOffload`] for a gso_type we never enabled (UFO, tunnels).
    pub fn gso(&self) -> Result<Gso, Malformed> {
        match self.gso_type {
            GSO_NONE => Ok(Gso::None),
            GSO_UDP_L4 => Ok(Gso::UdpL4),
            gso_type => match gso_type & !GSO_ECN {
                GSO_TCPV4 => Ok(Gso::Tcp4),
                GSO_TCPV6 => Ok(Gso::Tcp6),
                _ => Err(Malformed::BadOffload),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emitted_is_parsed_back() {
        let vnet = VnetHdr {
            flags: FLAG_NEEDS_CSUM,
            gso_type: GSO_TCPV6 | GSO_ECN,
            hdr_len: 72,
            gso_size: 1348,
            csum_start: 40,
            csum_offset: 16,
        };
        let mut read = vnet.emit().to_vec();
        read.extend([0x60, 1, 2]);
        assert_eq!(VnetHdr::parse(&read), Ok((vnet, &[0x60, 1, 2][..])));
        assert!(vnet.needs_checksum());
        assert_eq!(vnet.gso(), Ok(Gso::Tcp6));
    }

    #[test]
    fn a_read_shorter_than_the_header_is_refused() {
        for len in 0..VNET_HDR_BYTES {
            assert_eq!(VnetHdr::parse(&[0; VNET_HDR_BYTES][..len]), Err(Malformed::Short));
        }
    }

    #[test]
    fn an_offload_we_never_enabled_is_refused() {
        for gso_type in (0..=u8::MAX).filter(|t| ![0, 1, 4, 5, 0x81, 0x84].contains(t)) {
            assert_eq!(VnetHdr { gso_type, ..VnetHdr::default() }.gso(), Err(Malformed::BadOffload));
        }
    }
}
