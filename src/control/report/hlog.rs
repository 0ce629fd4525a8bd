//! Logs for the tools of HdrHistogram: one line per second, one file per direction.
//!
//! The readers take compressed histograms only. A zlib stream may hold its bytes as they are (stored blocks), and a second
//! has some hundreds of them: so this needs no compressor.
//!
//! Source: HdrHistogram, `HistogramLogWriter` and `AbstractHistogram.encodeIntoCompressedByteBuffer`; RFC 1950; RFC 1951
//! §3.2.4.

use std::fmt::Write as _;

use base64ct::{Base64, Encoding};

use super::run::{Interval, Run};
use crate::stats::distributions::VALUE_MAX;
use crate::stats::histograms::{Distribution, slot};

const COOKIE: i32 = 0x1c84_9313;
const COOKIE_COMPRESSED: i32 = 0x1c84_9314;
const SIGNIFICANT_DIGITS: i32 = 2;
/// Longest stored block.
const BLOCK_BYTES_MAX: usize = 65_535;

/// The logs and their file names.
pub fn logs(run: &Run) -> [(String, String); 2] {
    let name = |direction| format!("{}-{direction}.hlog", run.last.interface.replace('/', "_"));
    [
        (name("outbound"), log(run, |interval| &interval.outbound)),
        (name("inbound"), log(run, |interval| &interval.inbound)),
    ]
}

fn log(run: &Run, latency: impl Fn(&Interval) -> &Distribution) -> String {
    let mut text = format!(
        "#[uringvpn {}: latency in nanoseconds]\n#[Histogram log format version 1.3]\n\
         #[StartTime: {began:.3} (seconds since epoch)]\n#[BaseTime: {began:.3} (seconds since epoch)]\n\
         \"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n",
        run.last.version.replace(['\n', ']'], " "),
        began = run.began
    );
    for interval in &run.intervals {
        let latency = latency(interval);
        // By custom the largest value stands in milliseconds.
        let max = latency.max().unwrap_or_default() as f64 / 1e6;
        let (from, length) = (interval.from, interval.to - interval.from);
        // Writing to a string does not fail.
        let _ =
            writeln!(text, "{from:.3},{length:.3},{max:.3},{}", Base64::encode_string(&compressed(latency)));
    }
    text
}

fn compressed(distribution: &Distribution) -> Vec<u8> {
    let stream = zlib(&encoded(distribution));
    let mut bytes = COOKIE_COMPRESSED.to_be_bytes().to_vec();
    bytes.extend((stream.len() as u32).to_be_bytes());
    bytes.extend(stream);
    bytes
}

fn encoded(distribution: &Distribution) -> Vec<u8> {
    let counts = counts(distribution);
    let mut bytes = COOKIE.to_be_bytes().to_vec();
    bytes.extend((counts.len() as u32).to_be_bytes());
    // No slot is shifted.
    bytes.extend(0_i32.to_be_bytes());
    bytes.extend(SIGNIFICANT_DIGITS.to_be_bytes());
    bytes.extend(1_u64.to_be_bytes());
    bytes.extend(VALUE_MAX.to_be_bytes());
    bytes.extend(1.0_f64.to_be_bytes());
    bytes.extend(counts);
    bytes
}

/// The counts slot by slot; a negative number is that many empty slots.
fn counts(distribution: &Distribution) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut next = 0;
    for &(value, count) in &distribution.buckets {
        let slot = slot(value);
        match slot.saturating_sub(next) {
            0 => {}
            gap => zig_zag(&mut bytes, -(gap as i64)),
        }
        zig_zag(&mut bytes, i64::try_from(count).unwrap_or(i64::MAX));
        next = slot + 1;
    }
    bytes
}

/// Seven bits a byte, the lowest first; a ninth byte holds eight.
fn zig_zag(bytes: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    for _ in 0..8 {
        if rest < 0x80 {
            bytes.push(rest as u8);
            return;
        }
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

fn zlib(data: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    let blocks = data.len().div_ceil(BLOCK_BYTES_MAX);
    for (index, block) in data.chunks(BLOCK_BYTES_MAX).enumerate() {
        let length = block.len() as u16;
        stream.push(u8::from(index + 1 == blocks));
        stream.extend(length.to_le_bytes());
        stream.extend((!length).to_le_bytes());
        stream.extend(block);
    }
    stream.extend(adler32(data).to_be_bytes());
    stream
}

fn adler32(data: &[u8]) -> u32 {
    let (mut low, mut high) = (1_u32, 0_u32);
    for byte in data {
        low = (low + u32::from(*byte)) % 65_521;
        high = (high + low) % 65_521;
    }
    (high << 16) | low
}

#[cfg(test)]
mod tests {
    use super::super::run::samples;
    use super::*;

    #[test]
    fn a_log_has_a_line_per_second_that_begins_as_readers_expect() {
        let run = samples::run("wg0", 3, 1_000, 5_000);
        let [(name, text), (other, _)] = logs(&run);
        assert_eq!((name.as_str(), other.as_str()), ("wg0-outbound.hlog", "wg0-inbound.hlog"));
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with(['#', '"'])).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("1.000,1.000,0.201,HISTFAAA"), "{}", lines[1]);
        assert!(text.contains("#[BaseTime: 1700000000.250 (seconds since epoch)]"));
    }

    #[test]
    fn numbers_are_written_as_the_format_says() {
        let written = |value| {
            let mut bytes = Vec::new();
            zig_zag(&mut bytes, value);
            bytes
        };
        assert_eq!([written(0), written(1), written(-1), written(-3)], [[0], [2], [1], [5]]);
        assert_eq!([written(64), written(-300)], [[0x80, 0x01], [0xd7, 0x04]]);
        assert_eq!((written(i64::MAX).len(), adler32(b"Wikipedia")), (9, 0x11e6_0398));
    }

    #[test]
    fn long_streams_are_cut_into_blocks_of_which_only_the_last_says_so() {
        let stream = zlib(&vec![7; BLOCK_BYTES_MAX + 1]);
        assert_eq!(&stream[..7], [0x78, 1, 0, 0xff, 0xff, 0, 0]);
        let second = 2 + 5 + BLOCK_BYTES_MAX;
        assert_eq!(&stream[second..second + 6], [1, 1, 0, 0xfe, 0xff, 7]);
    }
}
