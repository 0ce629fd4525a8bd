//! Time since boot, spans and wall-clock time as plain numbers.
//!
//! All can be made from a number, so a simulation owns its clock. The operating system's clocks are read in
//! [`crate::io::clock`] and nowhere else.

use std::fmt;
use std::ops::{Add, Mul, Sub};

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

    /// Seconds since the epoch with their fraction, to a quarter of a microsecond in our days.
    pub fn as_secs_f64(self) -> f64 {
        self.secs as f64 + f64::from(self.nanos) / 1e9
    }

    /// Year, month from 1, day from 1 in UTC.
    ///
    /// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    pub const fn date(self) -> (u64, u64, u64) {
        let days = self.secs / 86_400 + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let date = day - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        (era * 400 + year + (month <= 2) as u64, month, date)
    }

    /// Hour, minute, second in UTC.
    pub const fn clock(self) -> (u64, u64, u64) {
        (self.secs / 3600 % 24, self.secs / 60 % 60, self.secs % 60)
    }
}

/// To the microsecond, as RFC 3339 has it.
impl fmt::Display for WallTime {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((year, month, day), (hour, minute, second)) = (self.date(), self.clock());
        let micros = self.nanos / 1_000;
        write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
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

    /// `micros` microseconds.
    pub const fn from_micros(micros: u64) -> Span {
        Span(micros * 1_000)
    }

    /// `nanos` nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Span {
        Span(nanos)
    }

    /// The whole span in nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The span in seconds.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

impl Add<Span> for Time {
    type Output = Time;

    fn add(self, span: Span) -> Time {
        Time(self.0.saturating_add(span.0))
    }
}

impl Mul<u64> for Span {
    type Output = Span;

    fn mul(self, times: u64) -> Span {
        Span(self.0.saturating_mul(times))
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
    fn wall_times_are_written_as_the_calendar_has_them() {
        let written = |secs, nanos| WallTime::from_parts(secs, nanos).to_string();
        assert_eq!(written(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(written(951_782_400, 999_999_999), "2000-02-29T00:00:00.999999Z");
        assert_eq!(written(1_735_689_599, 1_000), "2024-12-31T23:59:59.000001Z");
    }

    #[test]
    fn wall_times_are_ordered_by_seconds_first() {
        let times = [(1, 999_999_999), (2, 0), (2, 1)].map(|(secs, nanos)| WallTime::from_parts(secs, nanos));
        assert!(times.is_sorted());
        assert_eq!((times[0].secs(), times[0].nanos()), (1, 999_999_999));
    }

    #[test]
    fn seconds_have_their_fraction() {
        assert_eq!(WallTime::from_parts(1_700_000_000, 250_000_000).as_secs_f64(), 1_700_000_000.25);
        assert_eq!((Span::from_millis(1_500).as_secs_f64(), Span::ZERO.as_secs_f64()), (1.5, 0.0));
    }
}
