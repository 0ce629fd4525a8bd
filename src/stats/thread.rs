//! The stats thread: collects what the workers counted and recorded, prints it, and answers questions about it.
//!
//! It sleeps until a worker hands over a recorder, the interval ends, somebody asks, or it is told to stop. Workers never wait
//! for it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, never, select, tick};
use hdrhistogram::Histogram;

use super::counters::{Totals, WorkerCounters};
use super::distributions::Distributions;
use super::drop::Direction;
use super::history::History;
use super::openmetrics::Metrics;
use super::recorder::Full;
use super::snapshot::{self, Quantiles, SCHEMA, Snapshot, WorkerSnapshot};
use crate::time::Time;

/// The running stats thread. Dropping it without [`StatsHandle::stop`] ends the thread too, without a summary.
#[derive(Debug)]
pub struct StatsHandle {
    thread: JoinHandle<Summary>,
    /// Nothing is ever sent: closing the channel tells the thread to stop.
    stop: Sender<()>,
}

/// Where and how often the thread reports.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// The interval.
    pub every: Duration,
    /// Takes one block of lines; must not wait for a reader that does not read.
    pub print: fn(&str),
}

/// What somebody wants to know. The reply's channel has room for it; whoever no longer wants it drops the other end.
#[derive(Debug)]
pub enum Question {
    /// Everything but the peers, as of this moment.
    Snapshot(Time, Sender<Box<Snapshot>>),
    /// The same for Prometheus.
    Metrics(Time, Sender<Box<Metrics>>),
}

/// What the thread is told at its start.
#[derive(Debug)]
pub struct Setup {
    /// The interface's name.
    pub interface: String,
    /// When the tunnel started.
    pub started: Time,
    /// Reports every interval, or only collects.
    pub report: Option<Report>,
    /// Who asks.
    pub questions: Receiver<Question>,
}

/// Starts the thread.
///
/// # Errors
/// The operating system gives us no thread.
pub fn spawn(
    counters: Vec<Arc<WorkerCounters>>,
    inbox: Receiver<Full>,
    setup: Setup,
) -> io::Result<StatsHandle> {
    let (stop, stopped) = bounded(0);
    let thread = std::thread::Builder::new().name("stats".into()).spawn(move || {
        Collector::new(counters, setup.interface, setup.started).run(
            inbox,
            setup.report,
            setup.questions,
            &stopped,
        )
    })?;
    Ok(StatsHandle { thread, stop })
}

impl StatsHandle {
    /// Takes in what the workers flushed, ends the thread, and returns the summary of the whole run. Call it when the
    /// workers have ended, so that the numbers are final.
    pub fn stop(self) -> Summary {
        drop(self.stop);
        match self.thread.join() {
            Ok(summary) => summary,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// What the thread knows.
struct Collector {
    interface: String,
    started: Time,
    counters: Vec<Arc<WorkerCounters>>,
    /// Per worker, what its newest recorder held.
    last_seconds: Vec<Vec<Quantiles>>,
    history: History,
    /// The counters when the last interval ended.
    before: Totals,
    since_last_print: Distributions<u64>,
    whole_run: Distributions<u64>,
    merged_intervals: u64,
}

impl Collector {
    fn new(counters: Vec<Arc<WorkerCounters>>, interface: String, started: Time) -> Collector {
        Collector {
            interface,
            started,
            last_seconds: vec![Vec::new(); counters.len()],
            history: History::new(),
            counters,
            before: Totals::default(),
            since_last_print: Distributions::new(),
            whole_run: Distributions::new(),
            merged_intervals: 0,
        }
    }

    fn run(
        mut self,
        mut inbox: Receiver<Full>,
        report: Option<Report>,
        mut questions: Receiver<Question>,
        stopped: &Receiver<()>,
    ) -> Summary {
        let ticks = report.map_or_else(never, |report| tick(report.every));
        let mut last_tick = None;
        loop {
            select! {
                recv(inbox) -> message => match message {
                    Ok(full) => self.collect(full),
                    // All workers have ended; a closed channel is always ready, so stop looking at it.
                    Err(_) => inbox = never(),
                },
                recv(questions) -> question => match question {
                    Ok(question) => self.answer(question),
                    Err(_) => questions = never(),
                },
                recv(ticks) -> tick => {
                    let (Ok(now), Some(report)) = (tick, report) else { continue };
                    // A late tick covers more than one interval: divide by the time that really passed.
                    let elapsed = last_tick.map_or(report.every, |last| now - last);
                    last_tick = Some(now);
                    (report.print)(&self.end_interval(elapsed).to_string());
                }
                recv(stopped) -> _ => break,
            }
        }
        for full in inbox.try_iter() {
            self.collect(full);
        }
        Summary {
            totals: self.totals(),
            distributions: self.whole_run,
            merged_intervals: self.merged_intervals,
            workers: self.counters.len(),
        }
    }

    fn totals(&self) -> Totals {
        Totals::of(self.counters.iter().map(Arc::as_ref))
    }

    fn collect(&mut self, full: Full) {
        self.since_last_print.add(&full.recorder);
        self.whole_run.add(&full.recorder);
        self.merged_intervals += u64::from(full.merged_intervals);
        self.history.add(&full.recorder, full.ended, self.totals());
        if let Some(last_second) = self.last_seconds.get_mut(full.worker) {
            *last_second = Quantiles::of_all(&full.recorder);
        }
        full.give_back();
    }

    /// Whoever asked may have gone; that is his affair.
    fn answer(&self, question: Question) {
        match question {
            Question::Snapshot(now, reply) => drop(reply.try_send(Box::new(self.snapshot(now)))),
            Question::Metrics(now, reply) => drop(reply.try_send(Box::new(self.metrics(now)))),
        }
    }

    fn metrics(&self, now: Time) -> Metrics {
        Metrics {
            workers: self.counters.iter().map(|worker| Totals::of([worker.as_ref()])).collect(),
            distributions: Box::new(self.whole_run.clone()),
            uptime_seconds: self.uptime_seconds(now),
        }
    }

    fn uptime_seconds(&self, now: Time) -> f64 {
        now.since(self.started).as_nanos() as f64 / 1e9
    }

    fn snapshot(&self, now: Time) -> Snapshot {
        let totals = self.totals();
        let workers = self.counters.iter().zip(&self.last_seconds).enumerate();
        Snapshot {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            interface: self.interface.clone(),
            uptime_seconds: self.uptime_seconds(now),
            counters: snapshot::counters(&totals),
            drops: snapshot::drops(&totals),
            balance: Direction::ALL.map(|direction| snapshot::balance(&totals, direction)).into(),
            distributions: Quantiles::of_all(&self.whole_run),
            workers: workers
                .map(|(worker, (counters, last_second))| WorkerSnapshot {
                    worker,
                    counters: snapshot::counters(&Totals::of([counters.as_ref()])),
                    last_second: last_second.clone(),
                })
                .collect(),
            seconds: self.history.seconds(now),
            merged_intervals: self.merged_intervals,
            peers: Vec::new(),
        }
    }

    fn end_interval(&mut self, elapsed: Duration) -> String {
        let now = self.totals();
        let block = interval_block(&now, &now.since(&self.before), &self.since_last_print, elapsed);
        self.before = now;
        self.since_last_print.clear();
        block
    }
}

/// Two lines, one per direction, and a third and fourth for what was dropped, if anything was.
fn interval_block(now: &Totals, recent: &Totals, recorded: &Distributions<u64>, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let mut block = String::new();
    for direction in Direction::ALL {
        let (packets, bytes) = passed_on(recent, direction);
        block += &format!(
            "{:8}  {:>9.0} packets/s  {:>7.3} Gbit/s  {}  in flight {}\n",
            direction.name(),
            packets as f64 / seconds,
            bytes as f64 * 8.0 / seconds / 1e9,
            percentiles(latency(recorded, direction)),
            now.in_flight(direction).max(0),
        );
        block += &dropped(recent, direction);
    }
    block
}

/// Packets and inner bytes that went all the way. Outbound bytes are those taken in: what was dropped on the way is
/// listed beside it.
fn passed_on(totals: &Totals, direction: Direction) -> (u64, u64) {
    match direction {
        Direction::Outbound => (totals.sent_datagrams, totals.out_bytes),
        Direction::Inbound => (totals.written_packets, totals.written_bytes),
    }
}

/// How long packets stayed with us.
fn latency(recorded: &Distributions<u64>, direction: Direction) -> &Histogram<u64> {
    match direction {
        Direction::Outbound => &recorded.outbound,
        Direction::Inbound => &recorded.inbound,
    }
}

fn percentiles(latency: &Histogram<u64>) -> String {
    if latency.is_empty() {
        return "p50 - us  p99 - us".into();
    }
    let micros = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
    format!("p50 {:.1} us  p99 {:.1} us", micros(0.50), micros(0.99))
}

fn dropped(totals: &Totals, direction: Direction) -> String {
    let drops: Vec<_> =
        totals.drops(direction).map(|(reason, packets)| format!("{} {packets}", reason.label())).collect();
    if drops.is_empty() { String::new() } else { format!("{:8}  dropped: {}\n", "", drops.join(", ")) }
}

/// The whole run, for the operator when the program ends and for programs that measure it.
#[derive(Clone, Debug)]
pub struct Summary {
    /// What was counted.
    pub totals: Totals,
    /// What was recorded.
    pub distributions: Distributions<u64>,
    /// Seconds for which a worker found the stats thread behind and recorded on.
    pub merged_intervals: u64,
    /// How many workers there were.
    pub workers: usize,
}

/// Prose for people, then one line `totals: name=value …` for programs.
impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for direction in Direction::ALL {
            let (packets, bytes) = passed_on(&self.totals, direction);
            writeln!(
                out,
                "{:8}  {packets} packets  {:.3} GB  {}  in flight {}",
                direction.name(),
                bytes as f64 / 1e9,
                percentiles(latency(&self.distributions, direction)),
                self.totals.in_flight(direction),
            )?;
            for (reason, packets) in self.totals.drops(direction) {
                writeln!(out, "{:8}  dropped: {} {packets}: {}", "", reason.label(), reason.help())?;
            }
        }
        if self.merged_intervals > 0 {
            writeln!(out, "latency: {} worker seconds were reported late, none lost", self.merged_intervals)?;
        }
        write!(out, "totals: workers={}", self.workers)?;
        for (info, value) in Totals::COUNTERS.iter().zip(self.totals.values()) {
            write!(out, " {}={value}", info.name)?;
        }
        for direction in Direction::ALL {
            for (reason, packets) in self.totals.drops(direction) {
                write!(out, " dropped_{}={packets}", reason.label())?;
            }
        }
        for direction in Direction::ALL {
            let latency = latency(&self.distributions, direction);
            if !latency.is_empty() {
                let [p50, p99] = [0.50, 0.99].map(|quantile| latency.value_at_quantile(quantile));
                let name = direction.name();
                write!(out, " {name}_latency_ns_p50={p50} {name}_latency_ns_p99={p99}")?;
            }
        }
        writeln!(out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::drop::DropReason;
    use super::super::recorder::{Delivery, Departure, Reporter, channel};
    use super::*;
    use crate::time::Span;

    fn setup() -> Setup {
        Setup { interface: "uvpn0".into(), started: Time::default(), report: None, questions: never() }
    }

    #[test]
    fn what_the_workers_flushed_before_the_stop_is_in_the_summary() {
        let workers = vec![Arc::new(WorkerCounters::default()), Arc::new(WorkerCounters::default())];
        let (outbox, inbox) = channel(workers.len());
        let stats = spawn(workers.clone(), inbox, setup()).unwrap();
        for worker in &workers {
            let mut reporter = Reporter::new(0, outbox.clone(), Time::default());
            worker.out_packets.add(45);
            worker.sent_datagrams.add(45);
            let now = Time::default();
            reporter.record_departure(Departure { read: now, sealed: now, sent: now }, 45);
            reporter.flush(Time::default());
        }
        let summary = stats.stop();
        assert_eq!(summary.totals.out_packets, 90);
        assert_eq!(summary.totals.check_drained(), Ok(()));
        assert_eq!(summary.distributions.outbound.len(), 90);
        assert_eq!(summary.distributions.inbound.len(), 0);
    }

    #[test]
    fn the_thread_gives_recorders_back_while_it_runs() {
        let (outbox, inbox) = channel(1);
        let stats = spawn(vec![Arc::default()], inbox, setup()).unwrap();
        let mut reporter = Reporter::new(0, outbox, Time::default());
        let mut now = Time::default();
        let mut recorded = 0;
        // Bounded by patience, not by a clock: more hand-overs than there are recorders must succeed.
        for _ in 0..100 {
            let moments = Delivery { received: now, reaped: now, opened: now, written: now };
            reporter.record_delivery(moments, 1);
            recorded += 1;
            now = now + Span::from_secs(1);
            reporter.tick(now);
            std::thread::yield_now();
        }
        while reporter.deadline().is_some() {
            reporter.flush(Time::default());
            std::thread::yield_now();
        }
        assert_eq!(stats.stop().distributions.inbound.len(), recorded);
    }

    #[test]
    fn the_thread_outlives_its_workers_until_it_is_stopped() {
        let (outbox, inbox) = channel(1);
        let stats = spawn(vec![Arc::default()], inbox, setup()).unwrap();
        drop(outbox);
        assert_eq!(stats.stop().totals, Totals::default());
    }

    #[test]
    fn an_interval_shows_rates_percentiles_and_only_the_drops_of_that_interval() {
        let worker = Arc::new(WorkerCounters::default());
        let mut collector = Collector::new(vec![worker.clone()], String::new(), Time::default());
        worker.count_drop(DropReason::NoRoute, 5);
        worker.out_packets.add(5);
        collector.end_interval(Duration::from_secs(1));

        worker.out_packets.add(200_001);
        worker.out_bytes.add(250_000_000);
        worker.sent_datagrams.add(200_000);
        worker.in_datagrams.add(3);
        worker.count_drop(DropReason::UnknownSource, 3);
        collector.since_last_print.outbound.saturating_record_n(12_000, 200_000);
        assert_eq!(
            collector.end_interval(Duration::from_secs(2)),
            "outbound     100000 packets/s    1.000 Gbit/s  p50 12.0 us  p99 12.0 us  in flight 1\n\
             inbound           0 packets/s    0.000 Gbit/s  p50 - us  p99 - us  in flight 0\n\
             \u{20}         dropped: unknown_source 3\n"
        );
    }

    #[test]
    fn the_summary_ends_in_one_line_that_programs_can_read() {
        let worker = WorkerCounters::default();
        worker.enters.add(9);
        worker.in_datagrams.add(1);
        worker.count_drop(DropReason::TunDown, 1);
        let mut distributions = Distributions::new();
        distributions.inbound.record(100).unwrap();
        let summary =
            Summary { totals: Totals::of([&worker]), distributions, merged_intervals: 0, workers: 1 };
        let text = summary.to_string();
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("totals: workers=1 turns=0 enters=9 "), "{last}");
        assert!(
            last.ends_with(" dropped_tun_down=1 inbound_latency_ns_p50=100 inbound_latency_ns_p99=100"),
            "{last}"
        );
    }
}
