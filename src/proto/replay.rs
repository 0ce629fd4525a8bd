//! The sliding window that refuses a counter seen before.
//!
//! A ring of 64-bit blocks indexed by the counter's high bits; moving forward clears blocks instead of shifting them.
//! Source: RFC 6479; WireGuard whitepaper §5.4.6.

/// Bits of the ring. One block of them is being filled, so the window reaches back [`WINDOW`] counters.
const RING_BITS: u64 = 8192;
const BLOCK_BITS: u64 = 64;
const BLOCKS: usize = (RING_BITS / BLOCK_BITS) as usize;
/// How far behind the newest counter one is still accepted: 8128.
pub const WINDOW: u64 = RING_BITS - BLOCK_BITS;

/// Why a counter was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It was accepted before.
    Replayed,
    /// It lies behind the window.
    TooOld,
}

/// Which counters were accepted.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// One more than the newest accepted; 0 before the first.
    next: u64,
    ring: [u64; BLOCKS],
}

impl Default for ReplayWindow {
    fn default() -> ReplayWindow {
        ReplayWindow { next: 0, ring: [0; BLOCKS] }
    }
}

impl ReplayWindow {
    /// Accepts `counter` once. To be called only after the message's tag was verified: a forged counter would close the
    /// window. Counters near 2^64 never come here, see [`super::session::REJECT_AFTER_MESSAGES`].
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub fn accept(&mut self, counter: u64) -> Result<(), Refused> {
        if counter >= self.next {
            self.advance(counter);
        } else if counter + WINDOW < self.next {
            return Err(Refused::TooOld);
        }
        let bit = 1 << (counter % BLOCK_BITS);
        let block = &mut self.ring[(counter / BLOCK_BITS) as usize % BLOCKS];
        if *block & bit != 0 {
            return Err(Refused::Replayed);
        }
        *block |= bit;
        Ok(())
    }

    /// Makes `counter` the newest: the blocks between the old newest and it are empty.
    fn advance(&mut self, counter: u64) {
        // Before the first counter block 0 is the current one, and empty.
        let current = self.next.saturating_sub(1) / BLOCK_BITS;
        let fresh = (counter / BLOCK_BITS - current).min(BLOCKS as u64);
        for block in 1..=fresh {
            self.ring[(current + block) as usize % BLOCKS] = 0;
        }
        self.next = counter + 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_window_reaches_back_8128_counters() {
        let mut window = ReplayWindow::default();
        assert_eq!(window.accept(20_000), Ok(()));
        assert_eq!(window.accept(20_000 - WINDOW + 1), Ok(()));
        assert_eq!(window.accept(20_000 - WINDOW), Err(Refused::TooOld));
        assert_eq!(window.accept(20_000), Err(Refused::Replayed));
    }

    #[test]
    fn a_leap_of_any_length_forgets_nothing_it_must_know() {
        let mut window = ReplayWindow::default();
        for counter in [0, 1, RING_BITS - 1, RING_BITS, 3 * RING_BITS + 5, u64::MAX - (1 << 14)] {
            assert_eq!(window.accept(counter), Ok(()), "{counter}");
            assert_eq!(window.accept(counter), Err(Refused::Replayed), "{counter}");
        }
    }

    proptest! {
        #[test]
        fn the_window_is_a_set_of_counters_not_older_than_its_reach(
            steps in prop::collection::vec((0u64..20_000, any::<bool>()), 1..300),
        ) {
            let mut window = ReplayWindow::default();
            let mut seen = HashSet::new();
            let mut newest: Option<u64> = None;
            for (step, forward) in steps {
                let base = newest.unwrap_or(0);
                let counter = if forward { base + step % 200 } else { base.saturating_sub(step) };
                let too_old = newest.is_some_and(|newest| counter + WINDOW < newest + 1);
                let expected = if too_old {
                    Err(Refused::TooOld)
                } else if seen.insert(counter) {
                    Ok(())
                } else {
                    Err(Refused::Replayed)
                };
                prop_assert_eq!(window.accept(counter), expected);
                newest = newest.max(Some(counter));
            }
        }
    }
}
