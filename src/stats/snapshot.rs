//! What is known of a running tunnel at one moment: what `show` prints, as JSON or for people.
//!
//! The JSON is [`Snapshot`] as serde writes it. Fields are added, never given another meaning, under the same
//! [`SCHEMA`]; a change that would break a reader raises it. A field that an older tunnel does not tell is empty.

use std::collections::BTreeMap;

use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};

use super::counters::Totals;
use super::distributions::{DISTRIBUTIONS, DistributionInfo, Distributions, Unit};
use super::drop::{Direction, DropReason};

/// The version of the JSON.
pub const SCHEMA: u32 = 1;
/// The kind of program that a [`Snapshot`] is of.
pub const TUNNEL: &str = "tunnel";

/// A running tunnel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// [`SCHEMA`].
    pub schema: u32,
    /// [`TUNNEL`]; nothing from an older tunnel. Programs that expose ports tell
    /// [another](super::exposed::snapshot::ExposedSnapshot).
    pub kind: String,
    /// Version of the program.
    pub version: String,
    /// The interface's name.
    pub interface: String,
    /// How long it has run, in seconds.
    pub uptime_seconds: f64,
    /// How it is set up.
    pub settings: SettingsSnapshot,
    /// What the kernel does for it, and why not where it does not; always the same ones in the same order.
    pub offloads: Vec<OffloadSnapshot>,
    /// Sums over all workers since the start, by name.
    pub counters: BTreeMap<String, u64>,
    /// Reasons that dropped anything.
    pub drops: Vec<Dropped>,
    /// What the kernel dropped before it came to us, if anything: in no balance, and what it had joined counted once.
    pub kernel_drops: Vec<Dropped>,
    /// Whether every packet is accounted for, per direction.
    pub balance: Vec<Balance>,
    /// Stages and quantities since the start, all workers together.
    pub distributions: Vec<Quantiles>,
    /// Worker by worker.
    pub workers: Vec<WorkerSnapshot>,
    /// Those of the last 60 seconds in which packets moved, oldest first.
    pub seconds: Vec<Second>,
    /// Worker seconds that were reported late because nobody took them in.
    pub merged_intervals: u64,
    /// The peers; none in plaintext mode. Left out where they are told by themselves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerSnapshot>,
}

/// How a tunnel is set up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SettingsSnapshot {
    /// Process id.
    pub pid: u32,
    /// The namespace that `pid` means something in: the target of the link /proc/self/ns/pid.
    pub pid_namespace: String,
    /// `encrypted` or `plaintext`.
    pub mode: String,
    /// Queues of the interface.
    pub queues: usize,
    /// Drivers in use, as `--io` calls them; two when not every worker could have a ring.
    pub drivers: Vec<String>,
    /// Largest packet in the tunnel, in bytes.
    pub mtu: u16,
    /// UDP port.
    pub listen_port: u16,
    /// Name, release and machine of the kernel.
    pub kernel: String,
}

/// One thing that the kernel may do for the tunnel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OffloadSnapshot {
    /// Its name.
    pub offload: String,
    /// `on`, `off`, or `downgraded`: on, but refused to somebody or in some case.
    pub state: String,
    /// Why, in a word: `none` (it is on), `switch`, `kernel` (refused at the start), `unneeded`, or the errno of the newest
    /// refusal.
    pub cause: String,
    /// The same in words; what it is, when it is on.
    pub reason: String,
    /// Since the newest refusal, when it is downgraded.
    pub seconds_ago: Option<f64>,
}

/// Packets dropped for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dropped {
    /// The reason's name.
    pub reason: String,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// How many.
    pub packets: u64,
    /// What it means and what to do.
    pub help: String,
}

/// One direction's account: `taken_in = passed_on + dropped + in_flight`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Balance {
    /// `outbound` or `inbound`.
    pub direction: String,
    /// Packets taken in.
    pub taken_in: u64,
    /// Packets that went all the way, or held nothing to pass on.
    pub passed_on: u64,
    /// Packets dropped, whatever the reason.
    pub dropped: u64,
    /// Packets on the stage, waiting for a session.
    pub staged: u64,
    /// The rest: on their way through a worker. Read while workers run, so off by what happened meanwhile.
    pub in_flight: i64,
}

/// A histogram in a few numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quantiles {
    /// The distribution's name.
    pub name: String,
    /// `ns`, `bytes`, or nothing for a plain number.
    pub unit: String,
    /// What was counted: `packets`, `trains`, …
    pub per: String,
    /// How many values.
    pub count: u64,
    /// Smallest value.
    pub min: u64,
    /// Mean.
    pub mean: f64,
    /// Half of the values are not above.
    pub p50: u64,
    /// 90 % of the values are not above.
    pub p90: u64,
    /// 99 % of the values are not above.
    pub p99: u64,
    /// 99.9 % of the values are not above.
    pub p999: u64,
    /// Largest value.
    pub max: u64,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerSnapshot {
    /// Its number, that of its queue.
    pub worker: usize,
    /// Since the start, by name.
    pub counters: BTreeMap<String, u64>,
    /// Stages and quantities of the last second in which it moved packets.
    pub last_second: Vec<Quantiles>,
    /// How long ago that ended, in seconds; nothing before the first.
    pub last_second_ago: Option<f64>,
}

/// One second in which packets moved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Second {
    /// How long ago it ended.
    pub seconds_ago: f64,
    /// What was counted in it, by name.
    pub counters: BTreeMap<String, u64>,
    /// Packets dropped in it.
    pub dropped: u64,
    /// Latency of packets that left.
    pub outbound: Quantiles,
    /// Latency of packets that were delivered.
    pub inbound: Quantiles,
}

/// One peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerSnapshot {
    /// Its public key in base64.
    pub public_key: String,
    /// Where it is.
    pub endpoint: Option<String>,
    /// Prefixes routed to it.
    pub allowed_ips: Vec<String>,
    /// Age of the newest handshake in seconds.
    pub handshake_age_seconds: Option<f64>,
    /// Age in seconds of the keys that seal what is sent; from 180 on they no longer do.
    pub keypair_age_seconds: Option<f64>,
    /// Handshakes that made a session since the peer was added.
    pub handshakes: u64,
    /// How long the newest of them took: see the distribution `handshake`. 0 without any.
    pub handshake_ns_last: u64,
    /// How long the shortest took.
    pub handshake_ns_min: u64,
    /// UDP payload bytes of authenticated messages received.
    pub rx_bytes: u64,
    /// Those messages.
    pub rx_packets: u64,
    /// UDP payload bytes sent.
    pub tx_bytes: u64,
    /// The datagrams they were sent in.
    pub tx_packets: u64,
    /// Packets to it that were dropped, and datagrams that named a session with it and were, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Seconds of persistent keepalive; 0: off.
    pub persistent_keepalive: u16,
}

/// Counters under their names.
pub fn counters(totals: &Totals) -> BTreeMap<String, u64> {
    Totals::COUNTERS.iter().zip(totals.values()).map(|(info, value)| (info.name.to_owned(), value)).collect()
}

/// What was dropped, by reason.
pub fn drops(totals: &Totals) -> Vec<Dropped> {
    let dropped = |(reason, packets): (DropReason, u64)| Dropped {
        reason: reason.label().to_owned(),
        direction: reason.direction().name().to_owned(),
        packets,
        help: reason.help().to_owned(),
    };
    Direction::ALL.into_iter().flat_map(|direction| totals.drops(direction).map(dropped)).collect()
}

/// What the kernel dropped before us; the counter's name is the reason.
pub fn kernel_drops(totals: &Totals) -> Vec<Dropped> {
    let info = Totals::COUNTERS.iter().find(|info| info.name == "overflown").expect("a name of the table");
    let dropped = Dropped {
        reason: info.name.to_owned(),
        direction: Direction::Inbound.name().to_owned(),
        packets: totals.overflown,
        help: info.help.to_owned(),
    };
    Vec::from_iter((totals.overflown > 0).then_some(dropped))
}

/// One direction's account.
pub fn balance(totals: &Totals, direction: Direction) -> Balance {
    Balance {
        direction: direction.name().to_owned(),
        taken_in: totals.taken_in(direction),
        passed_on: totals.passed_on(direction),
        dropped: totals.dropped_in(direction),
        staged: if direction == Direction::Outbound { totals.staged } else { 0 },
        in_flight: totals.in_flight(direction),
    }
}

impl Quantiles {
    /// `histogram`, which stands at `index` of the table.
    fn of<C: Counter>(index: usize, histogram: &Histogram<C>) -> Quantiles {
        Quantiles::named_by(&DISTRIBUTIONS[index], histogram)
    }

    /// `histogram`, which is what `info` says.
    pub fn named_by<C: Counter>(info: &DistributionInfo, histogram: &Histogram<C>) -> Quantiles {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Quantiles {
            name: info.name.to_owned(),
            unit: unit(info.unit).to_owned(),
            per: info.per.to_owned(),
            count: histogram.len(),
            min: histogram.min(),
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }

    /// All of the table.
    pub fn of_all<C: Counter>(distributions: &Distributions<C>) -> Vec<Quantiles> {
        distributions.iter().enumerate().map(|(index, histogram)| Quantiles::of(index, histogram)).collect()
    }

    /// The one of that name.
    ///
    /// # Panics
    /// When there is none.
    pub fn named<C: Counter>(name: &str, distributions: &Distributions<C>) -> Quantiles {
        let index = DISTRIBUTIONS.iter().position(|info| info.name == name).expect("a name of the table");
        let histogram = distributions.iter().nth(index).expect("as many as the table has lines");
        Quantiles::of(index, histogram)
    }
}

/// How a unit is written; nothing for a plain number.
pub const fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Nanoseconds => "ns",
        Unit::Bytes => "bytes",
        Unit::Count => "",
    }
}
