//! How an IP packet becomes a datagram and back.

use std::ops::Range;

use crate::stats::drop::DropReason;

/// The encapsulation of a tunnel. The data plane asks it at exactly two points, seal and open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encap {
    /// The datagram is the IP packet: what the kernel calls FOU with an IPIP or SIT payload. Neither secret nor
    /// authenticated. Source: linux/fou.h; RFC 2003 and 4213 for the payload.
    #[default]
    Plain,
}

impl Encap {
    /// Bytes of the datagram that carries a packet of `packet_bytes`.
    pub fn datagram_bytes(self, packet_bytes: usize) -> usize {
        match self {
            Encap::Plain => packet_bytes,
        }
    }

    /// Where in the datagram the packet is written before [`Encap::seal`].
    pub fn packet_range(self, packet_bytes: usize) -> Range<usize> {
        match self {
            Encap::Plain => 0..packet_bytes,
        }
    }

    /// Turns `datagram`, which holds the packet at [`Encap::packet_range`], into what goes on the wire.
    pub fn seal(self, _datagram: &mut [u8]) -> Result<(), DropReason> {
        match self {
            Encap::Plain => Ok(()),
        }
    }

    /// Turns a received `datagram` back and returns where in it the packet lies.
    pub fn open(self, datagram: &mut [u8]) -> Result<Range<usize>, DropReason> {
        match self {
            Encap::Plain => Ok(0..datagram.len()),
        }
    }
}
