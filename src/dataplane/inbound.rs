//! One UDP receive on its way to the TUN.
//!
//! The walk is [`datagrams`], from top to bottom in the order the packets take it. Pure: no clock, no I/O.

use std::ops::Range;

use super::Context;
use super::encap::{Encap, Heard, Opened, Opener};
use super::view::View;
use crate::offload::Part;
use crate::offload::coalesce::Coalescer;
use crate::offload::stride::Received;
use crate::stats::drop::DropReason;
use crate::wire::ip::{self, ECN_CE, ECN_MASK, IpView};

/// What a receive brought besides packets for the TUN. Kept and cleared for its memory.
#[derive(Debug, Default)]
pub struct Findings {
    /// Who sent it, as far as that is certain.
    pub heard: Vec<Heard>,
    /// Where in the buffer messages for the protocol thread lie.
    pub handshakes: Vec<Range<usize>>,
}

/// Takes in the datagrams of one receive, lying in `buffer` (number `slot`), and hands their packets to the coalescer.
///
/// Work per call: at most one receive of 65,535 bytes.
pub fn datagrams(
    buffer: &mut [u8],
    slot: u16,
    received: &Received,
    context: &Context<'_>,
    coalescer: &mut Coalescer,
    findings: &mut Findings,
) {
    let Context { view, now, counters } = *context;
    let count = received.datagrams().len() as u64;
    counters.in_datagrams.add(count);
    counters.in_bytes.add(received.bytes.into());
    if let Err(reason) = admit(received, view) {
        counters.count_drop(reason, count);
        return;
    }
    let mut opener = Opener::new(view, received.from.ip(), now, &mut findings.heard);
    for range in received.datagrams() {
        match opener.open(&mut buffer[range.clone()]) {
            Ok(Opened::Packet(inner)) => {
                let inner = range.start + inner.start..range.start + inner.end;
                match packet(&mut buffer[inner.clone()], received.tos, &mut opener) {
                    Ok(ip) => {
                        let place = Part { slot, start: inner.start as u32, len: ip.total_bytes };
                        let packet = &buffer[inner.start..][..ip.total_bytes as usize];
                        coalescer.push(packet, &ip, place, received.at);
                    }
                    Err(reason) => counters.count_drop(reason, 1),
                }
            }
            Ok(Opened::Keepalive) => counters.keepalives.add(1),
            Ok(Opened::Handshake) => findings.handshakes.push(range),
            Err(reason) => counters.count_drop(reason, 1),
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

/// Checks an opened packet; `bytes` may end in padding.
fn packet(bytes: &mut [u8], outer_tos: u8, opener: &mut Opener<'_, '_>) -> Result<IpView, DropReason> {
    let ip = IpView::parse(bytes).map_err(|_| DropReason::InMalformed)?;
    opener.check_source(ip.source)?;
    if outer_tos & ECN_MASK == ECN_CE {
        ip::mark_congestion(bytes);
    }
    Ok(ip)
}
