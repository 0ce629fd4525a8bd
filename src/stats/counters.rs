//! Counters of one worker, and their sum over all workers.
//!
//! A worker writes its own [`WorkerCounters`], anybody may read them. [`Totals`] is the readable side: plain numbers
//! under the same names, with the conservation law ([`crate::stats`]) as a method. Add a counter by adding a line to
//! the table below; the totals, the printed summary and the help text follow from it.

use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use super::drop::{DROP_REASONS, Direction, DropReason};

/// A number that only grows, written by one thread and readable by all.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the owning thread may call this: a second writer would lose counts.
    #[inline]
    pub fn add(&self, n: u64) {
        // One writer, so a load and a store suffice; a locked addition costs about 20 cycles more. Relaxed: a counter
        // publishes nothing but itself.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The value so far, perhaps a moment old when another thread asks.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down, written by one thread and readable by all.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// It is `value` now. Only the owning thread may call this.
    #[inline]
    pub fn set(&self, value: u64) {
        // Relaxed: it publishes nothing but itself.
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value, perhaps a moment old when another thread asks.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one counter is called, what it counts, and what that means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterInfo {
    /// The name in statistics, that of the field.
    pub name: &'static str,
    /// What one unit of the value is: `packets`, `bytes`, `calls`, …
    pub unit: &'static str,
    /// What is counted, in a sentence.
    pub help: &'static str,
}

macro_rules! counters {
    ($($name:ident $unit:literal $help:literal;)*) => {
        /// What one worker counted. Two cache lines of alignment, so that the prefetcher of a neighbouring worker's
        /// core never fetches ours.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct WorkerCounters {
            $(#[doc = $help] pub $name: Counter,)*
            /// Packets that wait for a session now.
            pub staged: Gauge,
            drops: [Counter; DROP_REASONS],
        }

        /// The sum over workers at one moment, in plain numbers.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Totals {
            $(#[doc = $help] pub $name: u64,)*
            /// Packets that wait for a session.
            pub staged: u64,
            drops: [u64; DROP_REASONS],
        }

        impl Totals {
            /// Every counter except the drops, in the order of the table.
            pub const COUNTERS: &[CounterInfo] =
                &[$(CounterInfo { name: stringify!($name), unit: $unit, help: $help }),*];

            /// The values, in the order of [`Totals::COUNTERS`].
            pub fn values(&self) -> impl Iterator<Item = u64> {
                [$(self.$name),*].into_iter()
            }

            /// Adds what one worker counted so far.
            pub fn add(&mut self, worker: &WorkerCounters) {
                $(self.$name += worker.$name.get();)*
                self.staged += worker.staged.get();
                for (sum, counter) in self.drops.iter_mut().zip(&worker.drops) {
                    *sum += counter.get();
                }
            }

            /// What was counted after `earlier`, an older sum over the same workers; what is staged stays what it is now.
            pub fn since(&self, earlier: &Totals) -> Totals {
                let mut difference = self.clone();
                $(difference.$name -= earlier.$name;)*
                for (drops, before) in difference.drops.iter_mut().zip(&earlier.drops) {
                    *drops -= before;
                }
                difference
            }
        }
    };
}

counters! {
    turns "turns" "Times the worker woke up and looked at its completions.";
    enters "calls" "System calls of the data path.";
    completions "completions" "Operations the kernel reported as finished.";
    rearms "operations" "Multishot operations that ended and were started again.";
    tun_reads "calls" "Reads from the TUN, each a packet or a superpacket.";
    out_packets "packets" "Packets taken in from the TUN, each segment of a superpacket counted.";
    out_bytes "bytes" "Inner bytes of those packets.";
    trains "trains" "Trains the kernel took, single datagrams included.";
    sent_datagrams "packets" "Datagrams the kernel took.";
    sent_bytes "bytes" "UDP payload bytes of those datagrams.";
    train_retries "trains" "Trains the kernel refused that were sent again one datagram at a time.";
    receives "calls" "Receives, each a datagram or several joined by the kernel.";
    overflown "receives" "Datagrams the kernel dropped (a train it joined counts once): a socket of ours was full, or they were damaged. See what keeps the processors busy, use more queues, or without privileges raise net.core.rmem_max.";
    in_datagrams "packets" "Datagrams received, each one of a joined receive counted.";
    in_bytes "bytes" "UDP payload bytes of those datagrams.";
    congestion_marks "packets" "Packets that tell their receiver of congestion (ECN) because they waited too long for a worker.";
    keepalives "packets" "Data messages that held no packet.";
    handshakes "packets" "Handshake messages and cookie replies handed to the protocol thread.";
    tun_writes "calls" "Writes to the TUN of what was received, each a packet or a superpacket.";
    written_packets "packets" "Packets the TUN took, each segment of a superpacket counted.";
    written_bytes "bytes" "Inner bytes of those packets.";
    write_retries "calls" "Superpackets the TUN refused whose packets were written again one by one.";
    icmp_errors "packets" "ICMP errors written to the TUN: senders were told that there is no peer for their packet, or no endpoint.";
    receive_errors "calls" "Receives and TUN reads that failed and brought nothing.";
}

impl WorkerCounters {
    /// Counts `packets` that went no further, under `reason`.
    ///
    /// Not called `drop`: behind an `Arc` that name would mean the Arc's destructor.
    #[inline]
    pub fn count_drop(&self, reason: DropReason, packets: u64) {
        self.drops[reason as usize].add(packets);
    }

    /// Packets counted under `reason` so far.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }
}

impl Totals {
    /// The sum over `workers` as it is now.
    pub fn of<'a>(workers: impl IntoIterator<Item = &'a WorkerCounters>) -> Totals {
        let mut totals = Totals::default();
        for worker in workers {
            totals.add(worker);
        }
        totals
    }

    /// Packets dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// The reasons in one direction that dropped anything, with how many packets.
    pub fn drops(&self, direction: Direction) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL
            .iter()
            .map(|&reason| (reason, self.dropped(reason)))
            .filter(move |&(reason, packets)| reason.direction() == direction && packets > 0)
    }

    /// Packets taken in and neither passed on, dropped nor staged.
    ///
    /// Exact when the workers stand still. Read while they run it is off by what happened during the reading, and may
    /// even be negative; a negative number from workers that stand still is a packet counted twice.
    pub fn in_flight(&self, direction: Direction) -> i64 {
        let waiting = if direction == Direction::Outbound { self.staged } else { 0 };
        let gone = self.passed_on(direction) + self.dropped_in(direction) + waiting;
        self.taken_in(direction).wrapping_sub(gone).cast_signed()
    }

    /// Packets taken in.
    pub fn taken_in(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Outbound => self.out_packets,
            Direction::Inbound => self.in_datagrams,
        }
    }

    /// Packets that went all the way; inbound also datagrams that hold nothing for the TUN.
    pub fn passed_on(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Outbound => self.sent_datagrams,
            Direction::Inbound => self.written_packets + self.keepalives + self.handshakes,
        }
    }

    /// Packets dropped, whatever the reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Packets dropped in one direction, whatever the reason.
    pub fn dropped_in(&self, direction: Direction) -> u64 {
        self.drops(direction).map(|(_, packets)| packets).sum()
    }

    /// Checks the conservation law of [`crate::stats`] for workers that stand still but may hold packets.
    ///
    /// # Errors
    /// The first direction in which more packets came out than went in.
    pub fn check(&self) -> Result<(), Imbalance> {
        self.check_that(|in_flight| in_flight >= 0)
    }

    /// Checks the conservation law for workers that have drained: nothing is in flight any more.
    ///
    /// # Errors
    /// The first direction in which a packet vanished or came out twice.
    pub fn check_drained(&self) -> Result<(), Imbalance> {
        self.check_that(|in_flight| in_flight == 0)
    }

    fn check_that(&self, holds: impl Fn(i64) -> bool) -> Result<(), Imbalance> {
        for direction in Direction::ALL {
            let in_flight = self.in_flight(direction);
            if !holds(in_flight) {
                return Err(Imbalance { direction, in_flight });
            }
        }
        Ok(())
    }
}

/// Packets in does not equal packets out plus drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{direction:?} packets do not add up: {in_flight} in flight")]
pub struct Imbalance {
    /// Where.
    pub direction: Direction,
    /// Packets unaccounted for; negative when more came out than went in.
    pub in_flight: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_the_sum_over_workers_under_the_same_names() {
        let workers = [WorkerCounters::default(), WorkerCounters::default()];
        workers[0].out_packets.add(45);
        workers[1].out_packets.add(2);
        workers[1].count_drop(DropReason::NoRoute, 3);

        let totals = Totals::of(&workers);
        assert_eq!(totals.out_packets, 47);
        assert_eq!(totals.dropped(DropReason::NoRoute), 3);
        assert_eq!(workers[1].dropped(DropReason::NoRoute), 3);
        assert_eq!(totals.drops(Direction::Outbound).collect::<Vec<_>>(), [(DropReason::NoRoute, 3)]);
        assert_eq!(totals.drops(Direction::Inbound).count(), 0);
    }

    #[test]
    fn every_value_has_its_name_in_the_table() {
        let worker = WorkerCounters::default();
        worker.turns.add(1);
        worker.receive_errors.add(7);
        let totals = Totals::of([&worker]);
        let named: Vec<_> = Totals::COUNTERS.iter().map(|info| info.name).zip(totals.values()).collect();
        assert_eq!(named.first(), Some(&("turns", 1)));
        assert_eq!(named.last(), Some(&("receive_errors", 7)));
        assert_eq!(named.len(), Totals::COUNTERS.len());
    }

    #[test]
    fn what_is_in_flight_is_what_came_in_and_neither_left_nor_died() {
        let worker = WorkerCounters::default();
        worker.out_packets.add(10);
        worker.sent_datagrams.add(6);
        worker.count_drop(DropReason::SendError, 1);
        worker.in_datagrams.add(4);
        worker.written_packets.add(2);
        worker.count_drop(DropReason::SourceNotAllowed, 2);

        let totals = Totals::of([&worker]);
        assert_eq!(totals.in_flight(Direction::Outbound), 3);
        assert_eq!(totals.in_flight(Direction::Inbound), 0);
        assert_eq!(totals.check(), Ok(()));
        assert_eq!(totals.check_drained(), Err(Imbalance { direction: Direction::Outbound, in_flight: 3 }));
        worker.sent_datagrams.add(3);
        assert_eq!(Totals::of([&worker]).check_drained(), Ok(()));
    }

    #[test]
    fn what_the_kernel_dropped_was_never_in() {
        let worker = WorkerCounters::default();
        worker.in_datagrams.add(1);
        worker.keepalives.add(1);
        worker.overflown.add(5);
        let totals = Totals::of([&worker]);
        assert_eq!((totals.check_drained(), totals.dropped_in_all()), (Ok(()), 0));
    }

    #[test]
    fn a_packet_that_comes_out_twice_breaks_the_law() {
        let worker = WorkerCounters::default();
        worker.in_datagrams.add(1);
        worker.written_packets.add(2);
        let imbalance = Imbalance { direction: Direction::Inbound, in_flight: -1 };
        assert_eq!(Totals::of([&worker]).check(), Err(imbalance));
    }

    #[test]
    fn the_difference_of_two_totals_is_what_happened_in_between() {
        let worker = WorkerCounters::default();
        worker.enters.add(5);
        worker.count_drop(DropReason::TunDown, 1);
        let earlier = Totals::of([&worker]);
        worker.enters.add(2);
        worker.count_drop(DropReason::TunDown, 4);
        let difference = Totals::of([&worker]).since(&earlier);
        assert_eq!(difference.enters, 2);
        assert_eq!(difference.dropped(DropReason::TunDown), 4);
    }

    #[test]
    fn workers_share_no_cache_line() {
        assert_eq!(align_of::<WorkerCounters>(), 128);
        assert_eq!(size_of::<WorkerCounters>() % 128, 0);
    }
}
