//! How many handshakes one source may ask for while we are under load: 20 a second, 5 at once.
//!
//! Asked after mac2 has fitted, so a source is a real address. A source is an IPv4 address or an IPv6 /64, which is what one
//! subscriber has. The table has a fixed size: a bucket that is full again is as good as none and is forgotten; if a row has
//! no such bucket, the one that is nearest to it makes room, so that whoever asks most stays known.
//!
//! Source: WireGuard whitepaper §5.3; drivers/net/wireguard/ratelimiter.c for the numbers.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;

use zeroize::Zeroizing;

use super::keys::KEY_BYTES;
use super::rng::Rng;
use crate::time::{Span, Time};

/// Handshakes per second and source.
pub const HANDSHAKES_PER_SECOND: u64 = 20;
/// Handshakes that a source which was silent may ask for at once.
pub const BURST: u64 = 5;

/// Time after which a bucket holds one handshake more.
const REFILL: Span = Span::from_nanos(1_000_000_000 / HANDSHAKES_PER_SECOND);
/// Rows of the table; a source belongs to one.
const ROWS: usize = 2048;
/// Buckets per row: together two cache lines.
const ROW_BUCKETS: usize = 8;

const _: () = assert!(ROWS.is_power_of_two());
const _: () = assert!(size_of::<Row>() == 128);

/// The token bucket of one source, kept as the time when it will be full.
#[derive(Clone, Copy, Default)]
struct Bucket {
    /// A keyed hash of the source. Nobody who lacks the key can look for sources that share a bucket.
    source: u64,
    full_at: Time,
}

type Row = [Bucket; ROW_BUCKETS];

/// The buckets of all sources, in constant memory (256 KiB).
pub struct RateLimit {
    key: Zeroizing<[u8; KEY_BYTES]>,
    rows: Box<[Row]>,
}

impl RateLimit {
    /// A table that knows no source.
    pub fn new(rng: &mut Rng) -> RateLimit {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        rng.fill(&mut *key);
        RateLimit { key, rows: vec![Row::default(); ROWS].into() }
    }

    /// Whether `from` may have one more handshake now. Being refused costs a source nothing.
    pub fn allow(&mut self, from: IpAddr, now: Time) -> bool {
        let source = self.hash(from);
        let row = &mut self.rows[source as usize % ROWS];
        let found = row.iter().position(|bucket| bucket.source == source);
        let place = found.unwrap_or_else(|| fullest(row));
        let bucket = &mut row[place];
        if bucket.source != source {
            *bucket = Bucket { source, full_at: now };
        }
        let full_at = bucket.full_at.max(now) + REFILL;
        let allowed = full_at.since(now).as_nanos() <= BURST * REFILL.as_nanos();
        if allowed {
            bucket.full_at = full_at;
        }
        allowed
    }

    fn hash(&self, from: IpAddr) -> u64 {
        // SipHash, whose state nobody can follow after it has taken in the key; this is asked per datagram of a flood.
        let mut hasher = DefaultHasher::new();
        hasher.write(&*self.key);
        match from.to_canonical() {
            IpAddr::V4(address) => hasher.write(&address.octets()),
            IpAddr::V6(address) => hasher.write(&address.octets()[..8]),
        }
        hasher.finish()
    }
}

impl fmt::Debug for RateLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit").finish_non_exhaustive()
    }
}

fn fullest(row: &Row) -> usize {
    (0..ROW_BUCKETS).min_by_key(|place| row[*place].full_at).expect("a row has buckets")
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::proto::rng::Rng;

    fn limit() -> RateLimit {
        RateLimit::new(&mut Rng::from_seed([4; 32]))
    }

    fn source(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn millis(millis: u64) -> Time {
        Time::from_nanos(7) + Span::from_millis(millis)
    }

    /// How many of 8 requests at once are allowed.
    fn burst(limit: &mut RateLimit, from: IpAddr, now: Time) -> usize {
        (0..8).filter(|_| limit.allow(from, now)).count()
    }

    #[test]
    fn five_at_once_then_twenty_a_second() {
        let (mut limit, from) = (limit(), source("192.0.2.1"));
        assert_eq!(burst(&mut limit, from, millis(0)), 5);
        assert!(!limit.allow(from, millis(49)));
        assert!(limit.allow(from, millis(50)));
        let allowed = (51..=10_050).filter(|at| limit.allow(from, millis(*at))).count();
        assert_eq!(allowed, 200);
        assert_eq!(burst(&mut limit, from, millis(20_000)), 5);
    }

    #[test]
    fn being_refused_costs_nothing() {
        let (mut limit, from) = (limit(), source("192.0.2.1"));
        assert_eq!(burst(&mut limit, from, millis(0)), 5);
        assert_eq!(burst(&mut limit, from, millis(1)), 0);
        assert_eq!(burst(&mut limit, from, millis(250)), 5);
    }

    #[test]
    fn an_ipv4_address_is_a_source_and_so_is_an_ipv6_slash_64() {
        let mut limit = limit();
        assert_eq!(burst(&mut limit, source("192.0.2.1"), millis(0)), 5);
        assert_eq!(burst(&mut limit, source("192.0.2.2"), millis(0)), 5);
        assert_eq!(burst(&mut limit, source("::ffff:192.0.2.1"), millis(0)), 0, "the same address, mapped");
        assert_eq!(burst(&mut limit, source("2001:db8::1"), millis(0)), 5);
        assert_eq!(burst(&mut limit, source("2001:db8::ffff:0:0:1"), millis(0)), 0);
        assert_eq!(burst(&mut limit, source("2001:db8:0:1::1"), millis(0)), 5);
    }

    #[test]
    fn a_flood_of_one_source_never_limits_another() {
        let mut limit = limit();
        let flooding = source("198.51.100.1");
        for at in 0..2_000 {
            burst(&mut limit, flooding, millis(at));
            let honest = IpAddr::from(Ipv4Addr::from(0xc000_0200 + at as u32));
            assert!(limit.allow(honest, millis(at)));
        }
    }

    #[test]
    fn a_million_sources_take_no_more_memory_and_keep_nobody_out() {
        let mut limit = limit();
        let rows = limit.rows.len();
        let from = |index: u64| IpAddr::from(Ipv6Addr::from(u128::from(index) << 64));
        let refused = (0..1_000_000u64).filter(|index| !limit.allow(from(*index), millis(index / 10_000)));
        assert_eq!(refused.count(), 0);
        assert_eq!((limit.rows.len(), size_of_val(&*limit.rows)), (rows, 256 * 1024));
    }

    #[test]
    fn whoever_asks_most_stays_known_among_a_million_sources() {
        let mut limit = limit();
        let flooding = source("198.51.100.1");
        let mut allowed = burst(&mut limit, flooding, millis(0));
        for index in 0..1_000_000u32 {
            let now = millis(u64::from(index) / 1_000);
            limit.allow(IpAddr::from(Ipv4Addr::from(0x0a00_0000 + index)), now);
            allowed += usize::from(limit.allow(flooding, now));
        }
        // 1000 sources a millisecond for one second: its five, and twenty.
        assert_eq!(allowed, 5 + 19);
    }

    proptest! {
        /// Against a bucket that is kept as it is usually told: tokens that drip in.
        #[test]
        fn the_limit_is_a_token_bucket(gaps in prop::collection::vec(0u64..120, 1..200)) {
            let (mut limit, from) = (limit(), source("192.0.2.1"));
            let (mut tokens, mut at) = (BURST * 50, 0);
            for gap in gaps {
                at += gap;
                tokens = (tokens + gap).min(BURST * 50);
                let expected = tokens >= 50;
                tokens -= if expected { 50 } else { 0 };
                prop_assert_eq!(limit.allow(from, millis(at)), expected);
            }
        }
    }
}
