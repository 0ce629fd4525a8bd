//! The timestamp of an initiation, by which the responder knows an old one.
//!
//! Ours are whitened: rounded down to about 17 milliseconds, so that they do not tell the time to the nanosecond (which a
//! remote observer could use to find correlations). Whoever sends two within one step needs [`Tai64n::next`].
//!
//! Source: WireGuard whitepaper §5.1, §5.4.2; cr.yp.to/libtai/tai64.html; drivers/net/wireguard/noise.c `tai64n_now`.

use crate::time::WallTime;

/// Bytes of a timestamp: seconds 8 | nanoseconds 4, big-endian.
pub const TIMESTAMP_BYTES: usize = 12;
/// The step of our timestamps in nanoseconds: the largest power of two that still tells 50 initiations a second apart.
pub const STEP_NANOS: u32 = 1 << 24;

const NANOS_PER_SEC: u32 = 1_000_000_000;
/// The label of the Unix epoch: 2^62, and 10 seconds that TAI was ahead of UTC then.
const UNIX_EPOCH: u64 = (1 << 62) + 10;

/// A timestamp as it travels. Big-endian, so the order of the bytes is the order of the times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tai64n([u8; TIMESTAMP_BYTES]);

impl Tai64n {
    /// `now`, whitened.
    pub fn from_wall(now: WallTime) -> Tai64n {
        Tai64n::from_parts(UNIX_EPOCH.saturating_add(now.secs()), now.nanos() - now.nanos() % STEP_NANOS)
    }

    /// These bytes as a timestamp; any are one.
    pub const fn from_bytes(bytes: [u8; TIMESTAMP_BYTES]) -> Tai64n {
        Tai64n(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; TIMESTAMP_BYTES] {
        &self.0
    }

    /// The whitened timestamp that follows: for an initiation in the step of the one before, or after the wall clock was
    /// set back. The end of time follows itself.
    pub fn next(self) -> Tai64n {
        let (secs, nanos) = self.parts();
        let nanos = (nanos - nanos % STEP_NANOS).saturating_add(STEP_NANOS);
        if nanos < NANOS_PER_SEC {
            return Tai64n::from_parts(secs, nanos);
        }
        secs.checked_add(1).map_or(self, |secs| Tai64n::from_parts(secs, 0))
    }

    fn from_parts(secs: u64, nanos: u32) -> Tai64n {
        let mut bytes = [0; TIMESTAMP_BYTES];
        bytes[..8].copy_from_slice(&secs.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Tai64n(bytes)
    }

    fn parts(self) -> (u64, u32) {
        let whole = self.0.iter().fold(0u128, |whole, byte| whole << 8 | u128::from(*byte));
        ((whole >> 32) as u64, whole as u32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamp(secs: u64, nanos: u32) -> Tai64n {
        Tai64n::from_wall(WallTime::from_parts(secs, nanos))
    }

    /// The first one is the example of the format's definition, 1992-06-02 08:07:09 TAI. UTC was 26 seconds behind then; we
    /// count ten at all times, like everybody.
    #[test]
    fn the_label_is_two_to_the_62_and_ten_and_the_seconds_since_1970() {
        assert_eq!(stamp(0x2a2b_2c2d - 10, 0).as_bytes(), b"\x40\0\0\0\x2a\x2b\x2c\x2d\0\0\0\0");
        assert_eq!(stamp(0, 0).as_bytes(), b"\x40\0\0\0\0\0\0\x0a\0\0\0\0");
        assert_eq!(stamp(1_700_000_000, 123_456_789).as_bytes(), b"\x40\0\0\0\x65\x53\xf1\x0a\x07\0\0\0");
    }

    #[test]
    fn timestamps_of_one_step_are_the_same_and_of_the_next_later() {
        assert_eq!(stamp(5, 0), stamp(5, STEP_NANOS - 1));
        assert!(stamp(5, STEP_NANOS - 1) < stamp(5, STEP_NANOS));
        assert!(stamp(5, 999_999_999) < stamp(6, 0));
    }

    #[test]
    fn the_end_of_time_follows_itself() {
        let last = Tai64n::from_bytes([0xff; TIMESTAMP_BYTES]);
        assert_eq!(last.next(), last);
        assert_eq!(Tai64n::from_wall(WallTime::from_parts(u64::MAX, 0)).as_bytes()[..8], [0xff; 8]);
    }

    proptest! {
        #[test]
        fn the_order_of_the_timestamps_is_the_order_of_the_times(
            first in (0u64..1 << 40, 0u32..NANOS_PER_SEC), second in (0u64..1 << 40, 0u32..NANOS_PER_SEC),
        ) {
            let step = |(secs, nanos)| (secs, nanos / STEP_NANOS);
            let (left, right) = (stamp(first.0, first.1), stamp(second.0, second.1));
            prop_assert_eq!(left.cmp(&right), step(first).cmp(&step(second)));
        }

        #[test]
        fn the_next_timestamp_is_the_one_of_the_time_a_step_later(secs in 0u64..1 << 40, nanos in 0u32..NANOS_PER_SEC) {
            let now = stamp(secs, nanos);
            let (_, white) = now.parts();
            let carry = white + STEP_NANOS >= NANOS_PER_SEC;
            let later = if carry { stamp(secs + 1, 0) } else { stamp(secs, white + STEP_NANOS) };
            prop_assert_eq!(now.next(), later);
            prop_assert!(now < now.next());
        }

        #[test]
        fn what_follows_any_bytes_is_whitened_and_not_earlier(bytes: [u8; TIMESTAMP_BYTES]) {
            let next = Tai64n::from_bytes(bytes).next();
            prop_assert!(next >= Tai64n::from_bytes(bytes));
            prop_assert!(next.parts().1.is_multiple_of(STEP_NANOS) || next.as_bytes() == &bytes);
        }
    }
}
