//! The only clock reads of the program.

use nix::time::{ClockId, clock_gettime};

use crate::time::{Time, WallTime};

/// CLOCK_BOOTTIME: the age of a key counts the hours a laptop slept.
///
/// Sleeping is another matter. Whoever waits turns the deadline into a span first: io_uring and epoll measure it on
/// CLOCK_MONOTONIC, which stands still while the machine sleeps. A wait may so end late by the rest of its span after a
/// resume; what is then asked for its age gives the true one.
pub fn now() -> Time {
    Time::from_nanos(read(ClockId::CLOCK_BOOTTIME))
}

/// CLOCK_REALTIME: may be set and may jump; for timestamps that others see, never for measuring.
pub fn wall() -> WallTime {
    let spec = clock_gettime(ClockId::CLOCK_REALTIME).expect("this clock exists on every Linux");
    // Before 1970 there is nothing to tell.
    WallTime::from_parts(u64::try_from(spec.tv_sec()).unwrap_or(0), spec.tv_nsec() as u32)
}

/// What must be subtracted from CLOCK_REALTIME, in nanoseconds, to get [`now`]'s clock. The kernel stamps received
/// datagrams in real time; read this anew for every batch, since the wall clock may be set at any moment.
pub fn realtime_offset() -> i64 {
    read(ClockId::CLOCK_REALTIME) as i64 - read(ClockId::CLOCK_BOOTTIME) as i64
}

fn read(clock: ClockId) -> u64 {
    let spec = clock_gettime(clock).expect("these clocks exist on every Linux");
    spec.tv_sec() as u64 * 1_000_000_000 + spec.tv_nsec() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_is_the_systems() {
        let since_epoch =
            || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let parts = |since: std::time::Duration| WallTime::from_parts(since.as_secs(), since.subsec_nanos());
        let before = parts(since_epoch());
        let wall = wall();
        assert!((before..=parts(since_epoch())).contains(&wall), "{wall:?}");
    }
}
