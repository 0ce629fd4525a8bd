//! What perf/run.py measured: contenders side by side, round after round. Its JSON, as far as a report shows it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::run::data_in;

/// A file of perf/run.py.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Measured {
    /// The machine.
    pub machine: Machine,
    /// What was built from.
    #[serde(default)]
    pub commit: String,
    /// Cores that others kept busy before it began.
    #[serde(default)]
    pub busy_cores_before: f64,
    /// How it was measured.
    pub options: Options,
    /// By the name of the traffic.
    pub results: BTreeMap<String, Traffic>,
    /// The file itself, in one line.
    #[serde(skip)]
    pub json: String,
}

/// The machine it was measured on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Machine {
    /// Name of the CPU.
    pub cpu: String,
    /// Cores that could be used.
    pub cores: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Versions of the other programs, by name.
    #[serde(default)]
    pub peers: BTreeMap<String, String>,
}

/// How it was measured.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Options {
    /// How often each contender ran.
    pub rounds: u64,
    /// How long each time.
    pub seconds: u64,
}

/// One kind of traffic.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Traffic {
    /// The contender that ratios are taken to.
    pub control: String,
    /// By label.
    pub contenders: BTreeMap<String, Contender>,
}

/// What one contender did.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Contender {
    /// Plain and encrypted tunnels are not compared.
    #[serde(default)]
    pub encrypted: bool,
    /// One for each round, by metric.
    pub samples: Vec<BTreeMap<String, f64>>,
    /// Of all rounds.
    #[serde(default)]
    pub spread: BTreeMap<String, Spread>,
    /// The same of ratios to the control within each round.
    #[serde(default)]
    pub ratio_to_control: BTreeMap<String, Spread>,
    /// The same of ratios to the least that an encrypted tunnel can cost.
    #[serde(default)]
    pub ratio_to_limit: BTreeMap<String, Spread>,
}

/// A metric over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Spread {
    /// Half of the rounds are not above.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Measured {
    /// A file of perf/run.py, or a report made of one.
    pub fn from_text(text: &str) -> Option<Measured> {
        let file: serde_json::Value = serde_json::from_str(data_in(text)?).ok()?;
        let measured = Measured::deserialize(&file).ok()?;
        Some(Measured { json: file.to_string() + "\n", ..measured })
    }
}

impl Traffic {
    /// The control first, the others by label.
    pub fn contenders(&self) -> impl Iterator<Item = (&String, &Contender)> {
        let (control, others): (Vec<_>, Vec<_>) =
            self.contenders.iter().partition(|(label, _)| **label == self.control);
        control.into_iter().chain(others)
    }
}

impl Contender {
    /// The values of a metric, round by round, as far as it was measured.
    pub fn rounds(&self, metric: &str) -> Vec<f64> {
        self.samples.iter().filter_map(|sample| sample.get(metric).copied()).collect()
    }
}

impl Spread {
    /// Whether the difference is more than the rounds differ among themselves: each median outside the other's range.
    pub fn differs(&self, other: &Spread) -> bool {
        let reaches = |one: &Spread, value| (one.min..=one.max).contains(&value);
        !reaches(self, other.median) && !reaches(other, self.median)
    }
}

/// Measurements for the tests.
#[cfg(test)]
pub mod samples {
    /// A file in which the tunnel of that label moved `gbps` and half of it, the cable ten times as much.
    pub fn file(label: &str, gbps: f64) -> String {
        let spread =
            |value: f64| format!("{{\"median\":{},\"min\":{},\"max\":{value}}}", value * 0.95, value * 0.9);
        let contender = |encrypted, gbps: f64, extra: &str| {
            format!(
                "{{\"encrypted\":{encrypted},\"samples\":[{{\"gbps\":{gbps},\"cores_per_gbps\":0.5}},\
                 {{\"gbps\":{},\"cores_per_gbps\":0.6{extra}}}],\"spread\":{{\"gbps\":{},\"cores_per_gbps\":{}}},\
                 \"ratio_to_control\":{{\"gbps\":{}}}}}",
                gbps / 2.0,
                spread(gbps),
                spread(0.6),
                spread(gbps / 40.0)
            )
        };
        format!(
            "{{\"machine\":{{\"cpu\":\"A <CPU>\",\"cores\":2,\"kernel\":\"6.18\",\"iperf3\":\"iperf 3.12\"}},\"commit\":\"abc\",\
             \"busy_cores_before\":0.1,\"options\":{{\"rounds\":2,\"seconds\":5,\"scenario\":[\"x\"]}},\"results\":{{\
             \"tcp4-1flow\":{{\"control\":\"direct\",\"scenario\":{{}},\"aead\":[],\"contenders\":{{\"{label}\":{},\"direct\":{}}}}}}}}}",
            contender(true, gbps, ",\"rtt_p50_ms\":1.5"),
            contender(false, gbps * 10.0, "")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_with_its_control_first_and_what_is_no_such_file_is_refused() {
        let measured = Measured::from_text(&samples::file("a/uring", 4.0)).expect("it is one");
        let traffic = &measured.results["tcp4-1flow"];
        let labels: Vec<_> = traffic.contenders().map(|(label, _)| label.as_str()).collect();
        assert_eq!(labels, ["direct", "a/uring"]);
        assert_eq!(traffic.contenders["a/uring"].rounds("gbps"), [4.0, 2.0]);
        assert_eq!(traffic.contenders["a/uring"].rounds("rtt_p50_ms"), [1.5]);
        for text in ["", "{}", "<html></html>", "{\"machine\":{}}"] {
            assert_eq!(Measured::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn a_difference_counts_only_beyond_what_the_rounds_differ() {
        let of = |median| Spread { median, min: median - 1.0, max: median + 1.0 };
        assert!(of(5.0).differs(&of(7.0)) && of(7.0).differs(&of(5.0)));
        assert!(!of(5.0).differs(&of(6.0)) && !of(5.0).differs(&of(5.0)));
        let wide = Spread { median: 5.0, min: 0.0, max: 10.0 };
        assert!(!wide.differs(&of(9.0)) && !of(9.0).differs(&wide));
    }
}
