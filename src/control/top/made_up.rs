//! A tunnel and a server that exist only in tests.

use std::collections::BTreeMap;

use super::cpu::CpuTimes;
use super::rates::Look;
use crate::stats::counters::{Totals, WorkerCounters};
use crate::stats::distributions::{DISTRIBUTIONS, Unit};
use crate::stats::drop::DropReason;
use crate::stats::offloads::SelfCheck;
use crate::stats::snapshot::{
    Balance, Dropped, PeerSnapshot, Quantiles, SCHEMA, Second, SettingsSnapshot, Snapshot, TUNNEL,
    WorkerSnapshot, kernel_drops, unit,
};
use crate::time::Time;

/// A tunnel with two equal workers and three peers after so many seconds, in which each packet had 1000 bytes and half as
/// many came in as went out.
pub fn look(uptime_seconds: f64, packets: u64) -> Look {
    let worker = |worker| WorkerSnapshot {
        worker,
        counters: counters(&[
            ("out_packets", packets / 2),
            ("out_bytes", packets * 500),
            ("in_datagrams", packets / 4),
            ("written_packets", packets / 4),
            ("written_bytes", packets * 250),
            ("enters", packets * 75 / 1000),
        ]),
        last_second: quantiles(1_000),
        last_second_ago: Some(0.7),
    };
    let drop = |reason: DropReason, packets| Dropped {
        reason: reason.label().to_owned(),
        direction: reason.direction().name().to_owned(),
        packets,
        help: reason.help().to_owned(),
    };
    let balance = |direction: &str, packets| Balance {
        direction: direction.to_owned(),
        taken_in: packets,
        passed_on: packets,
        dropped: 0,
        staged: 0,
        in_flight: 0,
    };
    let snapshot = Snapshot {
        schema: SCHEMA,
        kind: TUNNEL.to_owned(),
        version: "9.9.9".to_owned(),
        interface: "uvt7".to_owned(),
        uptime_seconds,
        settings: SettingsSnapshot::default(),
        offloads: SelfCheck::default().snapshot(Time::default()),
        counters: counters(&[
            ("out_packets", packets),
            ("out_bytes", packets * 1_000),
            ("in_datagrams", packets / 2),
            ("written_packets", packets / 2),
            ("written_bytes", packets * 500),
            ("overflown", packets / 2),
        ]),
        drops: vec![drop(DropReason::NoRoute, packets), drop(DropReason::TunDown, 3)],
        kernel_drops: overflown(packets / 2),
        balance: vec![balance("outbound", packets), balance("inbound", packets / 2)],
        distributions: quantiles(100_000),
        workers: vec![worker(0), worker(1)],
        seconds: [(59.5, 7), (2.5, 5_000), (0.5, 9_000), (0.0, 1_234)].map(second).into(),
        merged_intervals: 0,
        peers: peers(packets),
    };
    let half = (uptime_seconds * 0.5e9) as u64;
    Look { snapshot, cpu: CpuTimes::from([(0, half), (1, half)]) }
}

/// A server with three ports after so many seconds and visitors, of whom nine of ten were joined and one of ten was turned
/// away; those of port 8080 sent 100 bytes each and got 1000.
pub fn exposed(uptime_seconds: f64, visitors: u64) -> super::exposed::Look {
    use crate::stats::exposed::Kind;
    use crate::stats::exposed::snapshot::{Count, ExposedSecond, PortSnapshot, Sums};

    let mut snapshot = Sums::default().snapshot(Kind::Server);
    snapshot.name = "server-7835".to_owned();
    snapshot.version = "9.9.9".to_owned();
    snapshot.uptime_seconds = uptime_seconds;
    let joined = visitors - visitors / 10;
    for (name, value) in [
        ("visitors", visitors),
        ("joined", joined),
        ("in_bytes", visitors * 100),
        ("out_bytes", visitors * 1_000),
    ] {
        snapshot.counters.insert(name.to_owned(), value);
    }
    let open = 12.min(joined);
    for (name, value) in [("open", open), ("ports_open", 2), ("ports_held", 1)] {
        snapshot.present.insert(name.to_owned(), value);
    }
    let set = |counts: &mut Vec<Count>, reason: &str, count| {
        let found = counts.iter_mut().find(|found| found.reason == reason);
        found.expect("a reason of the table").count = count;
    };
    set(&mut snapshot.ended, "finished", joined - open);
    set(&mut snapshot.turned_away, "not_taken", visitors / 10);
    set(&mut snapshot.refused, "wrong_secret", 7);
    for rows in [&mut snapshot.distributions, &mut snapshot.last_second] {
        *rows = quantiles(joined);
        rows.truncate(4);
        let names = ["join", "first_byte", "duration", "in_bytes"];
        rows.iter_mut().zip(names).for_each(|(row, name)| {
            [row.p50, row.p90, row.p99, row.p999, row.max] = [2_000_000; 5];
            (row.name, row.per) = (name.to_owned(), "connections".to_owned());
            row.unit = if name.ends_with("bytes") { "bytes" } else { "ns" }.to_owned();
        });
    }
    snapshot.last_second_ago = Some(0.4);
    let second = |(seconds_ago, in_bytes): (f64, u64)| ExposedSecond {
        seconds_ago,
        counters: [("in_bytes".to_owned(), in_bytes)].into(),
    };
    snapshot.seconds = [(70.0, 99), (2.3, 5), (0.3, 9)].map(second).into();
    let port = |port, open, visitors: u64| PortSnapshot {
        port,
        protocol: "tcp".to_owned(),
        whose: "192.0.2.7:50000".to_owned(),
        state: if port == 443 { "held" } else { "open" }.to_owned(),
        open,
        visitors,
        turned_away: visitors / 10,
        in_bytes: visitors * 100,
        out_bytes: visitors * 1_000,
    };
    // The busiest is told first here, so that sorting shows.
    snapshot.ports = vec![port(8080, 2, visitors), port(80, 3, 5), port(443, 7, 6)];
    super::exposed::Look { snapshot, cpu: Some((uptime_seconds * 0.5e9) as u64) }
}

/// So many that the kernel dropped.
fn overflown(count: u64) -> Vec<Dropped> {
    let worker = WorkerCounters::default();
    worker.overflown.add(count);
    kernel_drops(&Totals::of([&worker]))
}

/// The named ones; the others are zero.
fn counters(known: &[(&str, u64)]) -> BTreeMap<String, u64> {
    let zeros = Totals::COUNTERS.iter().map(|info| (info.name.to_owned(), 0));
    zeros.chain(known.iter().map(|(name, value)| ((*name).to_owned(), *value))).collect()
}

/// `outbound` is between 12.3 and 150 microseconds, all other times are 2 milliseconds.
fn quantiles(count: u64) -> Vec<Quantiles> {
    let quantiles = DISTRIBUTIONS.iter().map(|info| {
        let [p50, p90, p99, p999, max] = match (info.name, info.unit) {
            ("outbound", _) => [12_300, 45_000, 99_000, 120_000, 150_000],
            (_, Unit::Nanoseconds) => [2_000_000; 5],
            (_, Unit::Bytes) => [65_521; 5],
            (_, Unit::Count) => [44; 5],
        };
        Quantiles {
            name: info.name.to_owned(),
            unit: unit(info.unit).to_owned(),
            per: info.per.to_owned(),
            count,
            min: p50,
            mean: p50 as f64,
            p50,
            p90,
            p99,
            p999,
            max,
        }
    });
    quantiles.collect()
}

fn second((seconds_ago, packets): (f64, u64)) -> Second {
    let latency = quantiles(packets).swap_remove(0);
    Second {
        seconds_ago,
        counters: counters(&[
            ("out_packets", packets),
            ("out_bytes", packets * 1_000),
            ("written_bytes", packets * 500),
        ]),
        dropped: 0,
        outbound: latency.clone(),
        inbound: latency,
    }
}

/// The first moves all packets, the second has just come, the third never came.
fn peers(packets: u64) -> Vec<PeerSnapshot> {
    let peer = |name: &str, endpoint: Option<&str>, age, bytes| PeerSnapshot {
        public_key: format!("{name:0<43}="),
        endpoint: endpoint.map(str::to_owned),
        allowed_ips: vec!["10.9.0.7/32".to_owned()],
        handshake_age_seconds: age,
        keypair_age_seconds: age,
        handshakes: u64::from(age.is_some()),
        handshake_ns_last: 1_200_000,
        handshake_ns_min: 900_000,
        rx_bytes: bytes,
        rx_packets: bytes / 1_000,
        tx_bytes: 2 * bytes,
        tx_packets: bytes / 500,
        drops: BTreeMap::new(),
        persistent_keepalive: 25,
    };
    vec![
        peer("busypeer", Some("192.0.2.7:51820"), Some(150.0), packets * 1_000),
        peer("freshpeer", Some("192.0.2.3:51820"), Some(1.0), 148),
        peer("absentpeer", None, None, 0),
    ]
}
