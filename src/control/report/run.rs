//! What a watch brought: the data of a report, as JSON and back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stats::histograms::{Distribution, Histograms};
use crate::stats::snapshot::{Dropped, PeerSnapshot, Snapshot};

/// The version of the JSON. Raised when a reader of the old would misunderstand the new.
pub const SCHEMA: u32 = 1;
/// Before and after the data in a page.
const DATA_BEGIN: &str = "<script type=\"application/json\" id=\"uringvpn-report\">";
/// See [`DATA_BEGIN`].
const DATA_END: &str = "</script>";

/// A watch of some seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// [`SCHEMA`].
    pub report_schema: u32,
    /// The machine.
    pub host: Host,
    /// When it began, in seconds since 1970.
    pub began: f64,
    /// How long it lasted by the tunnel's clock.
    pub seconds: f64,
    /// The tunnel at the beginning, without histories.
    pub first: Snapshot,
    /// The tunnel at the end.
    pub last: Snapshot,
    /// What was counted in each second.
    pub intervals: Vec<Interval>,
    /// What was recorded from the beginning to the end.
    pub distributions: Vec<Distribution>,
    /// What a reader should know of the watch itself.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The machine that a tunnel ran on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Name of the CPU.
    pub cpu: String,
    /// How many of them.
    pub cpus: usize,
}

/// A second, or what stands for one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// When it began, in seconds since the beginning of the watch.
    pub from: f64,
    /// When it ended.
    pub to: f64,
    /// What was counted in it, by name.
    pub counters: BTreeMap<String, u64>,
    /// Latency of packets that left.
    pub outbound: Distribution,
    /// Latency of packets that were delivered.
    pub inbound: Distribution,
}

impl Interval {
    /// What lies between two answers of a tunnel that began to be watched when it had run for `start` seconds.
    pub fn between(earlier: &Histograms, later: &Histograms, start: f64) -> Interval {
        let distributions = since(&later.distributions, &earlier.distributions);
        // Only these two make a heat map; all of them for an hour would be a very large page.
        let named = |name: &str| find(&distributions, name).cloned().unwrap_or_default();
        Interval {
            from: earlier.uptime_seconds - start,
            to: later.uptime_seconds - start,
            counters: difference(&later.counters, &earlier.counters),
            outbound: named("outbound"),
            inbound: named("inbound"),
        }
    }

    /// What was counted under `name` per second.
    pub fn rate(&self, name: &str) -> f64 {
        per_second(self.counters.get(name).copied().unwrap_or_default(), self.to - self.from)
    }
}

/// The distribution of that name.
pub fn find<'a>(distributions: &'a [Distribution], name: &str) -> Option<&'a Distribution> {
    distributions.iter().find(|distribution| distribution.name == name)
}

/// What was recorded between two answers.
pub fn since(later: &[Distribution], earlier: &[Distribution]) -> Vec<Distribution> {
    let before = |name: &str| find(earlier, name).cloned().unwrap_or_default();
    later.iter().map(|distribution| distribution.since(&before(&distribution.name))).collect()
}

/// What was counted between two moments.
fn difference(later: &BTreeMap<String, u64>, earlier: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let before = |name: &String| earlier.get(name).copied().unwrap_or_default();
    later.iter().map(|(name, value)| (name.clone(), value.saturating_sub(before(name)))).collect()
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

impl Run {
    /// What was counted under `name`.
    pub fn counted(&self, name: &str) -> u64 {
        let at = |snapshot: &Snapshot| snapshot.counters.get(name).copied().unwrap_or_default();
        at(&self.last).saturating_sub(at(&self.first))
    }

    /// The same per second.
    pub fn rate(&self, name: &str) -> f64 {
        per_second(self.counted(name), self.seconds)
    }

    /// The distribution of that name.
    pub fn distribution(&self, name: &str) -> Option<&Distribution> {
        find(&self.distributions, name)
    }

    /// What was dropped in the watch, by reason.
    pub fn drops(&self) -> Vec<Dropped> {
        self.in_the_watch(|snapshot| &snapshot.drops)
    }

    /// What the kernel dropped in the watch before it came to the tunnel.
    pub fn kernel_drops(&self) -> Vec<Dropped> {
        self.in_the_watch(|snapshot| &snapshot.kernel_drops)
    }

    fn in_the_watch(&self, drops: fn(&Snapshot) -> &Vec<Dropped>) -> Vec<Dropped> {
        let before = |reason: &str| {
            drops(&self.first).iter().find(|drop| drop.reason == reason).map_or(0, |drop| drop.packets)
        };
        let in_the_watch = |drop: &Dropped| Dropped {
            packets: drop.packets.saturating_sub(before(&drop.reason)),
            ..drop.clone()
        };
        drops(&self.last).iter().map(in_the_watch).filter(|drop| drop.packets > 0).collect()
    }

    /// What worker `index` counted under `name`.
    pub fn worker_counted(&self, index: usize, name: &str) -> u64 {
        let at = |snapshot: &Snapshot| {
            let worker = snapshot.workers.get(index);
            worker.and_then(|worker| worker.counters.get(name)).copied().unwrap_or_default()
        };
        at(&self.last).saturating_sub(at(&self.first))
    }

    /// The peers, each with what it received and sent in the watch, the busiest first.
    pub fn peers(&self) -> Vec<(&PeerSnapshot, u64, u64)> {
        let first = |key: &String| self.first.peers.iter().find(|peer| peer.public_key == *key);
        // Each is looked for among all: only of the busiest is it worth it.
        let mut peers: Vec<_> = self.last.peers.iter().collect();
        peers.sort_by_key(|peer| std::cmp::Reverse(peer.rx_bytes.saturating_add(peer.tx_bytes)));
        peers.truncate(super::tables::PEERS_MAX);
        let before = |peer: &PeerSnapshot| {
            first(&peer.public_key).map_or((0, 0), |before| (before.rx_bytes, before.tx_bytes))
        };
        let mut moved = Vec::new();
        for peer in peers {
            let (rx, tx) = before(peer);
            moved.push((peer, peer.rx_bytes.saturating_sub(rx), peer.tx_bytes.saturating_sub(tx)));
        }
        moved
    }

    /// JSON in one line.
    pub fn to_json(&self) -> String {
        // Plain data with text as its keys.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    /// A report or its data.
    pub fn from_text(text: &str) -> Option<Run> {
        serde_json::from_str(data_in(text)?).ok().filter(|run: &Run| run.report_schema == SCHEMA)
    }
}

/// The data in a page, or the whole of what is no page.
pub fn data_in(text: &str) -> Option<&str> {
    match text.find(DATA_BEGIN) {
        Some(at) => text[at + DATA_BEGIN.len()..].split(DATA_END).next(),
        None => Some(text),
    }
}

/// `json` as it may stand in a page: nothing in it ends a script.
pub fn embedded(json: &str) -> String {
    let escaped = json.trim_end().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    format!("{DATA_BEGIN}{escaped}{DATA_END}")
}

/// Runs for the tests of the drawing.
#[cfg(test)]
pub mod samples {
    use super::*;
    use crate::stats::counters::{Totals, WorkerCounters};
    use crate::stats::distributions::Distributions;
    use crate::stats::drop::{Direction, DropReason};
    use crate::stats::offloads::SelfCheck;
    use crate::stats::snapshot::{self, SettingsSnapshot, WorkerSnapshot};
    use crate::time::Time;

    /// A tunnel of that name after `seconds`, each with `packets` of `nanos` to each side.
    pub fn moment(interface: &str, seconds: u64, packets: u64, nanos: u64) -> (Snapshot, Histograms) {
        let worker = WorkerCounters::default();
        let all = seconds.saturating_mul(packets);
        for counter in [&worker.out_packets, &worker.sent_datagrams, &worker.in_datagrams] {
            counter.add(all);
        }
        for counter in [&worker.written_packets, &worker.out_bytes, &worker.written_bytes, &worker.enters] {
            counter.add(all);
        }
        worker.count_drop(DropReason::NoRoute, seconds * 3);
        worker.overflown.add(seconds * 7);
        let mut recorded = Distributions::new();
        for (at, step) in [(1, 1), (3, 2), (9, 5), (40, 100)] {
            for histogram in [&mut recorded.outbound, &mut recorded.inbound, &mut recorded.read_segments] {
                histogram.saturating_record_n(nanos.saturating_mul(at), all / step);
            }
        }
        let totals = Totals::of([&worker]);
        let directions = Direction::ALL;
        let snapshot = Snapshot {
            schema: snapshot::SCHEMA,
            kind: snapshot::TUNNEL.to_owned(),
            version: "0.1.0".to_owned(),
            interface: interface.to_owned(),
            uptime_seconds: seconds as f64,
            settings: SettingsSnapshot { queues: 1, ..SettingsSnapshot::default() },
            offloads: SelfCheck::default().snapshot(Time::default()),
            counters: snapshot::counters(&totals),
            drops: snapshot::drops(&totals),
            kernel_drops: snapshot::kernel_drops(&totals),
            balance: directions.map(|direction| snapshot::balance(&totals, direction)).into(),
            distributions: Vec::new(),
            workers: vec![WorkerSnapshot {
                worker: 0,
                counters: snapshot::counters(&totals),
                last_second: Vec::new(),
                last_second_ago: None,
            }],
            seconds: Vec::new(),
            merged_intervals: 0,
            peers: Vec::new(),
        };
        (snapshot, Histograms::of(&[totals], &recorded, seconds as f64))
    }

    /// A watch of `seconds`, in each of which `packets` of `nanos` and more went to each side.
    pub fn run(interface: &str, seconds: u64, packets: u64, nanos: u64) -> Run {
        let moments: Vec<_> =
            (5..=5 + seconds).map(|second| moment(interface, second, packets, nanos)).collect();
        let [(first, start), .., (last, end)] = &moments[..] else { panic!("two moments at least") };
        Run {
            report_schema: SCHEMA,
            host: Host { cpu: "A CPU".to_owned(), cpus: 2 },
            began: 1_700_000_000.25,
            seconds: seconds as f64,
            first: first.clone(),
            last: last.clone(),
            intervals: moments
                .windows(2)
                .map(|pair| Interval::between(&pair[0].1, &pair[1].1, 5.0))
                .collect(),
            distributions: since(&end.distributions, &start.distributions),
            notes: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_the_same_after_json_and_after_a_page() {
        let run = samples::run("</script><b>&\"'", 3, 1_000, 5_000);
        assert_eq!(Run::from_text(&run.to_json()), Some(run.clone()));
        let embedded = embedded(&run.to_json());
        let inside = &embedded[DATA_BEGIN.len()..embedded.len() - DATA_END.len()];
        assert!(!inside.contains(['<', '>', '&']));
        assert_eq!(Run::from_text(&format!("<html>{embedded}</html>")), Some(run));
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let newer =
            samples::run("wg0", 1, 1, 1).to_json().replace("\"report_schema\":1", "\"report_schema\":2");
        for text in ["", "{}", "<html></html>", DATA_BEGIN, &newer] {
            assert_eq!(Run::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn a_run_counts_only_what_happened_in_it() {
        let run = samples::run("wg0", 4, 1_000, 5_000);
        assert_eq!((run.counted("sent_datagrams"), run.rate("sent_datagrams")), (4_000, 1_000.0));
        assert_eq!((run.drops()[0].packets, run.worker_counted(0, "out_bytes")), (12, 4_000));
        assert_eq!(run.kernel_drops()[0].packets, 28);
        assert_eq!(run.intervals.len(), 4);
        let parts: u64 = run.intervals.iter().map(|interval| interval.outbound.count()).sum();
        assert_eq!(run.distribution("outbound").map(Distribution::count), Some(parts));
    }
}
