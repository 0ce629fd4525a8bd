//! The last minute, second by second.
//!
//! Workers hand over once a second while they move packets and not at all while they do not, so a second without an entry
//! is one in which nothing moved. A second is the one in which a hand-over fell: what it tells happened up to a second
//! before.

use std::collections::VecDeque;

use super::counters::Totals;
use super::distributions::Distributions;
use super::recorder::Recorder;
use super::snapshot::{Quantiles, Second, counters};
use crate::time::Time;

/// How far back it reaches.
pub const SECONDS: usize = 60;

const NANOS: u64 = 1_000_000_000;

/// See the module.
#[derive(Debug)]
pub struct History {
    closed: VecDeque<Entry>,
    /// The second that hand-overs fall into now, as a number of whole seconds.
    second: u64,
    /// The counters when it began, and at its newest hand-over.
    before: Totals,
    latest: Totals,
    recorded: Distributions<u64>,
    /// Whether anything fell into it.
    open: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    second: u64,
    counted: Totals,
    outbound: Quantiles,
    inbound: Quantiles,
}

impl History {
    /// Nothing has happened yet.
    pub fn new() -> History {
        History {
            closed: VecDeque::with_capacity(SECONDS),
            second: 0,
            before: Totals::default(),
            latest: Totals::default(),
            recorded: Distributions::new(),
            open: false,
        }
    }

    /// Takes in what a worker recorded until `ended`, and the counters as they are now.
    pub fn add(&mut self, recorder: &Recorder, ended: Time, totals: Totals) {
        let second = ended.as_nanos() / NANOS;
        // Hand-overs of two workers may overtake each other: then the newer second takes both.
        if second > self.second {
            self.close();
            self.second = second;
        }
        self.recorded.add(recorder);
        self.latest = totals;
        self.open = true;
    }

    /// The entries of the minute before `now`, oldest first.
    pub fn seconds(&self, now: Time) -> Vec<Second> {
        let now = now.as_nanos() as f64 / NANOS as f64;
        let open = self.open.then(|| self.entry());
        let entries = self.closed.iter().cloned().chain(open);
        let seconds = entries.map(|entry| Second {
            seconds_ago: (now - (entry.second + 1) as f64).max(0.0),
            dropped: entry.counted.dropped_in_all(),
            counters: counters(&entry.counted),
            outbound: entry.outbound,
            inbound: entry.inbound,
        });
        seconds.filter(|second| second.seconds_ago <= SECONDS as f64).collect()
    }

    fn entry(&self) -> Entry {
        Entry {
            second: self.second,
            counted: self.latest.since(&self.before),
            outbound: Quantiles::named("outbound", &self.recorded),
            inbound: Quantiles::named("inbound", &self.recorded),
        }
    }

    fn close(&mut self) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        if self.closed.len() == SECONDS {
            self.closed.pop_front();
        }
        self.closed.push_back(self.entry());
        self.before = self.latest.clone();
        self.recorded.clear();
    }
}

impl Default for History {
    fn default() -> History {
        History::new()
    }
}

#[cfg(test)]
mod tests {
    use super::super::counters::WorkerCounters;
    use super::*;
    use crate::time::Span;

    fn totals(packets: u64) -> Totals {
        let worker = WorkerCounters::default();
        worker.sent_datagrams.add(packets);
        Totals::of([&worker])
    }

    fn recorder(nanos: u64) -> Recorder {
        let mut recorder = Recorder::new();
        recorder.outbound.saturating_record(nanos);
        recorder
    }

    fn at(millis: u64) -> Time {
        Time::from_nanos(0) + Span::from_millis(millis)
    }

    #[test]
    fn hand_overs_of_one_second_make_one_entry_with_what_was_counted_since_the_last() {
        let mut history = History::new();
        history.add(&recorder(1_000), at(5_100), totals(10));
        history.add(&recorder(3_000), at(5_900), totals(25));
        history.add(&recorder(7_000), at(9_500), totals(26));
        let seconds = history.seconds(at(10_000));
        let seen: Vec<_> =
            seconds.iter().map(|second| (second.seconds_ago, second.counters["sent_datagrams"])).collect();
        assert_eq!(seen, [(4.0, 25), (0.0, 1)]);
        assert_eq!((seconds[0].outbound.count, seconds[1].outbound.count), (2, 1));
        assert!(seconds[0].outbound.max.abs_diff(3_000) <= 30);
    }

    #[test]
    fn it_forgets_what_is_older_than_a_minute_and_never_grows() {
        let mut history = History::new();
        for second in 1..=200 {
            history.add(&recorder(100), at(second * 1_000), totals(second));
        }
        assert_eq!(history.closed.len(), SECONDS);
        assert_eq!(history.seconds(at(201_000)).len(), SECONDS + 1);
        assert!(history.seconds(at(300_000)).is_empty());
    }

    #[test]
    fn a_late_hand_over_of_another_worker_is_not_lost() {
        let mut history = History::new();
        history.add(&recorder(100), at(6_000), totals(1));
        history.add(&recorder(100), at(5_999), totals(2));
        let seconds = history.seconds(at(6_500));
        assert_eq!((seconds.len(), seconds[0].outbound.count), (1, 2));
    }
}
