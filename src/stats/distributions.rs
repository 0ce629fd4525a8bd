//! What is recorded: one histogram per stage that a packet passes, and per quantity that explains speed.
//!
//! All have the same bounds, so recording never allocates and sums never lose precision. Add one by adding a line to the
//! table below; recorders, sums, and everything printed follow from it.
//!
//! The stages of a packet follow each other without a gap: `outbound` is `outbound_seal` and `outbound_send`, `inbound` is
//! `inbound_queue`, `inbound_open` and `inbound_write`. They are recorded together, once, when the packet has left, and so
//! each holds exactly as many packets as the counters say have left (`sent_datagrams`, `written_packets`).
//!
//! `handshake` is recorded by the protocol thread instead, once for each that made a session, on the same clock, read whenever it
//! takes something up. Waiting for that thread is in, and all that it computes except for the last message.
//!
//! The clock is the worker's ([`crate::io::clock`]): read when a turn has reaped, after each train is sealed, after all receives
//! are joined, and at the end of a turn that moved packets. All packets that a turn reaped count from the same moment.

use hdrhistogram::{Counter, Histogram};

/// The largest value told apart: 10 s in nanoseconds; larger ones count as this.
pub const VALUE_MAX: u64 = 10_000_000_000;

/// Significant decimal digits kept: 1 % is finer than two runs differ.
const SIGNIFICANT_DIGITS: u8 = 2;

/// What the values of a distribution are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Nanoseconds.
    Nanoseconds,
    /// Bytes.
    Bytes,
    /// A plain number.
    Count,
}

/// What one distribution is called, and what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DistributionInfo {
    /// The name in statistics.
    pub name: &'static str,
    /// What the values are.
    pub unit: Unit,
    /// What each value stands for; the total of the histogram is how many there were.
    pub per: &'static str,
    /// What an interval begins and ends with, or what is counted.
    pub help: &'static str,
}

/// An empty histogram with the bounds that all have: 14 KB with 32-bit counts.
pub fn histogram<C: Counter>() -> Histogram<C> {
    Histogram::new_with_bounds(1, VALUE_MAX, SIGNIFICANT_DIGITS).expect("these bounds are valid")
}

macro_rules! distributions {
    ($($name:ident $unit:ident $per:literal $help:literal;)*) => {
        /// One histogram for each line of the table.
        #[derive(Clone, Debug)]
        pub struct Distributions<C: Counter> {
            $(#[doc = $help] pub $name: Histogram<C>,)*
        }

        /// The table.
        pub const DISTRIBUTIONS: &[DistributionInfo] = &[$(DistributionInfo {
            name: stringify!($name),
            unit: Unit::$unit,
            per: $per,
            help: $help,
        }),*];

        impl<C: Counter> Distributions<C> {
            /// Empty ones; the only place that allocates.
            pub fn new() -> Distributions<C> {
                Distributions { $($name: histogram(),)* }
            }

            /// The histograms in the order of [`DISTRIBUTIONS`].
            pub fn iter(&self) -> impl Iterator<Item = &Histogram<C>> {
                [$(&self.$name),*].into_iter()
            }

            fn iter_mut(&mut self) -> impl Iterator<Item = &mut Histogram<C>> {
                [$(&mut self.$name),*].into_iter()
            }
        }
    };
}

distributions! {
    outbound Nanoseconds "packets"
        "From a TUN read being reaped to the kernel having taken the datagram, time on the stage included.";
    outbound_seal Nanoseconds "packets"
        "From a TUN read being reaped to its train being sealed: waiting for its turn, routing, cutting, the cipher.";
    outbound_send Nanoseconds "packets"
        "From a train being sealed to the kernel having taken it: the rest of the turn, and the send.";
    inbound Nanoseconds "packets"
        "From the kernel's receive timestamp to the TUN write done.";
    inbound_queue Nanoseconds "packets"
        "From the kernel's receive timestamp to the datagram being reaped: the socket's queue, and the worker's waking.";
    inbound_open Nanoseconds "packets"
        "From a receive being reaped to all receives of the turn being opened and joined.";
    inbound_write Nanoseconds "packets"
        "From packets being joined to the TUN having taken them: the rest of the turn, and the kernel's receive path.";
    staged Nanoseconds "reads"
        "How long a TUN read waited for a session before it went on, or was dropped for want of a route.";
    handshake Nanoseconds "handshakes"
        "From beginning an initiation to taking up its response, or from taking up an initiation to hearing of the first message under its keys.";
    turn Nanoseconds "turns"
        "From a worker's waking to its next system call, for turns that moved packets.";
    turn_completions Count "turns"
        "Operations that one turn reaped, for turns that moved packets.";
    turn_bytes Bytes "turns"
        "Bytes of those operations, what one system call moves: inner bytes of TUN reads and writes, UDP payload of receives and sends.";
    read_segments Count "reads"
        "Packets that the kernel handed over in one TUN read.";
    train_datagrams Count "trains"
        "Datagrams that the kernel took in one send.";
    receive_datagrams Count "receives"
        "Datagrams that the kernel handed over in one receive.";
    write_packets Count "writes"
        "Packets that the TUN took in one write.";
    read_bytes Bytes "reads"
        "Inner bytes of one TUN read.";
    write_bytes Bytes "writes"
        "Inner bytes of one TUN write.";
}

impl<C: Counter> Default for Distributions<C> {
    fn default() -> Distributions<C> {
        Distributions::new()
    }
}

impl<C: Counter> Distributions<C> {
    /// Forgets everything, and keeps its memory.
    pub fn clear(&mut self) {
        self.iter_mut().for_each(Histogram::reset);
    }
}

impl Distributions<u64> {
    /// Adds what one worker recorded.
    pub fn add(&mut self, part: &Distributions<u32>) {
        for (sum, part) in self.iter_mut().zip(part.iter()) {
            for bucket in part.iter_recorded() {
                sum.saturating_record_n(bucket.value_iterated_to(), u64::from(bucket.count_at_value()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_workers_keep_every_count_and_every_value_to_one_percent() {
        let mut parts = [Distributions::<u32>::new(), Distributions::<u32>::new()];
        let values = [1, 63, 1_000, 123_456, 9_999_999_999];
        for (index, part) in parts.iter_mut().enumerate() {
            for value in values {
                part.outbound.saturating_record_n(value, 10 + index as u32);
            }
            part.write_bytes.saturating_record(65_521);
        }
        let mut sum = Distributions::new();
        parts.iter().for_each(|part| sum.add(part));
        assert_eq!(sum.outbound.len(), 21 * values.len() as u64);
        for (step, value) in values.iter().enumerate() {
            let middle = (step as f64 + 0.5) / values.len() as f64;
            let found = sum.outbound.value_at_quantile(middle);
            assert!(found.abs_diff(*value) <= value / 100, "{found} for {value}");
        }
        assert_eq!((sum.write_bytes.len(), sum.inbound.len()), (2, 0));
    }

    #[test]
    fn every_histogram_stands_under_its_name_and_clearing_empties_all() {
        let mut all = Distributions::<u32>::new();
        all.outbound.saturating_record(5);
        all.write_bytes.saturating_record(7);
        let named: Vec<_> =
            DISTRIBUTIONS.iter().zip(all.iter()).filter(|(_, histogram)| !histogram.is_empty()).collect();
        assert_eq!(named.iter().map(|(info, _)| info.name).collect::<Vec<_>>(), ["outbound", "write_bytes"]);
        all.clear();
        assert!(all.iter().all(Histogram::is_empty));
        assert_eq!(all.iter().count(), DISTRIBUTIONS.len());
    }
}
