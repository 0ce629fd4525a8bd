//! Bytes to meaning and back. Pure: no state, no I/O, no allocation.
//!
//! The guarantee: `parse` checks once and returns a view or [`Malformed`]; after that no accessor panics, whatever the
//! bytes are. Every parser meets arbitrary bytes in `tests/parsers.rs`.

pub mod checksum;
pub mod icmp;
pub mod ip;
pub mod l4;
pub mod message;
pub mod vnet_hdr;

/// Why bytes could not be read as what they were taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fewer bytes than the header needs.
    #[error("shorter than its header")]
    Short,
    /// Not IP version 4 or 6, or a header length the version does not allow.
    #[error("not an IP packet")]
    NotIp,
    /// A length field points past the end of the packet.
    #[error("a length field does not fit the packet")]
    BadLength,
    /// A virtio header that does not fit the packet behind it (gso_type, gso_size or checksum position).
    #[error("the offload header does not fit the packet")]
    BadOffload,
}

/// The 16-bit big-endian field at `at`; the caller has checked the length.
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The 32-bit big-endian field at `at`; the caller has checked the length.
pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Sets the 16-bit big-endian field at `at`; the caller has checked the length.
pub(crate) fn write_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Sets the 32-bit big-endian field at `at`; the caller has checked the length.
pub(crate) fn write_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
