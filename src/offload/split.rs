//! Cuts a superpacket into segments.
//!
//! Outbound, steps 5 to 7 of 10 (see [`crate::dataplane`]). In: one packet of up to 65,535 bytes and its [`VnetHdr`].
//! Out: complete IP packets in order, checksums filled in. Pure: no clock, no I/O, no allocation.
//!
//! What all segments share is summed once in [`Split::plan`]; [`Split::emit`] then costs one pass over the payload.
//!
//! Source: linux/virtio_net.h; RFC 9293 §3.1 for the flags that only the last segment keeps; RFC 3168 §6.1.2 for CWR,
//! which only the first one keeps.

use super::coalesce::SEGMENTS_MAX;
use crate::wire::checksum::{Sum, copy_and_sum, pseudo_header, sum};
use crate::wire::ip::{
    IpView, PROTOCOL_TCP, PROTOCOL_UDP, V4_CHECKSUM, V4_ID, V4_TOTAL_LENGTH, V6_HEADER_BYTES,
    V6_PAYLOAD_LENGTH,
};
use crate::wire::l4::{
    TCP_CHECKSUM, TCP_CWR, TCP_FIN, TCP_OFFSET_FLAGS, TCP_PSH, TCP_RST, TCP_SEQUENCE, TCP_SYN, TcpView,
    UDP_CHECKSUM, UDP_HEADER_BYTES, UDP_LENGTH, UdpView,
};
use crate::wire::vnet_hdr::{Gso, VnetHdr};
use crate::wire::{Malformed, read_u16, write_u16, write_u32};

/// Longest headers that [`Split::spread`] keeps aside: IPv6 or IPv4 with options (60), TCP with options (60).
const TEMPLATE_BYTES: usize = 60 + 60;

/// How one TUN read is cut: header, payload per segment, number of segments.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    kind: Kind,
    total_bytes: u32,
    /// IP and transport header, repeated in front of every segment; the whole packet when nothing is cut.
    header_bytes: u16,
    payload_bytes_per_segment: u16,
    count: u16,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Whole,
    WholeWithChecksum { start: u16, field: u16, udp: bool },
    Cut(Cut),
}

/// What the segments of one superpacket have in common.
#[derive(Clone, Copy, Debug)]
struct Cut {
    v4: bool,
    ip_header_bytes: u16,
    /// The IPv4 header without total length, identification and checksum.
    ip_sum: Sum,
    /// Pseudo-header without length, transport header without the fields that vary.
    transport_sum: Sum,
    transport: Transport,
}

#[derive(Clone, Copy, Debug)]
enum Transport {
    Tcp { sequence: u32, offset_flags: u16 },
    Udp,
}

impl Split {
    /// Works out the cut. `packet` is what stands behind the vnet header, `ip` its parsed header.
    ///
    /// A packet without GSO is a cut into one. hdr_len is not trusted: the headers are taken from the packet itself.
    ///
    /// # Errors
    /// [`Malformed::BadOffload`] when the vnet header does not fit the packet.
    pub fn plan(vnet: &VnetHdr, packet: &[u8], ip: &IpView) -> Result<Split, Malformed> {
        let packet = packet.get(..ip.total_bytes as usize).ok_or(Malformed::BadOffload)?;
        let transport = packet.get(ip.header_bytes as usize..).ok_or(Malformed::BadOffload)?;
        let protocol = match vnet.gso()? {
            Gso::None => return Split::plan_whole(vnet, packet, ip),
            Gso::Tcp4 if ip.is_v4() => PROTOCOL_TCP,
            Gso::Tcp6 if !ip.is_v4() => PROTOCOL_TCP,
            Gso::UdpL4 => PROTOCOL_UDP,
            _ => return Err(Malformed::BadOffload),
        };
        let checksum_elsewhere = vnet.needs_checksum() && vnet.csum_start != ip.header_bytes;
        if ip.protocol != protocol || ip.fragment || vnet.gso_size == 0 || checksum_elsewhere {
            return Err(Malformed::BadOffload);
        }
        if protocol == PROTOCOL_TCP {
            Split::plan_tcp(vnet, packet, ip, transport)
        } else {
            Split::plan_udp(vnet, packet, ip, transport)
        }
    }

    fn plan_whole(vnet: &VnetHdr, packet: &[u8], ip: &IpView) -> Result<Split, Malformed> {
        let kind = if vnet.needs_checksum() {
            let start = vnet.csum_start as usize;
            let field = start + vnet.csum_offset as usize;
            // A checksum that starts within the IP header would overwrite what we route by.
            if start < ip.header_bytes as usize || field + 2 > packet.len() {
                return Err(Malformed::BadOffload);
            }
            let udp = ip.protocol == PROTOCOL_UDP && field == ip.header_bytes as usize + UDP_CHECKSUM;
            Kind::WholeWithChecksum { start: start as u16, field: field as u16, udp }
        } else {
            Kind::Whole
        };
        Ok(Split {
            kind,
            total_bytes: ip.total_bytes,
            header_bytes: 0,
            payload_bytes_per_segment: 0,
            count: 1,
        })
    }

    fn plan_tcp(vnet: &VnetHdr, packet: &[u8], ip: &IpView, transport: &[u8]) -> Result<Split, Malformed> {
        let tcp = TcpView::parse(transport).map_err(|_| Malformed::BadOffload)?;
        let header = &transport[..tcp.header_bytes as usize];
        let offset_flags = read_u16(header, TCP_OFFSET_FLAGS);
        let vary = Sum::from(tcp.sequence) + offset_flags.into() + read_u16(header, TCP_CHECKSUM).into();
        let cut = Cut {
            transport_sum: pseudo_header_without_length(
                vnet,
                ip,
                PROTOCOL_TCP,
                read_u16(header, TCP_CHECKSUM),
            ) + minus(sum(header), vary),
            transport: Transport::Tcp { sequence: tcp.sequence, offset_flags },
            ..Cut::of_ip(packet, ip)
        };
        let split = Split::cut(vnet, packet, cut, header.len())?;
        // These do not take part in segmentation; repeated they would mean something else.
        if split.count > 1 && tcp.flags & (TCP_SYN | TCP_RST) != 0 {
            return Err(Malformed::BadOffload);
        }
        Ok(split)
    }

    fn plan_udp(vnet: &VnetHdr, packet: &[u8], ip: &IpView, transport: &[u8]) -> Result<Split, Malformed> {
        let udp = UdpView::parse(transport).map_err(|_| Malformed::BadOffload)?;
        let cut = Cut {
            transport_sum: pseudo_header_without_length(vnet, ip, PROTOCOL_UDP, udp.checksum)
                + udp.ports.into(),
            transport: Transport::Udp,
            ..Cut::of_ip(packet, ip)
        };
        let split = Split::cut(vnet, packet, cut, UDP_HEADER_BYTES)?;
        if split.count() > SEGMENTS_MAX {
            return Err(Malformed::BadOffload);
        }
        Ok(split)
    }

    fn cut(
        vnet: &VnetHdr,
        packet: &[u8],
        cut: Cut,
        transport_header_bytes: usize,
    ) -> Result<Split, Malformed> {
        let header_bytes = cut.ip_header_bytes as usize + transport_header_bytes;
        let payload_bytes = packet.len() - header_bytes;
        let count = payload_bytes.div_ceil(vnet.gso_size as usize).max(1);
        Ok(Split {
            kind: Kind::Cut(cut),
            total_bytes: packet.len() as u32,
            header_bytes: header_bytes as u16,
            payload_bytes_per_segment: vnet.gso_size,
            // At most 65,535 payload bytes of at least one byte each.
            count: u16::try_from(count).map_err(|_| Malformed::BadOffload)?,
        })
    }

    /// How many segments come out; at least 1.
    pub fn count(&self) -> usize {
        self.count as usize
    }

    /// Bytes of segment `index` as an IP packet.
    pub fn segment_bytes(&self, index: usize) -> usize {
        if index + 1 < self.count() { self.full_segment_bytes() } else { self.last_segment_bytes() }
    }

    /// Bytes of every segment but the last; of the only one when there is just one.
    pub fn full_segment_bytes(&self) -> usize {
        if self.count == 1 {
            self.total_bytes as usize
        } else {
            self.header_bytes as usize + self.payload_bytes_per_segment as usize
        }
    }

    fn last_segment_bytes(&self) -> usize {
        self.total_bytes as usize - (self.count() - 1) * self.payload_bytes_per_segment as usize
    }

    /// Writes segment `index` of `packet` into `out` (exactly [`Split::segment_bytes`] long): one pass copies the
    /// payload and sums it, then the headers are patched and the checksums completed.
    ///
    /// # Panics
    /// When `index` or the length of `out` is not as planned, or `packet` is not the one planned for.
    pub fn emit(&self, packet: &[u8], index: usize, out: &mut [u8]) {
        assert!(index < self.count(), "split: segment {index} of {}", self.count);
        assert_eq!(out.len(), self.segment_bytes(index), "split: room for segment {index}");
        match &self.kind {
            Kind::Whole => out.copy_from_slice(&packet[..out.len()]),
            Kind::WholeWithChecksum { start, field, udp } => {
                let (front, back) = out.split_at_mut(*start as usize);
                front.copy_from_slice(&packet[..front.len()]);
                // The field holds the pseudo-header sum and is summed with the rest.
                let sum = copy_and_sum(&packet[front.len()..][..back.len()], back);
                write_u16(out, *field as usize, if *udp { sum.finish_udp() } else { sum.finish() });
            }
            Kind::Cut(cut) => self.emit_segment(cut, packet, index, out),
        }
    }

    /// Spreads the superpacket out within its own buffer: segment i then starts at `start + i * stride`, complete as if
    /// by [`Split::emit`]. Saves a second buffer, and with it half of the cache lines that a cut touches.
    ///
    /// `start` is where the packet lies in `buffer`; `stride` is at least [`Split::full_segment_bytes`]. Returns false,
    /// and has changed nothing, where there is nothing to cut or `buffer` has no room.
    pub fn spread(&self, buffer: &mut [u8], start: usize, stride: usize) -> bool {
        let Kind::Cut(cut) = &self.kind else { return false };
        let header_bytes = self.header_bytes as usize;
        let last = self.count() - 1;
        let end = start + last * stride + self.last_segment_bytes();
        if last == 0
            || header_bytes > TEMPLATE_BYTES
            || stride < self.full_segment_bytes()
            || end > buffer.len()
        {
            return false;
        }
        let mut template = [0; TEMPLATE_BYTES];
        template[..header_bytes].copy_from_slice(&buffer[start..][..header_bytes]);
        // From the last one backwards: each moves to the right, over what has moved away already.
        for index in (0..self.count()).rev() {
            let payload_bytes = self.segment_bytes(index) - header_bytes;
            let from = start + header_bytes + index * self.payload_bytes_per_segment as usize;
            let to = start + index * stride;
            buffer.copy_within(from..from + payload_bytes, to + header_bytes);
            let (header, payload) = buffer[to..][..header_bytes + payload_bytes].split_at_mut(header_bytes);
            header.copy_from_slice(&template[..header_bytes]);
            self.finish_headers(cut, index, header, payload.len(), sum(payload));
        }
        true
    }

    fn emit_segment(&self, cut: &Cut, packet: &[u8], index: usize, out: &mut [u8]) {
        let offset = index * self.payload_bytes_per_segment as usize;
        let (header, payload) = out.split_at_mut(self.header_bytes as usize);
        header.copy_from_slice(&packet[..header.len()]);
        let payload_sum = copy_and_sum(&packet[header.len() + offset..][..payload.len()], payload);
        self.finish_headers(cut, index, header, payload.len(), payload_sum);
    }

    /// Makes the superpacket's headers in `header` those of segment `index`.
    fn finish_headers(
        &self,
        cut: &Cut,
        index: usize,
        header: &mut [u8],
        payload_bytes: usize,
        payload_sum: Sum,
    ) {
        let offset = index * self.payload_bytes_per_segment as usize;
        let total_bytes = header.len() + payload_bytes;
        let (ip, transport) = header.split_at_mut(cut.ip_header_bytes as usize);
        if cut.v4 {
            let id = read_u16(ip, V4_ID).wrapping_add(index as u16);
            let checksum = (cut.ip_sum + (total_bytes as u16).into() + id.into()).finish();
            write_u16(ip, V4_TOTAL_LENGTH, total_bytes as u16);
            write_u16(ip, V4_ID, id);
            write_u16(ip, V4_CHECKSUM, checksum);
        } else {
            write_u16(ip, V6_PAYLOAD_LENGTH, (total_bytes - V6_HEADER_BYTES) as u16);
        }

        let transport_bytes = (total_bytes - ip.len()) as u16;
        let sum = cut.transport_sum + transport_bytes.into() + payload_sum;
        match cut.transport {
            Transport::Tcp { sequence, offset_flags } => {
                let sequence = sequence.wrapping_add(offset as u32);
                let offset_flags = offset_flags & self.flags_kept(index);
                write_u32(transport, TCP_SEQUENCE, sequence);
                write_u16(transport, TCP_OFFSET_FLAGS, offset_flags);
                write_u16(transport, TCP_CHECKSUM, (sum + sequence.into() + offset_flags.into()).finish());
            }
            Transport::Udp => {
                write_u16(transport, UDP_LENGTH, transport_bytes);
                write_u16(transport, UDP_CHECKSUM, (sum + transport_bytes.into()).finish_udp());
            }
        }
    }

    /// A mask for data offset and flags: FIN and PSH belong to the last segment, CWR to the first.
    fn flags_kept(&self, index: usize) -> u16 {
        let mut removed = 0;
        if index > 0 {
            removed |= TCP_CWR;
        }
        if index + 1 < self.count() {
            removed |= TCP_FIN | TCP_PSH;
        }
        !(removed as u16)
    }
}

impl Cut {
    fn of_ip(packet: &[u8], ip: &IpView) -> Cut {
        let ip_sum = if ip.is_v4() {
            let header = &packet[..ip.header_bytes as usize];
            let vary = Sum::from(read_u16(header, V4_TOTAL_LENGTH))
                + read_u16(header, V4_ID).into()
                + read_u16(header, V4_CHECKSUM).into();
            minus(sum(header), vary)
        } else {
            Sum::ZERO
        };
        Cut {
            v4: ip.is_v4(),
            ip_header_bytes: ip.header_bytes,
            ip_sum,
            transport_sum: Sum::ZERO,
            transport: Transport::Udp,
        }
    }
}

/// The pseudo-header's sum with a length of zero.
///
/// Behind IPv4 options or IPv6 extension headers the final destination may stand in a routing header instead of the
/// destination field; then the sum that the kernel left in the checksum field (`partial`) knows better than we do.
fn pseudo_header_without_length(vnet: &VnetHdr, ip: &IpView, protocol: u8, partial: u16) -> Sum {
    if ip.has_options() && vnet.needs_checksum() {
        minus(partial.into(), ip.transport_bytes().into())
    } else {
        pseudo_header(ip.source, ip.destination, protocol, 0)
    }
}

/// One's complement subtraction: adding the inverse. RFC 1071 §1.
fn minus(from: Sum, part: Sum) -> Sum {
    from + Sum::from(!part.fold())
}
