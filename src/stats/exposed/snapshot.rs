//! What is known of a running `uringvpn local` or `uringvpn server` at one moment: what `show` prints, as JSON or for people.
//!
//! The rules are those of a tunnel's ([`crate::stats::snapshot`]): fields are added, never given another meaning, under the same
//! [`SCHEMA`]; a field that an older program does not tell is empty.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Kind;
use super::counters::{Counted, Info, Present};
use super::reasons::{Ended, Loss, Reason, Refused, TurnedAway};
use super::recorder::{DISTRIBUTIONS, Port, Read, Recorder};
use crate::stats::snapshot::{Quantiles, SCHEMA};

/// A running program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExposedSnapshot {
    /// [`SCHEMA`].
    pub schema: u32,
    /// `server` or `local`.
    pub kind: String,
    /// Version of the program.
    pub version: String,
    /// What `show` calls it.
    pub name: String,
    /// How long it has run, in seconds.
    pub uptime_seconds: f64,
    /// How it is set up.
    pub settings: ExposedSettings,
    /// Since the start, by name.
    pub counters: BTreeMap<String, u64>,
    /// What there is now, by name.
    pub present: BTreeMap<String, u64>,
    /// How relayed connections ended; all reasons of the program.
    pub ended: Vec<Count>,
    /// Why visitors were not joined; all reasons of the program.
    pub turned_away: Vec<Count>,
    /// Why connections to the control port were refused; all reasons of the program.
    pub refused: Vec<Count>,
    /// Why datagrams were lost; all reasons of the program.
    pub lost_datagrams: Vec<Count>,
    /// Times and sizes since the start.
    pub distributions: Vec<Quantiles>,
    /// Those of the last second in which anything was recorded.
    pub last_second: Vec<Quantiles>,
    /// How long ago that ended, in seconds; nothing before the first.
    pub last_second_ago: Option<f64>,
    /// Those of the last 60 seconds in which anything was counted, oldest first.
    pub seconds: Vec<ExposedSecond>,
    /// The public ports there are now.
    pub ports: Vec<PortSnapshot>,
}

/// How a program is set up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExposedSettings {
    /// Process id.
    pub pid: u32,
    /// The namespace that `pid` means something in: the target of the link /proc/self/ns/pid.
    pub pid_namespace: String,
    /// The driver, as `--io` calls it.
    pub driver: String,
    /// The server's control port, HOST:PORT.
    pub control: String,
    /// The tunnel that client and server speak through.
    pub through: Option<String>,
    /// Whether both sides have to share a secret.
    pub secret: bool,
    /// Name, release and machine of the kernel.
    pub kernel: String,
}

/// How often something happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Count {
    /// The reason's name.
    pub reason: String,
    /// How often.
    pub count: u64,
    /// What it means and what to do.
    pub help: String,
}

/// One second in which anything was counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExposedSecond {
    /// How long ago it ended.
    pub seconds_ago: f64,
    /// What was counted in it, by name.
    pub counters: BTreeMap<String, u64>,
}

/// A public port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortSnapshot {
    /// Its number.
    pub port: u16,
    /// `tcp` or `udp`: each has numbers of its own.
    pub protocol: String,
    /// The client's address; at a client, the local service.
    pub whose: String,
    /// `open`, or `held`: its client is away.
    pub state: String,
    /// Connections that are relayed.
    pub open: u64,
    /// Visitors that came since it was opened.
    pub visitors: u64,
    /// Of them: not joined.
    pub turned_away: u64,
    /// Bytes from visitors.
    pub in_bytes: u64,
    /// Bytes to visitors.
    pub out_bytes: u64,
}

impl PortSnapshot {
    /// As it is called: `80`, or `53/udp`.
    pub fn name(&self) -> String {
        if self.protocol == "udp" { format!("{}/udp", self.port) } else { self.port.to_string() }
    }

    /// As it is now.
    pub fn of(port: &Port) -> PortSnapshot {
        let holder = port.holder();
        // What ended was joined before.
        let ended = port.ended.get();
        PortSnapshot {
            port: port.public().number,
            protocol: port.public().protocol.name().to_owned(),
            whose: holder.whose,
            state: if holder.present { "open" } else { "held" }.to_owned(),
            open: port.joined.get().saturating_sub(ended),
            visitors: port.visitors.get(),
            turned_away: port.turned_away.get(),
            in_bytes: port.in_bytes.get(),
            out_bytes: port.out_bytes.get(),
        }
    }
}

/// Everything that all threads together counted and recorded.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// Counters.
    pub counted: Counted,
    /// What there is now.
    pub present: Present,
    /// By reason, in the order of the tables.
    pub ended: Vec<u64>,
    /// The same.
    pub turned_away: Vec<u64>,
    /// The same.
    pub refused: Vec<u64>,
    /// The same.
    pub lost: Vec<u64>,
    /// Histograms.
    pub recorded: Read,
}

impl Sums {
    /// As they are now.
    pub fn of<'a>(recorders: impl IntoIterator<Item = &'a Recorder>) -> Sums {
        let mut sums = Sums::default();
        for recorder in recorders {
            sums.counted.add(&recorder.counters);
            sums.present.add(&recorder.present);
            recorder.ended.add_to(&mut sums.ended);
            recorder.turned_away.add_to(&mut sums.turned_away);
            recorder.refused.add_to(&mut sums.refused);
            recorder.lost.add_to(&mut sums.lost);
            sums.recorded.add(&recorder.distributions);
        }
        sums
    }

    /// What a program of this kind tells of them; the rest is the caller's.
    pub fn snapshot(&self, kind: Kind) -> ExposedSnapshot {
        ExposedSnapshot {
            schema: SCHEMA,
            kind: kind.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            counters: named(Counted::TABLE, self.counted.values(), kind),
            present: named(Present::TABLE, self.present.values(), kind),
            ended: counts::<Ended>(&self.ended, kind),
            turned_away: counts::<TurnedAway>(&self.turned_away, kind),
            refused: counts::<Refused>(&self.refused, kind),
            lost_datagrams: counts::<Loss>(&self.lost, kind),
            distributions: quantiles(&self.recorded, kind),
            ..ExposedSnapshot::default()
        }
    }
}

/// Numbers under their names.
pub fn named(table: &[Info], values: impl Iterator<Item = u64>, kind: Kind) -> BTreeMap<String, u64> {
    let mine = table.iter().zip(values).filter(|(info, _)| info.whose.is(kind));
    mine.map(|(info, value)| (info.name.to_owned(), value)).collect()
}

fn counts<R: Reason>(counts: &[u64], kind: Kind) -> Vec<Count> {
    let mine = R::ALL.iter().filter(|reason| reason.whose().is(kind));
    let count = |reason: &R| Count {
        reason: reason.label().to_owned(),
        count: counts.get(reason.index()).copied().unwrap_or_default(),
        help: reason.help().to_owned(),
    };
    mine.map(count).collect()
}

/// Histograms in a few numbers each.
pub fn quantiles(read: &Read, kind: Kind) -> Vec<Quantiles> {
    let mine = DISTRIBUTIONS.iter().zip(read.iter()).filter(|((whose, _), _)| whose.is(kind));
    mine.map(|((_, info), histogram)| Quantiles::named_by(info, histogram)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::recorder::Meter;
    use super::*;
    use crate::time::{Span, Time};

    #[test]
    fn a_program_tells_what_can_happen_to_it_and_all_threads_together() {
        let recorders = [Recorder::default(), Recorder::default()].map(Arc::new);
        for recorder in &recorders {
            recorder.visitor_came(None);
            recorder.turn_away(None, TurnedAway::TooSlow);
            let meter = Meter::joined(recorder, None, Time::default(), Time::default(), 1);
            meter.over(Ended::Finished, [1, 2], Span::ZERO);
            recorder.present.open.set(3);
        }
        let sums = Sums::of(recorders.iter().map(Arc::as_ref));
        let local = sums.snapshot(Kind::Local);
        assert_eq!((local.kind.as_str(), local.counters["visitors"], local.present["open"]), ("local", 2, 6));
        let of = |counts: &[Count], reason: &str| {
            counts.iter().find(|count| count.reason == reason).map(|count| count.count)
        };
        assert_eq!((of(&local.ended, "finished"), of(&local.ended, "idle")), (Some(2), Some(0)));
        assert_eq!(
            (of(&local.turned_away, "too_slow"), of(&local.turned_away, "not_taken")),
            (Some(2), None)
        );
        assert!(local.refused.is_empty() && !local.counters.contains_key("callers"));
        let names = |snapshot: &ExposedSnapshot| -> Vec<_> {
            snapshot.distributions.iter().map(|row| row.name.clone()).collect()
        };
        assert!(names(&local).contains(&"connect".to_owned()));
        let server = sums.snapshot(Kind::Server);
        assert!(!names(&server).contains(&"connect".to_owned()) && server.counters.contains_key("callers"));
        assert_eq!(of(&server.refused, "silent"), Some(0));
    }

    #[test]
    fn json_says_first_of_which_schema_and_kind_it_is_and_reads_back() {
        let snapshot = Sums::default().snapshot(Kind::Server);
        let json = serde_json::to_string(&snapshot).unwrap();
        assert!(json.starts_with(r#"{"schema":1,"kind":"server","#), "{json}");
        assert_eq!(serde_json::from_str::<ExposedSnapshot>(&json).unwrap(), snapshot);
    }
}
