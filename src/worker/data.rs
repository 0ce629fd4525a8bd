//! The data worker: reap, walk, flush, wait. Generic over the driver, so the tests run what ships.
//!
//! One turn: the driver carries out what the last turn queued and reports what happened; TUN reads walk outbound into
//! trains, receives walk inbound into superpackets; both are queued for the next turn's single system call.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Receiver;
use nix::errno::Errno;

use super::handoff::{Arrival, Order, Outbox};
use super::handshake_log;
use super::refusals::{REFUSED_TIME, Refusals, send_in_pieces, source_is_stale, train_is_refused};
use super::stage::{Stage, StagedRead};
use super::tap::Tap;
use super::unreachable::Unreachable;
use crate::dataplane::Context;
use crate::dataplane::allowed_ips::PeerIndex;
use crate::dataplane::codel::Codel;
use crate::dataplane::encap::Encap;
use crate::dataplane::inbound::{self, Findings};
use crate::dataplane::outbound::{self, InPlace, Progress, Read, To};
use crate::dataplane::view::{Change, View};
use crate::io::driver::{Completion, Driver, Send, Wait};
use crate::io::lease::Lease;
use crate::offload::Part;
use crate::offload::coalesce::{Coalescer, Gather, Merge};
use crate::offload::stride::Received;
use crate::offload::train::{TRAIN_BYTES_MAX, TRAIN_SEGMENTS_SAFE, Train, TrainLimits, Trains};
use crate::proto::Endpoint;
use crate::proto::activity::News;
use crate::proto::output::{Handled, Update};
use crate::stats::counters::WorkerCounters;
use crate::stats::drop::DropReason;
use crate::stats::offloads::{Refusal, SelfCheck};
use crate::stats::recorder::{Delivery, Departure, RECORDS, Reporter, record};
use crate::time::{Span, Time};
use crate::wire::vnet_hdr::VNET_HDR_BYTES;

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
    unreachable: Unreachable,
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
            unreachable: Unreachable::default(),
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

    /// Outbound, step 1: reads go their way in order at the end of the turn.
    pub fn on_tun_read(&mut self, lease: Lease, bytes: usize, now: Time) {
        self.counters.tun_reads.add(1);
        self.moved = true;
        let inner_bytes = bytes.saturating_sub(VNET_HDR_BYTES) as u64;
        self.turn_bytes += inner_bytes;
        record(&mut self.reporter.recorder().read_bytes, inner_bytes);
        self.backlog.push_back(TunRead { lease, read: Read { bytes, resume: None, at: now } });
    }

    /// Inbound, step 1.
    pub fn on_received(&mut self, mut lease: Lease, received: &Received, now: Time) {
        self.counters.receives.add(1);
        self.counters.overflown.add(received.overflown.into());
        self.moved = true;
        self.turn_bytes += u64::from(received.bytes);
        record(&mut self.reporter.recorder().receive_datagrams, received.datagrams().len() as u64);
        if self.flags.paused.load(Ordering::Relaxed) {
            let count = received.datagrams().len() as u64;
            self.counters.in_datagrams.add(count);
            self.counters.in_bytes.add(received.bytes.into());
            self.counters.count_drop(DropReason::TunDown, count);
        } else {
            let slot = lease.slot();
            let context = Context { view: &self.view, now, counters: &self.counters };
            let DataWorker { queue, coalescer, findings, .. } = self;
            inbound::datagrams(&mut lease, slot, received, &context, queue, coalescer, findings);
            self.hand_over(&lease, received);
            self.take_note(received, now);
            if let Some(tap) = &mut self.tap {
                tap.refused_packets(&lease, &self.findings.refused, received.from, &self.view, now);
            }
            self.findings.refused.clear();
        }
        self.driver.lend(lease);
    }

    /// Inbound: handshake messages go to the protocol thread. Not those of whoever does not know our public key: a flood of
    /// them would leave no room for others.
    fn hand_over(&mut self, buffer: &[u8], received: &Received) {
        let from = Endpoint { remote: received.from, local: received.to };
        for range in self.findings.handshakes.drain(..) {
            let message = &buffer[range];
            if !self.view.mac1_fits(message) {
                self.counters.count_drop(DropReason::BadMac1, 1);
                handshake_log::of_nobody(Handled::BadMac1, from);
            } else if Arrival::handshake(message, from).is_some_and(|arrival| self.outbox.arrival(arrival)) {
                self.counters.handshakes.add(1);
            } else {
                self.counters.count_drop(DropReason::HandoffFull, 1);
            }
        }
    }

    /// Inbound: what authenticated messages tell of their peers.
    fn take_note(&mut self, received: &Received, now: Time) {
        let here = Endpoint { remote: received.from, local: received.to };
        let plain = self.view.encap == Encap::Plain;
        for heard in self.findings.heard.drain(..) {
            let Some(peer) = self.view.peer_mut(heard.peer) else { continue };
            if plain {
                // The port may differ from worker to worker, only our own address is news.
                peer.endpoint = peer.endpoint.map(|known| Endpoint { local: received.to, ..known });
                continue;
            }
            if heard.note(&peer.activity, now) {
                self.outbox.news(heard.peer);
            }
            let roamed = Arrival::Roamed { local_index: heard.local_index, from: here };
            if peer.endpoint != Some(here) && self.outbox.arrival(roamed) {
                peer.endpoint = Some(here);
            }
        }
    }

    /// Outbound, steps 2 to 7, for staged packets whose session is there, then for every read that a buffer can be found
    /// for.
    fn fill_trains(&mut self, now: Time) {
        if !self.flush_staged(now) {
            return;
        }
        while let Some(TunRead { mut lease, mut read }) = self.backlog.pop_front() {
            if self.trains.spare() == 0
                && let Some(buffer) = self.driver.send_buffer()
            {
                self.trains.give(buffer);
            }
            match self.walk(&mut lease, read, now) {
                Progress::Done => self.driver.lend(lease),
                Progress::Dropped(reason) => self.turn_away(lease, read.bytes, reason, now),
                Progress::Train(train) => self.adopt(lease, train, read.at),
                Progress::Stage(peer, packets) => {
                    read.resume.get_or_insert(0);
                    self.put_on_stage(peer, lease[..read.bytes].into(), read, packets, now);
                    self.driver.lend(lease);
                }
                Progress::Blocked(segment) => {
                    let buffer = self.driver.send_buffer();
                    read.resume = Some(segment);
                    self.backlog.push_front(TunRead { lease, read });
                    let Some(buffer) = buffer else { return };
                    self.trains.give(buffer);
                }
            }
        }
    }

    fn walk(&mut self, buffer: &mut [u8], read: Read, now: Time) -> Progress {
        let context = Context { view: &self.view, now, counters: &self.counters };
        let before = self.counters.out_packets.get();
        let progress = outbound::superpacket(buffer, read, &context, &mut self.trains);
        if read.resume.is_none() {
            // What the read held the walk has counted.
            let segments = self.counters.out_packets.get() - before;
            record(&mut self.reporter.recorder().read_segments, segments);
        }
        if let (Progress::Dropped(reason), Some(tap)) = (progress, &mut self.tap) {
            tap.read(&buffer[..read.bytes], read.resume, reason, &self.view, now);
        }
        progress
    }

    /// Tells the sender of a read that was dropped, while there is an interface to hear it at.
    fn turn_away(&mut self, lease: Lease, bytes: usize, reason: DropReason, now: Time) {
        if self.flags.paused.load(Ordering::Relaxed) {
            return self.driver.lend(lease);
        }
        let DataWorker { unreachable, driver, coalescer, .. } = self;
        self.in_flight += unreachable.turn_away((lease, bytes), reason, driver, coalescer, now);
    }

    fn adopt(&mut self, buffer: Lease, train: InPlace, started: Time) {
        let InPlace { to, start, bytes, segment_bytes, datagrams } = train;
        self.trains.adopt(Train { buffer, start, to, bytes, segment_bytes, datagrams, started });
    }

    fn put_on_stage(&mut self, peer: PeerIndex, bytes: Box<[u8]>, read: Read, packets: usize, now: Time) {
        let staged = self.stage.push(peer, StagedRead { bytes, read, packets }, now);
        self.lose(Some(peer), staged.dropped, DropReason::StageFull);
        if staged.ask {
            self.ask_for_session(peer);
        }
    }

    /// Drops what was staged, for `peer` if it is that of all.
    fn lose(&mut self, peer: Option<PeerIndex>, reads: Vec<StagedRead>, reason: DropReason) {
        let now = self.driver.now();
        for staged in reads {
            if let Some(tap) = &mut self.tap {
                tap.read(&staged.bytes, staged.read.resume, reason, &self.view, now);
            }
            self.view.count_drop(&self.counters, peer, reason, staged.packets as u64);
        }
    }

    fn ask_for_session(&mut self, peer: PeerIndex) {
        if self.view.peer(peer).is_some_and(|entry| entry.activity.tell(News::SessionWanted)) {
            self.outbox.news(peer);
        }
    }

    /// Lets staged packets go whose session has come. False if buffers ran out: newer packets must wait then.
    fn flush_staged(&mut self, now: Time) -> bool {
        while let Some(peer) = self.flushable.pop_front() {
            self.hold(peer, false);
            while let Some(mut staged) = self.stage.pop(peer) {
                let progress = self.walk(&mut staged.bytes, staged.read, now);
                match progress {
                    Progress::Done | Progress::Dropped(_) => {
                        let waited = now.since(staged.read.at);
                        record(&mut self.reporter.recorder().staged, waited.as_nanos());
                    }
                    Progress::Train(_) => unreachable!("a staged read has no room to be cut in place"),
                    // The session has gone again.
                    Progress::Stage(owner, _) if owner == peer => {
                        self.stage.put_back(peer, staged);
                        self.ask_for_session(peer);
                        break;
                    }
                    // Its destination belongs to another peer by now.
                    Progress::Stage(owner, packets) => {
                        self.put_on_stage(owner, staged.bytes, staged.read, packets, now);
                    }
                    Progress::Blocked(segment) => {
                        staged.packets -= segment - staged.read.resume.unwrap_or(0);
                        staged.read.resume = Some(segment);
                        self.stage.put_back(peer, staged);
                        let Some(buffer) = self.driver.send_buffer() else {
                            self.hold(peer, true);
                            self.flushable.push_front(peer);
                            return false;
                        };
                        self.trains.give(buffer);
                    }
                }
            }
        }
        true
    }

    /// While older packets for `peer` wait, newer ones are staged behind them.
    fn hold(&mut self, peer: PeerIndex, holding: bool) {
        if let Some(peer) = self.view.peer_mut(peer) {
            peer.holding = holding;
        }
    }

    /// Outbound, steps 8 and 9.
    pub fn flush_trains(&mut self, now: Time) {
        let mut trains = std::mem::take(&mut self.ready);
        trains.extend(self.trains.drain());
        for mut train in trains.drain(..) {
            let context = Context { view: &self.view, now, counters: &self.counters };
            let to = self.view.endpoint(train.to.peer);
            let ready = to.and_then(|to| Ok((to, outbound::reserve(&mut train, &context)?)));
            if let Some(tap) = &mut self.tap {
                tap.train(&train, ready.as_ref().err().copied(), &self.view, now);
            }
            let ready = ready.map(|(to, sealing)| {
                sealing.seal(&mut train);
                to
            });
            let sealed = moment(&self.driver);
            let Train { buffer, start, to: To { peer, tos }, bytes, segment_bytes, datagrams, started } =
                train;
            let part = Part { slot: buffer.slot(), start, len: bytes };
            self.driver.lend(buffer);
            let to = match ready {
                Ok(to) => to,
                Err(reason) => {
                    self.view.count_drop(&self.counters, Some(peer), reason, datagrams.into());
                    continue;
                }
            };
            self.note_sent(peer, datagrams, bytes, now);
            let send = Send { peer, to, tos, part, segment_bytes, datagrams, started, sealed };
            let segments_max = self.segments_max(peer, segment_bytes, now);
            self.in_flight += send_in_pieces(&mut self.driver, send, segments_max);
        }
        self.ready = trains;
    }

    /// Notes that `datagrams` of `bytes` in all go to `peer`.
    fn note_sent(&mut self, peer: PeerIndex, datagrams: u16, bytes: u32, now: Time) {
        let Some(entry) = self.view.peer(peer) else { return };
        if let Some(session) = entry.sealing(now) {
            let mut tell = entry.activity.data_sent(datagrams.into(), bytes.into(), now);
            tell |= session.rekey_due_on_send(now) && entry.activity.ask_to_rekey(now);
            if tell {
                self.outbox.news(peer);
            }
        }
    }

    /// Outbound, step 10.
    pub fn on_sent(&mut self, send: Send, result: Result<(), Errno>, now: Time) {
        self.in_flight -= 1;
        let datagrams = u64::from(send.datagrams);
        match result {
            Ok(()) => {
                self.counters.trains.add(1);
                self.counters.sent_datagrams.add(datagrams);
                self.counters.sent_bytes.add(send.part.len.into());
                self.turn_bytes += u64::from(send.part.len);
                let moments = Departure { read: send.started, sealed: send.sealed, sent: now };
                self.reporter.record_departure(moments, datagrams);
            }
            Err(error) => {
                if !self.send_again(send, error, now) {
                    self.view.count_drop(&self.counters, Some(send.peer), DropReason::SendError, datagrams);
                    if let Some(tap) = &mut self.tap {
                        tap.refused_send(&send, &self.view, now);
                    }
                }
            }
        }
    }

    /// Tries a refused send in another way, if there is one. Its datagrams then leave behind what was queued with it,
    /// once: what made the kernel refuse is remembered.
    fn send_again(&mut self, mut send: Send, error: Errno, now: Time) -> bool {
        if send.to.local.is_some() && source_is_stale(error) {
            send.to.local = None;
            if let Some(Some(endpoint)) = self.view.peer_mut(send.peer).map(|peer| &mut peer.endpoint) {
                endpoint.local = None;
            }
            let segments_max = self.segments_max(send.peer, send.segment_bytes, now);
            self.in_flight += send_in_pieces(&mut self.driver, send, segments_max);
            return true;
        }
        if send.datagrams > 1 && train_is_refused(error) {
            self.counters.train_retries.add(1);
            let (segments_max, refusal) = self.refusals.learn(&send, error, now);
            self.self_check.refused(refusal, error, now, Some(now + REFUSED_TIME));
            let segments_max = segments_max.min(self.train_segments_max);
            self.in_flight += send_in_pieces(&mut self.driver, send, segments_max);
            return true;
        }
        false
    }

    /// Datagrams of `segment_bytes` that one send to `peer` may carry.
    fn segments_max(&self, peer: PeerIndex, segment_bytes: u16, now: Time) -> u16 {
        self.train_segments_max.min(self.refusals.segments_max(peer, segment_bytes, now))
    }

    /// Inbound, step 8.
    pub fn flush_writes(&mut self, now: Time) {
        let mut joined = None;
        for mut gather in self.coalescer.drain() {
            gather.reaped = now;
            gather.joined = *joined.get_or_insert_with(|| moment(&self.driver));
            self.in_flight += 1;
            self.driver.write(gather);
        }
    }

    /// Inbound, step 9.
    pub fn on_written(&mut self, gather: Gather, result: Result<(), Errno>, now: Time) {
        self.in_flight -= 1;
        if gather.is_our_own() {
            self.tun_gone |= result == Err(Errno::EBADFD);
            self.counters.icmp_errors.add(result.is_ok().into());
            return self.coalescer.recycle(gather);
        }
        let packets = u64::from(gather.packets);
        let dropped = match result {
            Ok(()) => {
                self.counters.tun_writes.add(1);
                self.counters.written_packets.add(packets);
                self.counters.written_bytes.add(gather.inner_bytes() as u64);
                self.turn_bytes += gather.inner_bytes() as u64;
                let Gather { received, reaped, joined, .. } = gather;
                let moments = Delivery { received, reaped, opened: joined, written: now };
                self.reporter.record_delivery(moments, packets);
                record(&mut self.reporter.recorder().write_bytes, gather.inner_bytes() as u64);
                None
            }
            Err(Errno::EINVAL) if packets > 1 => return self.write_in_pieces(gather, now),
            // A TUN that is down says EIO at once.
            Err(Errno::EIO) => Some(DropReason::TunDown),
            Err(error) => {
                self.tun_gone |= error == Errno::EBADFD;
                Some(DropReason::TunWriteError)
            }
        };
        if let Some(reason) = dropped {
            self.counters.count_drop(reason, packets);
        }
        if let Some(tap) = &mut self.tap {
            tap.write(&gather, dropped, &self.driver, &self.view, now);
        }
        self.coalescer.recycle(gather);
    }

    /// Writes the packets of a refused superpacket one by one, behind what was queued with it. A kernel may refuse one and
    /// take another, so the next is tried whole again.
    fn write_in_pieces(&mut self, gather: Gather, now: Time) {
        self.counters.write_retries.add(1);
        let refusal = Refusal::Superpacket { tcp: gather.is_tcp() };
        self.self_check.refused(refusal, Errno::EINVAL, now, Some(now + REFUSED_TIME));
        for packet in self.coalescer.apart(&gather) {
            self.in_flight += 1;
            self.driver.write(packet);
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
