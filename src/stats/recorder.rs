//! How long packets stay with us and what a turn moves: one recorder per worker, swapped and never locked.
//!
//! A worker records into the [`Recorder`] it holds; once a second [`Reporter::tick`] exchanges it for an empty one and sends
//! the full one to the stats thread, which gives it back ([`Full::give_back`]). Two recorders go round between the two
//! threads; nothing is allocated after start-up. What the values mean: [`super::distributions`].
//!
//! ```text
//!            Full { recorder }  (bounded, never waited for)
//!   worker ─────────────────────────────────▶ stats thread
//!          ◀─────────────────────────────────
//!              Box<Recorder>, emptied
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use hdrhistogram::Histogram;

use super::distributions::{Distributions, histogram};
use crate::time::{Span, Time};

/// How long a worker records before it hands over.
pub const HAND_OVER_INTERVAL: Span = Span::from_secs(1);

/// Whether anything is recorded. Not in a build with the feature `unrecorded`, which shows what recording costs.
pub const RECORDS: bool = cfg!(not(feature = "unrecorded"));

/// Recorders of one worker: one being filled, one with the stats thread.
const RECORDERS_PER_WORKER: usize = 2;

/// What one worker recorded. About 250 KB, of which it touches what its values need.
pub type Recorder = Distributions<u32>;

/// The moments of packets on their way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Their TUN read was reaped.
    pub read: Time,
    /// Their train was sealed.
    pub sealed: Time,
    /// The kernel has taken it.
    pub sent: Time,
}

/// The moments of packets on their way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The kernel received the first of their datagrams.
    pub received: Time,
    /// We reaped it.
    pub reaped: Time,
    /// They were opened and joined.
    pub opened: Time,
    /// The TUN has taken them.
    pub written: Time,
}

/// A recorder on its way to the stats thread.
#[derive(Debug)]
pub struct Full {
    /// What was recorded.
    pub recorder: Box<Recorder>,
    /// By which worker.
    pub worker: usize,
    /// Until when.
    pub ended: Time,
    /// Hand-overs that had to be put off, so that this recorder covers that many seconds more.
    pub merged_intervals: u32,
    home: Sender<Box<Recorder>>,
}

impl Full {
    /// Empties the recorder and returns it to its worker.
    pub fn give_back(mut self) {
        self.recorder.clear();
        // Never full, it has room for every recorder of the worker; a worker that has ended needs none.
        let _ = self.home.try_send(self.recorder);
    }
}

/// The channel from all workers to the stats thread, with room for every recorder there is.
pub fn channel(workers: usize) -> (Sender<Full>, Receiver<Full>) {
    bounded(workers * RECORDERS_PER_WORKER)
}

/// A worker's side: records, and hands over once a second.
#[derive(Debug)]
pub struct Reporter {
    worker: usize,
    current: Box<Recorder>,
    /// Whether packets have left since the last hand-over: then the next one is due.
    recorded: bool,
    /// Whether there is anything to hand over.
    filled: bool,
    last_hand_over: Time,
    merged_intervals: u32,
    outbox: Sender<Full>,
    spares: Receiver<Box<Recorder>>,
    home: Sender<Box<Recorder>>,
}

impl Reporter {
    /// A reporter of this worker that hands over into `outbox` (see [`channel`]), for the first time one interval after `now`.
    pub fn new(worker: usize, outbox: Sender<Full>, now: Time) -> Reporter {
        let (home, spares) = bounded(RECORDERS_PER_WORKER);
        for _ in 1..RECORDERS_PER_WORKER {
            home.try_send(Box::new(Recorder::new())).expect("the channel is new and has the room");
        }
        Reporter {
            worker,
            current: Box::new(Recorder::new()),
            recorded: false,
            filled: false,
            last_hand_over: second(now),
            merged_intervals: 0,
            outbox,
            spares,
            home,
        }
    }

    /// Where values go. For what is recorded here alone no idle worker wakes: it is handed over when it next does.
    #[inline]
    pub fn recorder(&mut self) -> &mut Recorder {
        self.filled = RECORDS;
        &mut self.current
    }

    /// Records a train of `packets` that has left.
    #[inline]
    pub fn record_departure(&mut self, moments: Departure, packets: u64) {
        let Departure { read, sealed, sent } = moments;
        record_n(&mut self.current.outbound, sent.since(read), packets);
        record_n(&mut self.current.outbound_seal, sealed.since(read), packets);
        record_n(&mut self.current.outbound_send, sent.since(sealed), packets);
        record(&mut self.current.train_datagrams, packets);
        (self.recorded, self.filled) = (RECORDS, RECORDS);
    }

    /// Records a TUN write of `packets` that was taken.
    #[inline]
    pub fn record_delivery(&mut self, moments: Delivery, packets: u64) {
        let Delivery { received, reaped, opened, written } = moments;
        // A driver that reads its clock before it receives may be told of a later moment.
        let received = received.min(reaped);
        record_n(&mut self.current.inbound, written.since(received), packets);
        record_n(&mut self.current.inbound_queue, reaped.since(received), packets);
        record_n(&mut self.current.inbound_open, opened.since(reaped), packets);
        record_n(&mut self.current.inbound_write, written.since(opened), packets);
        record(&mut self.current.write_packets, packets);
        (self.recorded, self.filled) = (RECORDS, RECORDS);
    }

    /// When [`Reporter::tick`] next has something to do. `None` while nothing is recorded, so that an idle
    /// worker may sleep for ever.
    #[inline]
    pub fn deadline(&self) -> Option<Time> {
        self.recorded.then(|| self.last_hand_over + HAND_OVER_INTERVAL)
    }

    /// Hands over if the interval has passed and something was recorded; otherwise costs two comparisons.
    #[inline]
    pub fn tick(&mut self, now: Time) {
        if self.filled && now.since(self.last_hand_over) >= HAND_OVER_INTERVAL {
            self.hand_over(now);
            // Also after a hand-over that was put off: the deadline must lie in the future again.
            self.last_hand_over = second(now);
        }
    }

    /// Hands over what there is, whatever the time; for shutdown.
    pub fn flush(&mut self, now: Time) {
        if self.filled {
            self.hand_over(now);
        }
    }

    /// Exchanges the recorder for an empty one and sends it. Never waits: without an empty one, or with the stats
    /// thread behind, it records on and counts the interval as merged.
    #[cold]
    fn hand_over(&mut self, now: Time) {
        let Ok(empty) = self.spares.try_recv() else {
            self.merged_intervals += 1;
            return;
        };
        let recorder = std::mem::replace(&mut self.current, empty);
        let full = Full {
            recorder,
            worker: self.worker,
            ended: now,
            merged_intervals: self.merged_intervals,
            home: self.home.clone(),
        };
        match self.outbox.try_send(full) {
            Ok(()) => {
                (self.recorded, self.filled) = (false, false);
                self.merged_intervals = 0;
            }
            Err(TrySendError::Full(full) | TrySendError::Disconnected(full)) => {
                let empty = std::mem::replace(&mut self.current, full.recorder);
                // The spare came out of this channel a moment ago, and only recorders that were handed over return.
                let _ = self.home.try_send(empty);
                self.merged_intervals += 1;
            }
        }
    }
}

/// The handshakes of the whole run, which the protocol thread records and the stats thread reads. No worker comes near the lock,
/// and nobody holds it for longer than a copy takes.
#[derive(Clone, Debug)]
pub struct Handshakes(Arc<Mutex<Histogram<u64>>>);

impl Handshakes {
    /// Records one that took so long.
    pub fn record(&self, round_trip: Span) {
        self.lock().saturating_record(round_trip.as_nanos());
    }

    /// All so far.
    pub fn lock(&self) -> MutexGuard<'_, Histogram<u64>> {
        // A panic while one was recorded leaves the others whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Handshakes {
    fn default() -> Handshakes {
        Handshakes(Arc::new(Mutex::new(histogram())))
    }
}

/// When the second began that `now` is in: all workers hand over in the same ones, and none is left out by a turn that is late.
fn second(now: Time) -> Time {
    Time::from_nanos(now.as_nanos() - now.as_nanos() % HAND_OVER_INTERVAL.as_nanos())
}

/// Records one value.
#[inline]
pub fn record(histogram: &mut Histogram<u32>, value: u64) {
    if RECORDS {
        histogram.saturating_record(value);
    }
}

/// Records a latency once for each packet that had it.
#[inline]
fn record_n(histogram: &mut Histogram<u32>, latency: Span, packets: u64) {
    if RECORDS {
        histogram.saturating_record_n(latency.as_nanos(), u32::try_from(packets).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::super::distributions::VALUE_MAX;
    use super::*;

    const START: Time = Time::from_nanos(7_000_000_000);

    fn later(millis: u64) -> Time {
        START + Span::from_millis(millis)
    }

    /// Packets that took `nanos`, a third of it until they were sealed.
    fn outbound(reporter: &mut Reporter, nanos: u64, packets: u64) {
        let sealed = START + Span::from_nanos(nanos / 3);
        let sent = START + Span::from_nanos(nanos);
        reporter.record_departure(Departure { read: START, sealed, sent }, packets);
    }

    /// Packets that took `nanos`, a quarter of it in the socket's queue, a half until they were opened.
    fn inbound(reporter: &mut Reporter, nanos: u64, packets: u64) {
        let [reaped, opened, written] =
            [nanos / 4, nanos / 2, nanos].map(|nanos| START + Span::from_nanos(nanos));
        reporter.record_delivery(Delivery { received: START, reaped, opened, written }, packets);
    }

    #[test]
    fn an_idle_worker_has_no_deadline_and_hands_nothing_over() {
        let (outbox, inbox) = channel(1);
        let mut reporter = Reporter::new(0, outbox, START);
        assert_eq!(reporter.deadline(), None);
        reporter.tick(later(5_000));
        reporter.flush(START);
        assert!(inbox.is_empty());
    }

    #[test]
    fn what_was_recorded_is_handed_over_after_one_second_and_not_before() {
        let (outbox, inbox) = channel(1);
        let mut reporter = Reporter::new(0, outbox, START);
        outbound(&mut reporter, 1_000, 45);
        inbound(&mut reporter, 30_000, 2);
        assert_eq!(reporter.deadline(), Some(later(1_000)));

        reporter.tick(later(999));
        assert!(inbox.is_empty());
        reporter.tick(later(1_000));
        let full = inbox.try_recv().unwrap();
        assert_eq!(full.recorder.outbound.len(), 45);
        assert_eq!(full.recorder.inbound.len(), 2);
        assert!(full.recorder.outbound.value_at_quantile(0.5).abs_diff(1_000) <= 10);
        assert_eq!(full.merged_intervals, 0);
        assert_eq!(reporter.deadline(), None);
    }

    #[test]
    fn stages_of_a_packet_add_up_and_hold_as_many_packets_as_left() {
        let (outbox, inbox) = channel(1);
        let mut reporter = Reporter::new(0, outbox, START);
        outbound(&mut reporter, 900_000, 45);
        inbound(&mut reporter, 400_000, 7);
        reporter.flush(START);
        let recorder = inbox.try_recv().unwrap().recorder;
        let mean = |histogram: &Histogram<u32>| (histogram.len(), (histogram.mean() / 1e4).round() as u64);
        assert_eq!([mean(&recorder.outbound_seal), mean(&recorder.outbound_send)], [(45, 30), (45, 60)]);
        assert_eq!(mean(&recorder.outbound), (45, 90));
        let stages = [&recorder.inbound_queue, &recorder.inbound_open, &recorder.inbound_write];
        assert_eq!(stages.map(mean), [(7, 10), (7, 10), (7, 20)]);
        assert_eq!(mean(&recorder.inbound), (7, 40));
        assert_eq!((recorder.train_datagrams.len(), recorder.write_packets.max()), (1, 7));
    }

    #[test]
    fn what_no_packet_followed_is_handed_over_too_and_wakes_nobody() {
        let (outbox, inbox) = channel(1);
        let mut reporter = Reporter::new(0, outbox, START);
        record(&mut reporter.recorder().read_bytes, 1_420);
        assert_eq!(reporter.deadline(), None);
        reporter.tick(later(1_000));
        assert_eq!(inbox.try_recv().unwrap().recorder.read_bytes.len(), 1);
    }

    #[test]
    fn a_stamp_later_than_the_turn_makes_no_stage_negative() {
        let (outbox, inbox) = channel(1);
        let mut reporter = Reporter::new(0, outbox, START);
        let moments = Delivery { received: later(2), reaped: later(1), opened: later(3), written: later(4) };
        reporter.record_delivery(moments, 1);
        reporter.flush(later(5));
        let recorder = inbox.try_recv().unwrap().recorder;
        assert_eq!(recorder.inbound_queue.max(), 0);
        assert!(recorder.inbound.max().abs_diff(3_000_000) <= 30_000);
    }

    #[test]
    fn latencies_beyond_the_bounds_count_as_the_bounds() {
        let (outbox, inbox) = channel(1);
        let mut reporter = Reporter::new(0, outbox, START);
        outbound(&mut reporter, 0, 1);
        outbound(&mut reporter, 3_600_000_000_000, u64::MAX);
        reporter.flush(START);
        let outbound = inbox.try_recv().unwrap().recorder.outbound;
        assert_eq!(outbound.min(), 0);
        assert!(outbound.max() >= VALUE_MAX && outbound.max() < 2 * VALUE_MAX);
    }

    #[test]
    fn a_slow_stats_thread_makes_intervals_longer_and_loses_nothing() {
        let (outbox, inbox) = channel(1);
        let mut reporter = Reporter::new(0, outbox, START);
        for second in 1..=4 {
            outbound(&mut reporter, 100, 10);
            reporter.tick(later(second * 1_000));
        }
        // The first took the only spare; the next three merged, each with a deadline in the future.
        assert_eq!(reporter.deadline(), Some(later(5_000)));
        let first = inbox.try_recv().unwrap();
        assert_eq!(first.recorder.outbound.len(), 10);
        first.give_back();
        reporter.tick(later(5_000));
        let second = inbox.try_recv().unwrap();
        assert_eq!(second.recorder.outbound.len(), 30);
        assert_eq!(second.merged_intervals, 3);
    }

    #[test]
    fn a_recorder_comes_back_empty_and_is_used_again() {
        let (outbox, inbox) = channel(1);
        let mut reporter = Reporter::new(0, outbox, START);
        let mut addresses = Vec::new();
        for second in 1..=6 {
            inbound(&mut reporter, second, 1);
            reporter.tick(later(second * 1_000));
            let full = inbox.try_recv().unwrap();
            assert_eq!(full.recorder.inbound.len(), 1);
            addresses.push(std::ptr::from_ref(&*full.recorder).addr());
            full.give_back();
        }
        addresses.sort_unstable();
        addresses.dedup();
        assert_eq!(addresses.len(), RECORDERS_PER_WORKER);
    }

    #[test]
    fn a_full_or_abandoned_inbox_never_stops_a_worker() {
        let (outbox, inbox) = bounded(0);
        let mut reporter = Reporter::new(0, outbox, START);
        outbound(&mut reporter, 100, 1);
        reporter.tick(later(1_000));
        drop(inbox);
        outbound(&mut reporter, 100, 1);
        reporter.tick(later(2_000));
        reporter.flush(START);
        assert_eq!(reporter.current.outbound.len(), 2);
        assert_eq!(reporter.merged_intervals, 3);
    }
}
