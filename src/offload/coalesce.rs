//! Joins segments into superpackets for one TUN write.
//!
//! Inbound, step 7 of 9 (see [`crate::dataplane`]). In: IP packets lying in numbered buffers. Out: [`Gather`]s: a new header
//! and the payload ranges behind it. No payload byte is copied.
//!
//! Only what the kernel's own GRO would merge is merged (net/ipv4/tcp_offload.c `tcp_gro_receive`, udp_offload.c),
//! and only after the segment's checksum was verified: a merged packet gets a fresh checksum, which must not repair a bad one.
//!
//! # Order
//!
//! A packet joins the newest entry of its flow or none, so a packet that cannot join holds back those behind it. A packet
//! whose transport we do not read (fragments, options, extension headers, ICMP, tunnels) holds back all flows between
//! its two addresses. Flows may overtake one another, packets of one flow never do.
//!
//! # What verifying costs
//!
//! A checksum is looked at only where it decides something: when a packet fits the newest entry of its flow, or when it
//! may be the first of a superpacket (payload, no PSH). Acknowledgments, handshakes and the single pushed packets of a
//! request and its answer cost no pass; the kernel verifies those.

use std::net::IpAddr;

use super::Part;
use crate::time::Time;
use crate::wire::checksum::{pseudo_header, sum};
use crate::wire::ip::{
    IpView, PROTOCOL_TCP, PROTOCOL_UDP, V4_CHECKSUM, V4_DONT_FRAGMENT, V4_FRAGMENT, V4_ID, V4_TOTAL_LENGTH,
    V6_HEADER_BYTES, V6_PAYLOAD_LENGTH,
};
use crate::wire::l4::{
    TCP_ACK, TCP_ACKNOWLEDGMENT, TCP_CHECKSUM, TCP_ECE, TCP_FLAGS, TCP_HEADER_BYTES, TCP_PSH, TCP_URGENT,
    TCP_WINDOW, TcpView, UDP_CHECKSUM, UDP_HEADER_BYTES, UDP_LENGTH, UdpView,
};
use crate::wire::vnet_hdr::{FLAG_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, VNET_HDR_BYTES, VnetHdr};
use crate::wire::{read_u16, write_u16};

/// Longest rewritten header: vnet header, IPv6 with no extension or IPv4 with options (60), TCP with options (60).
pub const HEAD_BYTES_MAX: usize = VNET_HDR_BYTES + 60 + 60;

/// One TUN write: a header of our own, then ranges of received buffers.
#[derive(Debug)]
pub struct Gather {
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: u8,
    /// The ranges that follow the head, in order. At most [`SEGMENTS_MAX`].
    pub parts: Vec<Part>,
    /// How many received IP packets it carries; none if it is [`Gather::is_our_own`].
    pub packets: u16,
    /// When the kernel received its first datagram.
    pub received: Time,
    /// When that was reaped, and when all was joined: for whoever writes it to note.
    pub reaped: Time,
    /// See [`Gather::reaped`].
    pub joined: Time,
}

/// Segments in one superpacket at most: the kernel's limit for UDP (linux/udp.h UDP_MAX_SEGMENTS).
pub const SEGMENTS_MAX: usize = 128;

/// Bytes of a superpacket as an IP packet at most. With an Ethernet header in front it still fits 65,535, so it stays
/// whole when it is forwarded (net/core/dev.c `gso_features_check`).
pub const SUPERPACKET_BYTES_MAX: usize = 65_521;

/// How many entries a packet looks back at for its flow: the bound on the work per packet.
pub const LOOK_BACK_MAX: usize = 16;

impl Gather {
    /// The bytes in front of the parts: vnet header, and the rewritten IP and TCP/UDP headers of a superpacket.
    pub fn head(&self) -> &[u8] {
        &self.head[..self.head_bytes as usize]
    }

    /// Bytes of its packets as one: the write without the vnet header.
    pub fn inner_bytes(&self) -> usize {
        self.bytes() - VNET_HDR_BYTES
    }

    /// Whether it is a packet that we made: see [`Coalescer::our_own`].
    pub fn is_our_own(&self) -> bool {
        self.packets == 0
    }

    /// Whether the packets joined in it are TCP.
    pub fn is_tcp(&self) -> bool {
        matches!(self.head[1], GSO_TCPV4 | GSO_TCPV6)
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
///
/// Keeps the memory of its lists: once [`Coalescer::recycle`] has brought back as many as one turn uses, it allocates
/// nothing.
#[derive(Debug)]
pub struct Coalescer {
    merge: Merge,
    udp_segments_max: usize,
    entries: Vec<Entry>,
    spare_parts: Vec<Vec<Part>>,
}

impl Coalescer {
    /// An empty coalescer.
    pub fn new(merge: Merge) -> Coalescer {
        Coalescer { merge, udp_segments_max: SEGMENTS_MAX, entries: Vec::new(), spare_parts: Vec::new() }
    }

    /// For kernels that take fewer than [`SEGMENTS_MAX`] datagrams in one superpacket.
    pub fn with_udp_segments_max(mut self, segments_max: u16) -> Coalescer {
        self.udp_segments_max = SEGMENTS_MAX.min(segments_max.into());
        self
    }

    /// Writes it will come to so far.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was pushed since the last [`Coalescer::drain`].
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes in one IP packet: `packet` are its bytes (trimmed to `ip.total_bytes`), `place` is where they lie.
    /// Joins the newest superpacket of its flow or starts a new one.
    ///
    /// Looks at no more than [`LOOK_BACK_MAX`] entries and makes at most one pass over the packet.
    pub fn push(&mut self, packet: &[u8], ip: &IpView, place: Part, received: Time) {
        let packet = &packet[..packet.len().min(ip.total_bytes as usize)];
        let place = Part { len: packet.len() as u32, ..place };
        let segment = self.segment(packet, ip);

        let mut leads = None;
        if let Some(segment) = segment {
            let newest = if segment.joins { self.newest_of_flow(ip, segment.flow) } else { None };
            let segments_max = if ip.protocol == PROTOCOL_UDP { self.udp_segments_max } else { SEGMENTS_MAX };
            let fits = newest.filter(|index| {
                let entry = &self.entries[*index];
                usize::from(entry.gather.packets) < segments_max && entry.fits(packet, &segment)
            });
            if (fits.is_some() || segment.leads) && segment.verifies(packet, ip) {
                if let Some(index) = fits {
                    self.entries[index].join(packet, &segment, place);
                    return;
                }
                leads = Some(segment).filter(|segment| segment.leads);
            }
        }
        self.open_entry(packet, ip, segment.map(|segment| segment.flow), leads, place, received);
    }

    /// Hands out the finished writes in order and is empty afterwards.
    pub fn drain(&mut self) -> impl Iterator<Item = Gather> + '_ {
        self.entries.drain(..).map(Entry::finish)
    }

    /// Takes back the parts list of a finished write, so that steady state allocates nothing.
    pub fn recycle(&mut self, gather: Gather) {
        let mut parts = gather.parts;
        parts.clear();
        self.spare_parts.push(parts);
    }

    /// A write that carries nothing received: a packet of `headers` and what lies at `rest`.
    ///
    /// # Panics
    /// When `headers` are longer than [`HEAD_BYTES_MAX`] without the vnet header.
    pub fn our_own(&mut self, headers: &[u8], rest: Part, now: Time) -> Gather {
        let mut parts = self.spare_parts.pop().unwrap_or_else(|| Vec::with_capacity(SEGMENTS_MAX + 1));
        parts.push(rest);
        let mut head = [0; HEAD_BYTES_MAX];
        head[VNET_HDR_BYTES..][..headers.len()].copy_from_slice(headers);
        let head_bytes = (VNET_HDR_BYTES + headers.len()) as u8;
        Gather { head, head_bytes, parts, packets: 0, received: now, reaped: now, joined: now }
    }

    /// A write for each of the packets joined in `refused`. Their own headers still stand in front of their payloads.
    pub fn apart<'a>(&'a mut self, refused: &'a Gather) -> impl Iterator<Item = Gather> + 'a {
        let header_bytes = (refused.head().len() - VNET_HDR_BYTES) as u32;
        let Gather { received, reaped, joined, .. } = *refused;
        refused.parts.iter().map(move |payload| {
            let mut parts = self.spare_parts.pop().unwrap_or_else(|| Vec::with_capacity(SEGMENTS_MAX + 1));
            let (start, len) = (payload.start - header_bytes, payload.len + header_bytes);
            parts.push(Part { start, len, ..*payload });
            let (head, head_bytes) = ([0; HEAD_BYTES_MAX], VNET_HDR_BYTES as u8);
            Gather { head, head_bytes, parts, packets: 1, received, reaped, joined }
        })
    }

    /// The packet as a segment of a flow; none if it is not TCP or UDP right behind a plain IP header.
    fn segment(&self, packet: &[u8], ip: &IpView) -> Option<Segment> {
        if ip.fragment || ip.has_options() || packet.len() != ip.total_bytes as usize {
            return None;
        }
        let transport = packet.get(ip.header_bytes as usize..)?;
        match ip.protocol {
            PROTOCOL_TCP => Segment::tcp(ip, packet, transport, self.merge.tcp),
            PROTOCOL_UDP => Segment::udp(ip, packet, transport, self.merge.udp),
            _ => None,
        }
    }

    /// The newest entry of `flow` if nothing younger stands in the way.
    fn newest_of_flow(&self, ip: &IpView, flow: Flow) -> Option<usize> {
        let newest = self.entries.len().saturating_sub(LOOK_BACK_MAX);
        let index = self.entries[newest..].iter().rposition(|entry| {
            entry.flow.is_none_or(|other| other == flow)
                && entry.source == ip.source
                && entry.destination == ip.destination
        })?;
        let index = newest + index;
        self.entries[index].flow.map(|_| index)
    }

    fn open_entry(
        &mut self,
        packet: &[u8],
        ip: &IpView,
        flow: Option<Flow>,
        leads: Option<Segment>,
        place: Part,
        received: Time,
    ) {
        let mut parts = self.spare_parts.pop().unwrap_or_else(|| Vec::with_capacity(SEGMENTS_MAX + 1));
        parts.push(place);
        let mut head = [0; HEAD_BYTES_MAX];
        let run = leads.map(|segment| {
            let header_bytes = segment.header_bytes as usize;
            head[VNET_HDR_BYTES..][..header_bytes].copy_from_slice(&packet[..header_bytes]);
            Run::led_by(packet, ip, &segment)
        });
        self.entries.push(Entry {
            source: ip.source,
            destination: ip.destination,
            flow,
            run,
            gather: Gather {
                head,
                head_bytes: VNET_HDR_BYTES as u8,
                parts,
                packets: 1,
                received,
                reaped: received,
                joined: received,
            },
        });
    }
}

/// What tells flows between the same two addresses apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    ports: u32,
    protocol: u8,
}

/// What one packet offers for merging.
#[derive(Clone, Copy, Debug)]
struct Segment {
    flow: Flow,
    ip_header_bytes: u8,
    /// IP and transport header.
    header_bytes: u8,
    payload_bytes: u16,
    /// TCP: the sequence number.
    sequence: u32,
    /// PSH: nothing may follow.
    pushed: bool,
    /// May be joined to a superpacket.
    joins: bool,
    /// May be a superpacket's first.
    leads: bool,
}

impl Segment {
    fn tcp(ip: &IpView, packet: &[u8], transport: &[u8], merge: bool) -> Option<Segment> {
        let tcp = TcpView::parse(transport).ok()?;
        let header_bytes = ip.header_bytes as usize + tcp.header_bytes as usize;
        let payload_bytes = u16::try_from(packet.len() - header_bytes).ok()?;
        let joins = merge && payload_bytes > 0 && tcp.flags & !(TCP_PSH | TCP_ECE) == TCP_ACK;
        let pushed = tcp.flags & TCP_PSH != 0;
        Some(Segment {
            flow: Flow { ports: tcp.ports, protocol: PROTOCOL_TCP },
            ip_header_bytes: ip.header_bytes as u8,
            header_bytes: header_bytes as u8,
            payload_bytes,
            sequence: tcp.sequence,
            pushed,
            joins,
            leads: joins && !pushed,
        })
    }

    fn udp(ip: &IpView, packet: &[u8], transport: &[u8], merge: bool) -> Option<Segment> {
        let udp = UdpView::parse(transport).ok()?;
        let header_bytes = ip.header_bytes as usize + UDP_HEADER_BYTES;
        let payload_bytes = u16::try_from(packet.len() - header_bytes).ok()?;
        let honest_length = udp.length_bytes as usize == transport.len();
        let joins = merge && payload_bytes > 0 && honest_length && udp.checksum != 0;
        Some(Segment {
            flow: Flow { ports: udp.ports, protocol: PROTOCOL_UDP },
            ip_header_bytes: ip.header_bytes as u8,
            header_bytes: header_bytes as u8,
            payload_bytes,
            sequence: 0,
            pushed: false,
            joins,
            leads: joins,
        })
    }

    fn verifies(&self, packet: &[u8], ip: &IpView) -> bool {
        let (header, transport) = packet.split_at(self.ip_header_bytes as usize);
        if ip.is_v4() && !sum(header).verifies() {
            return false;
        }
        let pseudo = pseudo_header(ip.source, ip.destination, self.flow.protocol, transport.len() as u32);
        (pseudo + sum(transport)).verifies()
    }
}

/// A superpacket that may still grow; with one packet so far it may also stay alone.
#[derive(Clone, Copy, Debug)]
struct Run {
    v4: bool,
    protocol: u8,
    ip_header_bytes: u8,
    header_bytes: u8,
    /// Payload of every packet but the last.
    payload_bytes_per_segment: u16,
    total_bytes: u32,
    /// TCP: the sequence number that continues it.
    next_sequence: u32,
    /// IPv4: the last packet's identification.
    last_id: u16,
    /// IPv4: how the identification goes on, known from the second packet on: 1, or 0 with DF.
    id_step: Option<u16>,
    /// The last packet had PSH.
    pushed: bool,
    /// Neither pushed nor ended by a shorter packet.
    open: bool,
}

impl Run {
    fn led_by(packet: &[u8], ip: &IpView, segment: &Segment) -> Run {
        Run {
            v4: ip.is_v4(),
            protocol: segment.flow.protocol,
            ip_header_bytes: segment.ip_header_bytes,
            header_bytes: segment.header_bytes,
            payload_bytes_per_segment: segment.payload_bytes,
            total_bytes: packet.len() as u32,
            next_sequence: segment.sequence.wrapping_add(segment.payload_bytes as u32),
            last_id: read_u16(packet, V4_ID),
            id_step: None,
            pushed: false,
            open: true,
        }
    }

    /// How the identification of `packet` continues the run's, if it does.
    ///
    /// With DF the identification means nothing (RFC 6864 §4.1), but the kernel wants it constant or counting.
    fn id_step_to(&self, packet: &[u8]) -> Option<u16> {
        if !self.v4 {
            return Some(1);
        }
        let step = read_u16(packet, V4_ID).wrapping_sub(self.last_id);
        let may_stay = read_u16(packet, V4_FRAGMENT) & V4_DONT_FRAGMENT != 0;
        let continues = step == 1 || step == 0 && may_stay;
        (continues && self.id_step.is_none_or(|known| known == step)).then_some(step)
    }
}

/// One write to be.
#[derive(Debug)]
struct Entry {
    source: IpAddr,
    destination: IpAddr,
    /// None: unknown, and so in the way of every flow between these addresses.
    flow: Option<Flow>,
    run: Option<Run>,
    gather: Gather,
}

impl Entry {
    /// Whether `packet` of the same flow continues this superpacket, its checksums aside.
    fn fits(&self, packet: &[u8], segment: &Segment) -> bool {
        let Some(run) = self.run.as_ref().filter(|run| run.open) else {
            return false;
        };
        let total_bytes = run.total_bytes as usize + segment.payload_bytes as usize;
        if segment.payload_bytes > run.payload_bytes_per_segment
            || segment.header_bytes != run.header_bytes
            || total_bytes > SUPERPACKET_BYTES_MAX
        {
            return false;
        }
        let first = &self.gather.head[VNET_HDR_BYTES..][..run.header_bytes as usize];
        let (first_ip, first_transport) = first.split_at(run.ip_header_bytes as usize);
        let (ip, transport) = packet.split_at(run.ip_header_bytes as usize);
        same_ip_header(run.v4, first_ip, ip)
            && run.id_step_to(packet).is_some()
            && (run.protocol == PROTOCOL_UDP
                || segment.sequence == run.next_sequence && same_tcp_header(first_transport, transport))
    }

    /// Appends a packet that fits and whose checksums were verified.
    fn join(&mut self, packet: &[u8], segment: &Segment, place: Part) {
        let Some(run) = &mut self.run else {
            return;
        };
        let header_bytes = run.header_bytes as u32;
        let payload =
            |whole: Part| Part { start: whole.start + header_bytes, len: whole.len - header_bytes, ..whole };
        if let [lone] = &mut self.gather.parts[..]
            && self.gather.packets == 1
        {
            *lone = payload(*lone);
        }
        self.gather.parts.push(payload(place));
        self.gather.packets += 1;
        run.total_bytes += segment.payload_bytes as u32;
        run.next_sequence = run.next_sequence.wrapping_add(segment.payload_bytes as u32);
        run.id_step = run.id_step_to(packet);
        run.last_id = read_u16(packet, V4_ID);
        run.pushed = segment.pushed;
        run.open = !segment.pushed && segment.payload_bytes == run.payload_bytes_per_segment;
    }

    fn finish(self) -> Gather {
        let mut gather = self.gather;
        if let Some(run) = self.run.filter(|_| gather.packets > 1) {
            let (vnet, headers) = gather.head.split_at_mut(VNET_HDR_BYTES);
            let headers = &mut headers[..run.header_bytes as usize];
            vnet.copy_from_slice(&run.vnet_hdr().emit());
            run.rewrite(headers, self.source, self.destination);
            gather.head_bytes = VNET_HDR_BYTES as u8 + run.header_bytes;
        }
        gather
    }
}

impl Run {
    fn vnet_hdr(&self) -> VnetHdr {
        let (gso_type, csum_offset) = match (self.protocol, self.v4) {
            (PROTOCOL_UDP, _) => (GSO_UDP_L4, UDP_CHECKSUM),
            (_, true) => (GSO_TCPV4, TCP_CHECKSUM),
            (_, false) => (GSO_TCPV6, TCP_CHECKSUM),
        };
        VnetHdr {
            flags: FLAG_NEEDS_CSUM,
            gso_type,
            hdr_len: self.header_bytes as u16,
            gso_size: self.payload_bytes_per_segment,
            csum_start: self.ip_header_bytes as u16,
            csum_offset: csum_offset as u16,
        }
    }

    /// Makes the first packet's headers those of the superpacket.
    fn rewrite(&self, headers: &mut [u8], source: IpAddr, destination: IpAddr) {
        let (ip, transport) = headers.split_at_mut(self.ip_header_bytes as usize);
        if self.v4 {
            write_u16(ip, V4_TOTAL_LENGTH, self.total_bytes as u16);
            write_u16(ip, V4_CHECKSUM, 0);
            let checksum = sum(ip).finish();
            write_u16(ip, V4_CHECKSUM, checksum);
        } else {
            write_u16(ip, V6_PAYLOAD_LENGTH, (self.total_bytes as usize - V6_HEADER_BYTES) as u16);
        }
        let transport_bytes = self.total_bytes - ip.len() as u32;
        let partial = pseudo_header(source, destination, self.protocol, transport_bytes).fold();
        if self.protocol == PROTOCOL_UDP {
            write_u16(transport, UDP_LENGTH, transport_bytes as u16);
            write_u16(transport, UDP_CHECKSUM, partial);
        } else {
            transport[TCP_FLAGS] |= if self.pushed { TCP_PSH } else { 0 };
            write_u16(transport, TCP_CHECKSUM, partial);
        }
    }
}

/// Equal but for length, identification and checksum; the addresses were compared with the flow.
fn same_ip_header(v4: bool, first: &[u8], other: &[u8]) -> bool {
    if v4 {
        // Version, header length, DSCP, ECN; DF, TTL, protocol.
        first[..V4_TOTAL_LENGTH] == other[..V4_TOTAL_LENGTH]
            && first[V4_FRAGMENT..V4_CHECKSUM] == other[V4_FRAGMENT..V4_CHECKSUM]
    } else {
        // Version, traffic class, flow label; next header, hop limit.
        first[..V6_PAYLOAD_LENGTH] == other[..V6_PAYLOAD_LENGTH] && first[6..8] == other[6..8]
    }
}

/// Equal but for sequence number, checksum and PSH; ports were compared with the flow. `other` has payload behind it.
fn same_tcp_header(first: &[u8], other: &[u8]) -> bool {
    first[TCP_ACKNOWLEDGMENT..TCP_FLAGS] == other[TCP_ACKNOWLEDGMENT..TCP_FLAGS]
        && (first[TCP_FLAGS] ^ other[TCP_FLAGS]) & !TCP_PSH == 0
        && first[TCP_WINDOW..TCP_CHECKSUM] == other[TCP_WINDOW..TCP_CHECKSUM]
        && first[TCP_URGENT..TCP_HEADER_BYTES] == other[TCP_URGENT..TCP_HEADER_BYTES]
        && first[TCP_HEADER_BYTES..] == other[TCP_HEADER_BYTES..first.len()]
}
