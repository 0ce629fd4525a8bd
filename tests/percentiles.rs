//! What is told of latencies beside what was measured: percentiles of raw samples computed here, and stages that add up.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};
use proptest::prelude::*;
use uringvpn::stats::counters::WorkerCounters;
use uringvpn::stats::histograms::{Distribution, Histograms};
use uringvpn::stats::recorder::{self, Delivery, Departure, Full, Handshakes, Reporter};
use uringvpn::stats::snapshot::{Quantiles, Snapshot};
use uringvpn::stats::thread::{self, Question, Setup};
use uringvpn::time::{Span, Time, WallTime};

const START: Time = Time::from_nanos(7_000_000_000);

fn at(nanos: u64) -> Time {
    START + Span::from_nanos(nanos)
}

/// From 100 ns to 5 s, each decade as likely as any other.
fn latencies(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (state >> 11) as f64 / (1_u64 << 53) as f64;
        (100.0 * 5e7_f64.powf(share)) as u64
    })
}

/// The smallest of `sorted` that a share `quantile` of all is not above.
fn nearest_rank(sorted: &[u64], quantile: f64) -> u64 {
    let rank = (sorted.len() as f64 * quantile).ceil() as usize;
    sorted[rank.max(1) - 1]
}

/// Two significant digits are told.
#[track_caller]
fn assert_near(told: u64, raw: u64, what: &str) {
    assert!(told.abs_diff(raw) <= raw / 100, "{what}: {told} told, {raw} measured");
}

/// Records trains of both workers and returns what the stats thread tells, and the latency of each packet.
fn recorded() -> (Box<Snapshot>, Histograms, Vec<u64>) {
    let counters: Vec<_> = (0..2).map(|_| Arc::new(WorkerCounters::default())).collect();
    let (outbox, inbox) = recorder::channel(counters.len());
    let (questions, asked) = bounded(8);
    let setup = Setup {
        interface: "uvpn7".to_owned(),
        started: START,
        started_wall: WallTime::default(),
        report: None,
        questions: asked,
        handshakes: Handshakes::default(),
        settings: Arc::default(),
        self_check: Arc::default(),
    };
    let stats = thread::spawn(counters, inbox, setup).unwrap();
    let mut raw = Vec::new();
    for worker in 0..2 {
        let mut reporter = Reporter::new(worker, outbox.clone(), START);
        for (number, nanos) in latencies(worker as u64).take(20_000).enumerate() {
            let packets = 1 + number as u64 % 45;
            let moments = Departure { read: START, sealed: at(nanos / 3), sent: at(nanos) };
            reporter.record_departure(moments, packets);
            raw.extend(std::iter::repeat_n(nanos, packets as usize));
        }
        reporter.flush(at(1));
    }
    raw.sort_unstable();
    let (snapshot, histograms) = answers(&questions, raw.len() as u64);
    stats.stop();
    (snapshot, histograms, raw)
}

/// Asks until all packets have arrived.
fn answers(questions: &Sender<Question>, packets: u64) -> (Box<Snapshot>, Histograms) {
    loop {
        let (reply, answer) = bounded(1);
        questions.send(Question::Snapshot(START, reply)).unwrap();
        let snapshot = answer.recv().unwrap();
        let (reply, answer) = bounded(1);
        questions.send(Question::Metrics(START, reply)).unwrap();
        let metrics = answer.recv().unwrap();
        if snapshot.distributions[0].count == packets {
            return (snapshot, Histograms::of(&metrics.workers, &metrics.distributions, 1.0));
        }
        std::thread::yield_now();
    }
}

#[test]
fn percentiles_of_all_workers_are_those_of_the_raw_samples() {
    let (snapshot, histograms, raw) = recorded();
    let (told, buckets): (&Quantiles, &Distribution) =
        (&snapshot.distributions[0], &histograms.distributions[0]);
    assert_eq!((told.name.as_str(), told.count, buckets.count()), ("outbound", raw.len() as u64, told.count));
    for (quantile, value) in
        [(0.5, told.p50), (0.9, told.p90), (0.99, told.p99), (0.999, told.p999), (1.0, told.max)]
    {
        let measured = nearest_rank(&raw, quantile);
        assert_near(value, measured, &format!("snapshot at {quantile}"));
        assert_near(buckets.at(quantile).unwrap(), measured, &format!("buckets at {quantile}"));
    }
    assert_near(told.min, raw[0], "the least");
    let mean = raw.iter().map(|nanos| u128::from(*nanos)).sum::<u128>() / raw.len() as u128;
    assert_near(told.mean as u64, mean as u64, "the mean");
    assert_near(buckets.mean().unwrap() as u64, mean as u64, "the mean of the buckets");
}

/// What one recording leaves.
fn handed_over(record: impl FnOnce(&mut Reporter)) -> Full {
    let (outbox, inbox) = recorder::channel(1);
    let mut reporter = Reporter::new(0, outbox, START);
    record(&mut reporter);
    reporter.flush(START);
    inbox.try_recv().unwrap()
}

proptest! {
    /// Below 256 ns a histogram keeps every nanosecond: what is left is the clock's resolution.
    #[test]
    fn the_stages_of_a_packet_sum_to_the_whole_to_the_nanosecond(mut moments: [u8; 4]) {
        moments.sort_unstable();
        let [first, second, third, last] = moments.map(|nanos| at(u64::from(nanos)));
        let full = handed_over(|reporter| {
            reporter.record_departure(Departure { read: first, sealed: second, sent: last }, 1);
            reporter.record_delivery(Delivery { received: first, reaped: second, opened: third, written: last }, 1);
        });
        let recorder = &full.recorder;
        prop_assert_eq!(recorder.outbound.max(), recorder.outbound_seal.max() + recorder.outbound_send.max());
        prop_assert_eq!(
            recorder.inbound.max(),
            recorder.inbound_queue.max() + recorder.inbound_open.max() + recorder.inbound_write.max()
        );
        prop_assert_eq!(recorder.inbound.max(), u64::from(moments[3] - moments[0]));
    }

    /// A receive timestamp may be later than the turn's clock; then the packet waited in no queue.
    #[test]
    fn stages_sum_to_the_whole_whenever_the_kernel_stamps_the_packet(received: u8, mut moments: [u8; 3]) {
        moments.sort_unstable();
        let [reaped, opened, written] = moments.map(|nanos| at(u64::from(nanos)));
        let received = at(u64::from(received));
        let full = handed_over(|reporter| reporter.record_delivery(Delivery { received, reaped, opened, written }, 1));
        let recorder = &full.recorder;
        let stages = recorder.inbound_queue.max() + recorder.inbound_open.max() + recorder.inbound_write.max();
        prop_assert_eq!(recorder.inbound.max(), stages);
        prop_assert_eq!(stages, written.since(received.min(reaped)).as_nanos());
    }
}
