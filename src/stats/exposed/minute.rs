//! The last minute of a program that exposes ports, second by second.
//!
//! Whoever keeps it looks once a second ([`Minute::look`]); a look that comes late covers more than a second. Seconds without
//! anything have no entry.

use std::collections::VecDeque;

use super::Kind;
use super::counters::Counted;
use super::recorder::Read;
use super::snapshot::{ExposedSecond, ExposedSnapshot, Sums, named, quantiles};
use crate::stats::history::SECONDS;
use crate::stats::snapshot::Quantiles;
use crate::time::{Span, Time};

/// Between two looks.
const SECOND: Span = Span::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Minute {
    kind: Kind,
    /// When each second ended, and what was counted in it.
    seconds: VecDeque<(Time, Counted)>,
    last_second: Vec<Quantiles>,
    last_second_ended: Option<Time>,
    before: Counted,
    recorded_before: Read,
    next: Time,
}

impl Minute {
    /// Begins `now`.
    pub fn new(kind: Kind, now: Time) -> Minute {
        Minute {
            kind,
            seconds: VecDeque::with_capacity(SECONDS),
            last_second: Vec::new(),
            last_second_ended: None,
            before: Counted::default(),
            recorded_before: Read::default(),
            next: now + SECOND,
        }
    }

    /// When the next look is due.
    pub fn next(&self) -> Time {
        self.next
    }

    /// Looks at what was counted until `now`, when the next look is due.
    pub fn look(&mut self, sums: Sums, now: Time) {
        self.next = now + SECOND;
        let counted = sums.counted.since(&self.before);
        if counted != Counted::default() {
            if self.seconds.len() == SECONDS {
                self.seconds.pop_front();
            }
            self.seconds.push_back((now, counted));
        }
        let recorded = sums.recorded.since(&self.recorded_before);
        if !recorded.is_empty() {
            self.last_second = quantiles(&recorded, self.kind);
            self.last_second_ended = Some(now);
        }
        (self.before, self.recorded_before) = (sums.counted, sums.recorded);
    }

    /// Tells `snapshot` what is known.
    pub fn tell(&self, snapshot: &mut ExposedSnapshot, now: Time) {
        let ago = |ended: Time| now.since(ended).as_secs_f64();
        let recent = self.seconds.iter().filter(|(ended, _)| ago(*ended) <= SECONDS as f64);
        let second = |(ended, counted): &(Time, Counted)| ExposedSecond {
            seconds_ago: ago(*ended),
            counters: named(Counted::TABLE, counted.values(), self.kind),
        };
        snapshot.seconds = recent.map(second).collect();
        snapshot.last_second.clone_from(&self.last_second);
        snapshot.last_second_ago = self.last_second_ended.map(ago);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::reasons::Ended;
    use super::super::recorder::{Meter, Recorder};
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_nanos(0) + Span::from_secs(seconds)
    }

    #[test]
    fn each_second_tells_what_was_added_in_it_and_silent_ones_nothing() {
        let recorder = Arc::new(Recorder::default());
        let mut minute = Minute::new(Kind::Server, at(10));
        assert_eq!(minute.next(), at(11));
        for (second, visitors) in [(11, 2), (12, 0), (13, 5), (100, 1)] {
            (0..visitors).for_each(|_| recorder.visitor_came(None));
            minute.look(Sums::of([recorder.as_ref()]), at(second));
        }
        let mut told = ExposedSnapshot::default();
        minute.tell(&mut told, at(14));
        let visitors = |told: &ExposedSnapshot| {
            told.seconds.iter().map(|one| one.counters["visitors"]).collect::<Vec<_>>()
        };
        assert_eq!(visitors(&told), [2, 5, 1]);
        assert_eq!(told.seconds[1].seconds_ago, 1.0);
        minute.tell(&mut told, at(101));
        assert_eq!(visitors(&told), [1]);
        assert_eq!((told.last_second.len(), told.last_second_ago), (0, None));
    }

    #[test]
    fn the_last_second_holds_what_was_recorded_in_it_alone() {
        let recorder = Arc::new(Recorder::default());
        let mut minute = Minute::new(Kind::Local, at(0));
        for (second, bytes) in [(1, 500), (2, 90)] {
            let meter = Meter::joined(&recorder, None, at(0), at(0), 0);
            meter.over(Ended::Finished, [bytes, 0], Span::ZERO);
            minute.look(Sums::of([recorder.as_ref()]), at(second));
        }
        minute.look(Sums::of([recorder.as_ref()]), at(3));
        let mut told = ExposedSnapshot::default();
        minute.tell(&mut told, at(4));
        let out = told.last_second.iter().find(|row| row.name == "out_bytes").unwrap();
        assert_eq!((out.count, out.max, told.last_second_ago), (1, 90, Some(2.0)));
    }

    #[test]
    fn it_never_holds_more_than_a_minute() {
        let recorder = Recorder::default();
        let mut minute = Minute::new(Kind::Server, at(0));
        for second in 1..=200 {
            recorder.visitor_came(None);
            minute.look(Sums::of([&recorder]), at(second));
        }
        assert_eq!(minute.seconds.len(), SECONDS);
    }
}
