//! One UDP receive on its way to the TUN.
//!
//! The walk is [`datagrams`], from top to bottom in the order the packets take it. Pure: no clock, no I/O.

use std::ops::Range;

use super::Context;
use super::allowed_ips::PeerIndex;
use super::codel::Codel;
use super::encap::{Encap, Heard, Opened, Opener};
use super::view::View;
use crate::offload::Part;
use crate::offload::coalesce::Coalescer;
use crate::offload::stride::Received;
use crate::stats::counters::WorkerCounters;
use crate::stats::drop::DropReason;
use crate::wire::ip::{self, ECN_CE, ECN_MASK, IpView};
use crate::wire::l4;

/// What a receive brought besides packets for the TUN. Kept and cleared for its memory.
#[derive(Debug, Default)]
pub struct Findings {
    /// Who sent it, as far as that is certain.
    pub heard: Vec<Heard>,
    /// Where in the buffer messages for the protocol thread lie.
    pub handshakes: Vec<Range<usize>>,
    /// Packets that were opened and then dropped.
    pub refused: Vec<Refused>,
}

/// A packet that came out of a datagram and may not go to the TUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where in the buffer it lies, perhaps with padding behind it.
    pub place: Range<usize>,
    /// Whose session brought it; `None` in plaintext mode.
    pub peer: Option<PeerIndex>,
    /// Why it is dropped.
    pub reason: DropReason,
}

/// Takes in the datagrams of one receive, lying in `buffer` (number `slot`), and hands their packets to the coalescer.
///
/// Work per call: at most one receive of 65,535 bytes.
pub fn datagrams(
    buffer: &mut [u8],
    slot: u16,
    received: &Received,
    context: &Context<'_>,
    queue: &mut Codel,
    coalescer: &mut Coalescer,
    findings: &mut Findings,
) {
    let Context { view, now, counters } = *context;
    let count = received.datagrams().len() as u64;
    counters.in_datagrams.add(count);
    counters.in_bytes.add(received.bytes.into());
    if let Err(reason) = admit(received, view) {
        view.count_drop(counters, None, reason, count);
        return;
    }
    let mut slow_down = queue.picks(received.at);
    let mut opener = Opener::new(view, received.from.ip(), now, &mut findings.heard);
    for range in received.datagrams() {
        match opener.open(&mut buffer[range.clone()]) {
            Ok(Opened::Packet(inner)) => {
                let inner = range.start + inner.start..range.start + inner.end;
                let slow_down = std::mem::take(&mut slow_down);
                match packet(&mut buffer[inner.clone()], received.tos, slow_down, &mut opener, counters) {
                    Ok(ip) => {
                        let place = Part { slot, start: inner.start as u32, len: ip.total_bytes };
                        let packet = &buffer[inner.start..][..ip.total_bytes as usize];
                        coalescer.push(packet, &ip, place, received.at);
                    }
                    Err(reason) => {
                        view.count_drop(counters, opener.peer(), reason, 1);
                        findings.refused.push(Refused { place: inner, peer: opener.peer(), reason });
                    }
                }
            }
            Ok(Opened::Keepalive) => counters.keepalives.add(1),
            Ok(Opened::Handshake) => findings.handshakes.push(range),
            Err(reason) => view.count_drop(counters, opener.peer(), reason, 1),
        }
    }
}

/// What can be said of all datagrams at once.
fn admit(received: &Received, view: &View) -> Result<(), DropReason> {
    if received.truncated {
        return Err(DropReason::Truncated);
    }
    if view.encap == Encap::Plain && !view.knows(received.from.ip()) {
        return Err(DropReason::UnknownSource);
    }
    Ok(())
}

/// Checks an opened packet; `bytes` may end in padding. Its sender may have to hear that packets wait too long for us.
fn packet(
    bytes: &mut [u8],
    outer_tos: u8,
    slow_down: bool,
    opener: &mut Opener<'_, '_>,
    counters: &WorkerCounters,
) -> Result<IpView, DropReason> {
    let ip = IpView::parse(bytes).map_err(|_| DropReason::InMalformed)?;
    opener.check_source(ip.source)?;
    if outer_tos & ECN_MASK == ECN_CE {
        // RFC 6040 §4.2: what the outer header says is not lost when it goes.
        ip::mark_congestion(bytes);
    }
    if slow_down {
        tell_sender(bytes, &ip, counters)?;
    }
    Ok(ip)
}

/// Tells the sender of a packet that it is too fast for us: RFC 8289 §4.2, by a mark where that is understood, else by the loss
/// of data that TCP will notice. The loss of anything else would slow nobody down.
fn tell_sender(packet: &mut [u8], ip: &IpView, counters: &WorkerCounters) -> Result<(), DropReason> {
    if ip::mark_congestion(packet) {
        counters.congestion_marks.add(1);
    } else if l4::carries_tcp_data(packet, ip) {
        return Err(DropReason::QueueDelay);
    }
    Ok(())
}
