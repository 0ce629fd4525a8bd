//! The outbound half of a turn: what was read goes into trains, or waits for a session; trains are sent.
//!
//! Steps 1 and 8 to 10 of the walk in [`crate::dataplane`]; those between are [`outbound::superpacket`].

use std::sync::atomic::Ordering;

use nix::errno::Errno;

use super::{DataWorker, TunRead, moment};
use crate::dataplane::Context;
use crate::dataplane::allowed_ips::PeerIndex;
use crate::dataplane::outbound::{self, InPlace, Progress, Read, To};
use crate::io::driver::{Driver, Send};
use crate::io::lease::Lease;
use crate::offload::Part;
use crate::offload::train::Train;
use crate::proto::activity::News;
use crate::stats::drop::DropReason;
use crate::stats::recorder::{Departure, record};
use crate::time::Time;
use crate::wire::vnet_hdr::VNET_HDR_BYTES;
use crate::worker::refusals::{REFUSED_TIME, send_in_pieces, source_is_stale, train_is_refused};
use crate::worker::stage::StagedRead;

impl<D: Driver> DataWorker<D> {
    /// Outbound, step 1: reads go their way in order at the end of the turn.
    pub fn on_tun_read(&mut self, lease: Lease, bytes: usize, now: Time) {
        self.counters.tun_reads.add(1);
        self.moved = true;
        let inner_bytes = bytes.saturating_sub(VNET_HDR_BYTES) as u64;
        self.turn_bytes += inner_bytes;
        record(&mut self.reporter.recorder().read_bytes, inner_bytes);
        self.backlog.push_back(TunRead { lease, read: Read { bytes, resume: None, at: now } });
    }

    /// Outbound, steps 2 to 7, for staged packets whose session is there, then for every read that a buffer can be found
    /// for.
    pub(super) fn fill_trains(&mut self, now: Time) {
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

    /// Lends back a read that was dropped. Its sender is told, while there is an interface to hear it at.
    fn turn_away(&mut self, lease: Lease, bytes: usize, reason: DropReason, now: Time) {
        let paused = self.flags.paused.load(Ordering::Relaxed);
        let answer = if paused { None } else { self.answers.answer(&lease[..bytes], reason, now) };
        let slot = lease.slot();
        self.driver.lend(lease);
        let Some(answer) = answer else { return };
        let quote = Part { slot, start: VNET_HDR_BYTES as u32, len: answer.quoted_bytes().into() };
        self.in_flight += 1;
        self.driver.write(self.coalescer.our_own(answer.headers(), quote, now));
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
    pub(super) fn lose(&mut self, peer: Option<PeerIndex>, reads: Vec<StagedRead>, reason: DropReason) {
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
    pub(super) fn hold(&mut self, peer: PeerIndex, holding: bool) {
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
}
