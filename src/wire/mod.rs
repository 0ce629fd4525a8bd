//! Bytes to meaning and back. Pure: no state, no I/O, no allocation.
//!
//! The guarantee: `parse` checks once and returns a view or [`Malformed`]; after that no accessor panics, whatever the
//! bytes are. Every parser meets arbitrary bytes in `tests/parsers.rs`.

pub mod checksum;
pub mod ip;
pub mod l4;
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
