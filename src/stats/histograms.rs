//! Whole histograms for those who draw curves: what an observer answers to `histograms`, and the difference of two answers.
//!
//! A bucket is the largest value that the histogram does not tell from others, and how many values fell into it. Since all
//! distributions have the same bounds, the difference of two moments is exact, and [`slot`] finds a bucket's place again.

use std::collections::BTreeMap;

use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};

use super::counters::Totals;
use super::distributions::{DISTRIBUTIONS, Distributions};
use super::snapshot::{SCHEMA, counters, unit};

/// Values told apart in the first bucket of powers of two: with two significant digits, 256.
const FIRST_SLOTS: u64 = 256;

/// Everything recorded since the start, with what was counted at the same moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Histograms {
    /// The version of the JSON, that of the snapshot.
    pub schema: u32,
    /// How long the tunnel has run, in seconds.
    pub uptime_seconds: f64,
    /// Sums over all workers, by name.
    pub counters: BTreeMap<String, u64>,
    /// One for each stage and quantity.
    pub distributions: Vec<Distribution>,
}

/// One histogram.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// The distribution's name.
    pub name: String,
    /// `ns`, `bytes`, or nothing for a plain number.
    pub unit: String,
    /// What was counted: `packets`, `trains`, …
    pub per: String,
    /// What an interval begins and ends with, or what is counted.
    pub help: String,
    /// Values that occurred, rising, each with how often.
    pub buckets: Vec<(u64, u64)>,
}

impl Histograms {
    /// Of all workers, which counted `workers` and together recorded `distributions`.
    pub fn of(workers: &[Totals], distributions: &Distributions<u64>, uptime_seconds: f64) -> Histograms {
        let mut sums = BTreeMap::new();
        for (name, value) in workers.iter().flat_map(counters) {
            *sums.entry(name).or_default() += value;
        }
        let all = DISTRIBUTIONS.iter().zip(distributions.iter());
        Histograms {
            schema: SCHEMA,
            uptime_seconds,
            counters: sums,
            distributions: all
                .map(|(info, histogram)| Distribution {
                    name: info.name.to_owned(),
                    unit: unit(info.unit).to_owned(),
                    per: info.per.to_owned(),
                    help: info.help.to_owned(),
                    buckets: buckets(histogram),
                })
                .collect(),
        }
    }
}

/// Values that occurred, rising, each with how often.
pub fn buckets<C: Counter>(histogram: &Histogram<C>) -> Vec<(u64, u64)> {
    histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value().as_u64())).collect()
}

impl Distribution {
    /// What came after `earlier`, an answer of the same tunnel. What it had and we lack counts as nothing.
    pub fn since(&self, earlier: &Distribution) -> Distribution {
        let before: BTreeMap<u64, u64> = earlier.buckets.iter().copied().collect();
        let more = |&(value, count): &(u64, u64)| {
            let count = count.saturating_sub(before.get(&value).copied().unwrap_or_default());
            (count > 0).then_some((value, count))
        };
        Distribution { buckets: self.buckets.iter().filter_map(more).collect(), ..self.clone() }
    }

    /// Both together.
    pub fn and(&self, other: &Distribution) -> Distribution {
        let mut sum: BTreeMap<u64, u64> = self.buckets.iter().copied().collect();
        for &(value, count) in &other.buckets {
            let bucket = sum.entry(value).or_default();
            *bucket = bucket.saturating_add(count);
        }
        Distribution { buckets: sum.into_iter().collect(), ..self.clone() }
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// The value that a share `quantile` of all is not above; nothing of nothing.
    pub fn at(&self, quantile: f64) -> Option<u64> {
        let rank = ((self.count() as f64 * quantile).ceil() as u64).max(1);
        let mut passed = 0_u64;
        let mut reached = |&&(_, count): &&(u64, u64)| {
            passed = passed.saturating_add(count);
            passed >= rank
        };
        self.buckets.iter().find(|bucket| reached(bucket)).or(self.buckets.last()).map(|(value, _)| *value)
    }

    /// The largest value.
    pub fn max(&self) -> Option<u64> {
        self.buckets.last().map(|(value, _)| *value)
    }

    /// The mean.
    pub fn mean(&self) -> Option<f64> {
        let sum: f64 = self.buckets.iter().map(|&(value, count)| value as f64 * count as f64).sum();
        (!self.buckets.is_empty()).then(|| sum / self.count() as f64)
    }
}

/// The place of `value` among the counts of a histogram with our bounds: 256 slots of width 1, then for each power of two
/// 128 slots of twice the width before.
///
/// Source: HdrHistogram, `AbstractHistogram.countsArrayIndex`.
pub fn slot(value: u64) -> usize {
    let power = width_power(value);
    (u64::from(power) * (FIRST_SLOTS / 2) + (value >> power)) as usize
}

/// The least of the values that share the slot of `value`. Round numbers are where slots begin.
pub fn lowest_equivalent(value: u64) -> u64 {
    let power = width_power(value);
    (value >> power) << power
}

/// The slot of `value` is two to the power of this wide.
fn width_power(value: u64) -> u32 {
    let mask = FIRST_SLOTS - 1;
    mask.leading_zeros() - (value | mask).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::super::distributions::histogram;
    use super::*;

    fn of(buckets: &[(u64, u64)]) -> Distribution {
        Distribution { buckets: buckets.to_vec(), ..Distribution::default() }
    }

    #[test]
    fn every_bucket_has_the_slot_that_hdrhistogram_gives_it() {
        let histogram = histogram::<u32>();
        let mut slots = 0;
        let mut value = 0;
        while value < 10_000_000_000 {
            let highest = histogram.highest_equivalent(value);
            assert_eq!((slot(value), slot(highest)), (slots, slots), "{value}");
            assert_eq!((lowest_equivalent(value), lowest_equivalent(highest)), (value, value));
            value = histogram.next_non_equivalent(value);
            slots += 1;
        }
        assert_eq!(slots, slot(value - 1) + 1);
    }

    #[test]
    fn the_difference_of_two_moments_is_what_was_recorded_between_them() {
        let mut recorded = Distributions::<u64>::new();
        for value in [5, 700, 700, 123_456] {
            recorded.outbound.saturating_record(value);
        }
        let before = Histograms::of(&[], &recorded, 1.0);
        for value in [700, 9_000_000, 9_000_000] {
            recorded.outbound.saturating_record(value);
        }
        let after = Histograms::of(&[], &recorded, 2.0);
        let between = after.distributions[0].since(&before.distributions[0]);
        let mut alone = Distributions::<u64>::new();
        for value in [700, 9_000_000, 9_000_000] {
            alone.outbound.saturating_record(value);
        }
        assert_eq!(between.buckets, buckets(&alone.outbound));
        assert_eq!(between.and(&before.distributions[0]), after.distributions[0]);
        assert_eq!((between.name.as_str(), between.count()), ("outbound", 3));
    }

    #[test]
    fn quantiles_are_those_of_hdrhistogram() {
        let mut recorded = histogram::<u64>();
        let mut value = 1_u64;
        for step in 1..2_000 {
            value = (value * 48_271 + step) % 2_147_483_647;
            recorded.saturating_record(value);
        }
        let ours = of(&buckets(&recorded));
        for quantile in [0.0, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let theirs = recorded.highest_equivalent(recorded.value_at_quantile(quantile));
            assert_eq!(ours.at(quantile), Some(theirs), "{quantile}");
        }
        let (mean, theirs) = (ours.mean().expect("there are values"), recorded.mean());
        assert!((mean - theirs).abs() <= theirs / 100.0, "{mean} {theirs}");
    }

    #[test]
    fn nothing_has_no_quantiles_and_huge_counts_do_not_overflow() {
        assert_eq!((of(&[]).at(0.5), of(&[]).max(), of(&[]).mean(), of(&[]).count()), (None, None, None, 0));
        let huge = of(&[(u64::MAX - 1, u64::MAX), (u64::MAX, u64::MAX)]);
        assert_eq!((huge.count(), huge.max()), (u64::MAX, Some(u64::MAX)));
        assert!(huge.at(0.999).is_some() && huge.mean().is_some_and(f64::is_finite));
    }
}
