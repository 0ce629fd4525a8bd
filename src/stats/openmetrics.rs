//! What was counted and recorded as OpenMetrics text, for Prometheus.
//!
//! Counters carry their worker as a label, drops their reason and direction, offloads their state and why, histograms nothing;
//! peers, if they are told of one by one, their public key. So the number of series has a bound: it grows with the workers, and
//! with the peers up to [`PEERS_TOLD_MAX`]. Names and help texts are those of the tables ([`super::counters`],
//! [`super::distributions`], [`super::drop`], and below for peers). [`super::text_format`] makes of it what older readers read.
//!
//! Source: the OpenMetrics 1.0 specification, <https://prometheus.io/docs/specs/om/open_metrics_spec/>.

use std::fmt;

use hdrhistogram::Histogram;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit as MetricUnit};

use super::counters::Totals;
use super::distributions::{DISTRIBUTIONS, Distributions, Unit};
use super::drop::{Direction, DropReason};
use super::snapshot::{OffloadSnapshot, PeerSnapshot};
use crate::time::WallTime;

/// The media type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the latency buckets in nanoseconds: three per decade, from 1 µs to 10 s.
pub(super) const NANOS_BOUNDS: [u64; 22] = [
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
/// Upper bounds of the buckets of numbers and bytes: powers of two up to the 16 superpackets that a turn may move.
const COUNT_BOUNDS: [u64; 21] = [
    1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072, 262_144,
    524_288, 1_048_576,
];

/// Peers that are told of one by one at most; of more, the first. Each has a series per line of the tables below.
pub const PEERS_TOLD_MAX: usize = 1000;
const _: () = assert!(PEERS_TOLD_MAX == 1000); // A help text says so.

/// What there is to tell.
#[derive(Debug, Default)]
pub struct Metrics {
    /// The interface's name.
    pub interface: String,
    /// Since the start.
    pub uptime_seconds: f64,
    /// The wall clock at the start.
    pub started: WallTime,
    /// Per worker, in the order of their numbers.
    pub workers: Vec<Totals>,
    /// All workers together.
    pub distributions: Box<Distributions<u64>>,
    /// What the kernel does for the tunnel.
    pub offloads: Vec<OffloadSnapshot>,
    /// Worker seconds that were reported late.
    pub merged_intervals: u64,
    /// None in plaintext mode.
    pub peers: Option<Peers>,
}

/// The peers in numbers.
#[derive(Debug)]
pub struct Peers {
    /// How many there are.
    pub count: usize,
    /// How many of them have a session.
    pub connected: usize,
    /// Those to be told of one by one, at most [`PEERS_TOLD_MAX`]; `None` if that is not wanted.
    pub told: Option<Vec<PeerSnapshot>>,
}

/// One family with a series for each peer.
struct PeerSeries<V> {
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    value: fn(&PeerSnapshot) -> V,
}

/// What is counted for each peer.
const PEER_COUNTERS: &[PeerSeries<u64>] = &[
    PeerSeries {
        name: "peer_received_packets",
        unit: "packets",
        help: "Authenticated messages received from the peer.",
        value: |peer| peer.rx_packets,
    },
    PeerSeries {
        name: "peer_received_bytes",
        unit: "bytes",
        help: "UDP payload bytes of those messages.",
        value: |peer| peer.rx_bytes,
    },
    PeerSeries {
        name: "peer_sent_packets",
        unit: "packets",
        help: "Datagrams sent to the peer.",
        value: |peer| peer.tx_packets,
    },
    PeerSeries {
        name: "peer_sent_bytes",
        unit: "bytes",
        help: "UDP payload bytes of those datagrams.",
        value: |peer| peer.tx_bytes,
    },
    PeerSeries {
        name: "peer_dropped_packets",
        unit: "packets",
        help: "Packets to the peer, and datagrams that named a session with it, that went no further.",
        value: |peer| peer.drops.values().sum(),
    },
    PeerSeries {
        name: "peer_handshakes",
        unit: "",
        help: "Handshakes with the peer that made a session.",
        value: |peer| peer.handshakes,
    },
];

/// What else is told of each peer. A peer without a value has no series.
const PEER_GAUGES: &[PeerSeries<Option<f64>>] = &[
    PeerSeries {
        name: "peer_handshake_age_seconds",
        unit: "seconds",
        help: "Age of the newest handshake with the peer; no series before the first.",
        value: |peer| peer.handshake_age_seconds,
    },
    PeerSeries {
        name: "peer_keypair_age_seconds",
        unit: "seconds",
        help: "Age of the keys that seal what is sent to the peer; no series without any.",
        value: |peer| peer.keypair_age_seconds,
    },
    PeerSeries {
        name: "peer_handshake_duration_seconds",
        unit: "seconds",
        help: "How long the newest handshake with the peer took; no series before the first.",
        value: |peer| (peer.handshakes > 0).then_some(peer.handshake_ns_last as f64 / 1e9),
    },
];

impl Metrics {
    /// The whole answer to a scrape.
    ///
    /// # Errors
    /// None in practice: the text goes to memory.
    pub fn text(self) -> Result<String, fmt::Error> {
        text_of(self)
    }

    fn encode_tunnel(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels = [("interface", self.interface.as_str()), ("version", env!("CARGO_PKG_VERSION"))];
        let help = "The tunnel's interface and the version of the program.";
        encoder.encode_descriptor("build", help, None, MetricType::Info)?.encode_info(&labels)?;
        let help = "When the tunnel started, since 1970-01-01 00:00 UTC.";
        gauge(encoder, "start_time_seconds", "seconds", help, &self.started.as_secs_f64())?;
        gauge(encoder, "uptime_seconds", "seconds", "How long the tunnel has run.", &self.uptime_seconds)?;
        let help = "Worker seconds that were recorded into the next, for want of somebody who took them in.";
        family(encoder, "merged_intervals", "", help, MetricType::Counter, |family| {
            family.encode_counter(&self.merged_intervals, NO_EXEMPLAR)
        })
    }

    fn encode_counters(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (index, info) in Totals::COUNTERS.iter().enumerate() {
            family(encoder, info.name, info.unit, info.help, MetricType::Counter, |family| {
                for (worker, totals) in self.workers.iter().enumerate() {
                    let value = totals.values().nth(index).unwrap_or_default();
                    let labels = [("worker", worker.to_string())];
                    family.encode_family(&labels)?.encode_counter(&value, NO_EXEMPLAR)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn encode_drops(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Packets that went no further, by reason; `uringvpn show` says what each reason means.";
        family(encoder, "dropped_packets", "packets", help, MetricType::Counter, |family| {
            for reason in DropReason::ALL {
                let labels = [("direction", reason.direction().name()), ("reason", reason.label())];
                let packets: u64 = self.workers.iter().map(|totals| totals.dropped(*reason)).sum();
                family.encode_family(&labels)?.encode_counter(&packets, NO_EXEMPLAR)?;
            }
            Ok(())
        })
    }

    fn encode_packets_inside(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let staged: u64 = self.workers.iter().map(|totals| totals.staged).sum();
        gauge(encoder, "staged_packets", "packets", "Packets that wait for a session.", &staged)?;
        let help = "Packets taken in and neither passed on, dropped nor staged. Read while workers run.";
        family(encoder, "in_flight_packets", "packets", help, MetricType::Gauge, |family| {
            for direction in Direction::ALL {
                let in_flight: i64 = self.workers.iter().map(|totals| totals.in_flight(direction)).sum();
                family.encode_family(&[("direction", direction.name())])?.encode_gauge(&in_flight)?;
            }
            Ok(())
        })
    }

    /// One series per offload: its labels change when its state does.
    fn encode_offloads(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 for the state that the offload is in (on, off or downgraded) and its reason in a word; \
                    `uringvpn show` says it in words.";
        let mut family = encoder.encode_descriptor("offload_state", help, None, MetricType::Gauge)?;
        for OffloadSnapshot { offload, state, cause, .. } in &self.offloads {
            let labels = [("offload", offload.as_str()), ("state", state), ("reason", cause)];
            family.encode_family(&labels)?.encode_gauge(&1_u64)?;
        }
        Ok(())
    }

    fn encode_distributions(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (info, histogram) in DISTRIBUTIONS.iter().zip(self.distributions.iter()) {
            let (bounds, divisor, name, unit): (&[u64], f64, _, _) = match info.unit {
                Unit::Nanoseconds => (&NANOS_BOUNDS, 1e9, format!("{}_seconds", info.name), "seconds"),
                Unit::Bytes => (&COUNT_BOUNDS, 1.0, info.name.to_owned(), "bytes"),
                Unit::Count => (&COUNT_BOUNDS, 1.0, info.name.to_owned(), ""),
            };
            let sum = histogram.mean() * histogram.len() as f64 / divisor;
            let buckets = buckets(histogram, bounds, divisor);
            family(encoder, &name, unit, info.help, MetricType::Histogram, |family| {
                family.encode_histogram::<NoLabelSet>(sum, histogram.len(), &buckets, None)
            })?;
        }
        Ok(())
    }
}

impl Peers {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        gauge(encoder, "peers", "", "Peers that are configured.", &(self.count as u64))?;
        let help = "Peers with a session: the newest handshake is younger than 180 seconds.";
        gauge(encoder, "connected_peers", "peers", help, &(self.connected as u64))?;
        let Some(told) = &self.told else { return Ok(()) };
        let help = "Peers beyond the first 1,000, which have no series of their own.";
        gauge(encoder, "untold_peers", "peers", help, &(self.count.saturating_sub(told.len()) as u64))?;
        for PeerSeries { name, unit, help, value } in PEER_COUNTERS {
            family(encoder, name, unit, help, MetricType::Counter, |family| {
                for peer in told {
                    let labels = [("public_key", peer.public_key.as_str())];
                    family.encode_family(&labels)?.encode_counter(&value(peer), NO_EXEMPLAR)?;
                }
                Ok(())
            })?;
        }
        for PeerSeries { name, unit, help, value } in PEER_GAUGES {
            family(encoder, name, unit, help, MetricType::Gauge, |family| {
                for (peer, value) in told.iter().filter_map(|peer| Some((peer, value(peer)?))) {
                    family
                        .encode_family(&[("public_key", peer.public_key.as_str())])?
                        .encode_gauge(&value)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// The whole answer to a scrape of `all`.
pub(super) fn text_of(all: impl Collector) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("uringvpn");
    registry.register_collector(Box::new(all));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// One family of series, its unit told where its name ends in it, as OpenMetrics demands of a unit.
pub(super) fn family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    unit: &str,
    help: &str,
    kind: MetricType,
    fill: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    let stem = name.strip_suffix(unit).and_then(|stem| stem.strip_suffix('_'));
    let unit = stem.map(|_| MetricUnit::Other(unit.to_owned()));
    fill(&mut encoder.encode_descriptor(stem.unwrap_or(name), help, unit.as_ref(), kind)?)
}

/// A family of one gauge.
pub(super) fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    unit: &str,
    help: &str,
    value: &impl EncodeGaugeValue,
) -> fmt::Result {
    family(encoder, name, unit, help, MetricType::Gauge, |family| family.encode_gauge(value))
}

pub(super) const NO_EXEMPLAR: Option<&Exemplar<NoLabelSet, u64>> = None;

/// Upper bound in the unit told, and how many values lie above the former bound and not above this one; the last has no bound.
pub(super) fn buckets(histogram: &Histogram<u64>, bounds: &[u64], divisor: f64) -> Vec<(f64, u64)> {
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
        self.encode_tunnel(&mut encoder)?;
        self.encode_counters(&mut encoder)?;
        self.encode_drops(&mut encoder)?;
        self.encode_packets_inside(&mut encoder)?;
        self.encode_offloads(&mut encoder)?;
        self.peers.iter().try_for_each(|peers| peers.encode(&mut encoder))?;
        self.encode_distributions(&mut encoder)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use nix::errno::Errno;

    use super::super::counters::WorkerCounters;
    use super::super::offloads::{Found, Offload, Refusal, SelfCheck};
    use super::*;
    use crate::time::Time;

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
        let check = SelfCheck::default();
        let refusal = Refusal::NarrowPath { to: ([192, 0, 2, 1], 7).into(), datagram_bytes: 1452 };
        check.refused(refusal, Errno::EMSGSIZE, Time::default(), None);
        check.found(Offload::Uso, Found::SwitchedOff);
        Metrics {
            interface: "wg0".to_owned(),
            uptime_seconds: 1.5,
            started: WallTime::from_parts(1_700_000_000, 250_000_000),
            workers: counted.into(),
            distributions,
            offloads: check.snapshot(Time::default()),
            merged_intervals: 2,
            peers: Some(Peers { count: 1_002, connected: 1, told: None }),
        }
    }

    fn peer(key: &str, handshake_age_seconds: Option<f64>) -> PeerSnapshot {
        PeerSnapshot { public_key: key.into(), handshake_age_seconds, rx_bytes: 7, ..PeerSnapshot::default() }
    }

    fn with_peers(told: Vec<PeerSnapshot>) -> Metrics {
        Metrics { peers: Some(Peers { count: 1_002, connected: 1, told: Some(told) }), ..metrics() }
    }

    #[test]
    fn counters_carry_their_worker_and_their_help() {
        let text = metrics().text().unwrap();
        for lines in [
            "# TYPE uringvpn_tun_reads counter\n",
            "uringvpn_tun_reads_total{worker=\"1\"} 4\n",
            "uringvpn_dropped_packets_total{direction=\"inbound\",reason=\"bad_tag\"} 0\n",
            "# TYPE uringvpn_out_bytes counter\n# UNIT uringvpn_out_bytes bytes\n",
            "# TYPE uringvpn_uptime_seconds gauge\n# UNIT uringvpn_uptime_seconds seconds\nuringvpn_uptime_seconds 1.5\n",
            "uringvpn_start_time_seconds 1700000000.25\n",
            "# TYPE uringvpn_build info\nuringvpn_build_info{interface=\"wg0\",version=\"",
            "uringvpn_merged_intervals_total 2\n",
            "uringvpn_peers 1002\n",
            "uringvpn_connected_peers 1\n",
        ] {
            assert!(text.contains(lines), "{lines}{text}");
        }
        assert!(text.ends_with("# EOF\n") && !text.contains("public_key"));
    }

    #[test]
    fn peers_are_told_of_by_their_key_if_that_is_wanted() {
        let text = with_peers(vec![peer("AAA=", Some(12.5)), peer("BBB=", None)]).text().unwrap();
        for line in [
            "uringvpn_peer_received_bytes_total{public_key=\"BBB=\"} 7\n",
            "uringvpn_peer_handshake_age_seconds{public_key=\"AAA=\"} 12.5\n",
            "uringvpn_untold_peers 1000\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert!(!text.contains("age_seconds{public_key=\"BBB=\"}"));
        let plaintext = Metrics { peers: None, ..metrics() }.text().unwrap();
        assert!(!plaintext.contains("uringvpn_peers"));
    }

    /// Names of families and of samples, each with what OpenMetrics lets the other be.
    #[test]
    fn every_series_has_a_type_and_a_help_and_no_family_comes_twice() {
        let text = with_peers(vec![peer("AAA=", Some(1.0))]).text().unwrap();
        let told = |word: &str| -> Vec<_> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(word)?.split_once(' '));
            lines.collect()
        };
        let (helps, types, units) = (told("# HELP "), told("# TYPE "), told("# UNIT "));
        let names: Vec<_> = types.iter().map(|(name, _)| *name).collect();
        assert_eq!(helps.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
        assert!(
            helps.iter().all(|(_, help)| !help.is_empty() && !help.contains(['"', '\\'])),
            "to be escaped"
        );
        assert!(units.iter().all(|(name, unit)| name.ends_with(&format!("_{unit}"))));
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let sample = line.split(['{', ' ']).next().unwrap();
            let suffixes = |kind: &str| match kind {
                "counter" => &["_total"][..],
                "info" => &["_info"],
                "histogram" => &["_sum", "_count", "_bucket"],
                _ => &[""],
            };
            let fits = |&(name, kind): &(&str, &str)| {
                sample.strip_prefix(name).is_some_and(|suffix| suffixes(kind).contains(&suffix))
            };
            assert_eq!(types.iter().filter(|family| fits(family)).count(), 1, "{sample}");
        }
    }

    #[test]
    fn an_offload_is_one_series_with_its_state_and_why() {
        let text = metrics().text().unwrap();
        for labels in [
            "offload=\"tso\",state=\"on\",reason=\"none\"",
            "offload=\"uso\",state=\"off\",reason=\"switch\"",
            "offload=\"gso\",state=\"downgraded\",reason=\"EMSGSIZE\"",
        ] {
            assert!(text.contains(&format!("uringvpn_offload_state{{{labels}}} 1\n")), "{labels}{text}");
        }
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
            offloads: SelfCheck::default().snapshot(Time::default()),
            ..metrics()
        };
        assert_eq!(series(metrics()), series(fresh));
    }
}
