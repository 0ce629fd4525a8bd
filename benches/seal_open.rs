//! One transport message sealed, and opened, in memory that is hot in the cache. Varies: bytes of the inner packet.
//!
//! The floor under what encryption costs: `perf/run.py --aead` adds the figures at 1420 bytes to the cost of the bare cable.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use uringvpn::proto::crypto::AeadKey;

/// Messages opened between two looks at the clock: enough to hide its cost, few enough to stay in the cache.
const BATCH: u64 = 16;

fn seal_open(criterion: &mut Criterion) {
    let key = AeadKey::new(&[7; 32]);
    let mut group = criterion.benchmark_group("seal_open");
    for bytes in [64, 512, 1_420, 8_192] {
        let plain: Vec<u8> = (0..bytes).map(|i| (i * 7) as u8).collect();
        group.throughput(Throughput::Bytes(bytes as u64));
        let (mut text, mut counter) = (plain.clone(), 0);
        group.bench_function(BenchmarkId::new("seal", bytes), |b| {
            b.iter(|| {
                counter += 1;
                key.seal(counter, &[], black_box(&mut text))
            });
        });
        let mut sealed = plain;
        let tag = key.seal(0, &[], &mut sealed);
        sealed.extend_from_slice(&tag);
        assert_eq!(key.open(0, &[], &mut sealed.clone()), Ok(bytes));
        // Opening destroys the message: each is opened once, and made anew outside of the measured time.
        group.bench_function(BenchmarkId::new("open", bytes), |b| {
            let batch = BatchSize::NumIterations(BATCH);
            b.iter_batched_ref(|| sealed.clone(), |text| key.open(0, &[], black_box(text)).unwrap(), batch);
        });
    }
    group.finish();
}

criterion_group!(benches, seal_open);
criterion_main!(benches);
