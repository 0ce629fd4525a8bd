//! A received buffer and its stride: the ranges of the datagrams in it.
//!
//! Inbound, step 3 of 9 (see [`crate::dataplane`]). UDP_GRO hands over several datagrams of one sender in one buffer; all have the
//! stride's length but the last, which may be shorter.
//!
//! Source: udp(7) UDP_GRO.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::time::Time;

/// What the kernel says about received bytes.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// The sender.
    pub from: SocketAddr,
    /// Which of our addresses it was sent to.
    pub to: Option<IpAddr>,
    /// Where the datagrams start in the buffer.
    pub start: u32,
    /// Bytes of all datagrams.
    pub bytes: u32,
    /// Bytes per datagram (UDP_GRO); 0 means one datagram.
    pub stride: u16,
    /// The outer IPv4 TOS or IPv6 traffic class byte; the same for all of them, since GRO joins no others.
    pub tos: u8,
    /// Whether bytes were cut off.
    pub truncated: bool,
    /// What else came to this socket since the receive before, and the kernel dropped: datagrams, or several that it had
    /// joined counted once (SO_RXQ_OVFL).
    pub overflown: u32,
    /// When the kernel received the first of them.
    pub at: Time,
}

impl Received {
    /// The datagrams' ranges in the buffer.
    pub fn datagrams(&self) -> impl ExactSizeIterator<Item = Range<usize>> + use<> {
        let start = self.start as usize;
        datagrams(self.bytes as usize, self.stride.into())
            .map(move |range| start + range.start..start + range.end)
    }
}

/// The datagram ranges in `bytes` received bytes; a `stride` of 0 means one datagram.
pub fn datagrams(bytes: usize, stride: usize) -> impl ExactSizeIterator<Item = Range<usize>> {
    let stride = if stride == 0 { bytes.max(1) } else { stride };
    let count = bytes.div_ceil(stride).max(1);
    (0..count).map(move |index| {
        let start = index * stride;
        start..bytes.min(start + stride)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_datagrams_have_the_strides_length_but_the_last() {
        assert_eq!(datagrams(250, 100).collect::<Vec<_>>(), [0..100, 100..200, 200..250]);
        assert_eq!(datagrams(200, 100).collect::<Vec<_>>(), [0..100, 100..200]);
    }

    #[test]
    fn without_a_stride_there_is_one_datagram_even_an_empty_one() {
        assert!(datagrams(250, 0).eq(std::iter::once(0..250)));
        assert!(datagrams(0, 0).eq(std::iter::once(0..0)));
    }
}
