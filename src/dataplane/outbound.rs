//! One TUN read on its way to the network.
//!
//! The walk is [`superpacket`], from top to bottom in the order the packet takes it. Pure: no clock, no I/O.

use std::ops::{DerefMut, Range};

use super::allowed_ips::PeerIndex;
use super::encap::Encap;
use super::view::View;
use crate::offload::split::Split;
use crate::offload::train::Trains;
use crate::stats::counters::WorkerCounters;
use crate::stats::drop::DropReason;
use crate::time::Time;
use crate::wire::Malformed;
use crate::wire::ip::IpView;
use crate::wire::vnet_hdr::{VNET_HDR_BYTES, VnetHdr};

/// How far a TUN read has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All its segments are in trains or counted as dropped.
    Done,
    /// No train has room and no buffer is free; go on with this segment when there is one.
    Blocked(usize),
    /// The read itself has become a train: its segments lie in its buffer, sealed.
    Train(InPlace),
}

/// A train in the buffer of the TUN read it was cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InPlace {
    /// Where it goes.
    pub peer: PeerIndex,
    /// Where its first datagram starts.
    pub start: u32,
    /// Bytes of all datagrams.
    pub bytes: u32,
    /// Bytes of every datagram but the last.
    pub segment_bytes: u16,
    /// How many datagrams.
    pub datagrams: u16,
}

/// Takes one TUN read (vnet header and packet in the first `bytes` of `buffer`) apart. A superpacket is cut where it
/// lies and becomes a train. Anything else goes into the train to the peer that owns its destination: all segments, or
/// those from `resume` on for a read that was [`Progress::Blocked`] before.
///
/// Work per call: at most one read of 65,535 bytes, whatever the segment size.
pub fn superpacket<B: DerefMut<Target = [u8]>>(
    buffer: &mut [u8],
    bytes: usize,
    resume: Option<usize>,
    read_at: Time,
    view: &View,
    trains: &mut Trains<B, PeerIndex>,
    counters: &WorkerCounters,
) -> Progress {
    let (packet, ip, split) = match parse(&buffer[..bytes]) {
        Ok(parsed) => parsed,
        Err(reason) => {
            counters.out_packets.add(1);
            counters.count_drop(reason, 1);
            return Progress::Done;
        }
    };
    if resume.is_none() {
        counters.out_packets.add(split.count() as u64);
        counters.out_bytes.add(ip.total_bytes.into());
    }
    // Route once: all segments of a superpacket share one flow.
    let peer = match route(&ip, view) {
        Ok(peer) => peer,
        Err(reason) => {
            counters.count_drop(reason, split.count() as u64);
            return Progress::Done;
        }
    };
    match cut_in_place(buffer, &split, peer, view.encap) {
        Ok(Some(train)) => return Progress::Train(train),
        Ok(None) => {}
        Err(reason) => {
            counters.count_drop(reason, split.count() as u64);
            return Progress::Done;
        }
    }
    let packet = &buffer[packet];
    for index in resume.unwrap_or(0)..split.count() {
        let segment_bytes = split.segment_bytes(index);
        let Some(mut place) = trains.reserve(peer, view.encap.datagram_bytes(segment_bytes), read_at) else {
            return Progress::Blocked(index);
        };
        split.emit(packet, index, &mut place.bytes()[view.encap.packet_range(segment_bytes)]);
        match view.encap.seal(place.bytes()) {
            Ok(()) => place.commit(),
            Err(reason) => counters.count_drop(reason, 1),
        }
    }
    Progress::Done
}

/// Cuts and seals a superpacket within its buffer; `None`, and nothing done, if it is none or there is no room.
fn cut_in_place(
    buffer: &mut [u8],
    split: &Split,
    peer: PeerIndex,
    encap: Encap,
) -> Result<Option<InPlace>, DropReason> {
    let full = split.full_segment_bytes();
    let stride = encap.datagram_bytes(full);
    let lead = encap.packet_range(full).start;
    if !split.spread(buffer, VNET_HDR_BYTES, stride) {
        return Ok(None);
    }
    let start = VNET_HDR_BYTES - lead;
    let last = split.count() - 1;
    let bytes = last * stride + encap.datagram_bytes(split.segment_bytes(last));
    let datagrams = split.count() as u16;
    for datagram in buffer[start..start + bytes].chunks_mut(stride) {
        encap.seal(datagram)?;
    }
    Ok(Some(InPlace {
        peer,
        start: start as u32,
        bytes: bytes as u32,
        segment_bytes: stride as u16,
        datagrams,
    }))
}

/// Reads the headers once, before anything is cut; tells where in `read` the packet lies.
fn parse(read: &[u8]) -> Result<(Range<usize>, IpView, Split), DropReason> {
    let (vnet, packet) = VnetHdr::parse(read).map_err(reason)?;
    let ip = IpView::parse(packet).map_err(reason)?;
    // An IPv6 packet may claim 40 bytes more; no datagram carries that, and no train would ever take it.
    if ip.total_bytes > u16::MAX.into() {
        return Err(DropReason::OutMalformed);
    }
    let packet = &packet[..ip.total_bytes as usize];
    let split = Split::plan(&vnet, packet, &ip).map_err(reason)?;
    Ok((VNET_HDR_BYTES..VNET_HDR_BYTES + packet.len(), ip, split))
}

fn reason(malformed: Malformed) -> DropReason {
    match malformed {
        Malformed::Short | Malformed::NotIp | Malformed::BadLength => DropReason::OutMalformed,
        Malformed::BadOffload => DropReason::OutBadOffload,
    }
}

fn route(ip: &IpView, view: &View) -> Result<PeerIndex, DropReason> {
    let peer = view.routes.lookup(ip.destination).ok_or(DropReason::NoRoute)?;
    view.peers[peer as usize].endpoint.ok_or(DropReason::NoEndpoint)?;
    Ok(peer)
}
