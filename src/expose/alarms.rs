//! What is to be looked at when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::time::Time;

/// Alarms that may be there beside four for each thing that can have some, before stale ones are looked for.
const STALE_MAX: usize = 64;

/// Times at which to look at something. None is taken back by itself: whoever is woken looks whether there is a reason, and
/// [`Alarms::thin_out`] drops those that have none when they are many.
#[derive(Debug)]
pub struct Alarms<K: Ord> {
    heap: BinaryHeap<Reverse<(Time, K)>>,
}

impl<K: Ord> Default for Alarms<K> {
    fn default() -> Alarms<K> {
        Alarms { heap: BinaryHeap::new() }
    }
}

impl<K: Ord> Alarms<K> {
    /// Sets one.
    pub fn set(&mut self, at: Time, what: K) {
        self.heap.push(Reverse((at, what)));
    }

    /// Drops those that `matter` to nobody any more, if there are many for `count` things. An alarm for each of a million short
    /// connections would otherwise stay until its time, an hour later perhaps.
    ///
    /// None of the things may have more than three alarms that matter; then a call costs a constant per alarm set.
    pub fn thin_out(&mut self, count: usize, mut matters: impl FnMut(Time, &K) -> bool) {
        if self.heap.len() > 4 * count + STALE_MAX {
            self.heap.retain(|Reverse((at, what))| matters(*at, what));
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// The time of the first one.
    pub fn next(&self) -> Option<Time> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes one whose time has come.
    pub fn due(&mut self, now: Time) -> Option<K> {
        (self.next()? <= now).then(|| self.heap.pop().expect("it was looked at").0.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_come_in_the_order_of_their_times_and_not_before() {
        let time = Time::from_nanos;
        let mut alarms = Alarms::default();
        assert_eq!((alarms.next(), alarms.due(time(9))), (None, None));
        for at in [5, 3, 4, 3] {
            alarms.set(time(at), at);
        }
        assert_eq!((alarms.next(), alarms.due(time(2))), (Some(time(3)), None));
        let due: Vec<_> = std::iter::from_fn(|| alarms.due(time(4))).collect();
        assert_eq!(due, [3, 3, 4]);
        assert_eq!(alarms.next(), Some(time(5)));
    }

    #[test]
    fn stale_alarms_go_when_they_are_many_and_the_others_stay_in_order() {
        let mut alarms = Alarms::default();
        for number in 0..1000_u64 {
            alarms.set(Time::from_nanos(2000 - number), number);
            alarms.thin_out(2, |_, what| [0, 500].contains(what));
            assert!(alarms.len() <= 4 * 2 + STALE_MAX);
        }
        alarms.thin_out(0, |at, what| at == Time::from_nanos(1500) && *what == 500);
        let due: Vec<_> = std::iter::from_fn(|| alarms.due(Time::from_nanos(2000))).collect();
        assert!(due.contains(&500) && due.is_sorted_by(|one, next| one > next), "{due:?}");
    }
}
