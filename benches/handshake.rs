//! Handshakes, and what is refused before them. Varies: the side, and how far a message gets.
//!
//! The elements are handshakes: criterion prints them per second.
#![allow(missing_docs)]

use std::hint::black_box;
use std::net::SocketAddr;

use criterion::{BatchSize, Bencher, Criterion, Throughput, criterion_group, criterion_main};
use uringvpn::proto::Endpoint;
use uringvpn::proto::cookie::{MacChecker, MacWriter};
use uringvpn::proto::device::Device;
use uringvpn::proto::keys::PresharedKey;
use uringvpn::proto::noise::{
    LocalKeys, RemoteKeys, TransportKeys, consume_initiation, consume_response, create_initiation,
    create_response, open_initiation,
};
use uringvpn::proto::output::Handled;
use uringvpn::proto::rate_limit::RateLimit;
use uringvpn::proto::rng::Rng;
use uringvpn::proto::tai64n::Tai64n;
use uringvpn::proto::timers::INITIATION_INTERVAL_MIN;
use uringvpn::time::{Time, WallTime};
use uringvpn::wire::message::{INITIATION_BYTES, RESPONSE_BYTES};

/// One end of a handshake.
struct Side {
    local: LocalKeys,
    remote: RemoteKeys,
    writer: MacWriter,
    checker: MacChecker,
    rng: Rng,
    stamp: Tai64n,
}

impl Side {
    /// Two ends that know each other.
    fn pair() -> [Side; 2] {
        let mut rng = Rng::from_seed([1; 32]);
        let keys = [0, 1].map(|_| rng.private_key());
        [0, 1].map(|own| {
            let local = LocalKeys::new(keys[own].clone());
            let peer = keys[1 - own].public_key();
            Side {
                remote: RemoteKeys::new(Some(&local), peer, PresharedKey::NONE),
                writer: MacWriter::new(&peer),
                checker: MacChecker::new(local.public()),
                local,
                rng: Rng::from_seed([own as u8; 32]),
                stamp: Tai64n::default(),
            }
        })
    }

    fn initiate(&mut self) -> ([u8; INITIATION_BYTES], uringvpn::proto::noise::Initiated) {
        let ephemeral = self.rng.private_key();
        self.stamp = self.stamp.next();
        let created = create_initiation(&self.local, &self.remote, ephemeral, self.stamp, 1);
        let (mut message, initiated) = created.expect("keys are of full order");
        self.writer.write_macs(&mut message, Time::default());
        (message, initiated)
    }

    /// All that a responder does: initiation verified, response made, keys derived.
    fn respond(&mut self, message: &[u8; INITIATION_BYTES]) -> Option<([u8; RESPONSE_BYTES], TransportKeys)> {
        let arrived = self.checker.mac1_fits(message).then(|| open_initiation(&self.local, message))??;
        let consumed = consume_initiation(arrived, &self.remote)?;
        let ephemeral = self.rng.private_key();
        let (mut response, keys) = create_response(&consumed, &self.remote, ephemeral, 2)?;
        self.writer.write_macs(&mut response, Time::default());
        Some((response, keys))
    }
}

fn handshake(criterion: &mut Criterion) {
    let [mut initiator, mut responder] = Side::pair();
    let (initiation, initiated) = initiator.initiate();
    let (response, _) = responder.respond(&initiation).expect("the initiation is right");
    let mut group = criterion.benchmark_group("handshake");
    group.throughput(Throughput::Elements(1));
    group.bench_function("responder", |b| {
        b.iter(|| responder.respond(black_box(&initiation)).expect("the initiation is right"));
    });
    group.bench_function("initiator_creates", |b| b.iter(|| initiator.initiate()));
    group.bench_function("initiator_consumes", |b| {
        b.iter(|| {
            let message = black_box(&response);
            assert!(initiator.checker.mac1_fits(message));
            consume_response(&initiator.local, &initiator.remote, &initiated, message)
                .expect("the response is right")
        });
    });
    group.bench_function("device_responds", |b| device_responds(b, &mut initiator, &responder));
    group.finish();
}

/// As the protocol thread does it: with look-ups, a session, updates for the workers and timers.
fn device_responds(b: &mut Bencher<'_>, initiator: &mut Side, responder: &Side) {
    let (mut now, wall) = (Time::default(), WallTime::default());
    let mut device = Device::new(2, [7; 32]);
    device.set_private_key(Some(responder.local.private().clone()), now, wall);
    device.set_up(true, now, wall);
    let peer = device.add_peer(*initiator.local.public()).expect("it is another key");
    let from = Endpoint::to(([192, 0, 2, 1], 51820).into());
    let initiation = || initiator.initiate().0;
    let respond = |message: [u8; INITIATION_BYTES]| {
        now = now + INITIATION_INTERVAL_MIN;
        let handled = device.handle_datagram(&message, from, 0, now, wall);
        assert_eq!(handled, Handled::InitiationAccepted(peer));
        while device.poll_update().is_some() {}
        device.poll_transmit()
    };
    b.iter_batched(initiation, respond, BatchSize::SmallInput);
}

fn refused(criterion: &mut Criterion) {
    let [mut initiator, mut responder] = Side::pair();
    let (initiation, _) = initiator.initiate();
    let from: SocketAddr = "192.0.2.1:51820".parse().expect("an address");
    let mut junk = initiation;
    junk[50] ^= 1;
    let mut group = criterion.benchmark_group("refused");
    group.throughput(Throughput::Elements(1));
    group.bench_function("by_mac1", |b| b.iter(|| assert!(!responder.checker.mac1_fits(black_box(&junk)))));
    group.bench_function("by_mac2_with_a_cookie_reply", |b| {
        b.iter(|| {
            let (message, now) = (black_box(&initiation), Time::default());
            assert!(responder.checker.mac1_fits(message));
            assert!(!responder.checker.mac2_fits(message, from, now, &mut responder.rng));
            responder.checker.create_reply(message, 1, from, now, &mut responder.rng)
        });
    });
    group.bench_function("by_rate", |b| {
        let mut limit = RateLimit::new(&mut Rng::from_seed([3; 32]));
        while limit.allow(from.ip(), Time::default()) {}
        b.iter(|| assert!(!limit.allow(black_box(from.ip()), Time::default())));
    });
    group.finish();
}

criterion_group!(benches, handshake, refused);
criterion_main!(benches);
