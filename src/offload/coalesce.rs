//! Joins segments into superpackets for one TUN write.
//!
//! Inbound, step 7 of 9 (see [`crate::dataplane`]). In: IP packets lying in numbered buffers. Out: [`Gather`]s: a new header
//! and the payload ranges behind it. No payload byte is copied.
//!
//! Only what the kernel's own GRO would merge is merged (net/ipv4/tcp_offload.c `tcp_gro_receive`, udp_offload.c),
//! and only after the segment's checksum was verified: a merged packet gets a fresh checksum, which must not repair a bad one.

use super::Part;
use crate::time::Time;
use crate::wire::ip::IpView;
use crate::wire::vnet_hdr::VNET_HDR_BYTES;

/// Longest rewritten header: vnet header, IPv6 with no extension or IPv4 with options (60), TCP with options (60).
pub const HEAD_BYTES_MAX: usize = VNET_HDR_BYTES + 60 + 60;

/// One TUN write: a header of our own, then ranges of received buffers.
#[derive(Debug)]
pub struct Gather {
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: u8,
    /// The ranges that follow the head, in order. At most [`SEGMENTS_MAX`] + 1.
    pub parts: Vec<Part>,
    /// How many IP packets it carries.
    pub packets: u16,
    /// When the kernel received its first datagram.
    pub received: Time,
}

/// Segments in one superpacket at most: the kernel's limit for UDP (linux/udp.h UDP_MAX_SEGMENTS).
pub const SEGMENTS_MAX: usize = 128;

impl Gather {
    /// The bytes in front of the parts: vnet header, and the rewritten IP and TCP/UDP headers of a superpacket.
    pub fn head(&self) -> &[u8] {
        &self.head[..self.head_bytes as usize]
    }

    /// Bytes of the whole write.
    pub fn bytes(&self) -> usize {
        self.head_bytes as usize + self.parts.iter().map(|part| part.len as usize).sum::<usize>()
    }
}

/// What may be merged; from the offloads that the kernel accepted.
#[derive(Clone, Copy, Debug)]
pub struct Merge {
    /// TCP segments into TSO superpackets.
    pub tcp: bool,
    /// UDP datagrams into USO superpackets (Linux 6.2).
    pub udp: bool,
}

/// The superpackets of one turn, in the order of their first packets.
#[derive(Debug)]
pub struct Coalescer {}

impl Coalescer {
    /// An empty coalescer.
    pub fn new(_merge: Merge) -> Coalescer {
        todo!()
    }

    /// Takes in one IP packet: `packet` are its bytes (trimmed to `ip.total_bytes`), `place` is where they lie.
    /// Joins the newest superpacket of its flow or starts a new one.
    pub fn push(&mut self, _packet: &[u8], _ip: &IpView, _place: Part, _received: Time) {
        todo!()
    }

    /// Hands out the finished writes in order and is empty afterwards.
    pub fn drain(&mut self) -> impl Iterator<Item = Gather> {
        std::iter::empty()
    }

    /// Takes back the parts list of a finished write, so that steady state allocates nothing.
    pub fn recycle(&mut self, _gather: Gather) {
        todo!()
    }
}
