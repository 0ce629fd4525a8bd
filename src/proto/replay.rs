//! The sliding window that refuses a counter seen before.
//!
//! A ring of 64-bit blocks indexed by the counter's high bits; moving forward clears blocks instead of shifting them.
//! Source: RFC 6479; WireGuard whitepaper §5.4.6.

/// Bits of the ring. One block of them may just have been begun, so the window reaches back [`WINDOW`] counters.
const RING_BITS: u64 = 8192;
const BLOCK_BITS: u64 = 64;
const BLOCKS: usize = (RING_BITS / BLOCK_BITS) as usize;
/// How far behind the newest counter one is still accepted: 8128, as in the kernel (drivers/net/wireguard/receive.c
/// `COUNTER_WINDOW_SIZE`).
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
        } else if self.next - 1 - counter > WINDOW {
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
    use crate::proto::session::REJECT_AFTER_MESSAGES;

    #[test]
    fn the_window_reaches_back_8128_counters() {
        let mut window = ReplayWindow::default();
        assert_eq!(WINDOW, 8128);
        // Every place that the newest can have in its block.
        for newest in 20_000..20_000 + BLOCK_BITS {
            assert_eq!(window.accept(newest), Ok(()));
            assert_eq!(window.accept(newest - WINDOW), Ok(()));
            assert_eq!(window.accept(newest - WINDOW - 1), Err(Refused::TooOld));
            assert_eq!(window.accept(newest - WINDOW), Err(Refused::Replayed));
            assert_eq!(window.accept(newest), Err(Refused::Replayed));
        }
    }

    #[test]
    fn a_leap_of_any_length_forgets_nothing_it_must_know() {
        let mut window = ReplayWindow::default();
        for counter in [0, 1, RING_BITS - 1, RING_BITS, 3 * RING_BITS + 5, u64::MAX - (1 << 14)] {
            assert_eq!(window.accept(counter), Ok(()), "{counter}");
            assert_eq!(window.accept(counter), Err(Refused::Replayed), "{counter}");
        }
    }

    /// Whether a counter gets through the limit of the session and then the window.
    fn accepted(window: &mut ReplayWindow, counter: u64) -> bool {
        counter < REJECT_AFTER_MESSAGES && window.accept(counter).is_ok()
    }

    #[test]
    fn counters_at_the_window_s_edges_are_accepted_as_by_the_kernel() {
        const FAR: u64 = WINDOW + 1;
        const END: u64 = REJECT_AFTER_MESSAGES;
        let mut window = ReplayWindow::default();
        let steps = [
            // Each counter once, in and out of order.
            (0, true),
            (1, true),
            (1, false),
            (9, true),
            (8, true),
            (7, true),
            (7, false),
            // The newest moves on; what it leaves within reach is still good.
            (FAR, true),
            (FAR - 1, true),
            (FAR - 1, false),
            (FAR - 2, true),
            (2, true),
            (2, false),
            (FAR + 16, true),
            (3, false),
            (FAR + 16, false),
            // A leap of more than the whole ring.
            (4 * FAR, true),
            (4 * FAR - (FAR - 1), true),
            (10, false),
            (4 * FAR - FAR, false),
            (4 * FAR - (FAR + 1), false),
            (4 * FAR - (FAR - 2), true),
            (4 * FAR + 1 - FAR, false),
            (0, false),
            // The end of all counters.
            (END, false),
            (END - 1, true),
            (END, false),
            (END - 1, false),
            (END - 2, true),
            (END + 1, false),
            (END + 2, false),
            (END - 2, false),
            (END - 3, true),
            (0, false),
        ];
        for (step, (counter, expected)) in steps.into_iter().enumerate() {
            assert_eq!(accepted(&mut window, counter), expected, "step {}: {counter}", step + 1);
        }
    }

    #[test]
    fn a_whole_window_is_accepted_upwards_and_downwards() {
        let mut upwards = ReplayWindow::default();
        assert!((1..=WINDOW).all(|counter| accepted(&mut upwards, counter)));
        assert!(accepted(&mut upwards, 0) && !accepted(&mut upwards, 0));
        let mut one_more = ReplayWindow::default();
        assert!((2..=WINDOW + 1).all(|counter| accepted(&mut one_more, counter)));
        assert!(accepted(&mut one_more, 1) && !accepted(&mut one_more, 0));
        let mut downwards = ReplayWindow::default();
        assert!((0..=WINDOW).rev().all(|counter| accepted(&mut downwards, counter)));
        assert!((0..=WINDOW).all(|counter| !accepted(&mut downwards, counter)));
        assert!(accepted(&mut downwards, WINDOW + 1) && !accepted(&mut downwards, 0));
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
                let too_old = newest.is_some_and(|newest| counter + WINDOW < newest);
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
