//! The header in front of every TUN read and write: which offloads apply to the packet behind it.
//!
//! Source: linux/virtio_net.h `struct virtio_net_hdr` (10 bytes, native byte order on a TUN without TUNSETVNETLE).

use super::Malformed;

/// Bytes of `struct virtio_net_hdr` itself.
pub const VIRTIO_NET_HDR_BYTES: usize = 10;
/// Bytes in front of the packet on our TUN (TUNSETVNETHDRSZ): the header and six bytes of padding, exactly as long as
/// the WireGuard data header, so that a packet is sealed and opened without moving.
pub const VNET_HDR_BYTES: usize = 16;

/// The fields of `struct virtio_net_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// VIRTIO_NET_HDR_F_*.
    pub flags: u8,
    /// VIRTIO_NET_HDR_GSO_*, possibly with the ECN bit 0x80.
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
    pub fn parse(_read: &[u8]) -> Result<(VnetHdr, &[u8]), Malformed> {
        todo!()
    }

    /// The header as it stands in front of a TUN write, padding zero.
    pub fn emit(&self) -> [u8; VNET_HDR_BYTES] {
        todo!()
    }

    /// Whether the transport checksum still has to be completed (VIRTIO_NET_HDR_F_NEEDS_CSUM).
    pub fn needs_checksum(&self) -> bool {
        todo!()
    }

    /// The segmentation asked for.
    ///
    /// # Errors
    /// [`Malformed::BadOffload`] for a gso_type we never enabled (UFO, tunnels).
    pub fn gso(&self) -> Result<Gso, Malformed> {
        todo!()
    }
}
