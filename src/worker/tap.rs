//! A worker's end of a capture: copies packets into buffers that the capture thread sends round.
//!
//! ```text
//! worker ── full batches ──▶ capture thread     a batch goes when it is full, or HOLD after its first packet
//!        ◀── empty ones ────                    a pool for all workers; where it is empty, packets are missed and counted
//! ```
//! A worker without a tap does nothing here, and one with a tap allocates nothing and waits for nobody.
//!
//! Every packet is taken once, when it is known what becomes of it, and cut as it travels: outbound before its train is
//! sealed, inbound when the TUN has taken or refused it, dropped ones where they are dropped. What a send was refused for is
//! known only after sealing: such packets come a second time, without their bytes. Datagrams that never opened, or were
//! replayed, are no packets and never come; nor do ICMP errors of our own, whose reason comes with the packet they answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::control::capture::{Filter, PeerName};
use crate::dataplane::allowed_ips::PeerIndex;
use crate::dataplane::inbound::Refused;
use crate::dataplane::outbound::{self, To};
use crate::dataplane::view::View;
use crate::io::driver::{Driver, Send};
use crate::io::lease::Lease;
use crate::offload::Part;
use crate::offload::coalesce::Gather;
use crate::offload::train::Train;
use crate::stats::drop::{Direction, DropReason};
use crate::time::{Span, Time};
use crate::wire::ip::IpView;
use crate::wire::vnet_hdr::VNET_HDR_BYTES;

/// Bytes that a batch holds: several of the longest packets.
const BATCH_BYTES: usize = 256 << 10;
/// Packets that a batch holds.
const BATCH_PACKETS: usize = 2048;
/// Batches of a capture, and how many at least for each worker.
const BATCHES: usize = 32;
const BATCHES_PER_WORKER: usize = 2;
/// How long a batch that does not fill up waits for more.
const HOLD: Span = Span::from_millis(50);

/// What is known of a packet besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The turn in which it was taken.
    pub at: Time,
    /// Which way it went.
    pub direction: Direction,
    /// The peer it came from or was to go to, if there is one.
    pub peer: Option<PeerName>,
    /// Why it was dropped, if it was.
    pub dropped: Option<DropReason>,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    seen: Seen,
    packet_bytes: u32,
    kept_bytes: u32,
}

/// Packets on their way to the capture thread.
#[derive(Debug)]
pub struct Batch {
    records: Vec<Record>,
    bytes: Vec<u8>,
}

impl Batch {
    fn new() -> Batch {
        let blank = Seen { at: Time::default(), direction: Direction::Outbound, peer: None, dropped: None };
        let record = Record { seen: blank, packet_bytes: 0, kept_bytes: 0 };
        // Written once, so that the memory is there: no worker is to wait for the kernel to find some.
        let mut batch = Batch { records: vec![record; BATCH_PACKETS], bytes: vec![0xff; BATCH_BYTES] };
        batch.clear();
        batch
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.records.len() < BATCH_PACKETS && self.bytes.len() + bytes <= BATCH_BYTES
    }

    /// Its packets: what is known of each, how long it was, and as much of it as was kept.
    pub fn packets(&self) -> impl Iterator<Item = (Seen, u32, &[u8])> {
        let mut rest = &self.bytes[..];
        self.records.iter().map(move |record| {
            let (kept, behind) = rest.split_at(record.kept_bytes as usize);
            rest = behind;
            (record.seen, record.packet_bytes, kept)
        })
    }

    fn clear(&mut self) {
        self.records.clear();
        self.bytes.clear();
    }
}

/// One worker's end. Dropped, it hands over what it holds.
#[derive(Debug)]
pub struct Tap {
    filter: Filter,
    full: Sender<Batch>,
    empty: Receiver<Batch>,
    /// Not empty.
    batch: Option<Batch>,
    /// When its first packet was taken.
    began: Time,
    /// Packets missed in this turn.
    missed: u64,
    missed_in_all: Arc<AtomicU64>,
}

/// The capture thread's end.
#[derive(Debug)]
pub struct Basin {
    /// Where batches arrive; disconnected when the last tap is gone.
    pub full: Receiver<Batch>,
    empty: Sender<Batch>,
    missed: Arc<AtomicU64>,
}

impl Basin {
    /// Sends a batch round again.
    pub fn give_back(&self, mut batch: Batch) {
        batch.clear();
        // There is room for all; fails only when the last tap is gone.
        let _ = self.empty.try_send(batch);
    }

    /// Packets that found no room so far. Of a worker that is busy just now, as of its last turn.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }
}

/// Taps for `workers` workers, and where they lead.
pub fn open(filter: &Filter, workers: usize) -> (Vec<Tap>, Basin) {
    let count = BATCHES.max(BATCHES_PER_WORKER * workers);
    let (full_in, full) = bounded(count);
    let (empty_in, empty) = bounded(count);
    let missed = Arc::new(AtomicU64::new(0));
    let taps = (0..workers).map(|_| Tap {
        filter: filter.clone(),
        full: full_in.clone(),
        empty: empty.clone(),
        batch: None,
        began: Time::default(),
        missed: 0,
        missed_in_all: missed.clone(),
    });
    let taps = taps.collect();
    let basin = Basin { full, empty: empty_in, missed };
    (0..count).for_each(|_| basin.give_back(Batch::new()));
    (taps, basin)
}

impl Tap {
    /// Outbound: a train that is about to be sealed, or was dropped instead.
    pub fn train(&mut self, train: &Train<Lease, To>, dropped: Option<DropReason>, view: &View, now: Time) {
        let peer = name(view, train.to.peer);
        let seen = Seen { at: now, direction: Direction::Outbound, peer, dropped };
        if self.wants(&seen) {
            let bytes = &train.buffer[train.start as usize..][..train.bytes as usize];
            for datagram in bytes.chunks(train.segment_bytes.into()) {
                self.push(seen, without_padding(&datagram[view.framing().packet_start()..]));
            }
        }
    }

    /// Outbound: what was left of a TUN read that was dropped.
    pub fn read(&mut self, read: &[u8], resume: Option<usize>, dropped: DropReason, view: &View, now: Time) {
        let parsed = outbound::parse(read);
        let owner = parsed.as_ref().ok().and_then(|(_, ip, _)| view.routes.lookup(ip.destination));
        let peer = owner.and_then(|peer| name(view, peer));
        let seen = Seen { at: now, direction: Direction::Outbound, peer, dropped: Some(dropped) };
        if !self.wants(&seen) {
            return;
        }
        match parsed {
            Ok((packet, _, split)) => {
                for index in resume.unwrap_or(0)..split.count() {
                    let packet = &read[packet.clone()];
                    self.fill(seen, split.segment_bytes(index), |out| split.emit(packet, index, out));
                }
            }
            Err(_) => self.push(seen, read.get(VNET_HDR_BYTES..).unwrap_or_default()),
        }
    }

    /// Outbound: a send that the kernel refused.
    pub fn refused_send(&mut self, send: &Send, view: &View, now: Time) {
        let (peer, dropped) = (name(view, send.peer), Some(DropReason::SendError));
        let seen = Seen { at: now, direction: Direction::Outbound, peer, dropped };
        if self.wants(&seen) {
            let around = view.framing().datagram_bytes(0);
            let mut left = send.part.len as usize;
            for _ in 0..send.datagrams {
                let datagram_bytes = left.min(send.segment_bytes.into());
                left -= datagram_bytes;
                self.record(seen, datagram_bytes.saturating_sub(around), 0, |_| ());
            }
        }
    }

    /// Inbound: packets that were opened from `buffer` and dropped; they were received from `from`.
    pub fn refused_packets(
        &mut self,
        buffer: &[u8],
        refused: &[Refused],
        from: SocketAddr,
        view: &View,
        now: Time,
    ) {
        for Refused { place, peer, reason } in refused {
            let bytes = without_padding(&buffer[place.clone()]);
            let source = || IpView::parse(bytes).ok().map(|ip| ip.source);
            // A plaintext peer sends from several ports; who is none has the one he sent from.
            let owner = peer.or_else(|| view.peer_sending(source()?, from.ip()));
            let peer = owner.map_or(Some(PeerName::Address(from)), |peer| name(view, peer));
            let seen = Seen { at: now, direction: Direction::Inbound, peer, dropped: Some(*reason) };
            if self.wants(&seen) {
                self.push(seen, bytes);
            }
        }
    }

    /// Inbound: a write that the TUN took or refused just now. Its packets lie in the driver's buffers as they came.
    pub fn write(
        &mut self,
        gather: &Gather,
        dropped: Option<DropReason>,
        driver: &impl Driver,
        view: &View,
        now: Time,
    ) {
        // A superpacket has one header in front; those that its packets came with still stand before their payloads.
        let header_bytes = (gather.head().len() - VNET_HDR_BYTES) as u32;
        let packet = |part: &Part| {
            driver.lent(Part { start: part.start - header_bytes, len: part.len + header_bytes, ..*part })
        };
        let source =
            gather.parts.first().and_then(|part| IpView::parse(packet(part)).ok()).map(|ip| ip.source);
        let peer = source.and_then(|source| name(view, view.routes.lookup(source)?));
        let seen = Seen { at: now, direction: Direction::Inbound, peer, dropped };
        if self.wants(&seen) {
            gather.parts.iter().for_each(|part| self.push(seen, packet(part)));
        }
    }

    /// At the end of a turn: hands over what has waited long enough.
    pub fn tick(&mut self, now: Time) {
        if self.deadline().is_some_and(|deadline| deadline <= now) {
            self.hand_over();
        }
        if self.missed > 0 {
            self.missed_in_all.fetch_add(std::mem::take(&mut self.missed), Ordering::Relaxed);
        }
    }

    /// When there is next something to do.
    pub fn deadline(&self) -> Option<Time> {
        self.batch.as_ref().map(|_| self.began + HOLD)
    }

    fn wants(&self, seen: &Seen) -> bool {
        let Filter { direction, peer, drops, .. } = &self.filter;
        direction.is_none_or(|direction| direction == seen.direction)
            && peer.is_none_or(|peer| Some(peer) == seen.peer)
            && (!drops || seen.dropped.is_some())
    }

    fn push(&mut self, seen: Seen, packet: &[u8]) {
        let kept = self.kept(packet.len());
        self.record(seen, packet.len(), kept, |out| out.extend_from_slice(&packet[..kept]));
    }

    /// As [`Tap::push`], for a packet that `write` makes where it is kept.
    fn fill(&mut self, seen: Seen, packet_bytes: usize, write: impl FnOnce(&mut [u8])) {
        let kept = self.kept(packet_bytes);
        self.record(seen, packet_bytes, packet_bytes, |out| {
            let start = out.len();
            out.resize(start + packet_bytes, 0);
            write(&mut out[start..]);
            out.truncate(start + kept);
        });
    }

    fn kept(&self, packet_bytes: usize) -> usize {
        let snap = self.filter.snap as usize;
        if snap == 0 { packet_bytes } else { packet_bytes.min(snap) }
    }

    /// Takes a packet for which `keep` needs `room_bytes`, or misses it.
    fn record(
        &mut self,
        seen: Seen,
        packet_bytes: usize,
        room_bytes: usize,
        keep: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.batch.as_ref().is_some_and(|batch| !batch.has_room(room_bytes)) {
            self.hand_over();
        }
        // Asked for once a turn: where there is none, packets are missed at no cost.
        if self.batch.is_none() && self.missed == 0 {
            self.batch = self.empty.try_recv().ok();
            self.began = seen.at;
        }
        let Some(batch) = &mut self.batch else {
            self.missed += 1;
            return;
        };
        let before = batch.bytes.len();
        keep(&mut batch.bytes);
        let kept_bytes = (batch.bytes.len() - before) as u32;
        batch.records.push(Record { seen, packet_bytes: packet_bytes as u32, kept_bytes });
    }

    fn hand_over(&mut self) {
        // There is room for all; fails only when nobody captures any more.
        self.batch.take().into_iter().for_each(|batch| drop(self.full.try_send(batch)));
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.missed_in_all.fetch_add(self.missed, Ordering::Relaxed);
        self.hand_over();
    }
}

/// What everybody calls the peer.
fn name(view: &View, peer: PeerIndex) -> Option<PeerName> {
    let peer = view.peer(peer)?;
    let address = || peer.endpoint.map(|endpoint| PeerName::Address(endpoint.remote));
    peer.public_key.map(PeerName::Key).or_else(address)
}

/// Without what stands behind the packet by its own length; a malformed one as it is.
fn without_padding(bytes: &[u8]) -> &[u8] {
    IpView::parse(bytes).map_or(bytes, |ip| &bytes[..ip.total_bytes as usize])
}
