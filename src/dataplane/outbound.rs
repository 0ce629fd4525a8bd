//! One TUN read on its way to the network.
//!
//! The walk is [`superpacket`], from top to bottom in the order the packet takes it, and at the end of the turn [`reserve`] and
//! [`Sealing::seal`] for each train that came of it. Pure: no clock, no I/O.

use std::ops::{DerefMut, Range};

use super::Context;
use super::allowed_ips::PeerIndex;
use super::encap::{Encap, Framing};
use super::view::Way;
use crate::offload::split::Split;
use crate::offload::train::{Destination, Train, Trains};
use crate::proto::session::Session;
use crate::stats::drop::DropReason;
use crate::time::Time;
use crate::wire::Malformed;
use crate::wire::ip::{self, ECN_CE, ECN_ECT_0, IpView, PROTOCOL_UDP};
use crate::wire::l4::UDP_HEADER_BYTES;
use crate::wire::vnet_hdr::{VNET_HDR_BYTES, VnetHdr};

/// One TUN read, lying at the start of a buffer: vnet header and packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// How long both are.
    pub bytes: usize,
    /// The first segment that is still to be sent, for a read that comes here again; it was counted before.
    pub resume: Option<usize>,
    /// When it was read.
    pub at: Time,
}

/// Where a train goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct To {
    /// The peer.
    pub peer: PeerIndex,
    /// TOS or traffic class of the outer header: the inner ECN field. RFC 6040 §4.1.
    pub tos: u8,
}

impl Destination for To {
    /// The packets of a flow may differ in their ECN field: pure acknowledgements carry none.
    fn keeps_order_with(&self, other: &To) -> bool {
        self.peer == other.peer
    }
}

/// How far a TUN read has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All its segments are in trains.
    Done,
    /// All that was left of it is counted as dropped, and lies in the buffer as it was read.
    Dropped(DropReason),
    /// No train has room and no buffer is free; go on with this segment when there is one.
    Blocked(usize),
    /// It waits for a session with the peer, with as many segments left.
    Stage(PeerIndex, usize),
    /// The read itself has become a train: its segments lie in its buffer.
    Train(InPlace),
}

/// A train in the buffer of the TUN read it was cut from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InPlace {
    /// Where it goes.
    pub to: To,
    /// Where its first datagram starts.
    pub start: u32,
    /// Bytes of all datagrams.
    pub bytes: u32,
    /// Bytes of every datagram but the last.
    pub segment_bytes: u16,
    /// How many datagrams.
    pub datagrams: u16,
}

/// Takes one TUN read at the start of `buffer` apart. A superpacket is cut where it lies and becomes a train. Anything
/// else goes into the train to the peer that owns its destination: all segments, or those from [`Read::resume`] on.
///
/// Work per call: at most one read of 65,535 bytes, whatever the segment size.
pub fn superpacket<B: DerefMut<Target = [u8]>>(
    buffer: &mut [u8],
    read: Read,
    context: &Context<'_>,
    trains: &mut Trains<B, To>,
) -> Progress {
    let Context { view, now, counters } = *context;
    let (packet, ip, split) = match parse(&buffer[..read.bytes]) {
        Ok(parsed) => parsed,
        Err(reason) => {
            counters.out_packets.add(1);
            view.count_drop(counters, None, reason, 1);
            return Progress::Dropped(reason);
        }
    };
    if read.resume.is_none() {
        counters.out_packets.add(split.count() as u64);
        counters.out_bytes.add(ip.total_bytes.into());
    }
    let first = read.resume.unwrap_or(0);
    let left = split.count() - first;
    let dropped = |peer, reason| {
        view.count_drop(counters, peer, reason, left as u64);
        Progress::Dropped(reason)
    };
    // Route once: all segments of a superpacket share one flow.
    let peer = match view.route(ip.destination) {
        Ok(peer) => peer,
        Err(reason) => return dropped(None, reason),
    };
    match view.way_to(peer, now) {
        Ok(Way::Train) => {}
        Ok(Way::Stage) => return Progress::Stage(peer, left),
        Err(reason) => return dropped(Some(peer), reason),
    }
    if loops(context, peer, &buffer[packet.clone()], &ip) {
        return dropped(Some(peer), DropReason::Looped);
    }
    let to = To { peer, tos: outer_tos(&buffer[packet.clone()]) };
    let framing = view.framing();
    // No train would ever take it.
    if framing.datagram_bytes(split.full_segment_bytes()) > u16::MAX.into() {
        return dropped(Some(peer), DropReason::OutTooLong);
    }
    if first == 0
        && let Some(train) = cut_in_place(buffer, &split, to, framing)
    {
        return Progress::Train(train);
    }
    let packet = &buffer[packet];
    for index in first..split.count() {
        let segment_bytes = split.segment_bytes(index);
        let Some(mut place) = trains.reserve(to, framing.datagram_bytes(segment_bytes), read.at) else {
            return Progress::Blocked(index);
        };
        let datagram = place.bytes();
        split.emit(packet, index, &mut datagram[framing.packet_start()..][..segment_bytes]);
        framing.pad(datagram, segment_bytes);
        place.commit();
    }
    Progress::Done
}

/// What seals one train: its session, and the counters that are its own.
#[derive(Debug)]
pub struct Sealing<'v> {
    /// None in plaintext mode.
    session: Option<&'v Session>,
    counters: Range<u64>,
}

/// Looks the session of a train up and reserves counters for its datagrams, once for them all: so counters rise in the order
/// of sending. Whatever can keep the train from being sealed does so here, while its packets can still be read.
///
/// # Errors
/// [`DropReason::NoSession`]: the session has come to its end since the packets were let into the train.
pub fn reserve<'v, B: DerefMut<Target = [u8]>>(
    train: &mut Train<B, To>,
    context: &Context<'v>,
) -> Result<Sealing<'v>, DropReason> {
    let Context { view, now, .. } = *context;
    if view.encap == Encap::Plain {
        return Ok(Sealing { session: None, counters: 0..0 });
    }
    let session = view.session_to(train.to.peer, now).ok_or(DropReason::NoSession)?;
    let count = train.split_mut().len() as u64;
    let first = session.reserve(count, now).map_err(|_| DropReason::NoSession)?;
    Ok(Sealing { session: Some(session), counters: first..first + count })
}

impl Sealing<'_> {
    /// Seals the datagrams of the train that it was reserved for, where they stand.
    ///
    /// Work per call: at most one buffer.
    pub fn seal<B: DerefMut<Target = [u8]>>(self, train: &mut Train<B, To>) {
        let Some(session) = self.session else { return };
        for (counter, datagram) in self.counters.zip(train.split_mut()) {
            session.seal(counter, datagram);
        }
    }
}

/// Cuts a superpacket within its buffer; `None`, and nothing done, if it is none or there is no room.
fn cut_in_place(buffer: &mut [u8], split: &Split, to: To, framing: Framing) -> Option<InPlace> {
    let stride = framing.datagram_bytes(split.full_segment_bytes());
    // The vnet header is as long as a data message's header.
    let start = VNET_HDR_BYTES - framing.packet_start();
    let last = split.count() - 1;
    let bytes = last * stride + framing.datagram_bytes(split.segment_bytes(last));
    if start + bytes > buffer.len() || !split.spread(buffer, VNET_HDR_BYTES, stride) {
        return None;
    }
    for (index, datagram) in buffer[start..start + bytes].chunks_mut(stride).enumerate() {
        framing.pad(datagram, split.segment_bytes(index));
    }
    Some(InPlace {
        to,
        start: start as u32,
        bytes: bytes as u32,
        segment_bytes: stride as u16,
        datagrams: split.count() as u16,
    })
}

/// Reads the headers once, before anything is cut; tells where in `read` the packet lies.
///
/// # Errors
/// Why such a read is dropped.
pub fn parse(read: &[u8]) -> Result<(Range<usize>, IpView, Split), DropReason> {
    let (vnet, packet) = VnetHdr::parse(read).map_err(reason)?;
    let ip = IpView::parse(packet).map_err(reason)?;
    // An IPv6 packet may claim 40 bytes more.
    if ip.total_bytes > u16::MAX.into() {
        return Err(DropReason::OutTooLong);
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

/// Whether `packet` is a datagram that we sealed for `peer`, or the first fragment of one: the peer's endpoint is routed into
/// its own tunnel.
fn loops(context: &Context, peer: PeerIndex, packet: &[u8], ip: &IpView) -> bool {
    let payload = usize::from(ip.header_bytes) + UDP_HEADER_BYTES;
    let datagram = packet.get(payload..).filter(|_| ip.protocol == PROTOCOL_UDP);
    let session = context.view.session_to(peer, context.now);
    datagram.zip(session).is_some_and(|(datagram, session)| session.sealed(datagram))
}

/// The outer header carries the inner ECN field, but congestion that the packet met before is not ours to tell: net/inet_ecn.h
/// `INET_ECN_encapsulate`. The inner DSCP stays inside.
fn outer_tos(packet: &[u8]) -> u8 {
    match ip::ecn(packet) {
        ECN_CE => ECN_ECT_0,
        ecn => ecn,
    }
}
