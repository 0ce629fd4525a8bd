//! One TUN read on its way to the network.
//!
//! The walk is [`superpacket`], from top to bottom in the order the packet takes it. Pure: no clock, no I/O.

use std::ops::DerefMut;

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
use crate::wire::vnet_hdr::VnetHdr;

/// How far a TUN read has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All its segments are in trains or counted as dropped.
    Done,
    /// No train has room and no buffer is free; go on with this segment when there is one.
    Blocked(usize),
}

/// Takes one TUN read (vnet header and packet) apart and puts its segments, from segment `resume` on, into the train
/// to the peer that owns its destination.
///
/// Work per call: at most one read of 65,535 bytes, whatever the segment size.
pub fn superpacket<B: DerefMut<Target = [u8]>>(
    read: &[u8],
    resume: usize,
    now: Time,
    encap: Encap,
    view: &View,
    trains: &mut Trains<B, PeerIndex>,
    counters: &WorkerCounters,
) -> Progress {
    let (packet, ip, split) = match parse(read) {
        Ok(parsed) => parsed,
        Err(reason) => {
            counters.out_packets.add(1);
            counters.count_drop(reason, 1);
            return Progress::Done;
        }
    };
    if resume == 0 {
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
    for index in resume..split.count() {
        let segment_bytes = split.segment_bytes(index);
        let Some(mut place) = trains.reserve(peer, encap.datagram_bytes(segment_bytes), now) else {
            return Progress::Blocked(index);
        };
        split.emit(packet, index, &mut place.bytes()[encap.packet_range(segment_bytes)]);
        match encap.seal(place.bytes()) {
            Ok(()) => place.commit(),
            Err(reason) => counters.count_drop(reason, 1),
        }
    }
    Progress::Done
}

/// Reads the headers once, before anything is cut.
fn parse(read: &[u8]) -> Result<(&[u8], IpView, Split), DropReason> {
    let (vnet, packet) = VnetHdr::parse(read).map_err(reason)?;
    let ip = IpView::parse(packet).map_err(reason)?;
    let packet = &packet[..ip.total_bytes as usize];
    let split = Split::plan(&vnet, packet, &ip).map_err(reason)?;
    Ok((packet, ip, split))
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
