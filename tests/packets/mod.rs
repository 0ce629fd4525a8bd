//! TCP and UDP packets for tests and benches, built field by field with a checksum of their own, so that they judge the
//! crate's code and do not repeat it.
#![allow(dead_code, clippy::unwrap_used)]

pub mod icmp;

use std::net::IpAddr;

use uringvpn::offload::Part;
use uringvpn::offload::coalesce::{Coalescer, Gather};
use uringvpn::offload::split::Split;
use uringvpn::time::Time;
use uringvpn::wire::ip::IpView;
use uringvpn::wire::vnet_hdr::{VNET_HDR_BYTES, VnetHdr};

/// FIN, SYN and the other TCP flags.
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// A packet as its fields; lengths and checksums follow from them.
#[derive(Clone, Debug)]
pub struct Packet {
    pub v6: bool,
    pub udp: bool,
    /// DSCP and ECN; the traffic class of IPv6.
    pub tos: u8,
    pub flow_label: u32,
    pub id: u16,
    /// The three flags and the offset as the header has them.
    pub fragment: u16,
    pub ttl: u8,
    /// The last byte of the source address.
    pub host: u8,
    /// Source and destination, when others than the usual ones; the family is that of `v6`.
    pub ends: Option<(IpAddr, IpAddr)>,
    pub ip_options: Vec<u8>,
    /// IPv6: `(type, bytes)`; the first byte of each is filled in.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub source_port: u16,
    pub destination_port: u16,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub reserved: u8,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Packet {
    pub fn tcp(v6: bool, payload: Vec<u8>) -> Packet {
        Packet {
            v6,
            udp: false,
            tos: 0,
            flow_label: 0,
            id: 100,
            fragment: 0x4000,
            ttl: 64,
            host: 1,
            ends: None,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            source_port: 40_000,
            destination_port: 443,
            sequence: 1_000,
            acknowledgment: 77,
            reserved: 0,
            flags: ACK,
            window: 500,
            urgent: 0,
            tcp_options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload,
        }
    }

    pub fn udp(v6: bool, payload: Vec<u8>) -> Packet {
        Packet { udp: true, ..Packet::tcp(v6, payload) }
    }

    /// The packet that follows in the same flow, with payload of its own.
    pub fn next(&self, payload: Vec<u8>) -> Packet {
        let sequence = self.sequence.wrapping_add(self.payload.len() as u32);
        Packet { id: self.id.wrapping_add(1), sequence, payload, ..self.clone() }
    }

    /// The whole packet with right checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let mut packet = self.without_transport_checksum();
        let start = self.transport_start();
        let transport = packet.len() - start;
        let mut checksum = !ones_complement(&[&self.pseudo_header(transport), &packet[start..]]);
        if self.udp && checksum == 0 {
            checksum = 0xffff;
        }
        packet[self.checksum_at()..][..2].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// A TUN read: vnet header and a packet whose checksum is only begun, to be cut into segments of `gso_size`.
    pub fn tun_read(&self, gso_size: u16) -> Vec<u8> {
        let mut packet = self.without_transport_checksum();
        let start = self.transport_start();
        let partial = ones_complement(&[&self.pseudo_header(packet.len() - start)]);
        packet[self.checksum_at()..][..2].copy_from_slice(&partial.to_be_bytes());
        let mut read = self.vnet(gso_size).emit().to_vec();
        read.extend(packet);
        read
    }

    /// The vnet header that says so.
    pub fn vnet(&self, gso_size: u16) -> VnetHdr {
        let gso_type = match (self.udp, self.v6) {
            (true, _) => 5,
            (false, false) => 1,
            (false, true) => 4,
        };
        VnetHdr {
            flags: 1,
            gso_type,
            hdr_len: self.header_bytes() as u16,
            gso_size,
            csum_start: self.transport_start() as u16,
            csum_offset: if self.udp { 6 } else { 16 },
        }
    }

    pub fn header_bytes(&self) -> usize {
        self.transport_start() + if self.udp { 8 } else { 20 + self.tcp_options.len() }
    }

    fn transport_start(&self) -> usize {
        if self.v6 {
            40 + self.extensions.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()
        } else {
            20 + self.ip_options.len()
        }
    }

    fn checksum_at(&self) -> usize {
        self.transport_start() + if self.udp { 6 } else { 16 }
    }

    fn protocol(&self) -> u8 {
        if self.udp { 17 } else { 6 }
    }

    fn addresses(&self) -> Vec<u8> {
        if let Some(ends) = self.ends {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            return [octets(ends.0), octets(ends.1)].concat();
        }
        let (source, destination) = if self.v6 {
            let mut address = *b"\xfd\x00\x12\x34\xff\xff\x80\x01abcdefgh";
            address[15] = self.host;
            (address.to_vec(), b"\xfd\x00\xab\xcd\xff\xfe\x00\x01stuvwxyz".to_vec())
        } else {
            (vec![10, 200, 255, self.host], vec![192, 168, 3, 99])
        };
        [source, destination].concat()
    }

    fn pseudo_header(&self, transport_bytes: usize) -> Vec<u8> {
        let mut pseudo = self.addresses();
        pseudo.extend((transport_bytes as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, self.protocol()]);
        pseudo
    }

    fn without_transport_checksum(&self) -> Vec<u8> {
        let transport_bytes = self.header_bytes() - self.transport_start() + self.payload.len();
        let mut packet =
            if self.v6 { self.v6_header(transport_bytes) } else { self.v4_header(transport_bytes) };
        packet.extend(self.source_port.to_be_bytes());
        packet.extend(self.destination_port.to_be_bytes());
        if self.udp {
            packet.extend((transport_bytes as u16).to_be_bytes());
            packet.extend([0, 0]);
        } else {
            packet.extend(self.sequence.to_be_bytes());
            packet.extend(self.acknowledgment.to_be_bytes());
            packet.push((((20 + self.tcp_options.len()) as u8 / 4) << 4) | self.reserved);
            packet.push(self.flags);
            packet.extend(self.window.to_be_bytes());
            packet.extend([0, 0]);
            packet.extend(self.urgent.to_be_bytes());
            packet.extend(&self.tcp_options);
        }
        packet.extend(&self.payload);
        packet
    }

    fn v4_header(&self, transport_bytes: usize) -> Vec<u8> {
        let header_bytes = 20 + self.ip_options.len();
        let mut header = vec![0x40 | (header_bytes as u8 / 4), self.tos];
        header.extend(((header_bytes + transport_bytes) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol(), 0, 0]);
        header.extend(self.addresses());
        header.extend(&self.ip_options);
        let checksum = !ones_complement(&[&header]);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn v6_header(&self, transport_bytes: usize) -> Vec<u8> {
        let word = 6 << 28 | (self.tos as u32) << 20 | self.flow_label;
        let mut header = word.to_be_bytes().to_vec();
        let payload_bytes = self.transport_start() - 40 + transport_bytes;
        header.extend((payload_bytes as u16).to_be_bytes());
        header.extend([self.extensions.first().map_or(self.protocol(), |(kind, _)| *kind), self.ttl]);
        header.extend(self.addresses());
        for (index, (_, bytes)) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(index + 1).map_or(self.protocol(), |(kind, _)| *kind);
            header.push(next);
            header.extend(&bytes[1..]);
        }
        header
    }
}

/// The one's complement sum of the pieces, each of even length but the last: one word at a time.
pub fn ones_complement(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for word in pieces.iter().flat_map(|piece| piece.chunks(2)) {
        sum += (word[0] as u32) << 8 | *word.get(1).unwrap_or(&0) as u32;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// `len` bytes that differ from their neighbours.
pub fn payload(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 23) as u8).collect()
}

/// All segments of one TUN read.
pub fn split(read: &[u8]) -> Vec<Vec<u8>> {
    let (vnet, packet) = VnetHdr::parse(read).unwrap();
    let split = Split::plan(&vnet, packet, &IpView::parse(packet).unwrap()).unwrap();
    let segment = |index| {
        let mut out = vec![0xaa; split.segment_bytes(index)];
        split.emit(packet, index, &mut out);
        out
    };
    (0..split.count()).map(segment).collect()
}

/// Packets lying in one numbered buffer, as datagrams with a header in front of each do.
pub struct Received {
    pub bytes: Vec<u8>,
    pub places: Vec<Part>,
}

impl Received {
    pub const SLOT: u16 = 3;

    pub fn new<'a>(packets: impl IntoIterator<Item = &'a Vec<u8>>) -> Received {
        let mut received = Received { bytes: Vec::new(), places: Vec::new() };
        for packet in packets {
            received.bytes.extend([0xee; 16]);
            let start = received.bytes.len() as u32;
            received.places.push(Part { slot: Received::SLOT, start, len: packet.len() as u32 });
            received.bytes.extend(packet);
        }
        received
    }

    pub fn at(&self, place: Part) -> &[u8] {
        assert_eq!(place.slot, Received::SLOT);
        &self.bytes[place.start as usize..][..place.len as usize]
    }

    /// Pushes all packets and returns what would be written to the TUN.
    pub fn coalesce(&self, coalescer: &mut Coalescer) -> Vec<Vec<u8>> {
        for (index, place) in self.places.iter().enumerate() {
            let packet = self.at(*place);
            let ip = IpView::parse(packet).unwrap();
            coalescer.push(packet, &ip, *place, Time::from_nanos(index as u64));
        }
        let gathers: Vec<Gather> = coalescer.drain().collect();
        let packets: usize = gathers.iter().map(|gather| gather.packets as usize).sum();
        assert_eq!(packets, self.places.len(), "every packet is in exactly one write");
        assert!(coalescer.is_empty());
        gathers
            .into_iter()
            .map(|gather| {
                let write = self.written(&gather);
                coalescer.recycle(gather);
                write
            })
            .collect()
    }

    /// The bytes of one write.
    pub fn written(&self, gather: &Gather) -> Vec<u8> {
        let mut write = gather.head().to_vec();
        gather.parts.iter().for_each(|part| write.extend(self.at(*part)));
        assert_eq!(write.len(), gather.bytes());
        assert!(write.len() >= VNET_HDR_BYTES);
        write
    }
}
