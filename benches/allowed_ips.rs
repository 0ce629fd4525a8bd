//! Longest-prefix lookups. Varies: number of prefixes, version of the address.
//!
//! Half of the addresses looked up are in some prefix, half in none; prints how many were found.
#![allow(missing_docs)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::IpNet;
use uringvpn::dataplane::allowed_ips::AllowedIps;

const LOOKUPS: u32 = 1024;

/// Numbers that lie far from one another.
fn scatter(index: u32) -> u32 {
    index.wrapping_mul(2_654_435_761)
}

/// An address whose upper bits follow from `index`; v6 in fd00::/16.
fn address(v6: bool, index: u32, low: u16) -> IpAddr {
    let high = scatter(index) & 0x7fff_ff00;
    if v6 {
        Ipv6Addr::new(0xfd00, (high >> 16) as u16, high as u16, 0, 0, 0, 0, low).into()
    } else {
        Ipv4Addr::from(high | u32::from(low & 0xff)).into()
    }
}

fn table(v6: bool, prefixes: u32) -> AllowedIps {
    let mut table = AllowedIps::default();
    for index in 0..prefixes {
        let length = if v6 { 48 } else { 24 };
        table.insert(IpNet::new(address(v6, index, 0), length).expect("in range"), index);
    }
    table
}

fn bench_lookup(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("allowed_ips");
    for prefixes in [1, 100, 10_000] {
        for v6 in [false, true] {
            let table = table(v6, prefixes);
            // Every second address is one that no prefix was made of.
            let wanted = |index| if index % 2 == 0 { index / 2 % prefixes } else { 1_000_000 + index };
            let probes: Vec<_> = (0..LOOKUPS).map(|index| address(v6, wanted(index), index as u16)).collect();
            let found = probes.iter().filter(|probe| table.lookup(**probe).is_some()).count();
            let name = format!("{prefixes} prefixes v{}", if v6 { 6 } else { 4 });
            println!("allowed_ips {name}: {LOOKUPS} lookups, {found} found");
            group.throughput(Throughput::Elements(LOOKUPS.into()));
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter(|| probes.iter().filter_map(|probe| table.lookup(black_box(*probe))).count());
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench_lookup);
criterion_main!(benches);
