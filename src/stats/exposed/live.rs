//! A histogram that one thread fills while others read it.
//!
//! The bounds are those of all histograms here, so a count has the same place in each ([`slot`]). Nothing is ever handed over: a
//! reader sees every value whose recording has ended, and perhaps one more.

use std::sync::OnceLock;

use hdrhistogram::Histogram;

use super::super::counters::Counter;
use super::super::histograms::slot;
use super::super::recorder::RECORDS;

/// The largest value told apart: a hundred thousand seconds in nanoseconds, a hundred terabytes; larger ones count as this.
pub const VALUE_MAX: u64 = 100_000_000_000_000;

/// Significant decimal digits kept.
const SIGNIFICANT_DIGITS: u8 = 2;

/// See the module. 42 KB from the first value on, nothing before.
#[derive(Debug, Default)]
pub struct LiveHistogram(OnceLock<Box<[Counter]>>);

impl LiveHistogram {
    /// Counts a value. Only the owning thread may call this.
    pub fn record(&self, value: u64) {
        if RECORDS {
            let slots = || (0..=slot(VALUE_MAX)).map(|_| Counter::default()).collect();
            self.0.get_or_init(slots)[slot(value.min(VALUE_MAX))].add(1);
        }
    }

    /// Adds what was counted so far to `sum`, which [`histogram`] made.
    pub fn add_to(&self, sum: &mut Histogram<u64>) {
        for (slot, counter) in self.0.get().into_iter().flatten().enumerate() {
            let count = counter.get();
            if count > 0 {
                sum.saturating_record_n(lowest_of(slot), count);
            }
        }
    }
}

/// An empty histogram with the bounds that all have here.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, VALUE_MAX, SIGNIFICANT_DIGITS).expect("these bounds are valid")
}

/// What came after `earlier`, an older reading of the same histogram.
pub fn since(now: &Histogram<u64>, earlier: &Histogram<u64>) -> Histogram<u64> {
    let mut difference = histogram();
    for bucket in now.iter_recorded() {
        let value = bucket.value_iterated_to();
        let count = bucket.count_at_value().saturating_sub(earlier.count_at(value));
        // Even nothing would move the largest value.
        if count > 0 {
            difference.saturating_record_n(value, count);
        }
    }
    difference
}

/// The least value of a slot.
fn lowest_of(slot: usize) -> u64 {
    let power = (slot / 128).saturating_sub(1);
    ((slot - power * 128) as u64) << power
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_least_value_of_a_slot_is_the_first_that_falls_into_it() {
        for index in 0..=slot(VALUE_MAX) {
            assert_eq!(slot(lowest_of(index)), index);
            assert!(index == 0 || slot(lowest_of(index) - 1) == index - 1);
        }
    }

    proptest! {
        #[test]
        fn it_reads_like_one_that_was_filled_the_usual_way(values in prop::collection::vec(any::<u64>().prop_map(|value| value >> (value % 64)), 0..200)) {
            let live = LiveHistogram::default();
            let (mut usual, mut read, mut later) = (histogram(), histogram(), histogram());
            for value in &values {
                live.record(*value);
                usual.saturating_record((*value).min(VALUE_MAX));
            }
            live.add_to(&mut read);
            prop_assert_eq!(&read, &usual);
            live.record(7);
            live.add_to(&mut later);
            let more = since(&later, &read);
            prop_assert_eq!((more.len(), more.max()), (1, 7));
        }
    }
}
