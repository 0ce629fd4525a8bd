//! What a program that exposes ports counted and recorded as OpenMetrics text, for Prometheus.
//!
//! Reasons and ports are labels. The number of series has a bound: of ports the first [`PORTS_TOLD_MAX`] have series of their own.
//! Names begin with `uringvpn_exposed_`, names and help texts are those of the tables ([`super::counters`], [`super::reasons`],
//! [`super::recorder`], and below for ports).
//!
//! Source: the OpenMetrics 1.0 specification, <https://prometheus.io/docs/specs/om/open_metrics_spec/>.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::Kind;
use super::counters::{Counted, Present};
use super::reasons::{Ended, Loss, Reason, Refused, TurnedAway};
use super::recorder::DISTRIBUTIONS;
use super::snapshot::{PortSnapshot, Sums};
use crate::stats::distributions::Unit;
use crate::stats::openmetrics::{NANOS_BOUNDS, NO_EXEMPLAR, buckets, family, gauge, text_of};
use crate::time::WallTime;

/// Ports that are told of one by one at most; of more, those with the lowest numbers.
pub const PORTS_TOLD_MAX: usize = 256;
const _: () = assert!(PORTS_TOLD_MAX == 256); // A help text says so.

/// Upper bounds for how long connections last, in nanoseconds: from 1 ms to a day.
const LONG_BOUNDS: [u64; 12] = [
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
    5_000_000_000,
    10_000_000_000,
    60_000_000_000,
    300_000_000_000,
    1_800_000_000_000,
    3_600_000_000_000,
    21_600_000_000_000,
    86_400_000_000_000,
];
/// Upper bounds of bytes: powers of four, from 64 bytes to 64 GiB.
const BYTE_BOUNDS: [u64; 16] = [
    1 << 6,
    1 << 8,
    1 << 10,
    1 << 12,
    1 << 14,
    1 << 16,
    1 << 18,
    1 << 20,
    1 << 22,
    1 << 24,
    1 << 26,
    1 << 28,
    1 << 30,
    1 << 32,
    1 << 34,
    1 << 36,
];

/// What there is to tell.
#[derive(Debug)]
pub struct ExposedMetrics {
    /// Of which program.
    pub kind: Kind,
    /// What `show` calls it.
    pub name: String,
    /// Since the start.
    pub uptime_seconds: f64,
    /// The wall clock at the start.
    pub started: WallTime,
    /// All threads together.
    pub sums: Sums,
    /// The ports, in the order of their numbers.
    pub ports: Vec<PortSnapshot>,
}

/// One family with a series for each port.
struct PortSeries {
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&PortSnapshot) -> u64,
}

/// What is told of each port.
const PORT_SERIES: &[PortSeries] = &[
    PortSeries {
        name: "exposed_port_visitors",
        unit: "",
        help: "Visitors that came to the port since it was opened.",
        kind: MetricType::Counter,
        value: |port| port.visitors,
    },
    PortSeries {
        name: "exposed_port_turned_away",
        unit: "",
        help: "Visitors of the port that were not joined.",
        kind: MetricType::Counter,
        value: |port| port.turned_away,
    },
    PortSeries {
        name: "exposed_port_in_bytes",
        unit: "bytes",
        help: "Bytes that came from visitors of the port.",
        kind: MetricType::Counter,
        value: |port| port.in_bytes,
    },
    PortSeries {
        name: "exposed_port_out_bytes",
        unit: "bytes",
        help: "Bytes that were passed on to visitors of the port.",
        kind: MetricType::Counter,
        value: |port| port.out_bytes,
    },
    PortSeries {
        name: "exposed_port_open",
        unit: "",
        help: "Connections of the port that are relayed.",
        kind: MetricType::Gauge,
        value: |port| port.open,
    },
    PortSeries {
        name: "exposed_port_present",
        unit: "",
        help: "1 when the connection between client and server stands, 0 while the client is away.",
        kind: MetricType::Gauge,
        value: |port| u64::from(port.state == "open"),
    },
];

impl ExposedMetrics {
    /// The whole answer to a scrape.
    ///
    /// # Errors
    /// None in practice: the text goes to memory.
    pub fn text(self) -> Result<String, fmt::Error> {
        text_of(self)
    }

    fn encode_program(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels = [
            ("name", self.name.as_str()),
            ("kind", self.kind.name()),
            ("version", env!("CARGO_PKG_VERSION")),
        ];
        let help = "The program's name and kind, and its version.";
        encoder.encode_descriptor("exposed_build", help, None, MetricType::Info)?.encode_info(&labels)?;
        let help = "When the program started, since 1970-01-01 00:00 UTC.";
        gauge(encoder, "exposed_start_time_seconds", "seconds", help, &self.started.as_secs_f64())?;
        let help = "How long the program has run.";
        gauge(encoder, "exposed_uptime_seconds", "seconds", help, &self.uptime_seconds)
    }

    fn encode_numbers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mine = Counted::TABLE.iter().zip(self.sums.counted.values());
        for (info, value) in mine.filter(|(info, _)| info.whose.is(self.kind)) {
            let name = format!("exposed_{}", info.name);
            family(encoder, &name, info.unit, info.help, MetricType::Counter, |family| {
                family.encode_counter(&value, NO_EXEMPLAR)
            })?;
        }
        let mine = Present::TABLE.iter().zip(self.sums.present.values());
        for (info, value) in mine.filter(|(info, _)| info.whose.is(self.kind)) {
            gauge(encoder, &format!("exposed_{}", info.name), info.unit, info.help, &value)?;
        }
        Ok(())
    }

    fn encode_reasons<R: Reason>(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        [name, label, help]: [&str; 3],
        counts: &[u64],
    ) -> fmt::Result {
        let mine: Vec<_> = R::ALL.iter().filter(|reason| reason.whose().is(self.kind)).collect();
        if mine.is_empty() {
            return Ok(());
        }
        family(encoder, name, "", help, MetricType::Counter, |family| {
            for reason in mine {
                let count = counts.get(reason.index()).copied().unwrap_or_default();
                family.encode_family(&[(label, reason.label())])?.encode_counter(&count, NO_EXEMPLAR)?;
            }
            Ok(())
        })
    }

    fn encode_distributions(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let all = DISTRIBUTIONS.iter().zip(self.sums.recorded.iter());
        for ((_, info), histogram) in all.filter(|((whose, _), _)| whose.is(self.kind)) {
            let (bounds, divisor, name, unit): (&[u64], f64, _, _) = match (info.unit, info.name) {
                (Unit::Nanoseconds, "duration") => (&LONG_BOUNDS, 1e9, "duration_seconds".into(), "seconds"),
                (Unit::Nanoseconds, name) => (&NANOS_BOUNDS, 1e9, format!("{name}_seconds"), "seconds"),
                (Unit::Bytes | Unit::Count, name) => {
                    // The counters of all connections have the plain names.
                    (&BYTE_BOUNDS, 1.0, format!("connection_{name}"), "bytes")
                }
            };
            let sum = histogram.mean() * histogram.len() as f64 / divisor;
            let buckets = buckets(histogram, bounds, divisor);
            let name = format!("exposed_{name}");
            family(encoder, &name, unit, info.help, MetricType::Histogram, |family| {
                family.encode_histogram::<NoLabelSet>(sum, histogram.len(), &buckets, None)
            })?;
        }
        Ok(())
    }

    fn encode_ports(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (told, untold) = self.ports.split_at(self.ports.len().min(PORTS_TOLD_MAX));
        let help = "Ports beyond the first 256, which have no series of their own.";
        gauge(encoder, "exposed_untold_ports", "ports", help, &(untold.len() as u64))?;
        for PortSeries { name, unit, help, kind, value } in PORT_SERIES {
            family(encoder, name, unit, help, *kind, |family| {
                for port in told {
                    let labels = [("port", port.port.to_string()), ("protocol", port.protocol.clone())];
                    let mut series = family.encode_family(&labels)?;
                    match kind {
                        MetricType::Gauge => series.encode_gauge(&value(port))?,
                        _ => series.encode_counter(&value(port), NO_EXEMPLAR)?,
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Collector for ExposedMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sums = &self.sums;
        self.encode_program(&mut encoder)?;
        self.encode_numbers(&mut encoder)?;
        let help = "Relayed connections that ended, by how; `uringvpn show` says what each means.";
        self.encode_reasons::<Ended>(&mut encoder, ["exposed_ended", "how", help], &sums.ended)?;
        let help = "Visitors that were not joined, by reason; `uringvpn show` says what each means.";
        let words = ["exposed_turned_away", "reason", help];
        self.encode_reasons::<TurnedAway>(&mut encoder, words, &sums.turned_away)?;
        let help = "Connections to the control port that were refused, by reason; `uringvpn show` says what each means.";
        self.encode_reasons::<Refused>(&mut encoder, ["exposed_refused", "reason", help], &sums.refused)?;
        let help = "Datagrams that were lost here, by reason; `uringvpn show` says what each means.";
        self.encode_reasons::<Loss>(&mut encoder, ["exposed_lost_datagrams", "reason", help], &sums.lost)?;
        self.encode_ports(&mut encoder)?;
        self.encode_distributions(&mut encoder)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::super::recorder::{Meter, Recorder};
    use super::*;
    use crate::stats::exposed::public_port::PublicPort;
    use crate::time::{Span, Time};

    fn metrics(kind: Kind, ports: u16) -> ExposedMetrics {
        let recorder = Arc::new(Recorder::default());
        let ports: Vec<_> =
            (1..=ports).map(|number| recorder.port_opened(PublicPort::tcp(number), "x".into())).collect();
        recorder.visitor_came(Some(&ports[0]));
        let came = Time::default();
        let mut meter = Meter::joined(&recorder, Some(&ports[0]), came, came + Span::from_millis(2), 0);
        meter.passed(0, 70_000, came + Span::from_millis(30));
        meter.over(Ended::Broken, [70_000, 64], Span::from_secs(7_200));
        recorder.turn_away(None, TurnedAway::NotTaken);
        ExposedMetrics {
            kind,
            name: "server-7835".into(),
            uptime_seconds: 1.5,
            started: WallTime::from_parts(1_700_000_000, 0),
            sums: Sums::of([recorder.as_ref()]),
            ports: recorder.ports().iter().map(|port| PortSnapshot::of(port)).collect(),
        }
    }

    #[test]
    fn what_happened_is_told_with_reasons_and_ports_as_labels() {
        let text = metrics(Kind::Server, 2).text().unwrap();
        for line in [
            "uringvpn_exposed_build_info{name=\"server-7835\",kind=\"server\",version=\"",
            "uringvpn_exposed_visitors_total 1\n",
            "# TYPE uringvpn_exposed_out_bytes counter\n# UNIT uringvpn_exposed_out_bytes bytes\n",
            "uringvpn_exposed_out_bytes_total 70000\n",
            "uringvpn_exposed_ended_total{how=\"broken\"} 1\n",
            "uringvpn_exposed_turned_away_total{reason=\"not_taken\"} 1\n",
            "uringvpn_exposed_refused_total{reason=\"wrong_secret\"} 0\n",
            "uringvpn_exposed_port_out_bytes_total{port=\"1\",protocol=\"tcp\"} 70000\n",
            "uringvpn_exposed_port_present{port=\"2\",protocol=\"tcp\"} 1\n",
            "uringvpn_exposed_join_seconds_bucket{le=\"0.001\"} 0\n",
            "uringvpn_exposed_join_seconds_bucket{le=\"0.0025\"} 1\n",
            "uringvpn_exposed_first_byte_seconds_bucket{le=\"0.05\"} 1\n",
            "uringvpn_exposed_duration_seconds_bucket{le=\"3600.0\"} 0\n",
            "uringvpn_exposed_duration_seconds_bucket{le=\"21600.0\"} 1\n",
            "uringvpn_exposed_connection_in_bytes_bucket{le=\"64.0\"} 1\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert!(!text.contains("connect_seconds"), "a server connects nowhere");
    }

    #[test]
    fn a_client_tells_nothing_that_only_a_server_has() {
        let text = metrics(Kind::Local, 1).text().unwrap();
        assert!(text.contains("uringvpn_exposed_connect_seconds_count 0\n"), "{text}");
        assert!(!text.contains("exposed_refused") && !text.contains("exposed_callers"));
    }

    #[test]
    fn every_family_comes_once_and_has_a_help_and_ports_have_a_bound() {
        let text = metrics(Kind::Server, 300).text().unwrap();
        let names: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert_eq!(text.matches("# HELP ").count(), names.len());
        assert_eq!(text.matches("port_open{port=").count(), PORTS_TOLD_MAX);
        assert!(text.contains("uringvpn_exposed_untold_ports 44\n"));
    }
}
