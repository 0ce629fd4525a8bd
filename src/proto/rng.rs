//! Random bytes from a seed: ephemeral keys, indices, nonces, jitter.
//!
//! The seed comes from the operating system in production and from the test in a simulation, which so runs the same
//! twice. Forward secret: each block of keystream begins with the key of the next one, and bytes are wiped as they are
//! handed out, so that a state seen today does not tell yesterday's keys.
//!
//! Source: blog.cr.yp.to/20170723-random.html ("fast-key-erasure").

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::crypto::keystream;
use super::keys::{KEY_BYTES, PrivateKey};

/// Bytes of keystream made at once: the next key, and 15 draws of 32 bytes.
const BLOCK_BYTES: usize = 512;

/// A generator of random bytes. See the module.
#[derive(ZeroizeOnDrop)]
pub struct Rng {
    /// The next key, then what has not been handed out, from `used` on. On the heap: a move of the generator would leave a
    /// copy behind that nobody wipes.
    block: Box<[u8]>,
    used: usize,
}

impl Rng {
    /// The generator that `seed` starts. Nothing here remembers the seed afterwards.
    pub fn from_seed(mut seed: [u8; KEY_BYTES]) -> Rng {
        let mut rng = Rng { block: vec![0; BLOCK_BYTES].into(), used: BLOCK_BYTES };
        rng.block[..KEY_BYTES].copy_from_slice(&seed);
        seed.zeroize();
        rng.renew();
        rng
    }

    /// Overwrites `out` with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        let mut rest = out;
        while !rest.is_empty() {
            if self.used == BLOCK_BYTES {
                self.renew();
            }
            let count = rest.len().min(BLOCK_BYTES - self.used);
            let (now, later) = rest.split_at_mut(count);
            let drawn = &mut self.block[self.used..self.used + count];
            now.copy_from_slice(drawn);
            drawn.zeroize();
            self.used += count;
            rest = later;
        }
    }

    /// Any 32-bit number.
    pub fn u32(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.fill(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// A number from 0 up to but not `n`, all equally likely.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "no number is below 0");
        // The numbers from here on make no full round of n; those below it do.
        let rounds_end = u64::MAX - u64::MAX % n;
        loop {
            let mut bytes = [0; 8];
            self.fill(&mut bytes);
            let drawn = u64::from_le_bytes(bytes);
            if drawn < rounds_end {
                return drawn % n;
            }
        }
    }

    /// A fresh private key.
    pub fn private_key(&mut self) -> PrivateKey {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        self.fill(&mut *bytes);
        PrivateKey::from_bytes(*bytes)
    }

    fn renew(&mut self) {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        key.copy_from_slice(&self.block[..KEY_BYTES]);
        keystream(&key, &mut self.block);
        self.used = KEY_BYTES;
    }
}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rng(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(rng: &mut Rng, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        rng.fill(&mut out);
        out
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_however_they_are_drawn() {
        let at_once = draw(&mut Rng::from_seed([7; 32]), 5_000);
        let mut rng = Rng::from_seed([7; 32]);
        let mut in_pieces = Vec::new();
        for piece in 0.. {
            in_pieces.extend(draw(&mut rng, piece % 97));
            if in_pieces.len() >= at_once.len() {
                break;
            }
        }
        assert_eq!(in_pieces[..5_000], at_once);
        assert_ne!(draw(&mut Rng::from_seed([8; 32]), 5_000), at_once);
    }

    #[test]
    fn the_first_bytes_are_the_keystream_after_the_next_key() {
        let mut expected = [0; BLOCK_BYTES];
        keystream(&[7; 32], &mut expected);
        let mut rng = Rng::from_seed([7; 32]);
        assert_eq!(draw(&mut rng, 480), expected[KEY_BYTES..]);
        let mut second = [0; BLOCK_BYTES];
        keystream(expected.first_chunk().unwrap(), &mut second);
        assert_eq!(draw(&mut rng, 480), second[KEY_BYTES..]);
    }

    #[test]
    fn what_was_handed_out_is_no_longer_there() {
        let mut rng = Rng::from_seed([7; 32]);
        let drawn = draw(&mut rng, 100);
        assert!(!rng.block.windows(8).any(|window| drawn.windows(8).any(|bytes| bytes == window)));
        assert_eq!(rng.block[KEY_BYTES..KEY_BYTES + 100], [0; 100]);
    }

    #[test]
    fn the_seed_is_forgotten_before_the_first_byte_is_drawn() {
        let rng = Rng::from_seed([7; 32]);
        assert!(!rng.block.windows(8).any(|window| window == [7; 8]));
    }

    #[test]
    fn half_of_the_bits_are_set() {
        let set: u32 = draw(&mut Rng::from_seed([1; 32]), 1 << 16).iter().map(|byte| byte.count_ones()).sum();
        // The standard deviation of 2^19 bits is 362.
        assert!(set.abs_diff(1 << 18) < 5 * 362, "{set} of {} bits", 1 << 19);
    }

    #[test]
    fn numbers_below_a_bound_are_all_hit_and_equally_often() {
        let mut rng = Rng::from_seed([2; 32]);
        let mut hits = [0u32; 7];
        (0..70_000).for_each(|_| hits[rng.below(7) as usize] += 1);
        assert!(hits.iter().all(|hits| hits.abs_diff(10_000) < 500), "{hits:?}");
        assert_eq!(rng.below(1), 0);
        // Half of all numbers are beyond the last full round of this bound.
        assert!((0..100).all(|_| rng.below((1 << 63) + 1) <= 1 << 63));
    }

    #[test]
    fn private_keys_are_fresh_and_clamped() {
        let mut rng = Rng::from_seed([3; 32]);
        let (first, second) = (rng.private_key(), rng.private_key());
        assert_ne!(first, second);
        assert_eq!((first.expose()[0] & 7, first.expose()[31] & 0xc0), (0, 0x40));
    }
}
