//! Packets as a pcapng file, with what became of each as its comment. Pure: from numbers and bytes to bytes.
//!
//! | block | holds |
//! |---|---|
//! | section header | who wrote it; once |
//! | interface description | link type RAW: packets begin with their IP header; times in nanoseconds; once |
//! | enhanced packet | one packet, its direction, and a comment |
//! | interface statistics | how many were written and missed, and why the file ends; the last block of a file that is whole |
//!
//! Source: draft-ietf-opsawg-pcapng, "PCAP Next Generation (pcapng) Capture File Format".

use super::drop::Direction;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const INTERFACE_STATISTICS: u32 = 5;
const ENHANCED_PACKET: u32 = 6;

/// What a file begins with. The same whichever way its numbers are written.
pub const FIRST_BYTE: u8 = SECTION_HEADER.to_le_bytes()[0];

/// Readers tell from it how numbers are written; we write all of them with the lowest byte first.
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// LINKTYPE_RAW, <https://www.tcpdump.org/linktypes.html>.
const LINK_TYPE_RAW: u16 = 101;

const OPTION_END: u16 = 0;
const OPTION_COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_TIME_RESOLUTION: u16 = 9;
const PACKET_FLAGS: u16 = 2;
const STATISTICS_START: u16 = 2;
const STATISTICS_END: u16 = 3;
const STATISTICS_RECEIVED: u16 = 4;
const STATISTICS_DROPPED: u16 = 5;
const STATISTICS_DELIVERED: u16 = 8;

/// Bytes of a statistics block at most, if its comment has no more than 128.
pub const STATISTICS_BYTES_MAX: usize = 256;

/// One packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Nanoseconds since 1970.
    pub at: u64,
    /// Seen from the interface: outbound is what its host sends.
    pub direction: Direction,
    /// How long it was, in bytes.
    pub packet_bytes: u32,
    /// As much of it as was kept.
    pub kept: &'a [u8],
    /// What there is to say of it.
    pub comment: &'a str,
}

/// What there is to say at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// When the capture began and ended, in nanoseconds since 1970.
    pub began: u64,
    /// See [`Statistics::began`].
    pub ended: u64,
    /// Packets in the file.
    pub written: u64,
    /// Packets that should be in it and for which there was no room on the way.
    pub missed: u64,
    /// Why it ended.
    pub comment: String,
}

/// Appends the first two blocks of a file of packets seen at `interface`, each cut off after `snap` bytes; 0 if none is.
pub fn begin(out: &mut Vec<u8>, interface: &str, snap: u32) {
    block(out, SECTION_HEADER, |body| {
        body.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        // Version 1.0, of a length that is not known.
        body.extend([1, 0, 0, 0]);
        body.extend(u64::MAX.to_le_bytes());
        option(body, SECTION_APPLICATION, concat!("uringvpn ", env!("CARGO_PKG_VERSION")).as_bytes());
        option(body, OPTION_END, &[]);
    });
    block(out, INTERFACE_DESCRIPTION, |body| {
        body.extend(LINK_TYPE_RAW.to_le_bytes());
        body.extend([0, 0]);
        body.extend(snap.to_le_bytes());
        option(body, INTERFACE_NAME, interface.as_bytes());
        // Times count 10^-9 seconds.
        option(body, INTERFACE_TIME_RESOLUTION, &[9]);
        option(body, OPTION_END, &[]);
    });
}

/// Appends one packet.
pub fn packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    block(out, ENHANCED_PACKET, |body| {
        // Of the first interface.
        body.extend([0; 4]);
        body.extend(time(packet.at));
        body.extend((packet.kept.len() as u32).to_le_bytes());
        body.extend(packet.packet_bytes.to_le_bytes());
        padded(body, packet.kept);
        let flags: u32 = match packet.direction {
            Direction::Inbound => 1,
            Direction::Outbound => 2,
        };
        option(body, PACKET_FLAGS, &flags.to_le_bytes());
        if !packet.comment.is_empty() {
            option(body, OPTION_COMMENT, packet.comment.as_bytes());
        }
        option(body, OPTION_END, &[]);
    });
}

/// Appends the last block.
pub fn end(out: &mut Vec<u8>, statistics: &Statistics) {
    let Statistics { began, ended, written, missed, comment } = statistics;
    block(out, INTERFACE_STATISTICS, |body| {
        body.extend([0; 4]);
        body.extend(time(*ended));
        option(body, STATISTICS_START, &time(*began));
        option(body, STATISTICS_END, &time(*ended));
        option(body, STATISTICS_RECEIVED, &(written + missed).to_le_bytes());
        option(body, STATISTICS_DROPPED, &missed.to_le_bytes());
        option(body, STATISTICS_DELIVERED, &written.to_le_bytes());
        option(body, OPTION_COMMENT, comment.as_bytes());
        option(body, OPTION_END, &[]);
    });
}

/// Reads the last block of a file that ends in `tail`, at least [`STATISTICS_BYTES_MAX`] bytes of it if there are as many.
/// `None` if the file is not whole.
pub fn read_end(tail: &[u8]) -> Option<Statistics> {
    let length = u32::from_le_bytes(*tail.last_chunk()?) as usize;
    let block = &tail[tail.len().checked_sub(length)?..];
    let (head, rest) = block.split_at_checked(20)?;
    let opens_as_it_closes = head[4..8] == (length as u32).to_le_bytes();
    if head[..4] != INTERFACE_STATISTICS.to_le_bytes() || !opens_as_it_closes {
        return None;
    }
    let mut statistics = Statistics::default();
    let mut rest = rest;
    while let Some(([code_low, code_high, low, high], behind)) = rest.split_first_chunk() {
        let value = behind.get(..u16::from_le_bytes([*low, *high]).into())?;
        let number = |value: &[u8]| Some(u64::from_le_bytes(value.try_into().ok()?));
        match u16::from_le_bytes([*code_low, *code_high]) {
            OPTION_END => return Some(statistics),
            STATISTICS_START => statistics.began = number(value)?.rotate_left(32),
            STATISTICS_END => statistics.ended = number(value)?.rotate_left(32),
            STATISTICS_DROPPED => statistics.missed = number(value)?,
            STATISTICS_DELIVERED => statistics.written = number(value)?,
            OPTION_COMMENT => statistics.comment = String::from_utf8_lossy(value).into_owned(),
            _ => {}
        }
        rest = behind.get(value.len().next_multiple_of(4)..)?;
    }
    None
}

/// Appends a block: its type and its length around what `fill` puts there.
fn block(out: &mut Vec<u8>, kind: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    fill(out);
    let length = ((out.len() + 4 - start) as u32).to_le_bytes();
    out[start + 4..start + 8].copy_from_slice(&length);
    out.extend(length);
}

/// Appends an option; of a value that is too long for one, its start.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(u16::MAX.into())];
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    padded(out, value);
}

/// Appends `bytes` and zeros up to a multiple of four bytes.
fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes);
    out.resize(out.len() + (bytes.len().next_multiple_of(4) - bytes.len()), 0);
}

/// The upper half of the number comes first.
fn time(nanos: u64) -> [u8; 8] {
    nanos.rotate_right(32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(bytes: &[u8]) -> u32 {
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    }

    /// The blocks of a file: types and bodies, read as naively as can be.
    fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let length = number(&file[4..8]) as usize;
            assert!(length.is_multiple_of(4) && number(&file[length - 4..length]) as usize == length);
            blocks.push((number(&file[..4]), &file[8..length - 4]));
            file = &file[length..];
        }
        blocks
    }

    /// The options of a body: codes and values, the end included.
    fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut options = Vec::new();
        while !bytes.is_empty() {
            let [code, length] = [0, 2].map(|at| u16::from_le_bytes([bytes[at], bytes[at + 1]]));
            options.push((code, bytes[4..4 + usize::from(length)].to_vec()));
            bytes = &bytes[4 + usize::from(length).next_multiple_of(4)..];
        }
        options
    }

    fn packet_of(kept: &[u8]) -> Packet<'_> {
        let packet_bytes = kept.len() as u32;
        Packet { at: 0, direction: Direction::Inbound, packet_bytes, kept, comment: "" }
    }

    #[test]
    fn a_file_begins_with_its_writer_and_its_interface() {
        let mut file = Vec::new();
        begin(&mut file, "wg0", 96);
        assert_eq!(file[0], FIRST_BYTE);
        let [(SECTION_HEADER, section), (INTERFACE_DESCRIPTION, interface)] = blocks(&file)[..] else {
            panic!("two blocks: {:?}", blocks(&file));
        };
        assert_eq!(section[..4], [0x4d, 0x3c, 0x2b, 0x1a]);
        assert!(options(&section[16..])[0].1.starts_with(b"uringvpn "));
        assert_eq!(interface[..8], [101, 0, 0, 0, 96, 0, 0, 0]);
        let expected = [(2, b"wg0".to_vec()), (9, vec![9]), (0, vec![])];
        assert_eq!(options(&interface[8..]), expected);
    }

    #[test]
    fn a_packet_has_its_time_its_lengths_its_direction_and_its_comment() {
        let mut file = Vec::new();
        let at = 0x0123_4567_89ab_cdef;
        let inbound = Packet { at, comment: "peer x", packet_bytes: 1420, ..packet_of(b"abcde") };
        packet(&mut file, &inbound);
        packet(&mut file, &Packet { direction: Direction::Outbound, ..packet_of(b"") });
        let [(ENHANCED_PACKET, first), (ENHANCED_PACKET, second)] = blocks(&file)[..] else {
            panic!("two blocks");
        };
        let numbers: Vec<_> = first[..20].chunks(4).map(number).collect();
        assert_eq!(numbers, [0, 0x0123_4567, 0x89ab_cdef, 5, 1420]);
        assert_eq!(first[20..28], *b"abcde\0\0\0");
        assert_eq!(options(&first[28..]), [(2, vec![1, 0, 0, 0]), (1, b"peer x".to_vec()), (0, vec![])]);
        assert_eq!(options(&second[20..]), [(2, vec![2, 0, 0, 0]), (0, vec![])]);
    }

    #[test]
    fn what_was_written_and_missed_is_read_from_the_end_of_a_whole_file() {
        let statistics =
            Statistics { began: 1 << 40, ended: 1 << 50, written: 12, missed: 3, comment: "enough".into() };
        let mut file = Vec::new();
        begin(&mut file, "wg0", 0);
        packet(&mut file, &packet_of(&[7; 300]));
        let without = file.len();
        end(&mut file, &statistics);
        assert!(file.len() - without <= STATISTICS_BYTES_MAX);
        assert_eq!(read_end(&file), Some(statistics.clone()));
        assert_eq!(read_end(&file[file.len() - STATISTICS_BYTES_MAX..]), Some(statistics));
        for length in 0..file.len() {
            assert_eq!(read_end(&file[..length]), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_end_or_none(
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
            length in 0usize..300,
        ) {
            // Often a block that nearly is one.
            if bytes.len() >= length && length >= 12 {
                let (start, size) = (bytes.len() - length, bytes.len());
                bytes[start..start + 4].copy_from_slice(&INTERFACE_STATISTICS.to_le_bytes());
                bytes[start + 4..start + 8].copy_from_slice(&(length as u32).to_le_bytes());
                bytes[size - 4..].copy_from_slice(&(length as u32).to_le_bytes());
            }
            let _ = read_end(&bytes);
        }

        #[test]
        fn every_packet_is_read_as_it_was_written(
            packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..100), "[a-z ]{0,20}"), 0..10),
        ) {
            let mut file = Vec::new();
            for (kept, comment) in &packets {
                packet(&mut file, &Packet { comment, ..packet_of(kept) });
            }
            let read: Vec<_> = blocks(&file).into_iter().map(|(kind, body)| {
                assert_eq!(kind, ENHANCED_PACKET);
                let kept = number(&body[12..16]) as usize;
                let rest = options(&body[20 + kept.next_multiple_of(4)..]);
                let comment = rest.into_iter().find(|(code, _)| *code == OPTION_COMMENT);
                (body[20..20 + kept].to_vec(), comment.map_or_else(String::new, |(_, text)| String::from_utf8(text).expect("text")))
            }).collect();
            prop_assert_eq!(read, packets);
        }
    }
}
