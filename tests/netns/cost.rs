//! What a tunnel takes from the machine: wake-ups, memory, and the spreading of load over workers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::modes::{EVERYTHING, Ends, MODES};
use crate::rig::{Family, Rig, inner, wait_until};
use crate::traffic::{Iperf, ping};
use crate::tunnel::{DRIVERS, Pair, Tunnel};

/// Resident memory under load with 2 queues.
const RESIDENT_BYTES_MAX: u64 = 64 << 20;
/// Sleeps a process may begin in two seconds without traffic: none of ours, but the kernel has its own packets.
const IDLE_SWITCHES_MAX: u64 = 8;

/// The directories of a process's threads.
fn tasks(tunnel: &Tunnel) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(format!("/proc/{}/task", tunnel.pid())).unwrap().map(|entry| entry.unwrap().path())
}

/// How often the process's threads went to sleep of their own accord.
fn voluntary_switches(tunnel: &Tunnel) -> u64 {
    let of_task = |task: PathBuf| -> u64 {
        let text = std::fs::read_to_string(task.join("status")).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    tasks(tunnel).map(of_task).sum()
}

/// Nanoseconds on a processor, by thread name.
fn cpu_ns(tunnel: &Tunnel) -> BTreeMap<String, u64> {
    tasks(tunnel)
        .map(|task| {
            let read = |file| std::fs::read_to_string(task.join(file)).unwrap();
            let ran = read("schedstat").split_whitespace().next().unwrap().parse().unwrap();
            (read("comm").trim().to_owned(), ran)
        })
        .collect()
}

#[test]
fn an_idle_tunnel_sleeps() {
    let Some(rig) = Rig::pair_alone() else { return };
    for io in DRIVERS {
        let pair = Pair::start(&rig, Family::V4, &format!("--io {io} --queues 2"));
        ping(&rig.hosts[0], inner(Family::V4, 1), 10, 1420);
        // Latencies of the last packets are due a second after them; what the kernel has to say about a new interface comes
        // when it comes.
        wait_until("two seconds in which both sleep", || {
            let before = [&pair.near, &pair.far].map(voluntary_switches);
            thread::sleep(Duration::from_secs(2));
            let after = [&pair.near, &pair.far].map(voluntary_switches);
            println!("{io}: {before:?} switches, two seconds later {after:?}");
            before.iter().zip(after).all(|(before, after)| after - before <= IDLE_SWITCHES_MAX)
        });
        pair.stop();
    }
}

#[test]
fn two_queues_under_load_stay_within_64_mib() {
    let Some(rig) = Rig::pair_alone() else { return };
    let iperf = Iperf::start(&rig.hosts[1]);
    for (mode, io) in MODES.into_iter().flat_map(|mode| DRIVERS.map(|io| (mode, io))) {
        let ends = Ends::start(&rig, mode, &format!("--io {io} --queues 2"), EVERYTHING);
        iperf.run(&rig.hosts[0], inner(Family::V4, 1), "--bytes 200M --parallel 4");
        iperf.run(&rig.hosts[0], inner(Family::V6, 1), "--bytes 200M --parallel 4 --reverse");
        for tunnel in [&ends.pair.near, &ends.pair.far] {
            // The highest it ever was.
            let peak_bytes = tunnel.memory_bytes("VmHWM");
            println!("{mode:?}, {io}: {:.1} MiB", peak_bytes as f64 / f64::from(1 << 20));
            assert!(peak_bytes <= RESIDENT_BYTES_MAX, "{mode:?}, {io}: {peak_bytes} bytes resident");
        }
        ends.stop();
    }
}

#[test]
fn the_flows_of_one_peer_spread_over_the_receivers_workers() {
    let Some(rig) = Rig::pair_alone() else { return };
    let iperf = Iperf::start(&rig.hosts[1]);
    for io in DRIVERS {
        let pair = Pair::start(&rig, Family::V4, &format!("--io {io} --queues 4"));
        let before = cpu_ns(&pair.far);
        // Queues are chosen by a hash of the flow. That one of four has all of 24 flows, or all but one, happens once in 10^12
        // times.
        iperf.run(&rig.hosts[0], inner(Family::V4, 1), "--bytes 200M --parallel 24");
        let after = cpu_ns(&pair.far);
        let worked: Vec<_> = after
            .iter()
            .filter(|(name, _)| name.starts_with("worker-"))
            .map(|(name, ran)| ran - before.get(name).unwrap_or(&0))
            .collect();
        println!("{io}: nanoseconds per worker {worked:?}");
        assert_eq!(worked.len(), 4);
        let total: u64 = worked.iter().sum();
        assert!(
            worked.iter().filter(|ran| **ran * 20 > total).count() >= 2,
            "{io}: one worker did it all: {worked:?}"
        );
        pair.stop();
    }
}
