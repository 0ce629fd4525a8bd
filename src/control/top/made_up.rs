//! A tunnel that exists only in tests.

use std::collections::BTreeMap;

use super::cpu::CpuTimes;
use super::rates::Look;
use crate::stats::counters::Totals;
use crate::stats::distributions::{DISTRIBUTIONS, Unit};
use crate::stats::drop::DropReason;
use crate::stats::snapshot::{
    Balance, Dropped, PeerSnapshot, Quantiles, SCHEMA, Second, Snapshot, WorkerSnapshot, unit,
};

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
        version: "9.9.9".to_owned(),
        interface: "uvt7".to_owned(),
        uptime_seconds,
        counters: counters(&[
            ("out_packets", packets),
            ("out_bytes", packets * 1_000),
            ("in_datagrams", packets / 2),
            ("written_packets", packets / 2),
            ("written_bytes", packets * 500),
        ]),
        drops: vec![drop(DropReason::NoRoute, packets), drop(DropReason::TunDown, 3)],
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
        rx_bytes: bytes,
        tx_bytes: 2 * bytes,
        persistent_keepalive: 25,
    };
    vec![
        peer("busypeer", Some("192.0.2.7:51820"), Some(150.0), packets * 1_000),
        peer("freshpeer", Some("192.0.2.3:51820"), Some(1.0), 148),
        peer("absentpeer", None, None, 0),
    ]
}
