//! IPv4 and IPv6 header view: version, lengths, addresses, transport.
//!
//! Source: RFC 791 §3.1; RFC 8200 §3, §4.

use std::net::IpAddr;

use super::Malformed;

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
    /// # Errors
    /// [`Malformed::Short`], [`Malformed::NotIp`], [`Malformed::BadLength`].
    pub fn parse(_packet: &[u8]) -> Result<IpView, Malformed> {
        todo!()
    }

    /// Whether the packet is IPv4.
    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }
}
