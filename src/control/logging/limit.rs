//! So many lines of one place in so long, and then one that says how many were left out.
//!
//! Whoever sends us messages decides how often some places are reached, so no place may fill a disk. What was left out is told
//! with the next line of any place, or at the end: no timer runs for it. Pure: time is an argument.

use std::collections::HashMap;
use std::hash::Hash;

use super::record::Record;
use crate::time::{Span, Time};

/// Lines of one place within [`INTERVAL`]; those after them are counted.
pub const LINES_MAX: u32 = 20;
/// See [`LINES_MAX`].
pub const INTERVAL: Span = Span::from_secs(5);

/// What is limited.
pub trait Line {
    /// Stands for so many lines that were left out, of which this is the newest.
    fn newest_of(self, left_out: u64) -> Self;
}

impl Line for Record {
    fn newest_of(mut self, left_out: u64) -> Record {
        self.message += &format!(" (the newest of {left_out} lines like it that were left out)");
        self
    }
}

/// See the module. `P` names places; there are as many as the program has.
#[derive(Debug)]
pub struct Limit<P, L> {
    places: HashMap<P, Window<L>>,
}

impl<P, L> Default for Limit<P, L> {
    fn default() -> Limit<P, L> {
        Limit { places: HashMap::new() }
    }
}

/// What came of one place since `began`.
#[derive(Debug)]
struct Window<L> {
    began: Time,
    lines: u32,
    left_out: u64,
    /// The newest of them.
    newest: Option<L>,
}

impl<L: Line> Window<L> {
    fn summary(&mut self) -> Option<L> {
        let left_out = std::mem::take(&mut self.left_out);
        self.newest.take().map(|line| line.newest_of(left_out))
    }
}

impl<P: Eq + Hash, L: Line> Limit<P, L> {
    /// What may be written now that `place` has something to say: what was left out in intervals that have ended, and the line
    /// itself if it is not one too many.
    pub fn pass(&mut self, place: P, line: L, now: Time) -> Vec<L> {
        let ended = |window: &Window<L>| now.since(window.began) >= INTERVAL;
        let over = self.places.values_mut().filter(|window| ended(window));
        let mut passed: Vec<_> = over.filter_map(Window::summary).collect();
        let fresh = Window { began: now, lines: 0, left_out: 0, newest: None };
        let window = self.places.entry(place).or_insert(fresh);
        if ended(window) {
            (window.began, window.lines) = (now, 0);
        }
        if window.lines < LINES_MAX {
            window.lines += 1;
            passed.push(line);
        } else {
            window.left_out += 1;
            window.newest = Some(line);
        }
        passed
    }

    /// What was left out and not told yet.
    pub fn finish(&mut self) -> Vec<L> {
        self.places.values_mut().filter_map(Window::summary).collect()
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    fn line(number: u32) -> Record {
        Record::new(Level::DEBUG, &format!("line {number}"))
    }

    fn messages(records: Vec<Record>) -> Vec<String> {
        records.into_iter().map(|record| record.message).collect()
    }

    fn at(millis: u64) -> Time {
        Time::default() + Span::from_millis(millis)
    }

    /// All that a million lines of one place leave at one moment.
    fn flood(limit: &mut Limit<&'static str, Record>, millis: u64) -> usize {
        (0..1_000_000).map(|number| limit.pass("flood", line(number), at(millis)).len()).sum()
    }

    #[test]
    fn a_million_lines_of_one_place_become_a_few_and_one_that_counts_them() {
        let mut limit = Limit::default();
        assert_eq!(flood(&mut limit, 0), LINES_MAX as usize);
        assert_eq!(messages(limit.pass("other", line(7), at(4_999))), ["line 7"]);
        let told = "line 999999 (the newest of 999980 lines like it that were left out)";
        assert_eq!(messages(limit.pass("other", line(8), at(5_000))), [told, "line 8"]);
        assert_eq!(messages(limit.pass("other", line(9), at(5_001))), ["line 9"]);
        assert!(limit.finish().is_empty());
    }

    #[test]
    fn after_the_interval_a_place_speaks_again_and_first_of_what_it_left_out() {
        let mut limit = Limit::default();
        flood(&mut limit, 0);
        let again = messages(limit.pass("flood", line(1), at(5_000)));
        assert!(again.len() == 2 && again[0].contains(" 999980 lines ") && again[1] == "line 1", "{again:?}");
        assert_eq!(flood(&mut limit, 9_999), LINES_MAX as usize - 1);
        assert_eq!(messages(limit.finish()).len(), 1);
    }

    #[test]
    fn a_place_that_is_reached_seldom_loses_nothing() {
        let mut limit = Limit::default();
        for number in 0..1_000 {
            assert_eq!(limit.pass("seldom", line(number), at(u64::from(number) * 251)).len(), 1);
        }
        assert!(limit.finish().is_empty());
    }
}
