//! One UDP receive on its way to the TUN.
//!
//! The walk is [`datagrams`], from top to bottom in the order the packets take it. Pure: no clock, no I/O.

use std::net::IpAddr;
use std::ops::Range;

use super::allowed_ips::PeerIndex;
use super::view::View;
use crate::offload::Part;
use crate::offload::coalesce::Coalescer;
use crate::offload::stride::Received;
use crate::stats::counters::WorkerCounters;
use crate::stats::drop::DropReason;
use crate::wire::ip::IpView;

/// Takes in the datagrams of one receive, lying in `buffer` (number `slot`), and hands their packets to the coalescer.
/// Returns the peer they came from, if any passed.
///
/// Work per call: at most one receive of 65,535 bytes.
pub fn datagrams(
    buffer: &mut [u8],
    slot: u16,
    received: &Received,
    view: &View,
    coalescer: &mut Coalescer,
    counters: &WorkerCounters,
) -> Option<PeerIndex> {
    let count = received.datagrams().len() as u64;
    counters.in_datagrams.add(count);
    counters.in_bytes.add(received.bytes.into());
    if let Err(reason) = admit(received, view) {
        counters.count_drop(reason, count);
        return None;
    }
    let mut sender = Sender { address: received.from.ip(), last: None };
    for range in received.datagrams() {
        let start = range.start;
        match packet(&mut buffer[range], view, &mut sender) {
            Ok((inner, ip)) => {
                let place = Part { slot, start: (start + inner.start) as u32, len: inner.len() as u32 };
                coalescer.push(&buffer[start + inner.start..start + inner.end], &ip, place, received.at);
            }
            Err(reason) => counters.count_drop(reason, 1),
        }
    }
    sender.last.map(|(_, peer)| peer)
}

/// What can be said of all datagrams at once.
fn admit(received: &Received, view: &View) -> Result<(), DropReason> {
    if received.truncated {
        return Err(DropReason::Truncated);
    }
    if !view.knows(received.from.ip()) {
        return Err(DropReason::UnknownSource);
    }
    Ok(())
}

/// Opens one datagram: where in it the packet lies, without padding, and what its header says.
fn packet(
    datagram: &mut [u8],
    view: &View,
    sender: &mut Sender,
) -> Result<(Range<usize>, IpView), DropReason> {
    let inner = view.encap.open(datagram)?;
    let ip = IpView::parse(&datagram[inner.clone()]).map_err(|_| DropReason::InMalformed)?;
    sender.check(ip.source, view)?;
    Ok((inner.start..inner.start + ip.total_bytes as usize, ip))
}

/// The sender of one receive.
struct Sender {
    address: IpAddr,
    /// The last inner source that passed, and its peer: neighbours in a train mostly share it.
    last: Option<(IpAddr, PeerIndex)>,
}

impl Sender {
    /// The inner source must belong to the peer that sent the datagram, by longest prefix over all peers.
    fn check(&mut self, source: IpAddr, view: &View) -> Result<(), DropReason> {
        if self.last.is_some_and(|(known, _)| known == source) {
            return Ok(());
        }
        let peer = view.peer_sending(source, self.address).ok_or(DropReason::SourceNotAllowed)?;
        self.last = Some((source, peer));
        Ok(())
    }
}
