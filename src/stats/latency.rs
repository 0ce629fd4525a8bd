//! How long packets stay with us: one recorder per worker, swapped and never locked.
//!
//! Outbound, from the TUN read to the datagram sent; inbound, from the kernel's receive timestamp to the TUN write
//! done. A worker records into the [`Recorder`] it holds; once a second [`LatencyReporter::tick`] exchanges it for an
//! empty one and sends the full one to the stats thread, which gives it back ([`Full::give_back`]). Two recorders go
//! round between the two threads; nothing is allocated after start-up.
//!
//! ```text
//!            Full { recorder }  (bounded, never waited for)
//!   worker ─────────────────────────────────▶ stats thread
//!          ◀─────────────────────────────────
//!              Box<Recorder>, emptied
//! ```

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use hdrhistogram::Histogram;

use crate::time::{Span, Time};

/// How long a worker records before it hands over.
pub const HAND_OVER_INTERVAL: Span = Span::from_secs(1);

/// The longest latency told apart, 10 s; longer ones count as this.
pub const LATENCY_NS_MAX: u64 = 10_000_000_000;

/// Significant decimal digits kept of a latency: 1 % is finer than two runs differ.
const SIGNIFICANT_DIGITS: u8 = 2;

/// Recorders of one worker: one being filled, one with the stats thread.
const RECORDERS_PER_WORKER: usize = 2;

/// An empty latency histogram in nanoseconds with the bounds every recorder has.
pub fn histogram<C: hdrhistogram::Counter>() -> Histogram<C> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, SIGNIFICANT_DIGITS).expect("these bounds are valid")
}

/// Latencies of both directions, in nanoseconds, counted in packets. About 28 KB.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// From the TUN read to the datagram sent.
    pub outbound: Histogram<u32>,
    /// From the kernel's receive timestamp to the TUN write done.
    pub inbound: Histogram<u32>,
}

impl Recorder {
    /// An empty recorder; the only place that allocates.
    pub fn new() -> Recorder {
        Recorder { outbound: histogram(), inbound: histogram() }
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.outbound.is_empty() && self.inbound.is_empty()
    }

    fn clear(&mut self) {
        self.outbound.reset();
        self.inbound.reset();
    }
}

impl Default for Recorder {
    fn default() -> Recorder {
        Recorder::new()
    }
}

/// A recorder on its way to the stats thread.
#[derive(Debug)]
pub struct Full {
    /// What was recorded.
    pub recorder: Box<Recorder>,
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
pub struct LatencyReporter {
    current: Box<Recorder>,
    /// Whether anything was recorded since the last hand-over.
    recorded: bool,
    last_hand_over: Time,
    merged_intervals: u32,
    outbox: Sender<Full>,
    spares: Receiver<Box<Recorder>>,
    home: Sender<Box<Recorder>>,
}

impl LatencyReporter {
    /// A reporter that hands over into `outbox` (see [`channel`]), for the first time one interval after `now`.
    pub fn new(outbox: Sender<Full>, now: Time) -> LatencyReporter {
        let (home, spares) = bounded(RECORDERS_PER_WORKER);
        for _ in 1..RECORDERS_PER_WORKER {
            home.try_send(Box::new(Recorder::new())).expect("the channel is new and has the room");
        }
        LatencyReporter {
            current: Box::new(Recorder::new()),
            recorded: false,
            last_hand_over: now,
            merged_intervals: 0,
            outbox,
            spares,
            home,
        }
    }

    /// Records that `packets` took `latency` from the TUN read to being sent.
    #[inline]
    pub fn record_outbound(&mut self, latency: Span, packets: u64) {
        record(&mut self.current.outbound, latency, packets);
        self.recorded = true;
    }

    /// Records that `packets` took `latency` from the kernel's receive timestamp to being written to the TUN.
    #[inline]
    pub fn record_inbound(&mut self, latency: Span, packets: u64) {
        record(&mut self.current.inbound, latency, packets);
        self.recorded = true;
    }

    /// When [`LatencyReporter::tick`] next has something to do. `None` while nothing is recorded, so that an idle
    /// worker may sleep for ever.
    #[inline]
    pub fn deadline(&self) -> Option<Time> {
        self.recorded.then(|| self.last_hand_over + HAND_OVER_INTERVAL)
    }

    /// Hands over if the interval has passed and something was recorded; otherwise costs two comparisons.
    #[inline]
    pub fn tick(&mut self, now: Time) {
        if self.recorded && now.since(self.last_hand_over) >= HAND_OVER_INTERVAL {
            self.hand_over();
            // Also after a hand-over that was put off: the deadline must lie in the future again.
            self.last_hand_over = now;
        }
    }

    /// Hands over what there is, whatever the time; for shutdown.
    pub fn flush(&mut self) {
        if self.recorded {
            self.hand_over();
        }
    }

    /// Exchanges the recorder for an empty one and sends it. Never waits: without an empty one, or with the stats
    /// thread behind, it records on and counts the interval as merged.
    #[cold]
    fn hand_over(&mut self) {
        let Ok(empty) = self.spares.try_recv() else {
            self.merged_intervals += 1;
            return;
        };
        let recorder = std::mem::replace(&mut self.current, empty);
        let full = Full { recorder, merged_intervals: self.merged_intervals, home: self.home.clone() };
        match self.outbox.try_send(full) {
            Ok(()) => {
                self.recorded = false;
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

fn record(histogram: &mut Histogram<u32>, latency: Span, packets: u64) {
    histogram.saturating_record_n(latency.as_nanos(), u32::try_from(packets).unwrap_or(u32::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_nanos(7_000_000_000);

    fn later(millis: u64) -> Time {
        START + Span::from_millis(millis)
    }

    #[test]
    fn an_idle_worker_has_no_deadline_and_hands_nothing_over() {
        let (outbox, inbox) = channel(1);
        let mut reporter = LatencyReporter::new(outbox, START);
        assert_eq!(reporter.deadline(), None);
        reporter.tick(later(5_000));
        reporter.flush();
        assert!(inbox.is_empty());
    }

    #[test]
    fn what_was_recorded_is_handed_over_after_one_second_and_not_before() {
        let (outbox, inbox) = channel(1);
        let mut reporter = LatencyReporter::new(outbox, START);
        reporter.record_outbound(Span::from_nanos(1_000), 45);
        reporter.record_inbound(Span::from_nanos(30_000), 2);
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
    fn latencies_beyond_the_bounds_count_as_the_bounds() {
        let (outbox, inbox) = channel(1);
        let mut reporter = LatencyReporter::new(outbox, START);
        reporter.record_outbound(Span::ZERO, 1);
        reporter.record_outbound(Span::from_secs(3_600), u64::MAX);
        reporter.flush();
        let outbound = inbox.try_recv().unwrap().recorder.outbound;
        assert_eq!(outbound.min(), 0);
        assert!(outbound.max() >= LATENCY_NS_MAX && outbound.max() < 2 * LATENCY_NS_MAX);
    }

    #[test]
    fn a_slow_stats_thread_makes_intervals_longer_and_loses_nothing() {
        let (outbox, inbox) = channel(1);
        let mut reporter = LatencyReporter::new(outbox, START);
        for second in 1..=4 {
            reporter.record_outbound(Span::from_nanos(100), 10);
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
        let mut reporter = LatencyReporter::new(outbox, START);
        let mut addresses = Vec::new();
        for second in 1..=6 {
            reporter.record_inbound(Span::from_nanos(second), 1);
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
        let mut reporter = LatencyReporter::new(outbox, START);
        reporter.record_outbound(Span::from_nanos(100), 1);
        reporter.tick(later(1_000));
        drop(inbox);
        reporter.record_outbound(Span::from_nanos(100), 1);
        reporter.tick(later(2_000));
        reporter.flush();
        assert_eq!(reporter.current.outbound.len(), 2);
        assert_eq!(reporter.merged_intervals, 3);
    }
}
