//! Deterministic simulation: the worker that ships, on a hostile driver, between hosts and a bad network.
//!
//! [`world`] is the plaintext mode, [`encrypted`] the encrypted one, with the protocol thread's exchange and virtual time.
//! A seed decides the plan, the workload, the faults and the order in which everybody runs; [`check`] and [`observer`] have
//! the laws. Replay one seed with `URINGVPN_SIM_SEED=N cargo test --test sim`; `URINGVPN_SIM_SEEDS=N` runs more of them
//! than usual, `URINGVPN_SIM_FIRST=N` begins with that one, `URINGVPN_SIM_TRACE=1` tells what happens in an encrypted one. `scripts/soak` runs them for as long as you like.

mod check;
mod encrypted;
mod incidents;
mod network;
mod node;
mod observer;
#[path = "../packets/mod.rs"]
mod packets;
mod plan;
mod random;
mod sabotage;
mod superpacket;
mod trace;
mod verdict;
mod wire;
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
/// Runs of the encrypted tunnel take longer.
const ENCRYPTED_SEEDS: u64 = 100;

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
fn for_all_seeds(usual: u64, run: impl Fn(u64) -> Checked) {
    let first = variable("URINGVPN_SIM_FIRST").unwrap_or(0);
    let seeds = match variable("URINGVPN_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + variable("URINGVPN_SIM_SEEDS").unwrap_or(usual),
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
    for_all_seeds(SEEDS, |seed| World::new(seed, Plan::of(seed)).run());
}

/// What only an encrypted tunnel drops for.
const ENCRYPTED_ONLY: [DropReason; 13] = [
    DropReason::StageFull,
    DropReason::NoSession,
    DropReason::OutTooLong,
    DropReason::Looped,
    DropReason::NotWireGuard,
    DropReason::UnknownIndex,
    DropReason::KeyExpired,
    DropReason::CounterExhausted,
    DropReason::BadTag,
    DropReason::Replayed,
    DropReason::TooOld,
    DropReason::BadMac1,
    DropReason::HandoffFull,
];

/// What an encrypted tunnel never drops for, or not here: strangers are told by their keys, peers seal whole packets, the
/// MTU is far below what a datagram holds, no endpoint is routed into its own tunnel, the fake TUN takes everything, nothing
/// waits in a fake socket, and no session lasts for the 8,000 packets of a replay window.
const NOT_ENCRYPTED: [DropReason; 7] = [
    DropReason::OutTooLong,
    DropReason::Looped,
    DropReason::UnknownSource,
    DropReason::TooOld,
    DropReason::InMalformed,
    DropReason::QueueDelay,
    DropReason::TunWriteError,
];

/// A simulation that meets no trouble finds nothing.
#[test]
fn the_runs_meet_every_trouble_there_is() {
    let runs: Vec<_> =
        (0..60).map(|seed| World::new(seed, Plan::of(seed)).totals_of_a_run().unwrap()).collect();
    let seen = |what: &dyn Fn(&Totals) -> bool| runs.iter().filter(|totals| what(totals)).count();
    for reason in DropReason::ALL {
        // The fake TUN takes whatever the worker writes, nothing waits in a fake socket, and without sessions nothing can be
        // wrong with one.
        let never = [DropReason::TunWriteError, DropReason::QueueDelay].contains(reason);
        let possible = !never && !ENCRYPTED_ONLY.contains(reason);
        assert_eq!(seen(&|totals| totals.dropped(*reason) > 0) > 0, possible, "{}", reason.label());
    }
    assert!(seen(&|totals| totals.train_retries > 0) > 0);
    assert!(seen(&|totals| totals.write_retries > 0) > 0);
    assert!(seen(&|totals| totals.receive_errors > 0) > 0);
    assert!(seen(&|totals| totals.icmp_errors > 0) > 0);
    assert!(seen(&|totals| totals.sent_datagrams > 2 * totals.trains) > 10, "few trains");
    assert!(seen(&|totals| totals.written_packets > 2 * totals.tun_writes) > 10, "few superpackets");
}

#[test]
fn the_encrypted_runs_meet_every_trouble_there_is() {
    let runs: Vec<_> = (0..40)
        .flat_map(|seed| encrypted::World::new(seed, plan::Plan::of(seed)).totals_of_a_run().unwrap())
        .collect();
    let seen = |what: &dyn Fn(&Totals) -> bool| runs.iter().filter(|totals| what(totals)).count();
    let missing: Vec<_> =
        DropReason::ALL.iter().filter(|reason| seen(&|totals| totals.dropped(**reason) > 0) == 0).collect();
    assert_eq!(missing, NOT_ENCRYPTED.iter().collect::<Vec<_>>());
    assert!(seen(&|totals| totals.train_retries > 0) > 0);
    assert!(seen(&|totals| totals.write_retries > 0) > 0);
    assert!(seen(&|totals| totals.keepalives > 0) > 10, "few keepalives");
    assert!(seen(&|totals| totals.icmp_errors > 0) > 10, "few answers");
    assert!(seen(&|totals| totals.handshakes > 10) > 10, "few handshakes");
    assert!(seen(&|totals| totals.sent_datagrams > 2 * totals.trains) > 10, "few trains");
    assert!(seen(&|totals| totals.written_packets > 2 * totals.tun_writes) > 10, "few superpackets");
}

#[test]
fn without_trains_every_datagram_leaves_once_and_in_order() {
    for_all_seeds(SEEDS, |seed| {
        let faults = Faults { refuses_trains: true, ..Faults::default() };
        World::new(seed, Plan { faults, steps: 20, ..Plan::calm(seed) }).run_without_trains()
    });
}

#[test]
fn a_stopping_worker_finishes_what_it_read() {
    for_all_seeds(SEEDS, |seed| World::new(seed, Plan::of(seed)).run_to_the_last_packet());
}

#[test]
fn the_laws_of_the_encrypted_tunnel_hold_whatever_happens() {
    for_all_seeds(ENCRYPTED_SEEDS, |seed| encrypted::World::new(seed, plan::Plan::of(seed)).run().map(drop));
}

/// A seed that does not replay is no help.
#[test]
fn two_runs_of_a_seed_are_the_same_run() {
    for seed in 1..12 {
        let run = || encrypted::World::new(seed, plan::Plan::of(seed)).run().unwrap();
        assert_eq!(run(), run(), "seed {seed}");
    }
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

/// The same for the encrypted tunnel.
mod encrypted_canary {
    use super::check::HOSTS_MAX;
    use super::encrypted::World;
    use super::plan::Plan;
    use super::sabotage::Sabotage;
    use super::wire::Hostility;
    use super::*;

    fn breaks(law: Law, sabotage: Sabotage) {
        for seed in 0..5 {
            // Where anything is replayed, no order is demanded: then the replay itself is what breaks a law.
            let replays = sabotage == Sabotage::EmptyWindows;
            let hostility = Hostility { replays, ..Hostility::default() };
            let plan = Plan { keepalive: [0; HOSTS_MAX], hostility, ..Plan::calm(seed) };
            let broken = World::new(seed, plan).sabotaged(sabotage).run();
            let broken = broken.expect_err("nobody noticed");
            assert_eq!(broken.law, law, "seed {seed}: {sabotage:?} was taken for: {}", broken.what);
        }
    }

    #[test]
    fn a_byte_that_changes_on_the_way_to_the_tun_is_noticed() {
        breaks(Law::Bytes, Sabotage::FlipByte);
    }

    #[test]
    fn a_packet_that_is_written_twice_is_noticed() {
        breaks(Law::Twice, Sabotage::WriteTwice);
    }

    #[test]
    fn a_packet_that_is_never_written_is_noticed() {
        breaks(Law::Conservation, Sabotage::LoseWrite);
    }

    #[test]
    fn datagrams_that_change_places_are_noticed() {
        breaks(Law::Order, Sabotage::SwapDatagrams);
    }

    #[test]
    fn a_counter_that_is_used_twice_is_noticed() {
        breaks(Law::Nonce, Sabotage::ReuseCounter);
    }

    #[test]
    fn a_replay_that_is_accepted_is_noticed() {
        breaks(Law::Drops, Sabotage::EmptyWindows);
    }

    #[test]
    fn an_answer_to_somebody_who_is_no_peer_is_noticed() {
        breaks(Law::Silence, Sabotage::StealKey);
    }

    #[test]
    fn initiations_that_come_too_fast_are_noticed() {
        breaks(Law::Silence, Sabotage::Impatience);
    }

    #[test]
    fn a_session_that_is_used_for_too_long_is_noticed() {
        breaks(Law::Age, Sabotage::StopClock);
    }

    #[test]
    fn a_peer_that_is_moved_without_a_message_of_its_is_noticed() {
        breaks(Law::Endpoint, Sabotage::LieAboutPlace);
    }

    #[test]
    fn a_responder_that_speaks_too_early_is_noticed() {
        breaks(Law::Mute, Sabotage::SkipConfirmation);
    }

    #[test]
    fn packets_that_pile_up_are_noticed() {
        breaks(Law::Staged, Sabotage::Hoard);
    }

    #[test]
    fn a_packet_that_vanishes_is_noticed() {
        breaks(Law::Conservation, Sabotage::Vanish);
    }

    #[test]
    fn a_packet_that_is_counted_twice_is_noticed() {
        breaks(Law::Conservation, Sabotage::CountTwice);
    }

    #[test]
    fn a_buffer_that_does_not_come_home_is_noticed() {
        breaks(Law::Buffers, Sabotage::LeakBuffer);
    }

    #[test]
    fn a_peer_that_is_blamed_for_what_did_not_happen_is_noticed() {
        breaks(Law::Peers, Sabotage::BlamePeer);
    }

    #[test]
    fn a_tunnel_that_stays_dead_is_noticed() {
        breaks(Law::Liveness, Sabotage::CutWire);
    }
}
