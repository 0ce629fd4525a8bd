//! The only clock reads of the program.

use nix::time::{ClockId, clock_gettime};

use crate::time::Time;

/// CLOCK_MONOTONIC.
pub fn now() -> Time {
    Time::from_nanos(read(ClockId::CLOCK_MONOTONIC))
}

/// What must be subtracted from CLOCK_REALTIME, in nanoseconds, to get CLOCK_MONOTONIC. The kernel stamps received
/// datagrams in real time; read this anew for every batch, since the wall clock may be set at any moment.
pub fn realtime_offset() -> i64 {
    read(ClockId::CLOCK_REALTIME) as i64 - read(ClockId::CLOCK_MONOTONIC) as i64
}

fn read(clock: ClockId) -> u64 {
    let spec = clock_gettime(clock).expect("these clocks exist on every Linux");
    spec.tv_sec() as u64 * 1_000_000_000 + spec.tv_nsec() as u64
}
