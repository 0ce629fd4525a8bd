//! One superpacket cut into segments, and its segments joined again. Varies: version, transport, payload per segment.
//!
//! Prints per case how many packets and bytes one iteration handles.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/packets/mod.rs"]
mod packets;

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use packets::{Packet, Received, payload, split};
use uringvpn::offload::coalesce::{Coalescer, Merge};
use uringvpn::offload::split::Split;
use uringvpn::time::Time;
use uringvpn::wire::ip::IpView;
use uringvpn::wire::vnet_hdr::VnetHdr;

struct Case {
    name: String,
    read: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let case = |name: &str, packet: Packet, mss: u16| Case {
        name: format!("{name}/mss {mss}"),
        read: packet.tun_read(mss),
    };
    vec![
        case("tcp v4", Packet::tcp(false, payload(45 * 1_368, 1)), 1_368),
        case("tcp v6", Packet::tcp(true, payload(45 * 1_348, 1)), 1_348),
        case("udp v4", Packet::udp(false, payload(45 * 1_392, 1)), 1_392),
        case("tcp v4", Packet::tcp(false, payload(100 * 536, 1)), 536),
        case("tcp v4", Packet::tcp(false, payload(7 * 8_868, 1)), 8_868),
    ]
}

/// Parse, plan, and emit every segment into one buffer.
fn bench_split(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("split");
    let mut out = vec![0; 128 * 1024];
    for Case { name, read } in cases() {
        println!("split {name}: {} segments, {} bytes", split(&read).len(), read.len() - 16);
        group.throughput(Throughput::Bytes(read.len() as u64 - 16));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                let (vnet, packet) = VnetHdr::parse(black_box(&read)).unwrap();
                let ip = IpView::parse(packet).unwrap();
                let split = Split::plan(&vnet, packet, &ip).unwrap();
                let mut at = 0;
                for index in 0..split.count() {
                    let bytes = split.segment_bytes(index);
                    split.emit(packet, index, &mut out[at..at + bytes]);
                    at += bytes + 32;
                }
                at
            });
        });
    }
    group.finish();
}

/// Parse, plan, and spread the segments out where they lie; each time from a fresh copy, which `batched` does not time.
fn bench_spread(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("spread");
    for Case { name, read } in cases() {
        group.throughput(Throughput::Bytes(read.len() as u64 - 16));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter_batched_ref(
                || {
                    let mut buffer = read.clone();
                    buffer.resize(80 * 1024, 0);
                    buffer
                },
                |buffer| {
                    let (vnet, packet) = VnetHdr::parse(black_box(&buffer[..read.len()])).unwrap();
                    let split = Split::plan(&vnet, packet, &IpView::parse(packet).unwrap()).unwrap();
                    split.spread(buffer, 16, split.full_segment_bytes())
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// Parse and push every segment, drain one write, recycle it.
fn bench_coalesce(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("coalesce");
    for Case { name, read } in cases() {
        let segments = split(&read);
        let received = Received::new(&segments);
        let mut coalescer = Coalescer::new(Merge { tcp: true, udp: true });
        let writes = received.coalesce(&mut coalescer);
        println!(
            "coalesce {name}: {} packets, {} bytes, {} writes",
            segments.len(),
            read.len() - 16,
            writes.len()
        );
        assert_eq!(writes.len(), 1);
        group.throughput(Throughput::Bytes(read.len() as u64 - 16));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                for place in &received.places {
                    let packet = black_box(received.at(*place));
                    let ip = IpView::parse(packet).unwrap();
                    coalescer.push(packet, &ip, *place, Time::default());
                }
                let gather = coalescer.drain().next().unwrap();
                let bytes = gather.bytes();
                coalescer.recycle(gather);
                bytes
            });
        });
    }
    group.finish();
}

/// Packets that nobody joins: acknowledgments of 16 flows in turn.
fn bench_alone(criterion: &mut Criterion) {
    let flow = |port| Packet { source_port: port, ..Packet::tcp(false, Vec::new()) }.bytes();
    let acks: Vec<_> = (0..64).map(|i| flow(i % 16)).collect();
    let received = Received::new(&acks);
    let mut coalescer = Coalescer::new(Merge { tcp: true, udp: true });
    let mut gathers = Vec::with_capacity(64);
    let mut group = criterion.benchmark_group("coalesce_alone");
    group.throughput(Throughput::Elements(acks.len() as u64));
    group.bench_function("64 acknowledgments of 16 flows", |b| {
        b.iter(|| {
            for place in &received.places {
                let packet = black_box(received.at(*place));
                let ip = IpView::parse(packet).unwrap();
                coalescer.push(packet, &ip, *place, Time::default());
            }
            gathers.extend(coalescer.drain());
            gathers.drain(..).for_each(|gather| coalescer.recycle(gather));
        });
    });
    group.finish();
}

criterion_group!(benches, bench_split, bench_spread, bench_coalesce, bench_alone);
criterion_main!(benches);
