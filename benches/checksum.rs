//! Sums of memory that is hot in the cache, alone and while copying. Varies: length in bytes.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use uringvpn::wire::checksum::{copy_and_sum, sum};

fn checksum(criterion: &mut Criterion) {
    let from: Vec<u8> = (0..65_536u32).map(|i| (i * 7) as u8).collect();
    let mut to = vec![0; from.len()];
    let mut group = criterion.benchmark_group("checksum");
    for len in [40, 1_368, 65_536] {
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("sum", len), |b| b.iter(|| sum(black_box(&from[..len]))));
        group.bench_function(BenchmarkId::new("copy_and_sum", len), |b| {
            b.iter(|| copy_and_sum(black_box(&from[..len]), black_box(&mut to[..len])));
        });
        group.bench_function(BenchmarkId::new("copy_alone", len), |b| {
            b.iter(|| black_box(&mut to[..len]).copy_from_slice(black_box(&from[..len])));
        });
    }
    group.finish();
}

criterion_group!(benches, checksum);
criterion_main!(benches);
