//! Cuts a superpacket into segments.
//!
//! Outbound, step 5 of 9 (see [`crate::dataplane`]). In: one packet of up to 65,535 bytes and its [`VnetHdr`].
//! Out: complete IP packets in order, checksums filled in. Pure: no clock, no I/O, no allocation.
//!
//! Source: linux/virtio_net.h; RFC 9293 §3.1 for the flags that only the last segment keeps.

use crate::wire::Malformed;
use crate::wire::ip::IpView;
use crate::wire::vnet_hdr::VnetHdr;

/// How one TUN read is cut: header, payload per segment, number of segments.
#[derive(Clone, Copy, Debug)]
pub struct Split {}

impl Split {
    /// Works out the cut. `packet` is what stands behind the vnet header, `ip` its parsed header.
    ///
    /// A packet without GSO is a cut into one. hdr_len is not trusted: the headers are taken from the packet itself.
    ///
    /// # Errors
    /// [`Malformed::BadOffload`] when the vnet header does not fit the packet.
    pub fn plan(_vnet: &VnetHdr, _packet: &[u8], _ip: &IpView) -> Result<Split, Malformed> {
        todo!()
    }

    /// How many segments come out; at least 1.
    pub fn count(&self) -> usize {
        todo!()
    }

    /// Bytes of segment `index` as an IP packet.
    pub fn segment_bytes(&self, _index: usize) -> usize {
        todo!()
    }

    /// Writes segment `index` of `packet` into `out` (exactly [`Split::segment_bytes`] long): one pass copies the
    /// payload and sums it, then the headers are patched and the checksums completed.
    pub fn emit(&self, _packet: &[u8], _index: usize, _out: &mut [u8]) {
        todo!()
    }
}
