//! Trains under construction.
//!
//! Outbound, step 6 of 10 (see [`crate::dataplane`]). In: the length of a datagram and where it goes. Out: room for it at the end of
//! that destination's newest train, and in the end the trains. Pure: buffers come from the caller, no allocation once
//! the lists have their size.
//!
//! A train holds equal datagrams, the last may be shorter (linux/udp.h, UDP_SEGMENT). It is also the shape in which a
//! driver without GSO gets its datagrams: it sends [`Train::datagrams`] single ones out of the one buffer
//! ([`super::stride`] cuts it). So [`TrainLimits`] need not change when GSO goes away, only how a train is sent.

use std::fmt::Debug;
use std::ops::DerefMut;

use crate::time::Time;

/// Equal datagrams to one destination, back to back in one buffer.
#[derive(Debug)]
pub struct Train<B, K> {
    /// The buffer.
    pub buffer: B,
    /// Where in it the first datagram starts.
    pub start: u32,
    /// Where they go.
    pub to: K,
    /// Bytes of all datagrams.
    pub bytes: u32,
    /// Bytes of every datagram but the last, which may be shorter.
    pub segment_bytes: u16,
    /// How many datagrams; at least 1.
    pub datagrams: u16,
    /// When the first one was reserved.
    pub started: Time,
}

impl<B: DerefMut<Target = [u8]>, K> Train<B, K> {
    /// Its datagrams, one by one.
    pub fn split_mut(&mut self) -> impl ExactSizeIterator<Item = &mut [u8]> {
        self.buffer[self.start as usize..][..self.bytes as usize].chunks_mut(self.segment_bytes.into())
    }
}

/// Where a train goes.
pub trait Destination: Copy + Eq + Debug {
    /// Whether what goes here and what goes there may be of one flow, so that it must leave in the order it came.
    fn keeps_order_with(&self, other: &Self) -> bool;
}

/// How long a train may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainLimits {
    /// Datagrams at most: what one GSO send may carry. Meaningless when GSO is off, see the module's words on that.
    pub segments_max: u16,
    /// Bytes at most: what one GSO send may carry without being cut by the kernel already.
    pub bytes_max: u32,
}

impl Default for TrainLimits {
    /// What every kernel with GSO takes, over IPv4 and IPv6.
    fn default() -> TrainLimits {
        TrainLimits { segments_max: TRAIN_SEGMENTS_SAFE, bytes_max: TRAIN_BYTES_MAX }
    }
}

/// Datagrams per train that every kernel with GSO takes (linux/udp.h UDP_MAX_SEGMENTS was 64, is 128).
pub const TRAIN_SEGMENTS_SAFE: u16 = 64;
/// Bytes per train that stay one frame below 65,536 with UDP, IPv6 and Ethernet headers; IPv4 would allow 20 more.
pub const TRAIN_BYTES_MAX: u32 = 65_535 - 8 - 40 - 14;

/// Trains a datagram looks back at for its destination: the bound on the work per datagram.
pub const LOOK_BACK_MAX: usize = 64;

/// The trains of one turn, in the order in which they were opened, and the spare buffers for more.
#[derive(Debug)]
pub struct Trains<B, K> {
    limits: TrainLimits,
    spare: Vec<B>,
    building: Vec<Building<B, K>>,
}

#[derive(Debug)]
struct Building<B, K> {
    train: Train<B, K>,
    /// Takes no more: full, ended by a shorter datagram, or followed by a newer train to the same destination.
    closed: bool,
}

impl<B: DerefMut<Target = [u8]>, K: Destination> Trains<B, K> {
    /// No trains and no buffers yet.
    pub fn new(limits: TrainLimits) -> Trains<B, K> {
        Trains { limits, spare: Vec::new(), building: Vec::new() }
    }

    /// Free buffers held.
    pub fn spare(&self) -> usize {
        self.spare.len()
    }

    /// Takes a free buffer.
    pub fn give(&mut self, buffer: B) {
        self.spare.push(buffer);
    }

    /// Takes back a buffer that was given and not used.
    pub fn take_spare(&mut self) -> Option<B> {
        self.spare.pop()
    }

    /// Trains under construction.
    pub fn len(&self) -> usize {
        self.building.len()
    }

    /// Whether no train is under construction.
    pub fn is_empty(&self) -> bool {
        self.building.is_empty()
    }

    /// Room for one datagram of `bytes` bytes at the end of the newest train to `to`, or at the start of a new one. It
    /// never joins a train in front of another that it must not overtake.
    ///
    /// None when a new train is needed and there is no spare buffer, or none so large; nor for 0 bytes. A datagram
    /// longer than [`TrainLimits::bytes_max`] gets a train of its own.
    pub fn reserve(&mut self, to: K, bytes: usize, now: Time) -> Option<Reservation<'_, B, K>> {
        let segment_bytes = u16::try_from(bytes).ok().filter(|bytes| *bytes > 0)?;
        let newest = self.newest(to);
        if let Some(index) = newest
            && self.has_room(&self.building[index], to, segment_bytes)
        {
            let start = self.building[index].train.bytes as usize;
            return Some(Reservation { trains: self, newest, opened: None, start, bytes });
        }
        let buffer = self.spare.pop_if(|buffer| buffer.len() >= bytes)?;
        let opened =
            Some(Train { buffer, start: 0, to, bytes: 0, segment_bytes, datagrams: 0, started: now });
        Some(Reservation { trains: self, newest, opened, start: 0, bytes })
    }

    /// Takes in a train that was built elsewhere, behind all others to its destination. Nothing joins it, and it may be
    /// longer than the limits: whoever sends it cuts it.
    pub fn adopt(&mut self, train: Train<B, K>) {
        if let Some(index) = self.newest(train.to) {
            self.building[index].closed = true;
        }
        self.building.push(Building { train, closed: true });
    }

    /// Hands out all trains in the order they were opened and holds none afterwards.
    pub fn drain(&mut self) -> impl Iterator<Item = Train<B, K>> + '_ {
        self.building.drain(..).map(|building| building.train)
    }

    /// The newest train that what goes `to` there must not overtake.
    fn newest(&self, to: K) -> Option<usize> {
        let oldest = self.building.len().saturating_sub(LOOK_BACK_MAX);
        self.building[oldest..]
            .iter()
            .rposition(|building| building.train.to.keeps_order_with(&to))
            .map(|index| oldest + index)
    }

    fn has_room(&self, building: &Building<B, K>, to: K, bytes: u16) -> bool {
        let train = &building.train;
        let bytes_max = train.buffer.len().min(self.limits.bytes_max as usize);
        !building.closed
            && train.to == to
            && bytes <= train.segment_bytes
            && train.datagrams < self.limits.segments_max
            && train.bytes as usize + bytes as usize <= bytes_max
    }
}

/// Room for one datagram. Counts only when committed; dropped, it leaves the trains as they were.
#[derive(Debug)]
pub struct Reservation<'a, B: DerefMut<Target = [u8]>, K: Destination> {
    trains: &'a mut Trains<B, K>,
    /// The newest train to the destination: where the room is, or what the opened one follows.
    newest: Option<usize>,
    /// A train opened for this datagram; joins the others when committed.
    opened: Option<Train<B, K>>,
    start: usize,
    bytes: usize,
}

impl<B: DerefMut<Target = [u8]>, K: Destination> Reservation<'_, B, K> {
    /// The room, exactly as long as was asked for. What it holds beforehand is left over from earlier use.
    pub fn bytes(&mut self) -> &mut [u8] {
        let range = self.start..self.start + self.bytes;
        match (&mut self.opened, self.newest) {
            (Some(train), _) => &mut train.buffer[range],
            (None, Some(index)) => &mut self.trains.building[index].train.buffer[range],
            (None, None) => &mut [],
        }
    }

    /// The datagram is complete and part of its train.
    pub fn commit(mut self) {
        let segments_max = self.trains.limits.segments_max;
        let index = match (self.opened.take(), self.newest) {
            (Some(train), followed) => {
                if let Some(index) = followed {
                    self.trains.building[index].closed = true;
                }
                self.trains.building.push(Building { train, closed: false });
                self.trains.building.len() - 1
            }
            (None, Some(index)) => index,
            (None, None) => return,
        };
        let building = &mut self.trains.building[index];
        building.train.bytes += self.bytes as u32;
        building.train.datagrams += 1;
        building.closed =
            self.bytes < building.train.segment_bytes as usize || building.train.datagrams >= segments_max;
    }
}

impl<B: DerefMut<Target = [u8]>, K: Destination> Drop for Reservation<'_, B, K> {
    fn drop(&mut self) {
        if let Some(train) = self.opened.take() {
            self.trains.give(train.buffer);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_nanos(7);

    /// 1 and 101 are two ways to one place.
    impl Destination for u8 {
        fn keeps_order_with(&self, other: &u8) -> bool {
            self % 100 == other % 100
        }
    }

    fn trains(segments_max: u16, buffers: usize) -> Trains<Box<[u8]>, u8> {
        let mut trains = Trains::new(TrainLimits { segments_max, bytes_max: 1000 });
        for _ in 0..buffers {
            trains.give(vec![0; 2000].into());
        }
        trains
    }

    fn put(trains: &mut Trains<Box<[u8]>, u8>, to: u8, bytes: usize, fill: u8) {
        let mut reservation = trains.reserve(to, bytes, NOW).unwrap();
        assert_eq!(reservation.bytes().len(), bytes);
        reservation.bytes().fill(fill);
        reservation.commit();
    }

    /// Destination, datagrams, segment bytes, bytes of every train.
    fn shape(trains: &mut Trains<Box<[u8]>, u8>) -> Vec<(u8, u16, u16, u32)> {
        trains.drain().map(|train| (train.to, train.datagrams, train.segment_bytes, train.bytes)).collect()
    }

    #[test]
    fn equal_datagrams_lie_back_to_back() {
        let mut trains = trains(64, 1);
        put(&mut trains, 1, 100, b'a');
        put(&mut trains, 1, 100, b'b');
        put(&mut trains, 1, 40, b'c');
        let train = trains.drain().next().unwrap();
        assert_eq!((train.datagrams, train.segment_bytes, train.bytes, train.started), (3, 100, 240, NOW));
        assert_eq!(train.buffer[99..101], *b"ab");
        assert_eq!(train.buffer[200..240], [b'c'; 40]);
        assert!(trains.is_empty());
    }

    #[test]
    fn a_shorter_datagram_ends_its_train_and_a_longer_one_opens_another() {
        let mut trains = trains(64, 4);
        for bytes in [100, 100, 40, 40, 100] {
            put(&mut trains, 1, bytes, 0);
        }
        assert_eq!(shape(&mut trains), [(1, 3, 100, 240), (1, 1, 40, 40), (1, 1, 100, 100)]);
    }

    #[test]
    fn a_train_holds_no_more_datagrams_and_bytes_than_allowed() {
        let mut few = trains(2, 3);
        (0..5).for_each(|_| put(&mut few, 1, 100, 0));
        assert_eq!(shape(&mut few), [(1, 2, 100, 200), (1, 2, 100, 200), (1, 1, 100, 100)]);
        let mut short = trains(64, 3);
        (0..4).for_each(|_| put(&mut short, 1, 300, 0));
        assert_eq!(shape(&mut short), [(1, 3, 300, 900), (1, 1, 300, 300)]);
    }

    #[test]
    fn a_datagram_longer_than_a_train_may_be_travels_alone() {
        let mut trains = trains(64, 2);
        put(&mut trains, 1, 1500, 0);
        put(&mut trains, 1, 10, 0);
        assert_eq!(shape(&mut trains), [(1, 1, 1500, 1500), (1, 1, 10, 10)]);
    }

    #[test]
    fn each_destination_has_its_own_train_and_they_come_out_as_opened() {
        let mut trains = trains(64, 4);
        for (to, bytes) in [(2, 100), (1, 50), (2, 100), (3, 70), (1, 50), (2, 200)] {
            put(&mut trains, to, bytes, to);
        }
        assert_eq!(shape(&mut trains), [(2, 2, 100, 200), (1, 2, 50, 100), (3, 1, 70, 70), (2, 1, 200, 200)]);
    }

    #[test]
    fn nothing_joins_a_train_in_front_of_one_that_it_must_not_overtake() {
        let mut trains = trains(64, 4);
        for to in [1, 101, 2, 1, 2] {
            put(&mut trains, to, 100, 0);
        }
        assert_eq!(
            shape(&mut trains),
            [(1, 1, 100, 100), (101, 1, 100, 100), (2, 2, 100, 200), (1, 1, 100, 100)]
        );
    }

    #[test]
    fn a_reservation_that_is_dropped_leaves_everything_as_it_was() {
        let mut trains = trains(64, 2);
        drop(trains.reserve(1, 100, NOW));
        assert_eq!((trains.len(), trains.spare()), (0, 2));
        put(&mut trains, 1, 100, 1);
        drop(trains.reserve(1, 100, NOW));
        drop(trains.reserve(1, 40, NOW));
        drop(trains.reserve(1, 200, NOW));
        assert_eq!((trains.len(), trains.spare()), (1, 1));
        put(&mut trains, 1, 100, 2);
        assert_eq!(shape(&mut trains), [(1, 2, 100, 200)]);
    }

    #[test]
    fn without_a_spare_buffer_only_open_trains_take_more() {
        let mut trains = trains(64, 1);
        put(&mut trains, 1, 100, 0);
        assert!(trains.reserve(2, 100, NOW).is_none());
        assert!(trains.reserve(1, 101, NOW).is_none());
        put(&mut trains, 1, 100, 0);
        assert_eq!(shape(&mut trains), [(1, 2, 100, 200)]);
    }

    #[test]
    fn lengths_that_are_no_datagram_get_no_room() {
        let mut trains = trains(64, 1);
        assert!(trains.reserve(1, 0, NOW).is_none());
        assert!(trains.reserve(1, 2001, NOW).is_none());
        assert!(trains.reserve(1, 70_000, NOW).is_none());
        assert_eq!(trains.spare(), 1);
    }
}
