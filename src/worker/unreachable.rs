//! Tells the senders of packets that have nowhere to go, as kernel WireGuard does, so that their programs need not wait for
//! a time-out.
//!
//! Answered is a TUN read for whose destination there is no peer, or a peer without endpoint; once, however many segments it
//! has. A packet that waits for a session waits silently, and so does what was staged and lost its peer meanwhile.
//!
//! Each worker gives a limited number of answers: a flood of such packets is not to become a flood of writes.
//!
//! Source: drivers/net/wireguard/device.c `wg_xmit`; net.ipv4.icmp_msgs_burst.

use crate::stats::drop::DropReason;
use crate::time::{Span, Time};
use crate::wire::icmp::IcmpError;
use crate::wire::vnet_hdr::VNET_HDR_BYTES;

/// Answers per second.
pub const ANSWERS_PER_SECOND: u64 = 100;
/// Answers at once: as many as the kernel gives. A browser that tries many addresses is to fall back at once on those that
/// can be reached.
pub const BURST: u64 = 50;

/// Time after which one answer more may be given.
const REFILL: Span = Span::from_nanos(1_000_000_000 / ANSWERS_PER_SECOND);

/// One worker's answers: a token bucket, kept as the time when it will be full.
#[derive(Debug, Default)]
pub struct Unreachable {
    full_at: Time,
}

impl Unreachable {
    /// What to tell the sender of the TUN read `read`, which was dropped for `reason`; `None` if nothing, or if too much was told
    /// of late. What the answer quotes begins behind the virtio header.
    pub fn answer(&mut self, read: &[u8], reason: DropReason, now: Time) -> Option<IcmpError> {
        if !matches!(reason, DropReason::NoRoute | DropReason::NoEndpoint) {
            return None;
        }
        // Asked first: in a flood nothing else is done.
        let full_at = self.full_at.max(now) + REFILL;
        if full_at.since(now).as_nanos() > BURST * REFILL.as_nanos() {
            return None;
        }
        let answer = IcmpError::unreachable(read.get(VNET_HDR_BYTES..)?)?;
        self.full_at = full_at;
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TUN read of an IPv4 packet to 10.9.0.77.
    fn read() -> Vec<u8> {
        let mut read = vec![0; VNET_HDR_BYTES];
        read.extend([
            0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 77, 1, 2, 3, 4, 0, 8, 0, 0,
        ]);
        read
    }

    fn at(millis: u64) -> Time {
        Time::from_nanos(77) + Span::from_millis(millis)
    }

    #[test]
    fn who_has_no_peer_and_whose_peer_has_no_endpoint_is_told_and_nobody_else() {
        let answered = DropReason::ALL.iter().filter(|reason| {
            let answer = Unreachable::default().answer(&read(), **reason, at(0));
            answer.is_some_and(|answer| answer.quoted_bytes() == 28)
        });
        assert_eq!(answered.collect::<Vec<_>>(), [&DropReason::NoRoute, &DropReason::NoEndpoint]);
    }

    #[test]
    fn fifty_are_told_at_once_then_a_hundred_a_second() {
        let mut unreachable = Unreachable::default();
        let mut answers = |millis: u64, reads: u64| {
            let told = |_: &u64| unreachable.answer(&read(), DropReason::NoRoute, at(millis)).is_some();
            (0..reads).filter(told).count()
        };
        assert_eq!(answers(0, 1000), 50);
        assert_eq!((answers(9, 1000), answers(10, 1000), answers(11, 1000)), (0, 1, 0));
        assert_eq!((1..=5_000).map(|milli| answers(10 + milli, 5)).sum::<usize>(), 500);
        assert_eq!(answers(60_000, 1000), 50);
    }

    #[test]
    fn what_is_not_answered_takes_nothing_from_what_may_be() {
        let mut unreachable = Unreachable::default();
        let mut to_a_group = read();
        to_a_group[VNET_HDR_BYTES + 16] = 224;
        for _ in 0..1000 {
            assert!(unreachable.answer(&to_a_group, DropReason::NoRoute, at(0)).is_none());
            assert!(unreachable.answer(&read(), DropReason::OutTooLong, at(0)).is_none());
            assert!(unreachable.answer(&[0; 3], DropReason::NoRoute, at(0)).is_none());
        }
        let told = (0..1000).filter(|_| unreachable.answer(&read(), DropReason::NoRoute, at(0)).is_some());
        assert_eq!(told.count(), 50);
    }
}
