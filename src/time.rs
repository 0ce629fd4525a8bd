//! Time since boot, spans and wall-clock time as plain numbers.
//!
//! All can be made from a number, so a simulation owns its clock. The operating system's clocks are read in
//! [`crate::io::clock`] and nowhere else.

use std::ops::{Add, Sub};

/// A point on a clock that never goes back, in nanoseconds since some fixed start (CLOCK_BOOTTIME in production, which
/// goes on while the machine sleeps).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

/// A point on the wall clock: seconds and nanoseconds since 1970-01-01 00:00 UTC. For timestamps that others see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime {
    secs: u64,
    nanos: u32,
}

/// A length of time, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

impl Time {
    /// The point `nanos` nanoseconds after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Time {
        Time(nanos)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    pub const fn since(self, earlier: Time) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl WallTime {
    /// `secs` seconds and `nanos` nanoseconds after the epoch.
    ///
    /// # Panics
    /// When `nanos` makes a second or more.
    pub const fn from_parts(secs: u64, nanos: u32) -> WallTime {
        assert!(nanos < 1_000_000_000, "a second has fewer nanoseconds");
        WallTime { secs, nanos }
    }

    /// Whole seconds since the epoch.
    pub const fn secs(self) -> u64 {
        self.secs
    }

    /// Nanoseconds since the last whole second, below 10^9.
    pub const fn nanos(self) -> u32 {
        self.nanos
    }
}

impl Span {
    /// No time at all.
    pub const ZERO: Span = Span(0);

    /// `secs` seconds.
    pub const fn from_secs(secs: u64) -> Span {
        Span(secs * 1_000_000_000)
    }

    /// `millis` milliseconds.
    pub const fn from_millis(millis: u64) -> Span {
        Span(millis * 1_000_000)
    }

    /// `nanos` nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Span {
        Span(nanos)
    }

    /// The whole span in nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}

impl Add<Span> for Time {
    type Output = Time;

    fn add(self, span: Span) -> Time {
        Time(self.0.saturating_add(span.0))
    }
}

impl Sub<Span> for Time {
    type Output = Time;

    fn sub(self, span: Span) -> Time {
        Time(self.0.saturating_sub(span.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_between_two_times_is_their_distance_and_never_negative() {
        let start = Time::from_nanos(5_000);
        assert_eq!((start + Span::from_nanos(70)).since(start), Span::from_nanos(70));
        assert_eq!(start.since(start + Span::from_secs(1)), Span::ZERO);
    }

    #[test]
    fn wall_times_are_ordered_by_seconds_first() {
        let times = [(1, 999_999_999), (2, 0), (2, 1)].map(|(secs, nanos)| WallTime::from_parts(secs, nanos));
        assert!(times.is_sorted());
        assert_eq!((times[0].secs(), times[0].nanos()), (1, 999_999_999));
    }
}
