//! How much each side of a stream may send before the other has passed it on.
//!
//! As much as has not been passed on waits in memory at the most; so a stream that nobody reads stops, and holds up no other.
//! Pure.

use crate::io::lease::BUFFER_BYTES;

/// Bytes of one direction on their way at most.
pub const WINDOW_BYTES: usize = 256 << 10;
/// So many bytes that were passed on are worth telling: one small frame for them.
const TELL_BYTES: usize = WINDOW_BYTES / 4;
/// Whoever waits for room for a whole buffer hears of it in time.
const _: () = assert!(WINDOW_BYTES - TELL_BYTES > BUFFER_BYTES);

/// The other side sent more than it may, or gave back more than it got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overrun;

/// One side's view of both directions of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Bytes that we may still send.
    credit: usize,
    /// Bytes that the other side may still send, as far as it knows.
    allowed: usize,
    /// Bytes that were passed on and that it does not know of.
    untold: usize,
}

impl Default for Window {
    fn default() -> Window {
        Window { credit: WINDOW_BYTES, allowed: WINDOW_BYTES, untold: 0 }
    }
}

impl Window {
    /// Whether a whole buffer may be sent.
    pub fn has_room(&self) -> bool {
        self.credit >= BUFFER_BYTES
    }

    /// So many bytes are sent.
    ///
    /// # Panics
    /// If they are more than may be; [`Window::has_room`] was to be asked.
    pub fn sent(&mut self, bytes: usize) {
        assert!(bytes <= self.credit, "{bytes} bytes sent and a credit of {}", self.credit);
        self.credit -= bytes;
    }

    /// The other side has passed so many on.
    ///
    /// # Errors
    /// They are more than it got.
    pub fn credited(&mut self, bytes: u32) -> Result<(), Overrun> {
        self.credit += bytes as usize;
        (self.credit <= WINDOW_BYTES).then_some(()).ok_or(Overrun)
    }

    /// So many have come.
    ///
    /// # Errors
    /// They are more than may.
    pub fn came(&mut self, bytes: usize) -> Result<(), Overrun> {
        self.allowed = self.allowed.checked_sub(bytes).ok_or(Overrun)?;
        Ok(())
    }

    /// So many of them are passed on; what the other side is to be told, if it is worth it.
    pub fn passed_on(&mut self, bytes: usize) -> Option<u32> {
        self.untold += bytes;
        if self.untold < TELL_BYTES {
            return None;
        }
        let told = std::mem::take(&mut self.untold);
        self.allowed += told;
        Some(told as u32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whoever_sends_more_than_it_may_is_found_out() {
        let mut window = Window::default();
        assert_eq!(window.came(WINDOW_BYTES), Ok(()));
        assert_eq!(window.came(1), Err(Overrun));
        assert_eq!(window.passed_on(TELL_BYTES - 1), None);
        assert_eq!(window.came(1), Err(Overrun), "it does not know that there is room");
        assert_eq!(window.passed_on(1), Some(TELL_BYTES as u32));
        assert_eq!(window.came(TELL_BYTES), Ok(()));
    }

    #[test]
    fn credit_for_what_was_never_sent_is_found_out() {
        let mut window = Window::default();
        assert_eq!(window.credited(1), Err(Overrun));
        let mut window = Window::default();
        window.sent(10);
        assert_eq!(window.credited(10), Ok(()));
        assert_eq!(window.credited(u32::MAX), Err(Overrun));
    }

    proptest! {
        /// Whatever is sent and passed on in whichever pieces: nobody overruns anybody, and nobody waits for ever.
        #[test]
        fn a_sender_that_waits_for_room_gets_it(pieces in proptest::collection::vec((1usize..=BUFFER_BYTES, 1usize..100_000), 1..200)) {
            let (mut sender, mut receiver) = (Window::default(), Window::default());
            let mut waiting = 0;
            for (brought, passed) in pieces {
                if sender.has_room() {
                    sender.sent(brought);
                    prop_assert_eq!(receiver.came(brought), Ok(()));
                    waiting += brought;
                }
                prop_assert!(waiting <= WINDOW_BYTES);
                let passed = passed.min(waiting);
                waiting -= passed;
                if let Some(credit) = receiver.passed_on(passed) {
                    prop_assert_eq!(sender.credited(credit), Ok(()));
                }
            }
            if let Some(credit) = receiver.passed_on(waiting) {
                prop_assert_eq!(sender.credited(credit), Ok(()));
            }
            prop_assert!(sender.has_room());
        }
    }
}
