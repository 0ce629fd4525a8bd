//! Tells from how long packets waited for us when their senders must slow down: CoDel.
//!
//! Inbound, step 6b of 9 (see [`crate::dataplane`]). A queue that drains now and then absorbs bursts and is good. One that
//! never does is nothing but delay: the window of some flow that stands before everybody's packets. CoDel looks at the
//! shortest wait within an interval; while even that is too long it picks packets to be marked or dropped, each sooner
//! after the last.
//!
//! Pure: no clock, no I/O. Source: RFC 8289 §5.

use crate::time::{Span, Time};

/// Waits that are nobody's concern, on the fastest machine. RFC 8289 §4.4 makes it a twentieth of the interval.
pub const TARGET: Span = Span::from_micros(200);
/// How many targets the wait must be too long before that means anything. RFC 8289 §4.3 has an interval of 100 ms, the round trip
/// of flows across the world, for links that are always slower than their flows. A worker only falls behind flows that
/// can fill a core, and those are near. One that is far hears several times of what counts once within its round trip.
const INTERVAL_TARGETS: u64 = 20;
/// Picking goes on at the rate that was found last if the queue has been good for no more intervals than this.
const MEMORY_INTERVALS: u64 = 16;

/// The state of one queue.
#[derive(Debug, Default)]
pub struct Codel {
    /// When we looked for packets, this time and the time before.
    looks: [Time; 2],
    /// When the wait will have been too long for a whole interval, if it is too long now.
    patience_ends: Option<Time>,
    picking: Option<Picking>,
    /// How picking ended last: the picks, and when.
    ended: Option<(u32, Time)>,
}

#[derive(Clone, Copy, Debug)]
struct Picking {
    /// Picks in a row.
    picks: u32,
    /// When the next is due.
    next: Time,
}

impl Codel {
    /// Tells that packets are looked for at `now`. A packet that was not there at the look before has only
    /// waited for the packets found then: RFC 8289 §5.1 spares what a link has to carry anyway in the same way.
    pub fn look(&mut self, now: Time) {
        self.looks = [now, self.looks[0]];
    }

    /// Whether to pick the packet that came at `arrival` and was found by the latest look. RFC 8289 §5.3.
    pub fn picks(&mut self, arrival: Time) -> bool {
        let [now, before] = self.looks;
        let target = TARGET.max(now.since(before));
        if now.since(arrival) < target {
            self.patience_ends = None;
            self.ended = self.picking.take().map(|picking| (picking.picks, now)).or(self.ended);
            return false;
        }
        let interval = target * INTERVAL_TARGETS;
        let patience_ends = *self.patience_ends.get_or_insert(now + interval);
        let (picks, due) = match self.picking {
            Some(Picking { picks, next }) => (picks + 1, next),
            None => (self.first_picks(now, interval), patience_ends),
        };
        if now < due {
            return false;
        }
        // From when it was due, not from now: a worker that was late must not slow the picking down.
        let from = if self.picking.is_some() { due } else { now };
        self.picking = Some(Picking { picks, next: from + pause(interval, picks) });
        true
    }

    /// Where to begin: near the rate that was right a moment ago, else at one pick an interval.
    fn first_picks(&self, now: Time, interval: Span) -> u32 {
        match self.ended {
            Some((picks, at)) if now.since(at) < interval * MEMORY_INTERVALS => {
                picks.saturating_sub(2).max(1)
            }
            _ => 1,
        }
    }
}

/// The time from the pick number `picks` to the next. RFC 8289 §5.4: senders' rates fall with the square root of how often
/// they lose.
fn pause(interval: Span, picks: u32) -> Span {
    Span::from_nanos((interval.as_nanos() as f64 / f64::from(picks).sqrt()) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Span = Span::from_millis(1);

    fn at(tenths: u64) -> Time {
        Time::from_nanos(tenths * 100_000)
    }

    /// When packets are picked of those that come every 0.1 ms from `from` to `to`, in ms, when all have waited for `wait`.
    fn picked(codel: &mut Codel, wait: Span, from: u64, to: u64) -> Vec<Time> {
        let picks = |now: &Time| {
            codel.look(*now);
            codel.picks(Time::from_nanos(now.as_nanos() - wait.as_nanos()))
        };
        (from * 10..to * 10).map(at).filter(picks).collect()
    }

    #[test]
    fn packets_that_hardly_waited_are_never_picked() {
        let wait = Span::from_nanos(TARGET.as_nanos() - 1);
        assert_eq!(picked(&mut Codel::default(), wait, 10, 1000), []);
    }

    #[test]
    fn a_burst_that_drains_within_an_interval_is_never_picked() {
        let mut codel = Codel::default();
        for start in (10..1000).step_by(4) {
            assert_eq!(picked(&mut codel, MILLI, start, start + 3), []);
            assert_eq!(picked(&mut codel, Span::ZERO, start + 3, start + 4), []);
        }
    }

    #[test]
    fn a_standing_queue_is_picked_from_after_one_interval_and_then_ever_more_often() {
        let interval = TARGET * INTERVAL_TARGETS;
        let mut codel = Codel::default();
        picked(&mut codel, Span::ZERO, 9, 10);
        let times = picked(&mut codel, MILLI, 10, 1000);
        assert_eq!(times[0].since(at(100)), interval);
        let pauses: Vec<_> = times.windows(2).map(|pair| pair[1].since(pair[0])).collect();
        assert_eq!(pauses[0], interval);
        // 4 ms / sqrt(100) = 0.4 ms at the hundredth pick.
        assert!(pauses[98..102].iter().all(|pause| pause.as_nanos().abs_diff(400_000) <= 100_000));
    }

    #[test]
    fn picking_ends_with_the_first_packet_that_hardly_waited() {
        let mut codel = Codel::default();
        assert!(!picked(&mut codel, MILLI, 10, 100).is_empty());
        picked(&mut codel, Span::ZERO, 100, 101);
        assert_eq!(picked(&mut codel, MILLI, 101, 105), []);
    }

    #[test]
    fn a_queue_that_stands_again_soon_is_picked_from_at_nearly_the_old_rate() {
        let picks_after = |pause: u64| {
            let mut codel = Codel::default();
            picked(&mut codel, MILLI, 10, 100);
            picked(&mut codel, Span::ZERO, 100, 100 + pause);
            picked(&mut codel, MILLI, 100 + pause, 114 + pause).len()
        };
        assert!(picks_after(1) > 15, "{}", picks_after(1));
        assert!(picks_after(200) < 8, "{}", picks_after(200));
    }

    #[test]
    fn what_was_not_there_when_a_slow_worker_looked_before_has_not_waited() {
        let mut codel = Codel::default();
        for now in (100..10_000).step_by(20).map(at) {
            codel.look(now);
            // Looks every 2 ms.
            assert!(!codel.picks(Time::from_nanos(now.as_nanos() - 1_999_999)));
        }
    }
}
