//! The data worker: reap, walk, flush, wait. Generic over the driver, so the tests run what ships.
//!
//! One turn: the driver carries out what the last turn queued and reports what happened; TUN reads walk outbound into
//! trains, receives walk inbound into superpackets; both are queued for the next turn's single system call.
//!
//! Here is the turn; its two halves are in `data::outbound` and `data::inbound`.

mod inbound;
mod outbound;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Receiver;

use super::handoff::{Order, Outbox};
use super::refusals::Refusals;
use super::stage::Stage;
use super::tap::Tap;
use super::unreachable::Unreachable;
use crate::dataplane::allowed_ips::PeerIndex;
use crate::dataplane::codel::Codel;
use crate::dataplane::inbound::Findings;
use crate::dataplane::outbound::{Read, To};
use crate::dataplane::view::{Change, View};
use crate::io::driver::{Completion, Driver, Wait};
use crate::io::lease::Lease;
use crate::offload::coalesce::{Coalescer, Merge};
use crate::offload::train::{TRAIN_BYTES_MAX, TRAIN_SEGMENTS_SAFE, Train, TrainLimits, Trains};
use crate::proto::output::Update;
use crate::stats::counters::WorkerCounters;
use crate::stats::drop::DropReason;
use crate::stats::offloads::SelfCheck;
use crate::stats::recorder::{RECORDS, Reporter, record};
use crate::time::{Span, Time};

/// How long a stopping worker waits for what is under way. Sends and writes complete within one turn; this is for the
/// case that they do not.
const DRAIN_TIME: Span = Span::from_millis(200);

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
    /// The configuration to start with.
    pub view: View,
    /// What changes it.
    pub orders: Receiver<Order>,
    /// The way to the protocol thread.
    pub outbox: Outbox,
    /// Datagrams that one send may carry; 1 without UDP_SEGMENT.
    pub train_segments_max: u16,
    /// What may be joined.
    pub merge: Merge,
    /// Where to count.
    pub counters: Arc<WorkerCounters>,
    /// Where to record.
    pub reporter: Reporter,
    /// Where to tell what the kernel refuses.
    pub self_check: Arc<SelfCheck>,
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
    view: View,
    orders: Receiver<Order>,
    outbox: Outbox,
    trains: Trains<Lease, To>,
    /// The trains of this turn, kept for its memory.
    ready: Vec<Train<Lease, To>>,
    train_segments_max: u16,
    coalescer: Coalescer,
    counters: Arc<WorkerCounters>,
    reporter: Reporter,
    self_check: Arc<SelfCheck>,
    flags: Arc<Flags>,
    completions: Vec<Completion>,
    /// TUN reads on their way; those that need a send buffer may have to wait for one.
    backlog: VecDeque<TunRead>,
    /// Packets that wait for a session.
    stage: Stage,
    /// Peers whose staged packets may flow and have not all found a buffer yet.
    flushable: VecDeque<PeerIndex>,
    refusals: Refusals,
    /// Who is told that a packet has nowhere to go.
    answers: Unreachable,
    /// How long what is received has waited.
    queue: Codel,
    /// Where packets are captured, while somebody does.
    tap: Option<Box<Tap>>,
    /// What the last receive brought, kept for its memory.
    findings: Findings,
    /// Sends and writes whose completion is outstanding.
    in_flight: usize,
    /// Something was read or received in this turn.
    moved: bool,
    /// Bytes of the operations that this turn reaped.
    turn_bytes: u64,
    tun_gone: bool,
}

struct TunRead {
    lease: Lease,
    read: Read,
}

impl<D: Driver> DataWorker<D> {
    /// A worker on `driver`.
    pub fn new(driver: D, parts: Parts) -> DataWorker<D> {
        DataWorker {
            driver,
            view: parts.view,
            orders: parts.orders,
            outbox: parts.outbox,
            ready: Vec::new(),
            trains: Trains::new(limits(parts.train_segments_max)),
            train_segments_max: parts.train_segments_max,
            // One probe tells both: what the kernel cuts and what it takes joined (linux/udp.h UDP_MAX_SEGMENTS).
            coalescer: Coalescer::new(parts.merge)
                .with_udp_segments_max(parts.train_segments_max.max(TRAIN_SEGMENTS_SAFE)),
            counters: parts.counters,
            reporter: parts.reporter,
            self_check: parts.self_check,
            flags: parts.flags,
            completions: Vec::new(),
            backlog: VecDeque::new(),
            stage: Stage::default(),
            flushable: VecDeque::new(),
            refusals: Refusals::default(),
            answers: Unreachable::default(),
            queue: Codel::default(),
            tap: None,
            findings: Findings::default(),
            in_flight: 0,
            moved: false,
            turn_bytes: 0,
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
    /// happens or latencies or captured packets are due.
    fn wait(&self) -> Wait {
        if !self.backlog.is_empty() || !self.flushable.is_empty() {
            return Wait::Not;
        }
        let tap = self.tap.as_ref().and_then(|tap| tap.deadline());
        self.reporter.deadline().into_iter().chain(tap).min().map_or(Wait::Forever, Wait::Until)
    }

    /// One turn.
    ///
    /// # Errors
    /// The driver's, when it cannot go on.
    pub fn turn(&mut self, wait: Wait) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.driver.turn(wait, &mut completions)?;
        let reaped = completions.len() as u64;
        self.count_turn(reaped);
        let now = self.driver.now();
        self.take_orders()?;
        self.queue.look(now);
        for completion in completions.drain(..) {
            match completion {
                Completion::TunRead { lease, bytes } => self.on_tun_read(lease, bytes as usize, now),
                Completion::Received { lease, received } => self.on_received(lease, &received, now),
                Completion::Sent { send, result } => self.on_sent(send, result, now),
                Completion::Written { gather, result } => self.on_written(gather, result, now),
                Completion::ReceiveFailed(_) => self.counters.receive_errors.add(1),
                Completion::TunGone => self.tun_gone = true,
                Completion::Woken => {}
            }
        }
        self.completions = completions;
        self.flush_writes(now);
        self.fill_trains(now);
        self.flush_trains(now);
        self.counters.staged.set(self.stage.packets() as u64);
        self.record_turn(reaped, now);
        self.reporter.tick(now);
        if let Some(tap) = &mut self.tap {
            tap.tick(now);
        }
        Ok(())
    }

    /// Takes over what was decided since the last turn.
    fn take_orders(&mut self) -> io::Result<()> {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Rebind(sockets) => self.driver.rebind(sockets)?,
                Order::Change(change) => self.take_change(change),
                Order::Tap(tap) => self.tap = tap,
            }
        }
        Ok(())
    }

    fn take_change(&mut self, change: Change) {
        let Change::Peer(update) = &change else { return self.view.apply(change) };
        match *update {
            Update::Current { peer, session: Some(_) } => self.flushable.push_back(peer),
            Update::PeerRemoved { peer } | Update::DropStaged { peer } => {
                let discarded = self.stage.discard(peer);
                self.lose(Some(peer), discarded, DropReason::NoSession);
                self.hold(peer, false);
            }
            Update::Endpoint { peer, .. } => self.refusals.forget(peer),
            _ => {}
        }
        self.view.apply(change);
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
            self.fill_trains(now);
            self.flush_trains(now);
        }
        let reads = self.stage.discard_all();
        self.lose(None, reads, DropReason::NoSession);
        self.counters.staged.set(0);
        self.reporter.flush(self.driver.now());
        Ok(())
    }

    /// Turns that moved nothing say nothing about speed, and an idle worker must not record that it had nothing to record.
    fn record_turn(&mut self, completions: u64, now: Time) {
        let bytes = std::mem::take(&mut self.turn_bytes);
        if std::mem::take(&mut self.moved) {
            let length = moment(&self.driver).since(now);
            let recorder = self.reporter.recorder();
            record(&mut recorder.turn, length.as_nanos());
            record(&mut recorder.turn_completions, completions);
            record(&mut recorder.turn_bytes, bytes);
        }
    }

    fn count_turn(&mut self, completions: u64) {
        let effort = self.driver.take_effort();
        self.counters.turns.add(1);
        self.counters.enters.add(effort.enters);
        self.counters.rearms.add(effort.rearms);
        self.counters.completions.add(completions);
    }
}

/// Without UDP_SEGMENT trains are still how datagrams share a buffer; they are then sent one by one.
fn limits(train_segments_max: u16) -> TrainLimits {
    let segments_max = if train_segments_max > 1 { train_segments_max } else { TRAIN_SEGMENTS_SAFE };
    // The smaller limit of the two families: 20 bytes less than IPv4 would allow change nothing.
    TrainLimits { segments_max, bytes_max: TRAIN_BYTES_MAX }
}

/// This moment, for what is recorded.
fn moment(driver: &impl Driver) -> Time {
    if RECORDS { driver.clock() } else { driver.now() }
}
