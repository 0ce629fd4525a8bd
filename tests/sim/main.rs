//! Deterministic simulation: the worker that ships, on a hostile driver, between two hosts and a bad network.
//!
//! A seed decides the plan, the workload, the faults and the order in which workers run; [`check`] has the laws. Replay
//! one seed with `URINGVPN_SIM_SEED=N cargo test --test sim`; `URINGVPN_SIM_SEEDS=N` runs more of them than usual.

mod check;
mod network;
#[path = "../packets/mod.rs"]
mod packets;
mod random;
mod superpacket;
mod workload;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;

use uringvpn::io::fake::Faults;
use uringvpn::stats::counters::Totals;
use uringvpn::stats::drop::DropReason;

use check::{Checked, Law};
use world::{Plan, Sabotage, World};

const SEEDS: u64 = 300;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// The commit that a seed must be replayed on.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    output.map_or("unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs `run` for every seed and fails with the first ones that break a law.
fn for_all_seeds(run: impl Fn(u64) -> Checked) {
    let seeds = match variable("URINGVPN_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("URINGVPN_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let mut failures = Vec::new();
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(Ok(())) => {}
            Ok(Err(broken)) => failures.push(format!("seed {seed}: {:?}: {}", broken.law, broken.what)),
            Err(_) => failures.push(format!("seed {seed}: panicked, see above")),
        }
    }
    assert!(
        failures.is_empty(),
        "{} seeds failed at commit {}:\n{}\nreplay one with URINGVPN_SIM_SEED=N cargo test --test sim\n",
        failures.len(),
        commit(),
        failures.iter().take(20).map(|failure| format!("{failure}\n")).collect::<String>(),
    );
}

#[test]
fn the_laws_hold_whatever_happens() {
    for_all_seeds(|seed| World::new(seed, Plan::of(seed)).run());
}

/// What only an encrypted tunnel drops for.
const ENCRYPTED_ONLY: [DropReason; 10] = [
    DropReason::StageFull,
    DropReason::NoSession,
    DropReason::NotWireGuard,
    DropReason::UnknownIndex,
    DropReason::KeyExpired,
    DropReason::CounterExhausted,
    DropReason::BadTag,
    DropReason::Replayed,
    DropReason::TooOld,
    DropReason::HandoffFull,
];

/// A simulation that meets no trouble finds nothing.
#[test]
fn the_runs_meet_every_trouble_there_is() {
    let runs: Vec<_> =
        (0..60).map(|seed| World::new(seed, Plan::of(seed)).totals_of_a_run().unwrap()).collect();
    let seen = |what: &dyn Fn(&Totals) -> bool| runs.iter().filter(|totals| what(totals)).count();
    for reason in DropReason::ALL {
        // The fake TUN takes whatever the worker writes, and without sessions nothing can be wrong with one.
        let possible = *reason != DropReason::TunWriteError && !ENCRYPTED_ONLY.contains(reason);
        assert_eq!(seen(&|totals| totals.dropped(*reason) > 0) > 0, possible, "{}", reason.label());
    }
    assert!(seen(&|totals| totals.train_retries > 0) > 0);
    assert!(seen(&|totals| totals.receive_errors > 0) > 0);
    assert!(seen(&|totals| totals.sent_datagrams > 2 * totals.trains) > 10, "few trains");
    assert!(seen(&|totals| totals.written_packets > 2 * totals.tun_writes) > 10, "few superpackets");
}

#[test]
fn without_trains_every_datagram_leaves_once_and_in_order() {
    for_all_seeds(|seed| {
        let faults = Faults { refuses_trains: true, ..Faults::default() };
        World::new(seed, Plan { faults, steps: 20, ..Plan::calm(seed) }).run_without_trains()
    });
}

#[test]
fn a_stopping_worker_finishes_what_it_read() {
    for_all_seeds(|seed| World::new(seed, Plan::of(seed)).run_to_the_last_packet());
}

/// Checks that never fail prove nothing.
mod canary {
    use super::*;

    fn breaks(law: Law, sabotage: Sabotage) {
        for seed in 0..10 {
            let broken = World::new(seed, Plan::calm(seed)).sabotaged(sabotage).run();
            let broken = broken.expect_err("nobody noticed");
            assert_eq!(broken.law, law, "seed {seed}: {sabotage:?} was taken for: {}", broken.what);
        }
    }

    #[test]
    fn a_flipped_payload_byte_is_noticed() {
        breaks(Law::Bytes, Sabotage::FlipByte);
    }

    #[test]
    fn a_datagram_that_vanishes_uncounted_is_noticed() {
        breaks(Law::Loss, Sabotage::LoseDatagram);
    }

    #[test]
    fn a_datagram_that_comes_twice_is_noticed() {
        breaks(Law::Twice, Sabotage::DuplicateDatagram);
    }

    #[test]
    fn two_datagrams_that_change_places_are_noticed() {
        breaks(Law::Order, Sabotage::SwapDatagrams);
    }

    #[test]
    fn a_buffer_that_does_not_come_home_is_noticed() {
        breaks(Law::Buffers, Sabotage::LeakBuffer);
    }

    #[test]
    fn a_packet_that_is_counted_twice_is_noticed() {
        breaks(Law::Conservation, Sabotage::CountTwice);
    }

    #[test]
    fn a_drop_without_a_reason_is_noticed() {
        breaks(Law::Drops, Sabotage::DropWithoutReason);
    }

    #[test]
    fn a_tunnel_that_stays_down_is_noticed() {
        breaks(Law::Liveness, Sabotage::HoldReceives);
    }
}
