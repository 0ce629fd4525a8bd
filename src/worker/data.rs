//! The data worker: reap, walk, flush, wait. Generic over the driver, so the tests run what ships.
//!
//! One turn: the driver carries out what the last turn queued and reports what happened; TUN reads walk outbound into
//! trains, receives walk inbound into superpackets; both are queued for the next turn's single system call.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;

use crate::dataplane::outbound::{InPlace, Progress};
use crate::dataplane::view::View;
use crate::dataplane::{inbound, outbound};
use crate::io::driver::{Completion, Driver, Endpoint, Send, Wait};
use crate::io::lease::Lease;
use crate::offload::Part;
use crate::offload::coalesce::{Coalescer, Gather, Merge};
use crate::offload::stride::Received;
use crate::offload::train::{TRAIN_BYTES_MAX, TRAIN_SEGMENTS_SAFE, Train, TrainLimits, Trains};
use crate::stats::counters::WorkerCounters;
use crate::stats::drop::DropReason;
use crate::stats::latency::LatencyReporter;
use crate::time::{Span, Time};

/// How long a stopping worker waits for what is under way. Sends and writes complete within one turn; this is for the
/// case that they do not.
const DRAIN_TIME: Span = Span::from_millis(200);
/// How long a refused train is remembered. As long as the kernel remembers a path MTU (net.ipv4.route.mtu_expires).
const REFUSED_TIME: Span = Span::from_secs(600);

/// What the supervisor and its workers share.
///
/// Relaxed throughout: the doorbell that wakes a worker orders what was written before it rang, and nothing else hangs
/// on these.
#[derive(Debug, Default)]
pub struct Flags {
    /// Finish what was read, then end.
    pub stop: AtomicBool,
    /// The interface is down: nothing can be delivered.
    pub paused: AtomicBool,
}

/// What a worker is made of besides its driver.
pub struct Parts {
    /// The configuration's snapshot.
    pub view: Arc<View>,
    /// Datagrams that one send may carry; 1 without UDP_SEGMENT.
    pub train_segments_max: u16,
    /// What may be joined.
    pub merge: Merge,
    /// Where to count.
    pub counters: Arc<WorkerCounters>,
    /// Where to time.
    pub latency: LatencyReporter,
    /// What the supervisor wants.
    pub flags: Arc<Flags>,
}

/// Why a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Stopped,
    /// The TUN was deleted.
    TunGone,
}

/// A worker: one TUN queue, its sockets, its ring.
pub struct DataWorker<D> {
    driver: D,
    view: Arc<View>,
    trains: Trains<Lease, u32>,
    /// The trains of this turn, kept for its memory.
    ready: Vec<Train<Lease, u32>>,
    train_segments_max: u16,
    coalescer: Coalescer,
    counters: Arc<WorkerCounters>,
    latency: LatencyReporter,
    flags: Arc<Flags>,
    completions: Vec<Completion>,
    /// TUN reads on their way; those that need a send buffer may have to wait for one.
    backlog: VecDeque<TunRead>,
    /// Which trains the kernel refuses, whoever they are for.
    refused: Option<Refused>,
    /// What was learned of each peer's path.
    paths: Vec<Path>,
    /// Sends and writes whose completion is outstanding.
    in_flight: usize,
    tun_gone: bool,
}

/// What a worker learns of the way to a peer.
#[derive(Clone, Copy, Debug, Default)]
struct Path {
    /// The address of ours that the peer last sent to: answers leave from there.
    local: Option<IpAddr>,
    /// Which trains the kernel refuses to send there.
    refused: Option<Refused>,
}

/// Trains that are not worth trying for a while.
#[derive(Clone, Copy, Debug)]
struct Refused {
    /// Of datagrams at least this long.
    segment_bytes: u16,
    /// Of more datagrams than this.
    segments_max: u16,
    until: Time,
}

impl Refused {
    /// Datagrams of `segment_bytes` that one send may carry, as far as this refusal goes.
    fn segments_max(&self, segment_bytes: u16, now: Time) -> u16 {
        let applies = now < self.until && segment_bytes >= self.segment_bytes;
        if applies { self.segments_max } else { u16::MAX }
    }
}

struct TunRead {
    lease: Lease,
    bytes: usize,
    at: Time,
    resume: Option<usize>,
}

impl<D: Driver> DataWorker<D> {
    /// A worker on `driver`.
    pub fn new(driver: D, parts: Parts) -> DataWorker<D> {
        DataWorker {
            driver,
            refused: None,
            paths: vec![Path::default(); parts.view.peers.len()],
            view: parts.view,
            ready: Vec::new(),
            trains: Trains::new(limits(parts.train_segments_max)),
            train_segments_max: parts.train_segments_max,
            // One probe tells both: what the kernel cuts and what it takes joined (linux/udp.h UDP_MAX_SEGMENTS).
            coalescer: Coalescer::new(parts.merge)
                .with_udp_segments_max(parts.train_segments_max.max(TRAIN_SEGMENTS_SAFE)),
            counters: parts.counters,
            latency: parts.latency,
            flags: parts.flags,
            completions: Vec::new(),
            backlog: VecDeque::new(),
            in_flight: 0,
            tun_gone: false,
        }
    }

    /// The driver, for a test that feeds the worker and looks at what it did.
    pub fn driver_mut(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Ends the worker and gives back its driver with all buffers that the worker held unused.
    pub fn into_driver(mut self) -> D {
        while let Some(buffer) = self.trains.take_spare() {
            self.driver.lend(buffer);
        }
        self.driver
    }

    /// Works until told to stop, then finishes what was read.
    ///
    /// # Errors
    /// The driver's, when it cannot go on.
    pub fn run(&mut self) -> io::Result<End> {
        while !self.tun_gone && !self.flags.stop.load(Ordering::Relaxed) {
            self.turn(self.wait())?;
        }
        self.drain()?;
        Ok(if self.tun_gone { End::TunGone } else { End::Stopped })
    }

    /// A read that waits for a buffer needs the next turn, which brings buffers home; else sleep until something
    /// happens or latencies are due.
    fn wait(&self) -> Wait {
        if !self.backlog.is_empty() {
            return Wait::Not;
        }
        self.latency.deadline().map_or(Wait::Forever, Wait::Until)
    }

    /// One turn.
    ///
    /// # Errors
    /// The driver's, when it cannot go on.
    pub fn turn(&mut self, wait: Wait) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.driver.turn(wait, &mut completions)?;
        self.count_turn(completions.len());
        let now = self.driver.now();
        for completion in completions.drain(..) {
            match completion {
                Completion::TunRead { lease, bytes } => self.on_tun_read(lease, bytes as usize, now),
                Completion::Received { lease, received } => self.on_received(lease, &received),
                Completion::Sent { send, result } => self.on_sent(send, result, now),
                Completion::Written { gather, result } => self.on_written(gather, result, now),
                Completion::ReceiveFailed(_) => self.counters.receive_errors.add(1),
                Completion::TunGone => self.tun_gone = true,
                Completion::Woken => {}
            }
        }
        self.completions = completions;
        self.fill_trains();
        self.flush_writes();
        self.flush_trains(now);
        self.latency.tick(now);
        Ok(())
    }

    /// Outbound, step 1: reads go their way in order at the end of the turn.
    pub fn on_tun_read(&mut self, lease: Lease, bytes: usize, now: Time) {
        self.counters.tun_reads.add(1);
        self.backlog.push_back(TunRead { lease, bytes, at: now, resume: None });
    }

    /// Inbound, step 1.
    pub fn on_received(&mut self, mut lease: Lease, received: &Received) {
        self.counters.receives.add(1);
        if self.flags.paused.load(Ordering::Relaxed) {
            let count = received.datagrams().len() as u64;
            self.counters.in_datagrams.add(count);
            self.counters.in_bytes.add(received.bytes.into());
            self.counters.count_drop(DropReason::TunDown, count);
        } else {
            let slot = lease.slot();
            let peer = inbound::datagrams(
                &mut lease,
                slot,
                received,
                &self.view,
                &mut self.coalescer,
                &self.counters,
            );
            if let Some(peer) = peer {
                self.paths[peer as usize].local = received.to;
            }
        }
        self.driver.lend(lease);
    }

    /// Outbound, steps 2 to 7, for every read that a buffer can be found for.
    fn fill_trains(&mut self) {
        while let Some(mut read) = self.backlog.pop_front() {
            if self.trains.spare() == 0
                && let Some(buffer) = self.driver.send_buffer()
            {
                self.trains.give(buffer);
            }
            let DataWorker { view, trains, counters, .. } = self;
            let TunRead { lease, bytes, at, resume } = &mut read;
            match outbound::superpacket(lease, *bytes, *resume, *at, view, trains, counters) {
                Progress::Done => self.driver.lend(read.lease),
                Progress::Train(train) => self.adopt(read.lease, train, read.at),
                Progress::Blocked(segment) => {
                    let buffer = self.driver.send_buffer();
                    read.resume = Some(segment);
                    self.backlog.push_front(read);
                    let Some(buffer) = buffer else { return };
                    self.trains.give(buffer);
                }
            }
        }
    }

    fn adopt(&mut self, buffer: Lease, train: InPlace, started: Time) {
        let InPlace { peer: to, start, bytes, segment_bytes, datagrams } = train;
        self.trains.adopt(Train { buffer, start, to, bytes, segment_bytes, datagrams, started });
    }

    /// Outbound, step 8.
    pub fn flush_trains(&mut self, now: Time) {
        let mut trains = std::mem::take(&mut self.ready);
        trains.extend(self.trains.drain());
        for train in trains.drain(..) {
            let Train { buffer, start, to: peer, bytes, segment_bytes, datagrams, started } = train;
            let part = Part { slot: buffer.slot(), start, len: bytes };
            self.driver.lend(buffer);
            let Some(remote) = self.view.peers[peer as usize].endpoint else {
                self.counters.count_drop(DropReason::NoEndpoint, datagrams.into());
                continue;
            };
            let to = Endpoint { remote, local: self.paths[peer as usize].local };
            let send = Send { peer, to, tos: 0, part, segment_bytes, datagrams, started };
            let segments_max = self.segments_max(peer, segment_bytes, now);
            self.in_flight += send_in_pieces(&mut self.driver, send, segments_max);
        }
        self.ready = trains;
    }

    /// Outbound, step 9.
    pub fn on_sent(&mut self, send: Send, result: Result<(), Errno>, now: Time) {
        self.in_flight -= 1;
        let datagrams = u64::from(send.datagrams);
        match result {
            Ok(()) => {
                self.counters.trains.add(1);
                self.counters.sent_datagrams.add(datagrams);
                self.counters.sent_bytes.add(send.part.len.into());
                self.latency.record_outbound(now.since(send.started), datagrams);
            }
            Err(error) => {
                if !self.send_again(send, error, now) {
                    self.counters.count_drop(DropReason::SendError, datagrams);
                }
            }
        }
    }

    /// Tries a refused send in another way, if there is one. Its datagrams then leave behind what was queued with it,
    /// once: what made the kernel refuse is remembered.
    fn send_again(&mut self, mut send: Send, error: Errno, now: Time) -> bool {
        let path = &mut self.paths[send.peer as usize];
        if send.to.local.is_some() && source_is_stale(error) {
            path.local = None;
            send.to.local = None;
            let segments_max = self.segments_max(send.peer, send.segment_bytes, now);
            self.in_flight += send_in_pieces(&mut self.driver, send, segments_max);
            return true;
        }
        if send.datagrams > 1 && train_is_refused(error) {
            self.counters.train_retries.add(1);
            let segments_max = self.learn_from_refusal(&send, error, now);
            self.in_flight += send_in_pieces(&mut self.driver, send, segments_max);
            return true;
        }
        false
    }

    /// Remembers a refused train and says how many datagrams to try instead. Older kernels take 64 and some devices
    /// cut none (EIO), whoever they are for; else they are too long for the path to this peer: EMSGSIZE, on older kernels
    /// EINVAL. Single datagrams may be fragmented.
    fn learn_from_refusal(&mut self, train: &Send, error: Errno, now: Time) -> u16 {
        let until = now + REFUSED_TIME;
        let too_many = error == Errno::EINVAL && train.datagrams > TRAIN_SEGMENTS_SAFE;
        if too_many || error == Errno::EIO {
            let segments_max = if too_many { TRAIN_SEGMENTS_SAFE } else { 1 };
            self.refused = Some(Refused { segment_bytes: 0, segments_max, until });
            return segments_max;
        }
        let refused = Refused { segment_bytes: train.segment_bytes, segments_max: 1, until };
        self.paths[train.peer as usize].refused = Some(refused);
        1
    }

    /// Datagrams of `segment_bytes` that one send to `peer` may carry.
    fn segments_max(&self, peer: u32, segment_bytes: u16, now: Time) -> u16 {
        let refusals = [self.refused, self.paths[peer as usize].refused];
        let refused = refusals.iter().flatten().map(|refused| refused.segments_max(segment_bytes, now)).min();
        self.train_segments_max.min(refused.unwrap_or(u16::MAX))
    }

    /// Inbound, step 8.
    pub fn flush_writes(&mut self) {
        for gather in self.coalescer.drain() {
            self.in_flight += 1;
            self.driver.write(gather);
        }
    }

    /// Inbound, step 9.
    pub fn on_written(&mut self, gather: Gather, result: Result<(), Errno>, now: Time) {
        self.in_flight -= 1;
        let packets = u64::from(gather.packets);
        match result {
            Ok(()) => {
                self.counters.tun_writes.add(1);
                self.counters.written_packets.add(packets);
                self.counters.written_bytes.add(gather.bytes() as u64);
                self.latency.record_inbound(now.since(gather.received), packets);
            }
            // A TUN that is down says EIO at once.
            Err(Errno::EIO) => self.counters.count_drop(DropReason::TunDown, packets),
            Err(error) => {
                self.tun_gone |= error == Errno::EBADFD;
                self.counters.count_drop(DropReason::TunWriteError, packets);
            }
        }
        self.coalescer.recycle(gather);
    }

    /// Finishes what was read. What arrives meanwhile stays with the kernel or is given up uncounted.
    fn drain(&mut self) -> io::Result<()> {
        let deadline = self.driver.now() + DRAIN_TIME;
        while (self.in_flight > 0 || !self.backlog.is_empty()) && self.driver.now() < deadline {
            let wait = if self.backlog.is_empty() { Wait::Until(deadline) } else { Wait::Not };
            let mut completions = std::mem::take(&mut self.completions);
            self.driver.turn(wait, &mut completions)?;
            let now = self.driver.now();
            for completion in completions.drain(..) {
                match completion {
                    Completion::Sent { send, result } => self.on_sent(send, result, now),
                    Completion::Written { gather, result } => self.on_written(gather, result, now),
                    Completion::TunRead { lease, .. } | Completion::Received { lease, .. } => {
                        self.driver.lend(lease)
                    }
                    Completion::ReceiveFailed(_) | Completion::TunGone | Completion::Woken => {}
                }
            }
            self.completions = completions;
            self.fill_trains();
            self.flush_trains(now);
        }
        self.latency.flush();
        Ok(())
    }

    fn count_turn(&mut self, completions: usize) {
        let effort = self.driver.take_effort();
        self.counters.turns.add(1);
        self.counters.enters.add(effort.enters);
        self.counters.rearms.add(effort.rearms);
        self.counters.completions.add(completions as u64);
    }
}

/// Without UDP_SEGMENT trains are still how datagrams share a buffer; they are then sent one by one.
fn limits(train_segments_max: u16) -> TrainLimits {
    let segments_max = if train_segments_max > 1 { train_segments_max } else { TRAIN_SEGMENTS_SAFE };
    // The smaller limit of the two families: 20 bytes less than IPv4 would allow change nothing.
    TrainLimits { segments_max, bytes_max: TRAIN_BYTES_MAX }
}

/// As few submissions as the limits allow, in order; returns how many.
fn send_in_pieces<D: Driver>(driver: &mut D, train: Send, segments_max: u16) -> usize {
    let Part { slot, start, len } = train.part;
    let stride = u32::from(train.segment_bytes).max(1);
    let datagrams_max = u32::from(segments_max).min(TRAIN_BYTES_MAX / stride).max(1);
    let count = u32::from(train.datagrams).div_ceil(datagrams_max);
    for piece in 0..count {
        let first = piece * datagrams_max;
        let datagrams = datagrams_max.min(u32::from(train.datagrams) - first);
        let skip = first * stride;
        let part = Part { slot, start: start + skip, len: (datagrams * stride).min(len - skip) };
        driver.send(Send { part, datagrams: datagrams as u16, ..train });
    }
    count as usize
}

/// The source address that the peer once sent to has gone from this host.
fn source_is_stale(error: Errno) -> bool {
    matches!(error, Errno::EINVAL | Errno::EADDRNOTAVAIL | Errno::ENETUNREACH | Errno::EHOSTUNREACH)
}

/// The kernel or the device does not cut this train: udp(7) UDP_SEGMENT.
fn train_is_refused(error: Errno) -> bool {
    matches!(error, Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE | Errno::EOPNOTSUPP)
}
