//! What was counted and recorded as OpenMetrics text, for Prometheus.
//!
//! Counters carry their worker as a label, drops their reason and direction, histograms nothing: the number of series has a
//! bound that only the number of workers moves. Names and help texts are those of the tables ([`super::counters`],
//! [`super::distributions`], [`super::drop`]).
//!
//! Source: the OpenMetrics 1.0 specification, <https://prometheus.io/docs/specs/om/open_metrics_spec/>.

use std::fmt;

use hdrhistogram::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit as MetricUnit};

use super::counters::Totals;
use super::distributions::{DISTRIBUTIONS, Distributions, Unit};
use super::drop::{Direction, DropReason};

/// The media type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the latency buckets in nanoseconds: three per decade, from 1 µs to 10 s.
const NANOS_BOUNDS: [u64; 22] = [
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];
/// Upper bounds of the buckets of numbers and bytes: powers of two up to the largest packet.
const COUNT_BOUNDS: [u64; 17] =
    [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536];

/// What there is to tell.
#[derive(Debug)]
pub struct Metrics {
    /// Per worker, in the order of their numbers.
    pub workers: Vec<Totals>,
    /// All workers together.
    pub distributions: Box<Distributions<u64>>,
    /// Since the start.
    pub uptime_seconds: f64,
}

impl Metrics {
    /// The whole answer to a scrape.
    ///
    /// # Errors
    /// None in practice: the text goes to memory.
    pub fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("uringvpn");
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }

    fn encode_counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (index, info) in Totals::COUNTERS.iter().enumerate() {
            let mut family = encoder.encode_descriptor(info.name, info.help, None, MetricType::Counter)?;
            for (worker, totals) in self.workers.iter().enumerate() {
                let value = totals.values().nth(index).unwrap_or_default();
                let labels = [("worker", worker.to_string())];
                family.encode_family(&labels)?.encode_counter(&value, NO_EXEMPLAR)?;
            }
        }
        Ok(())
    }

    fn encode_drops(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Packets that went no further, by reason; `uringvpn show` says what each reason means.";
        let mut family = encoder.encode_descriptor("dropped_packets", help, None, MetricType::Counter)?;
        for reason in DropReason::ALL {
            let labels = [("direction", reason.direction().name()), ("reason", reason.label())];
            let packets: u64 = self.workers.iter().map(|totals| totals.dropped(*reason)).sum();
            family.encode_family(&labels)?.encode_counter(&packets, NO_EXEMPLAR)?;
        }
        Ok(())
    }

    fn encode_gauges(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Packets that wait for a session.";
        let staged: u64 = self.workers.iter().map(|totals| totals.staged).sum();
        encoder.encode_descriptor("staged_packets", help, None, MetricType::Gauge)?.encode_gauge(&staged)?;
        let help = "Packets taken in and neither passed on, dropped nor staged. Read while workers run.";
        let mut family = encoder.encode_descriptor("in_flight_packets", help, None, MetricType::Gauge)?;
        for direction in Direction::ALL {
            let in_flight: i64 = self.workers.iter().map(|totals| totals.in_flight(direction)).sum();
            family.encode_family(&[("direction", direction.name())])?.encode_gauge(&in_flight)?;
        }
        let help = "How long the tunnel has run.";
        let unit = Some(&MetricUnit::Seconds);
        encoder.encode_descriptor("uptime", help, unit, MetricType::Gauge)?.encode_gauge(&self.uptime_seconds)
    }

    fn encode_distributions(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (info, histogram) in DISTRIBUTIONS.iter().zip(self.distributions.iter()) {
            let (bounds, divisor, unit): (&[u64], f64, _) = match info.unit {
                Unit::Nanoseconds => (&NANOS_BOUNDS, 1e9, Some(MetricUnit::Seconds)),
                // Those names end in the word already.
                Unit::Bytes | Unit::Count => (&COUNT_BOUNDS, 1.0, None),
            };
            let sum = histogram.mean() * histogram.len() as f64 / divisor;
            let buckets = buckets(histogram, bounds, divisor);
            encoder
                .encode_descriptor(info.name, info.help, unit.as_ref(), MetricType::Histogram)?
                .encode_histogram::<NoLabelSet>(sum, histogram.len(), &buckets, None)?;
        }
        Ok(())
    }
}

const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;

/// Upper bound in the unit told, and how many values lie above the former bound and not above this one; the last has no bound.
fn buckets(histogram: &Histogram<u64>, bounds: &[u64], divisor: f64) -> Vec<(f64, u64)> {
    let mut counts = vec![0; bounds.len() + 1];
    for bucket in histogram.iter_recorded() {
        // Of the values that share a slot the lowest: bounds are where slots begin.
        let value = histogram.lowest_equivalent(bucket.value_iterated_to());
        let index = bounds.partition_point(|bound| *bound < value);
        counts[index] += bucket.count_at_value();
    }
    let bounds = bounds.iter().map(|bound| *bound as f64 / divisor).chain([f64::INFINITY]);
    bounds.zip(counts).collect()
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_counters(&mut encoder)?;
        self.encode_drops(&mut encoder)?;
        self.encode_gauges(&mut encoder)?;
        self.encode_distributions(&mut encoder)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::counters::WorkerCounters;
    use super::*;

    fn metrics() -> Metrics {
        let mut distributions = Box::new(Distributions::new());
        for nanos in [900, 30_000, 30_000, 20_000_000_000] {
            distributions.outbound.saturating_record(nanos);
        }
        let counted = [3, 4].map(|reads| {
            let worker = WorkerCounters::default();
            worker.tun_reads.add(reads);
            Totals::of([&worker])
        });
        let workers = counted.into();
        Metrics { workers, distributions, uptime_seconds: 1.5 }
    }

    #[test]
    fn counters_carry_their_worker_and_their_help() {
        let text = metrics().text().unwrap();
        assert!(text.contains("# TYPE uringvpn_tun_reads counter\n"), "{text}");
        assert!(text.contains("uringvpn_tun_reads_total{worker=\"1\"} 4\n"));
        assert!(
            text.contains("uringvpn_dropped_packets_total{direction=\"inbound\",reason=\"bad_tag\"} 0\n")
        );
        assert!(text.contains("uringvpn_uptime_seconds 1.5\n"));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn buckets_are_cumulative_and_end_with_every_value() {
        let text = metrics().text().unwrap();
        for line in [
            "uringvpn_outbound_seconds_bucket{le=\"0.000001\"} 1\n",
            "uringvpn_outbound_seconds_bucket{le=\"0.000025\"} 1\n",
            "uringvpn_outbound_seconds_bucket{le=\"0.00005\"} 3\n",
            "uringvpn_outbound_seconds_bucket{le=\"+Inf\"} 4\n",
            "uringvpn_outbound_seconds_count 4\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn a_value_on_a_bound_is_within_it() {
        let mut histogram = super::super::distributions::histogram();
        COUNT_BOUNDS.iter().for_each(|bound| histogram.saturating_record(*bound));
        let counts: Vec<_> =
            buckets(&histogram, &COUNT_BOUNDS, 1.0).into_iter().map(|(_, count)| count).collect();
        assert_eq!(counts, [vec![1; COUNT_BOUNDS.len()], vec![0]].concat());
    }

    #[test]
    fn the_number_of_series_depends_on_the_workers_alone() {
        let series =
            |metrics: Metrics| metrics.text().unwrap().lines().filter(|line| !line.starts_with('#')).count();
        let fresh = Metrics {
            workers: vec![Totals::default(); 2],
            distributions: Box::default(),
            uptime_seconds: 0.0,
        };
        assert_eq!(series(metrics()), series(fresh));
    }
}
