//! The stats thread: collects what the workers counted and recorded, prints it, and answers questions about it.
//!
//! It sleeps until a worker hands over a recorder, the interval ends, somebody asks, or it is told to stop. Workers never wait
//! for it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use hdrhistogram::Histogram;

use super::counters::{Totals, WorkerCounters};
use super::distributions::Distributions;
use super::drop::Direction;
use super::history::History;
use super::offloads::SelfCheck;
use super::openmetrics::Metrics;
use super::recorder::{Full, Handshakes};
use super::settings::Settings;
use super::snapshot::{self, Dropped, Quantiles, SCHEMA, Snapshot, TUNNEL, WorkerSnapshot};
use crate::time::{Span, Time, WallTime};

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
    pub every: Span,
    /// Tells the time; reading clocks is not this folder's business.
    pub now: fn() -> Time,
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
    /// When the tunnel started, on both clocks.
    pub started: Time,
    /// The wall clock then.
    pub started_wall: WallTime,
    /// Reports every interval, or only collects.
    pub report: Option<Report>,
    /// Who asks.
    pub questions: Receiver<Question>,
    /// What the protocol thread records.
    pub handshakes: Handshakes,
    /// How the tunnel is set up.
    pub settings: Arc<Settings>,
    /// What the kernel does for it.
    pub self_check: Arc<SelfCheck>,
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
    let thread = std::thread::Builder::new()
        .name("stats".into())
        .spawn(move || Collector::new(counters, setup).run(inbox, &stopped))?;
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
    setup: Setup,
    counters: Vec<Arc<WorkerCounters>>,
    /// Per worker, what its newest recorder held, and until when it was filled.
    last_seconds: Vec<Option<(Time, Vec<Quantiles>)>>,
    history: History,
    /// When the last interval ended, and the counters then.
    interval_began: Time,
    before: Totals,
    since_last_print: Distributions<u64>,
    whole_run: Distributions<u64>,
    merged_intervals: u64,
}

impl Collector {
    fn new(counters: Vec<Arc<WorkerCounters>>, setup: Setup) -> Collector {
        Collector {
            last_seconds: vec![None; counters.len()],
            history: History::new(),
            counters,
            interval_began: setup.started,
            before: Totals::default(),
            since_last_print: Distributions::new(),
            whole_run: Distributions::new(),
            merged_intervals: 0,
            setup,
        }
    }

    fn run(mut self, mut inbox: Receiver<Full>, stopped: &Receiver<()>) -> Summary {
        let (report, mut questions) = (self.setup.report, self.setup.questions.clone());
        loop {
            let patience = report.map_or(Duration::MAX, |report| self.keep_up(report, (report.now)()));
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
                recv(stopped) -> _ => break,
                default(patience) => {}
            }
        }
        for full in inbox.try_iter() {
            self.collect(full);
        }
        self.look_at_handshakes();
        Summary {
            totals: self.totals(),
            distributions: self.whole_run,
            merged_intervals: self.merged_intervals,
            workers: self.counters.len(),
        }
    }

    /// Reports if the interval is over; how long the next one still lasts.
    fn keep_up(&mut self, report: Report, now: Time) -> Duration {
        // One that ends late covers more than it should: divide by the time that really passed.
        let elapsed = now.since(self.interval_began);
        if elapsed >= report.every {
            self.interval_began = now;
            (report.print)(&self.end_interval(elapsed));
        }
        let due = self.interval_began + report.every;
        Duration::from_nanos(due.since(now).as_nanos())
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
            *last_second = Some((full.ended, Quantiles::of_all(&full.recorder)));
        }
        full.give_back();
    }

    fn look_at_handshakes(&mut self) {
        self.whole_run.handshake.clone_from(&self.setup.handshakes.lock());
    }

    /// Whoever asked may have gone; that is his affair.
    fn answer(&mut self, question: Question) {
        self.look_at_handshakes();
        match question {
            Question::Snapshot(now, reply) => drop(reply.try_send(Box::new(self.snapshot(now)))),
            Question::Metrics(now, reply) => drop(reply.try_send(Box::new(self.metrics(now)))),
        }
    }

    fn metrics(&self, now: Time) -> Metrics {
        Metrics {
            interface: self.setup.interface.clone(),
            uptime_seconds: self.uptime_seconds(now),
            started: self.setup.started_wall,
            merged_intervals: self.merged_intervals,
            peers: None,
            workers: self.counters.iter().map(|worker| Totals::of([worker.as_ref()])).collect(),
            distributions: Box::new(self.whole_run.clone()),
            offloads: self.setup.self_check.snapshot(now),
        }
    }

    fn uptime_seconds(&self, now: Time) -> f64 {
        now.since(self.setup.started).as_secs_f64()
    }

    fn snapshot(&self, now: Time) -> Snapshot {
        let totals = self.totals();
        let workers = self.counters.iter().zip(&self.last_seconds).enumerate();
        Snapshot {
            schema: SCHEMA,
            kind: TUNNEL.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            interface: self.setup.interface.clone(),
            uptime_seconds: self.uptime_seconds(now),
            settings: self.setup.settings.snapshot(),
            offloads: self.setup.self_check.snapshot(now),
            counters: snapshot::counters(&totals),
            drops: snapshot::drops(&totals),
            kernel_drops: snapshot::kernel_drops(&totals),
            balance: Direction::ALL.map(|direction| snapshot::balance(&totals, direction)).into(),
            distributions: Quantiles::of_all(&self.whole_run),
            workers: workers
                .map(|(worker, (counters, last_second))| WorkerSnapshot {
                    worker,
                    counters: snapshot::counters(&Totals::of([counters.as_ref()])),
                    last_second: last_second.iter().flat_map(|(_, second)| second.clone()).collect(),
                    last_second_ago: last_second.as_ref().map(|(ended, _)| now.since(*ended).as_secs_f64()),
                })
                .collect(),
            seconds: self.history.seconds(now),
            merged_intervals: self.merged_intervals,
            peers: Vec::new(),
        }
    }

    fn end_interval(&mut self, elapsed: Span) -> String {
        let now = self.totals();
        let block = interval_block(&now, &now.since(&self.before), &self.since_last_print, elapsed);
        self.before = now;
        self.since_last_print.clear();
        block
    }
}

/// Two lines, one per direction, and up to three for what was dropped, if anything was.
fn interval_block(now: &Totals, recent: &Totals, recorded: &Distributions<u64>, elapsed: Span) -> String {
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
    if recent.overflown > 0 {
        block += &format!("{:8}  dropped by the kernel: overflown {}\n", "", recent.overflown);
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
        for Dropped { reason, packets, help, .. } in snapshot::kernel_drops(&self.totals) {
            writeln!(out, "{:8}  dropped by the kernel: {reason} {packets}: {help}", "")?;
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

    fn setup() -> Setup {
        Setup {
            interface: "uvpn0".into(),
            started: Time::default(),
            started_wall: WallTime::default(),
            report: None,
            questions: never(),
            handshakes: Handshakes::default(),
            settings: Arc::default(),
            self_check: Arc::default(),
        }
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
    fn an_idle_worker_says_how_old_its_last_second_is() {
        let (outbox, inbox) = channel(2);
        let workers = vec![Arc::default(); 2];
        let mut collector = Collector::new(workers, setup());
        let at = |seconds| Time::default() + Span::from_secs(seconds);
        let mut reporter = Reporter::new(1, outbox, Time::default());
        reporter.record_departure(Departure { read: at(4), sealed: at(4), sent: at(4) }, 1);
        reporter.flush(at(5));
        collector.collect(inbox.try_recv().unwrap());
        let workers = collector.snapshot(at(65)).workers;
        assert_eq!((workers[0].last_second_ago, workers[0].last_second.len()), (None, 0));
        assert_eq!(workers[1].last_second_ago, Some(60.0));
        assert_eq!(workers[1].last_second[0].count, 1);
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
        let mut collector = Collector::new(vec![worker.clone()], setup());
        worker.count_drop(DropReason::NoRoute, 5);
        worker.out_packets.add(5);
        collector.end_interval(Span::from_secs(1));

        worker.out_packets.add(200_001);
        worker.out_bytes.add(250_000_000);
        worker.sent_datagrams.add(200_000);
        worker.in_datagrams.add(3);
        worker.count_drop(DropReason::UnknownSource, 3);
        worker.overflown.add(8);
        collector.since_last_print.outbound.saturating_record_n(12_000, 200_000);
        assert_eq!(
            collector.end_interval(Span::from_secs(2)),
            "outbound     100000 packets/s    1.000 Gbit/s  p50 12.0 us  p99 12.0 us  in flight 1\n\
             inbound           0 packets/s    0.000 Gbit/s  p50 - us  p99 - us  in flight 0\n\
             \u{20}         dropped: unknown_source 3\n\
             \u{20}         dropped by the kernel: overflown 8\n"
        );
        let snapshot = collector.snapshot(Time::default());
        assert_eq!((snapshot.kernel_drops[0].packets, snapshot.counters["overflown"]), (8, 8));
    }

    #[test]
    fn a_report_comes_when_the_interval_is_over_and_not_before() {
        static PRINTED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let print = |_: &str| {
            PRINTED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        };
        let report = Report { every: Span::from_secs(5), now: Time::default, print };
        let mut collector = Collector::new(vec![Arc::default()], setup());
        let mut look = |millis| {
            let rest = collector.keep_up(report, Time::default() + Span::from_millis(millis));
            (rest.as_millis(), PRINTED.load(std::sync::atomic::Ordering::Relaxed))
        };
        assert_eq!(
            [4_999, 5_000, 5_001, 17_000].map(&mut look),
            [(1, 0), (5_000, 1), (4_999, 1), (5_000, 2)]
        );
    }

    #[test]
    fn the_summary_ends_in_one_line_that_programs_can_read() {
        let worker = WorkerCounters::default();
        worker.enters.add(9);
        worker.in_datagrams.add(1);
        worker.count_drop(DropReason::TunDown, 1);
        worker.overflown.add(2);
        let mut distributions = Distributions::new();
        distributions.inbound.record(100).unwrap();
        let summary =
            Summary { totals: Totals::of([&worker]), distributions, merged_intervals: 0, workers: 1 };
        let text = summary.to_string();
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("totals: workers=1 turns=0 enters=9 "), "{last}");
        assert!(last.contains(" overflown=2 "), "{last}");
        assert!(text.contains("\n          dropped by the kernel: overflown 2: Datagrams "), "{text}");
        assert!(
            last.ends_with(" dropped_tun_down=1 inbound_latency_ns_p50=100 inbound_latency_ns_p99=100"),
            "{last}"
        );
    }
}
