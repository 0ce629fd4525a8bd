//! The Internet checksum.
//!
//! A checksum is the inverted one's complement sum of 16-bit words. Partial sums ([`Sum`]) can be added in any order, so
//! a packet is summed piece by piece: the pseudo-header, a header template, the payload while it is copied.
//!
//! Speed: a one's complement sum may be taken in words of any width and either byte order and folded at the end
//! (RFC 1071 §2). The loops add 64-bit words in independent lanes, which the compiler turns into vector code on every
//! x86-64; `benches/checksum.rs` has the numbers.
//!
//! Source: RFC 1071; RFC 8200 §8.1 for the IPv6 pseudo-header; RFC 768 for the zero that UDP may not send.

use std::net::IpAddr;
use std::ops::Add;

/// A one's complement sum of big-endian 16-bit words, not yet folded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Sum = Sum(0);

    /// The two carries folded in: 16 bits, not inverted. Only a sum of zeros folds to 0.
    pub const fn fold(self) -> u16 {
        fold(self.0)
    }

    /// The checksum as it stands in an IPv4 or TCP header.
    pub const fn finish(self) -> u16 {
        !self.fold()
    }

    /// The checksum as it stands in a UDP header, where 0 would mean "none". RFC 768.
    pub const fn finish_udp(self) -> u16 {
        match self.finish() {
            0 => 0xffff,
            checksum => checksum,
        }
    }

    /// Whether this sum over data *and* its checksum field proves the data intact.
    pub const fn verifies(self) -> bool {
        self.fold() == 0xffff
    }
}

impl Add for Sum {
    type Output = Sum;

    fn add(self, other: Sum) -> Sum {
        // A sum of ours is below 2^34 (32-bit words of a pseudo-header): thousands of millions fit.
        Sum(self.0 + other.0)
    }
}

impl From<u16> for Sum {
    fn from(word: u16) -> Sum {
        Sum(word as u64)
    }
}

impl From<u32> for Sum {
    fn from(two_words: u32) -> Sum {
        Sum(two_words as u64)
    }
}

/// The sum of `bytes`; an odd last byte counts as if a zero followed.
pub fn sum(bytes: &[u8]) -> Sum {
    let (blocks, tail) = bytes.as_chunks::<BLOCK_BYTES>();
    let mut lanes = Lanes::default();
    for block in blocks {
        lanes.add(block);
    }
    finish_lanes(&lanes, tail)
}

/// Copies `from` to `to` and sums it, in one pass over memory.
///
/// Within the pass, pieces small enough for the first-level cache are copied, then summed: the C library copies with
/// wider registers than a fused loop of ours may use, and that wins.
///
/// # Panics
/// When the lengths differ.
pub fn copy_and_sum(from: &[u8], to: &mut [u8]) -> Sum {
    assert_eq!(from.len(), to.len(), "copy_and_sum: lengths differ");
    let mut total = Sum::ZERO;
    for (from, to) in from.chunks(PIECE_BYTES).zip(to.chunks_mut(PIECE_BYTES)) {
        to.copy_from_slice(from);
        total = total + sum(from);
    }
    total
}

/// The sum of the pseudo-header that TCP and UDP checksums cover: addresses, protocol and transport length.
///
/// RFC 9293 §3.1 (IPv4), RFC 8200 §8.1 (IPv6).
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, transport_bytes: u32) -> Sum {
    address(source) + address(destination) + Sum::from(protocol as u16) + Sum::from(transport_bytes)
}

fn address(address: IpAddr) -> Sum {
    match address {
        IpAddr::V4(v4) => Sum::from(v4.to_bits()),
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            Sum::from(bits as u32)
                + Sum::from((bits >> 32) as u32)
                + Sum::from((bits >> 64) as u32)
                + Sum::from((bits >> 96) as u32)
        }
    }
}

/// Even, so that every piece starts at an even offset; source and copy together fill a quarter of a 32 KiB cache.
const PIECE_BYTES: usize = 4096;
const LANES: usize = 8;
const BLOCK_BYTES: usize = LANES * 8;

/// Running sums of 64-bit words, without a carry to wait for: `all` wraps, `high` holds the upper halves exactly, and
/// the lower halves are their difference. One addition, one shift, one addition per word.
#[derive(Default)]
struct Lanes {
    all: [u64; LANES],
    high: [u64; LANES],
}

impl Lanes {
    #[inline(always)]
    fn add(&mut self, block: &[u8; BLOCK_BYTES]) {
        let (words, _) = block.as_chunks::<8>();
        for (lane, word) in words.iter().enumerate() {
            let word = u64::from_ne_bytes(*word);
            self.all[lane] = self.all[lane].wrapping_add(word);
            self.high[lane] += word >> 32;
        }
    }

    /// Both halves of every lane; below 2^64 for anything up to 2^34 bytes.
    #[inline(always)]
    fn total(&self) -> u64 {
        let all = self.all.iter().fold(0u64, |sum, lane| sum.wrapping_add(*lane));
        let high: u64 = self.high.iter().sum();
        all.wrapping_sub(high << 32) + high
    }
}

/// Adds what is left behind the last block and brings the sum from native to network order.
#[inline(always)]
fn finish_lanes(lanes: &Lanes, tail: &[u8]) -> Sum {
    let mut total = lanes.total();
    let (words, rest) = tail.as_chunks::<8>();
    for word in words {
        let word = u64::from_ne_bytes(*word);
        total += (word & 0xffff_ffff) + (word >> 32);
    }
    let mut last = [0u8; 8];
    last[..rest.len()].copy_from_slice(rest);
    let last = u64::from_ne_bytes(last);
    total += (last & 0xffff_ffff) + (last >> 32);
    Sum(u16::from_be(fold(total)) as u64)
}

const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_as_printed() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&bytes).fold(), 0xddf2);
    }

    #[test]
    fn an_ipv4_header_with_its_checksum_verifies() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01,
            0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert!(sum(&header).verifies());
        let mut without = header;
        without[10..12].fill(0);
        assert_eq!(sum(&without).finish(), 0xb861);
    }

    #[test]
    fn bytes_of_all_ones_overflow_no_lane() {
        for len in [2, 64, 66, 65_534, 65_536] {
            assert_eq!(sum(&vec![0xff; len]).fold(), 0xffff, "{len} bytes");
        }
        assert_eq!(sum(&[0; 100]).fold(), 0);
    }

    #[test]
    fn udp_never_sends_zero() {
        assert_eq!(Sum::from(0xffffu16).finish(), 0);
        assert_eq!(Sum::from(0xffffu16).finish_udp(), 0xffff);
    }

    #[test]
    fn folding_keeps_every_carry() {
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0x0001_ffff_ffff), 1);
        assert_eq!(fold(0x1_0000), 1);
    }
}
