//! Receiver indices: the numbers by which a message finds its session, or the handshake that it answers.
//!
//! An index is random, so that it tells nothing of how many sessions there are or were, but for its low byte: modulo the
//! number of workers that is the worker that owns the session. The kernel hands a datagram to the right worker by it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::rng::Rng;

/// Workers that a byte can tell apart.
pub const WORKERS_MAX: usize = 256;

/// The indices in use, each with what it stands for.
#[derive(Debug)]
pub struct Indices<T> {
    workers: usize,
    in_use: BTreeMap<u32, T>,
}

impl<T> Indices<T> {
    /// None in use; `workers` from 1 to [`WORKERS_MAX`].
    ///
    /// # Panics
    /// For other numbers of workers.
    pub fn new(workers: usize) -> Indices<T> {
        assert!(
            (1..=WORKERS_MAX).contains(&workers),
            "indices: {workers} workers, a byte tells 1 to 256 apart"
        );
        Indices { workers, in_use: BTreeMap::new() }
    }

    /// Gives `value` an index that is not in use and leads to `worker`. With 256 workers each has 2^24, four times as many
    /// as all sessions of all peers, so a free one is soon found.
    ///
    /// # Panics
    /// When there is no such worker.
    pub fn allocate(&mut self, worker: usize, value: T, rng: &mut Rng) -> u32 {
        assert!(worker < self.workers, "indices: worker {worker} of {}", self.workers);
        loop {
            let index = self.draw(worker, rng);
            if let Entry::Vacant(free) = self.in_use.entry(index) {
                free.insert(value);
                return index;
            }
        }
    }

    /// What `index` stands for.
    pub fn get(&self, index: u32) -> Option<&T> {
        self.in_use.get(&index)
    }

    /// As [`Indices::get`], to change it.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.in_use.get_mut(&index)
    }

    /// Frees `index`; returns what it stood for.
    pub fn release(&mut self, index: u32) -> Option<T> {
        self.in_use.remove(&index)
    }

    /// How many are in use.
    pub fn len(&self) -> usize {
        self.in_use.len()
    }

    /// Whether none is in use.
    pub fn is_empty(&self) -> bool {
        self.in_use.is_empty()
    }

    fn draw(&self, worker: usize, rng: &mut Rng) -> u32 {
        let low_bytes = (WORKERS_MAX - worker).div_ceil(self.workers) as u64;
        let low_byte = worker as u32 + self.workers as u32 * rng.below(low_bytes) as u32;
        rng.u32() & !0xff | low_byte
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn rng() -> Rng {
        Rng::from_seed([5; 32])
    }

    #[test]
    fn the_low_byte_leads_to_the_worker_and_takes_every_value_that_does() {
        for workers in [1, 2, 3, 4, 256] {
            let (mut indices, mut rng) = (Indices::new(workers), rng());
            for worker in 0..workers {
                let count = 20 * WORKERS_MAX.div_ceil(workers);
                let bytes: HashSet<usize> = (0..count)
                    .map(|_| indices.allocate(worker, (), &mut rng) as usize & 0xff)
                    .inspect(|byte| assert_eq!(byte % workers, worker, "{workers} workers"))
                    .collect();
                let expected = (0..256).filter(|byte| byte % workers == worker).count();
                assert_eq!(bytes.len(), expected, "worker {worker} of {workers}");
            }
        }
    }

    #[test]
    fn no_two_in_use_are_the_same() {
        // One worker of 256 has 2^24 indices: among 20,000 draws some dozen meet.
        let (mut indices, mut rng) = (Indices::new(256), rng());
        let given: HashSet<u32> = (0..20_000).map(|value| indices.allocate(9, value, &mut rng)).collect();
        assert_eq!((given.len(), indices.len()), (20_000, 20_000));
        let mut again = self::rng();
        let drawn: HashSet<u32> = (0..20_000).map(|_| indices.draw(9, &mut again)).collect();
        assert!(drawn.len() < 20_000, "the draws never met, so nothing was tested");
    }

    #[test]
    fn an_index_stands_for_its_value_until_it_is_released() {
        let (mut indices, mut rng) = (Indices::new(2), rng());
        let index = indices.allocate(1, "session", &mut rng);
        assert_eq!(indices.get(index), Some(&"session"));
        *indices.get_mut(index).unwrap() = "newer";
        assert_eq!(indices.release(index), Some("newer"));
        assert_eq!(indices.get(index), None);
        assert_eq!(indices.release(index), None);
        assert_eq!((indices.len(), indices.is_empty()), (0, true));
    }

    #[test]
    fn indices_look_random_in_every_bit_and_from_one_to_the_next() {
        const COUNT: u32 = 1 << 14;
        let (mut indices, mut rng) = (Indices::new(1), rng());
        let given: Vec<u32> = (0..COUNT).map(|_| indices.allocate(0, (), &mut rng)).collect();
        // The standard deviation of 2^14 bits is 64.
        let fair = |ones: usize| ones.abs_diff(COUNT as usize / 2) < 5 * 64;
        for bit in 0..32 {
            assert!(fair(given.iter().filter(|index| *index >> bit & 1 == 1).count()), "bit {bit}");
            let changes = given.windows(2).filter(|pair| (pair[0] ^ pair[1]) >> bit & 1 == 1);
            assert!(fair(changes.count()), "bit {bit} follows from the one before");
        }
        let rises = given.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!(fair(rises), "{rises} of {COUNT} are larger than the one before");
    }
}
