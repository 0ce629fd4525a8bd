//! What happened between two looks at a tunnel, per second.
//!
//! A look is a [`Snapshot`] and, where the kernel tells it, the CPU time of each worker. Time is that of the snapshots
//! themselves, so a late answer makes no rate wrong.

use std::collections::HashMap;

use super::cpu::CpuTimes;
use crate::stats::snapshot::{Dropped, PeerSnapshot, Snapshot};

/// Bars of the last minute, the newest last.
pub const BARS: usize = 60;

/// A tunnel at one moment.
#[derive(Clone, Debug)]
pub struct Look {
    /// What it said.
    pub snapshot: Snapshot,
    /// CPU time of its workers so far.
    pub cpu: CpuTimes,
}

/// The newest look and the one before it.
#[derive(Clone, Copy, Debug)]
pub struct Rates<'a> {
    now: &'a Look,
    /// None at the first look, and when a new tunnel has taken over the name.
    before: Option<&'a Look>,
    seconds: f64,
}

impl<'a> Rates<'a> {
    /// Rates from `before` to `now`.
    pub fn between(before: Option<&'a Look>, now: &'a Look) -> Rates<'a> {
        let elapsed = |before: &Look| now.snapshot.uptime_seconds - before.snapshot.uptime_seconds;
        let before = before.filter(|before| elapsed(before) > 0.0);
        Rates { now, before, seconds: before.map_or(1.0, elapsed) }
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> &'a Snapshot {
        &self.now.snapshot
    }

    fn per_second(&self, now: u64, before: u64) -> Option<f64> {
        now.checked_sub(before).map(|grown| grown as f64 / self.seconds)
    }

    /// How fast a counter grows, all workers together.
    pub fn total(&self, name: &str) -> Option<f64> {
        let now = self.now.snapshot.counters.get(name)?;
        self.per_second(*now, *self.before?.snapshot.counters.get(name)?)
    }

    /// How fast a counter of one worker grows.
    pub fn worker(&self, worker: usize, name: &str) -> Option<f64> {
        let count = |look: &Look| counter(&look.snapshot, worker, name);
        self.per_second(count(self.now)?, count(self.before?)?)
    }

    /// The share of a core that a worker took, 1 being all of it.
    pub fn cpu(&self, worker: usize) -> Option<f64> {
        let nanos = |look: &Look| look.cpu.get(&worker).copied();
        Some(self.per_second(nanos(self.now)?, nanos(self.before?)?)? / 1e9)
    }

    /// What was dropped, last what the kernel dropped before it came to the tunnel.
    pub fn drops(&self) -> impl Iterator<Item = &'a Dropped> {
        all_drops(&self.now.snapshot)
    }

    /// How fast packets are dropped for a reason.
    pub fn dropped(&self, reason: &str) -> Option<f64> {
        let count = |look: &Look| {
            all_drops(&look.snapshot).find(|drop| drop.reason == reason).map_or(0, |drop| drop.packets)
        };
        self.per_second(count(self.now), count(self.before?))
    }

    /// Peers with bytes received and sent per second.
    pub fn peers(&self) -> Vec<(&'a PeerSnapshot, Option<[f64; 2]>)> {
        let peers = |look: &'a Look| look.snapshot.peers.iter();
        let before: HashMap<&str, &PeerSnapshot> =
            self.before.into_iter().flat_map(peers).map(|peer| (peer.public_key.as_str(), peer)).collect();
        let rates = |peer: &PeerSnapshot| {
            let before = before.get(peer.public_key.as_str())?;
            Some([
                self.per_second(peer.rx_bytes, before.rx_bytes)?,
                self.per_second(peer.tx_bytes, before.tx_bytes)?,
            ])
        };
        peers(self.now).map(|peer| (peer, rates(peer))).collect()
    }

    /// The worker that took in the most packets lately; without rates the one that took in the most since the start.
    pub fn busiest(&self) -> usize {
        let packets = |worker: usize| {
            let sum = |name: &str| match self.before {
                Some(_) => self.worker(worker, name).unwrap_or_default(),
                None => counter(&self.now.snapshot, worker, name).unwrap_or_default() as f64,
            };
            sum("out_packets") + sum("in_datagrams")
        };
        let workers = self.now.snapshot.workers.iter().map(|worker| (worker.worker, packets(worker.worker)));
        // Of equals the first.
        workers.rev().max_by(|one, other| one.1.total_cmp(&other.1)).map_or(0, |(worker, _)| worker)
    }

    /// How much a counter grew in each second of the last minute, oldest first. The second that has not ended is left out.
    pub fn minute(&self, name: &str) -> [u64; BARS] {
        let mut bars = [0; BARS];
        for second in &self.now.snapshot.seconds {
            // The second that has not ended tells 0, the one before it anything up to 1.
            if let Some(bar) = bar_of(second.seconds_ago.ceil()) {
                bars[bar] += second.counters.get(name).copied().unwrap_or_default();
            }
        }
        bars
    }
}

/// The bar of the second that began `ago` whole seconds before now; none of one that has just begun, or is too old.
pub fn bar_of(ago: f64) -> Option<usize> {
    (ago as usize).checked_sub(1).and_then(|age| BARS.checked_sub(age + 1))
}

fn all_drops(snapshot: &Snapshot) -> impl Iterator<Item = &Dropped> {
    snapshot.drops.iter().chain(&snapshot.kernel_drops)
}

fn counter(snapshot: &Snapshot, worker: usize, name: &str) -> Option<u64> {
    let worker = snapshot.workers.iter().find(|found| found.worker == worker)?;
    worker.counters.get(name).copied()
}

#[cfg(test)]
mod tests {
    use super::super::made_up::look;
    use super::*;

    #[test]
    fn rates_are_what_was_added_divided_by_the_time_that_passed() {
        let [before, now] = [look(100.0, 1_000), look(102.0, 5_000)];
        let rates = Rates::between(Some(&before), &now);
        assert_eq!(rates.total("out_packets"), Some(2_000.0));
        assert_eq!(rates.worker(1, "out_packets"), Some(1_000.0));
        assert_eq!(rates.dropped("no_route"), Some(2_000.0));
        assert_eq!(rates.dropped("overflown"), Some(1_000.0));
        assert_eq!(rates.cpu(0), Some(0.5));
        assert_eq!(rates.peers()[0].1, Some([2_000_000.0, 4_000_000.0]));
    }

    #[test]
    fn there_are_no_rates_at_first_or_after_a_new_tunnel_took_over() {
        let [old, new] = [look(100.0, 5_000), look(2.0, 10)];
        for rates in [Rates::between(None, &new), Rates::between(Some(&old), &new)] {
            assert_eq!((rates.total("out_packets"), rates.dropped("no_route")), (None, None));
            assert_eq!(rates.peers()[0].1, None);
        }
        // Taken over, and up for longer than the old one was.
        let newer = look(200.0, 10);
        assert_eq!(Rates::between(Some(&old), &newer).total("out_packets"), None);
    }

    #[test]
    fn the_minute_has_each_ended_second_in_its_place_and_zeros_between() {
        let now = look(100.0, 1_000);
        let bars = Rates::between(None, &now).minute("out_packets");
        // See `made_up`: seconds that ended 59.5, 2.5 and 0.5 s ago, and one that has not ended.
        assert_eq!((bars[0], bars[57], bars[58], bars[59]), (7, 5_000, 0, 9_000));
        assert_eq!(bars.iter().sum::<u64>(), 14_007);
    }

    #[test]
    fn the_busiest_worker_is_that_of_now_not_that_of_the_whole_run() {
        let [before, mut now] = [look(100.0, 1_000), look(101.0, 1_000)];
        assert_eq!(Rates::between(None, &now).busiest(), 0);
        now.snapshot.workers[1].counters.insert("in_datagrams".to_owned(), 2_000);
        assert_eq!(Rates::between(Some(&before), &now).busiest(), 1);
    }
}
