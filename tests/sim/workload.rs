//! What the two hosts have to say to one another, and what nobody should listen to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use uringvpn::io::fake::Incoming;
use uringvpn::stats::drop::DropReason;

use crate::packets::{self, ACK, CWR, ECE, FIN, PSH, Packet};
use crate::random::Random;

/// Peers that a host's view has for the other host, each with prefixes of its own.
pub const PEERS: u8 = 3;
/// The inner network whose peer nobody has heard of yet.
pub const SILENT: u8 = 100;
/// The inner network whose peer is known and switched off.
pub const ABSENT: u8 = 101;
/// An inner network of no peer.
pub const NOBODY: u8 = 102;

/// Bytes that every payload starts with: flow, then number in the flow.
const MARK_BYTES: usize = 8;

/// An address in an inner network: `peer` of `host`.
pub fn inner(v6: bool, host: usize, peer: u8, low: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, host as u16, peer.into(), 0, 0, 0, 0, low.into()).into()
    } else {
        Ipv4Addr::new(10, host as u8, peer, low).into()
    }
}

/// A host's address in the outer network; 2 is the absent one, 3 a stranger.
pub fn outer(v6: bool, host: usize) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host as u16 + 1).into()
    } else {
        Ipv4Addr::new(192, 0, 2, host as u8 + 1).into()
    }
}

/// An IPv6 header of destination options that hold none.
fn padding() -> (u8, Vec<u8>) {
    (60, vec![0, 0, 1, 4, 0, 0, 0, 0])
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Superpackets, single packets, acknowledgments.
    Tcp,
    /// Superpackets and single datagrams.
    Udp,
    /// What is passed on without being understood: IPv4 options and fragments, IPv6 extension headers.
    Opaque,
}

/// A flow: what the kernel of one host hands to one TUN queue, packet by packet.
pub struct Flow {
    pub host: usize,
    /// The TUN queue it is steered to.
    pub worker: usize,
    /// Whether the other end exists.
    pub arrives: bool,
    kind: Kind,
    next: Packet,
    /// Number of the next packet.
    number: u32,
}

impl Flow {
    pub fn new(host: usize, to: usize, workers: usize, random: &mut Random) -> Flow {
        let v6 = random.chance(50);
        let kind = random.pick(&[Kind::Tcp, Kind::Tcp, Kind::Udp, Kind::Udp, Kind::Opaque]);
        let arrives = random.chance(90);
        let peer = if arrives { random.below(usize::from(PEERS)) as u8 } else { ABSENT };
        let source = inner(v6, host, random.below(usize::from(PEERS)) as u8, random.between(1, 3) as u8);
        let destination = inner(v6, to, peer, random.between(1, 3) as u8);
        let mut next = Packet {
            ends: Some((source, destination)),
            source_port: random.between(1000, 1003) as u16,
            id: random.next() as u16,
            sequence: random.next() as u32,
            ..if kind == Kind::Tcp { Packet::tcp(v6, Vec::new()) } else { Packet::udp(v6, Vec::new()) }
        };
        match (kind, v6) {
            (Kind::Opaque, true) => next.extensions = vec![padding()],
            (Kind::Opaque, false) if random.chance(50) => next.fragment = 0x2000,
            (Kind::Opaque, false) => next.ip_options = vec![1, 1, 1, 0],
            _ if random.chance(30) => next.tcp_options.clear(),
            _ => {}
        }
        if random.chance(20) {
            next.tos = 2;
        }
        Flow { host, worker: random.below(workers), arrives, kind, next, number: 0 }
    }

    /// One TUN read of this flow, whose packets bear `id` and their number.
    pub fn read(&mut self, id: u32, random: &mut Random) -> Vec<u8> {
        match self.kind {
            Kind::Opaque => {
                let bytes = random.between(MARK_BYTES, 1300).next_multiple_of(8);
                self.single(id, bytes, false)
            }
            _ if random.chance(10) => self.opaque_single(id),
            Kind::Tcp if random.chance(10) => self.acknowledgment(),
            _ if random.chance(40) => {
                self.next.flags = if random.chance(30) { ACK | PSH } else { ACK };
                let bytes = random.pick(&[MARK_BYTES, 100, 536, 1000, 1368]);
                self.single(id, bytes, random.chance(80))
            }
            _ => self.superpacket(id, random),
        }
    }

    /// A TCP packet without payload, told from its neighbours by what it acknowledges.
    fn acknowledgment(&mut self) -> Vec<u8> {
        self.next.acknowledgment = self.next.acknowledgment.wrapping_add(1);
        self.next.flags = ACK;
        self.take(Vec::new(), 1, |packet| [vec![0; 16], packet.bytes()].concat())
    }

    /// A packet of this flow that nobody recognises as such, and that must not be overtaken all the same.
    fn opaque_single(&mut self, id: u32) -> Vec<u8> {
        if self.next.v6 {
            self.next.extensions = vec![padding()];
        } else {
            self.next.ip_options = vec![1, 1, 1, 0];
        }
        let read = self.single(id, 100, true);
        self.next.extensions.clear();
        self.next.ip_options.clear();
        read
    }

    fn single(&mut self, id: u32, payload_bytes: usize, begun: bool) -> Vec<u8> {
        let payload = self.payload(id, payload_bytes, payload_bytes);
        self.take(payload, 1, |packet| {
            if !begun {
                return [vec![0; 16], packet.bytes()].concat();
            }
            let mut read = packet.tun_read(0);
            read[1] = 0;
            read
        })
    }

    fn superpacket(&mut self, id: u32, random: &mut Random) -> Vec<u8> {
        let udp = self.kind == Kind::Udp;
        let mss = random.pick(&[16, 100, 536, 1000, 1368]);
        let most = (65_000 / mss).min(if udp { 128 } else { 400 });
        let count = if random.chance(3) { most } else { random.between(2, 16.min(most)) };
        let last = if random.chance(50) { mss } else { random.between(MARK_BYTES, mss) };
        let mut flags = ACK;
        for (flag, percent) in [(PSH, 50), (ECE, 5), (CWR, 5), (FIN, 3)] {
            flags |= if random.chance(percent) { flag } else { 0 };
        }
        self.next.flags = flags;
        let payload = self.payload(id, mss * (count - 1) + last, mss);
        self.take(payload, count, |packet| packet.tun_read(mss as u16))
    }

    /// Builds a read from the next packet and goes on behind it.
    fn take(&mut self, payload: Vec<u8>, count: usize, build: impl Fn(&Packet) -> Vec<u8>) -> Vec<u8> {
        self.next.payload = payload;
        let read = build(&self.next);
        let sequence = self.next.sequence.wrapping_add(self.next.payload.len() as u32);
        let id = self.next.id.wrapping_add(count as u16);
        self.next = Packet { sequence, id, payload: Vec::new(), ..self.next.clone() };
        self.number += count as u32;
        read
    }

    /// Payload for as many packets as `bytes` is cut into, each with its mark.
    fn payload(&self, id: u32, bytes: usize, mss: usize) -> Vec<u8> {
        let mut payload = packets::payload(bytes, id.wrapping_mul(77).wrapping_add(self.number));
        for (index, segment) in payload.chunks_mut(mss).enumerate() {
            segment[..4].copy_from_slice(&id.to_be_bytes());
            segment[4..8].copy_from_slice(&(self.number + index as u32).to_be_bytes());
        }
        payload
    }
}

/// A read or a receive that must die, and how.
pub struct Junk<T> {
    pub what: T,
    pub reason: DropReason,
    pub packets: u64,
}

/// A TUN read that goes nowhere.
pub fn tun_junk(host: usize, other: usize, random: &mut Random) -> Junk<Vec<u8>> {
    let v6 = random.chance(50);
    let to = |peer| {
        let ends = Some((inner(v6, host, 0, 1), inner(v6, other, peer, 1)));
        Packet { ends, ..Packet::tcp(v6, packets::payload(5 * 100, 7)) }
    };
    let junk = |what, reason, packets| Junk { what, reason, packets };
    match random.below(7) {
        0 => {
            let bytes = random.below(16);
            junk(random.bytes(bytes), DropReason::OutMalformed, 1)
        }
        1 => {
            let mut garbage = random.bytes(200);
            garbage[16] = 0x70 | garbage[16] & 0x0f;
            junk(garbage, DropReason::OutMalformed, 1)
        }
        2 => {
            let mut read = to(0).tun_read(100);
            read.pop();
            junk(read, DropReason::OutMalformed, 1)
        }
        3 => {
            let mut read = to(0).tun_read(100);
            read[1] = 3; // UFO
            junk(read, DropReason::OutBadOffload, 1)
        }
        4 => {
            let mut read = to(0).tun_read(100);
            read[1] = 0;
            read[6..8].copy_from_slice(&9_999u16.to_ne_bytes());
            junk(read, DropReason::OutBadOffload, 1)
        }
        5 => junk(to(NOBODY).tun_read(100), DropReason::NoRoute, 5),
        _ => junk(to(SILENT).tun_read(100), DropReason::NoEndpoint, 5),
    }
}

/// A receive whose datagrams reach no TUN.
pub fn network_junk(host: usize, outer_v6: bool, random: &mut Random) -> Junk<Incoming> {
    let v6 = random.chance(50);
    let from = |source: IpAddr| {
        let ends = Some((source, inner(v6, host, 0, 1)));
        Packet { ends, ..Packet::udp(v6, packets::payload(100, 7)) }.bytes()
    };
    let honest = from(inner(v6, 1 - host, 0, 1));
    let count = random.between(1, 5);
    let peer = outer(outer_v6, 1 - host);
    let (sender, datagram, reason) = match random.below(6) {
        0 => (outer(outer_v6, 3), honest, DropReason::UnknownSource),
        1 => (outer(outer_v6, 2), honest, DropReason::SourceNotAllowed),
        2 => (peer, from(inner(v6, 1 - host, NOBODY, 1)), DropReason::SourceNotAllowed),
        3 => (peer, from(inner(v6, 1 - host, SILENT, 1)), DropReason::SourceNotAllowed),
        4 => {
            let mut garbage = random.bytes(99);
            garbage[0] = 0x50 | garbage[0] & 0x0f;
            (peer, garbage, DropReason::InMalformed)
        }
        _ => (peer, honest[..honest.len() - 1].to_vec(), DropReason::InMalformed),
    };
    let from = SocketAddr::new(sender, 51_820);
    if random.chance(10) {
        // An empty datagram is one, too.
        let what =
            Incoming { from: SocketAddr::new(peer, 1), to: None, bytes: Vec::new(), stride: 0, tos: 0 };
        return Junk { what, reason: DropReason::InMalformed, packets: 1 };
    }
    let stride = if count > 1 { datagram.len() as u16 } else { 0 };
    let what = Incoming { from, to: None, bytes: datagram.repeat(count), stride, tos: 0 };
    Junk { what, reason, packets: count as u64 }
}
