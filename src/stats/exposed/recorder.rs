//! What one relay thread writes and everybody may read: its counters, its histograms, its ports.
//!
//! The thread only ever adds to memory of its own, without waiting and, after the first value of a histogram, without allocating; the list of ports alone has a lock,
//! taken when a port is opened, changes hands or is closed, and held by readers for no longer than copying a list takes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hdrhistogram::Histogram;

use super::Whose;
use super::counters::{Counters, Gauges};
use super::live::{LiveHistogram, histogram, since};
use super::reasons::{ByReason, Ended, Loss, Refused, TurnedAway};
use crate::stats::counters::Counter;
use crate::stats::distributions::{DistributionInfo, Unit};
use crate::stats::exposed::public_port::PublicPort;
use crate::time::{Span, Time};

macro_rules! distributions {
    ($($name:ident $whose:ident $unit:ident $per:literal $help:literal;)*) => {
        /// One histogram for each line of the table, being filled.
        #[derive(Debug, Default)]
        pub struct Distributions {
            $(#[doc = $help] pub $name: LiveHistogram,)*
        }

        /// What is recorded, and by whom.
        pub const DISTRIBUTIONS: &[(Whose, DistributionInfo)] = &[$((Whose::$whose, DistributionInfo {
            name: stringify!($name),
            unit: Unit::$unit,
            per: $per,
            help: $help,
        })),*];

        impl Distributions {
            fn iter(&self) -> impl Iterator<Item = &LiveHistogram> {
                [$(&self.$name),*].into_iter()
            }
        }
    };
}

distributions! {
    join Both Nanoseconds "visitors"
        "How long a visitor waited. Server: from accepting it to its client having taken it. Client: from the server's message to both connections standing, to the server and to the local service. The visitor's own handshake with the kernel is in neither.";
    connect Local Nanoseconds "connections"
        "From asking for a connection to the local service to having it, addresses of it that did not answer included.";
    first_byte Both Nanoseconds "connections"
        "From accepting a visitor (client: from the server's message) to the first byte of the service being passed on to it: join, what the visitor takes to ask, and what the service takes to answer.";
    duration Both Nanoseconds "connections"
        "From a visitor being joined to the end of its connection, silence before a time-out included.";
    in_bytes Both Bytes "connections"
        "Bytes that came from a visitor during its connection.";
    out_bytes Both Bytes "connections"
        "Bytes that were passed on to a visitor during its connection.";
}

/// One histogram for each line of the table, as read at one moment.
#[derive(Clone, Debug)]
pub struct Read(Vec<Histogram<u64>>);

impl Default for Read {
    fn default() -> Read {
        Read(DISTRIBUTIONS.iter().map(|_| histogram()).collect())
    }
}

impl Read {
    /// The histograms in the order of [`DISTRIBUTIONS`].
    pub fn iter(&self) -> impl Iterator<Item = &Histogram<u64>> {
        self.0.iter()
    }

    /// What came after `earlier`.
    pub fn since(&self, earlier: &Read) -> Read {
        Read(self.iter().zip(earlier.iter()).map(|(now, earlier)| since(now, earlier)).collect())
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.iter().all(Histogram::is_empty)
    }

    /// Adds what one thread recorded so far.
    pub fn add(&mut self, one: &Distributions) {
        self.0.iter_mut().zip(one.iter()).for_each(|(sum, live)| live.add_to(sum));
    }
}

/// A public port.
#[derive(Debug)]
pub struct Port {
    public: PublicPort,
    holder: Mutex<Holder>,
    /// Visitors that came.
    pub visitors: Counter,
    /// Of them: not joined.
    pub turned_away: Counter,
    /// Connections that were relayed, and those of them that have ended.
    pub joined: Counter,
    /// See `joined`.
    pub ended: Counter,
    /// Bytes from visitors.
    pub in_bytes: Counter,
    /// Bytes to visitors.
    pub out_bytes: Counter,
}

/// Whose a port is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The client's address; at a client, the local service.
    pub whose: String,
    /// The connection between client and server stands.
    pub present: bool,
}

impl Port {
    /// Its number, and whether it is TCP's or UDP's.
    pub fn public(&self) -> PublicPort {
        self.public
    }

    /// Whose it is.
    pub fn holder(&self) -> Holder {
        self.lock().clone()
    }

    /// It belongs to `whose` now, who is there.
    pub fn taken_by(&self, whose: String) {
        *self.lock() = Holder { whose, present: true };
    }

    /// Whoever has it is away.
    pub fn left_alone(&self) {
        self.lock().present = false;
    }

    fn lock(&self) -> MutexGuard<'_, Holder> {
        // Each use leaves it whole.
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Recorder {
    /// What was counted.
    pub counters: Counters,
    /// What there is now.
    pub present: Gauges,
    /// How relayed connections ended.
    pub ended: ByReason<Ended>,
    /// Why visitors were not joined.
    pub turned_away: ByReason<TurnedAway>,
    /// Why callers were refused.
    pub refused: ByReason<Refused>,
    /// Why datagrams were lost.
    pub lost: Arc<ByReason<Loss>>,
    /// What was recorded.
    pub distributions: Distributions,
    ports: Mutex<BTreeMap<PublicPort, Arc<Port>>>,
}

impl Recorder {
    /// A port was opened for `whose`.
    pub fn port_opened(&self, public: PublicPort, whose: String) -> Arc<Port> {
        let port = Arc::new(Port {
            public,
            holder: Mutex::new(Holder { whose, present: true }),
            visitors: Counter::default(),
            turned_away: Counter::default(),
            joined: Counter::default(),
            ended: Counter::default(),
            in_bytes: Counter::default(),
            out_bytes: Counter::default(),
        });
        self.counters.opened.add(1);
        self.lock().insert(public, port.clone());
        port
    }

    /// A port was closed; its connections may go on.
    pub fn port_closed(&self, public: PublicPort) {
        self.lock().remove(&public);
    }

    /// The ports, in the order of their numbers.
    pub fn ports(&self) -> Vec<Arc<Port>> {
        self.lock().values().cloned().collect()
    }

    /// A visitor came.
    pub fn visitor_came(&self, port: Option<&Port>) {
        self.counters.visitors.add(1);
        port.inspect(|port| port.visitors.add(1));
    }

    /// A visitor that came is not joined.
    pub fn turn_away(&self, port: Option<&Port>, reason: TurnedAway) {
        self.turned_away.count(reason);
        port.inspect(|port| port.turned_away.add(1));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PublicPort, Arc<Port>>> {
        // Each use leaves it whole.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that is relayed, from when it is joined to its end. By default nobody reads what it counts.
#[derive(Debug, Default)]
pub struct Meter {
    recorder: Arc<Recorder>,
    port: Option<Arc<Port>>,
    came: Time,
    /// Which of the two sides the service is on; the visitor is on the other.
    service: usize,
    answered: bool,
}

impl Meter {
    /// A visitor that `came` then is joined `now`.
    pub fn joined(
        recorder: &Arc<Recorder>,
        port: Option<&Arc<Port>>,
        came: Time,
        now: Time,
        service: usize,
    ) -> Meter {
        recorder.counters.joined.add(1);
        port.inspect(|port| port.joined.add(1));
        recorder.distributions.join.record(now.since(came).as_nanos());
        Meter { recorder: recorder.clone(), port: port.cloned(), came, service, answered: false }
    }

    /// So many bytes came from a side and are passed on to the other.
    #[inline]
    pub fn passed(&mut self, from: usize, bytes: u64, now: Time) {
        if from == self.service {
            if !self.answered {
                self.answered = true;
                self.recorder.distributions.first_byte.record(now.since(self.came).as_nanos());
            }
            self.recorder.counters.out_bytes.add(bytes);
            self.port.as_ref().inspect(|port| port.out_bytes.add(bytes));
        } else {
            self.recorder.counters.in_bytes.add(bytes);
            self.port.as_ref().inspect(|port| port.in_bytes.add(bytes));
        }
    }

    /// It is over; `bytes` came from each side.
    pub fn over(self, how: Ended, bytes: [u64; 2], lasted: Span) {
        self.recorder.ended.count(how);
        self.port.inspect(|port| port.ended.add(1));
        let recorded = &self.recorder.distributions;
        recorded.duration.record(lasted.as_nanos());
        recorded.in_bytes.record(bytes[1 - self.service]);
        recorded.out_bytes.record(bytes[self.service]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::live::VALUE_MAX;
    use super::*;

    const CAME: Time = Time::from_nanos(5_000_000_000);

    fn after(millis: u64) -> Time {
        CAME + Span::from_millis(millis)
    }

    fn read(recorder: &Recorder) -> Read {
        let mut read = Read::default();
        read.add(&recorder.distributions);
        read
    }

    fn of<'a>(read: &'a Read, name: &str) -> &'a Histogram<u64> {
        let index = DISTRIBUTIONS.iter().position(|(_, info)| info.name == name).unwrap();
        read.iter().nth(index).unwrap()
    }

    #[test]
    fn a_connection_is_counted_once_in_each_place_and_its_bytes_in_their_direction() {
        let recorder = Arc::new(Recorder::default());
        let port = recorder.port_opened(PublicPort::tcp(80), "client".into());
        recorder.visitor_came(Some(&port));
        let mut meter = Meter::joined(&recorder, Some(&port), CAME, after(10), 1);
        meter.passed(0, 100, after(11));
        meter.passed(1, 7_000, after(30));
        meter.passed(1, 1_000, after(90));
        assert_eq!((port.joined.get(), port.ended.get()), (1, 0), "it is open");
        assert_eq!((recorder.counters.in_bytes.get(), recorder.counters.out_bytes.get()), (100, 8_000));
        meter.over(Ended::Broken, [100, 8_000], Span::from_millis(80));
        assert_eq!((port.in_bytes.get(), port.out_bytes.get(), port.ended.get()), (100, 8_000, 1));
        assert_eq!((recorder.ended.get(Ended::Broken), recorder.ended.get(Ended::Finished)), (1, 0));
        let read = read(&recorder);
        for (name, value) in [
            ("join", 10_000_000),
            ("first_byte", 30_000_000),
            ("duration", 80_000_000),
            ("in_bytes", 100),
            ("out_bytes", 8_000),
        ] {
            let histogram = of(&read, name);
            assert_eq!(histogram.len(), 1, "{name}");
            assert!(histogram.max().abs_diff(value) <= value / 100, "{name}: {}", histogram.max());
        }
        assert!(of(&read, "connect").is_empty());
    }

    #[test]
    fn ports_are_listed_while_they_are_open_and_their_connections_outlive_them() {
        let recorder = Arc::new(Recorder::default());
        let port = recorder.port_opened(PublicPort::tcp(81), "one".into());
        recorder.port_opened(PublicPort::tcp(80), "other".into());
        let meter = Meter::joined(&recorder, Some(&port), CAME, CAME, 0);
        port.left_alone();
        assert_eq!(port.holder(), Holder { whose: "one".into(), present: false });
        port.taken_by("two".into());
        assert_eq!(recorder.ports().iter().map(|port| port.public().number).collect::<Vec<_>>(), [80, 81]);
        recorder.port_closed(PublicPort::tcp(81));
        assert_eq!(recorder.ports().len(), 1);
        meter.over(Ended::Finished, [0, 0], Span::ZERO);
        assert_eq!((recorder.ended.get(Ended::Finished), recorder.counters.opened.get()), (1, 2));
    }

    #[test]
    fn what_is_longer_than_a_day_counts_as_one_and_what_came_later_is_told_apart() {
        let recorder = Arc::new(Recorder::default());
        let meter = || Meter::joined(&recorder, None, CAME, CAME, 0);
        meter().over(Ended::Idle, [u64::MAX, 3], Span::from_nanos(u64::MAX));
        let first = read(&recorder);
        assert!(of(&first, "duration").max() >= VALUE_MAX);
        assert!(read(&recorder).since(&first).is_empty());
        meter().over(Ended::Idle, [5, 0], Span::from_secs(1));
        let later = read(&recorder).since(&first);
        assert_eq!((of(&later, "out_bytes").max(), of(&later, "duration").len()), (5, 1));
    }
}
