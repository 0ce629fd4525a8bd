//! What a carrier carries: frames of many streams.
//!
//! ```text
//!  stream, 4 bytes │ kind, 1 byte │ length of the payload, 3 bytes │ payload          numbers big-endian
//!
//!  kind 1, Open      payload of 18 bytes: the visitor's address as IPv6, or IPv4 mapped into it, and its port
//!  kind 2, Data      1 to WINDOW_BYTES
//!  kind 3, End       none: no more Data follows in this direction
//!  kind 4, Reset     none: the stream is over in both directions
//!  kind 5, Credit    payload of 4 bytes: so many more bytes may be sent the other way
//! ```
//!
//! Pure: bytes to meaning and back. Ours; bore has nothing like it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::window::WINDOW_BYTES;

/// Bytes in front of each payload.
pub const HEADER_BYTES: usize = 8;
const OPEN_BYTES: usize = 18;
const CREDIT_BYTES: usize = 4;

const OPEN: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const RESET: u8 = 4;
const CREDIT: u8 = 5;

/// A frame, or a piece of one that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A visitor has come.
    Open {
        /// A number that its carrier had not before.
        stream: u32,
        /// Who.
        from: SocketAddr,
    },
    /// Some bytes of a stream, at least one.
    Data {
        /// Which.
        stream: u32,
        /// In the order in which they were sent.
        bytes: &'a [u8],
    },
    /// The sender sends no more on this stream.
    End(u32),
    /// The stream is over.
    Reset(u32),
    /// More may be sent on a stream.
    Credit {
        /// Which.
        stream: u32,
        /// How many bytes.
        bytes: u32,
    },
}

/// Not a frame. There is no way to go on then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A kind that there is not.
    #[error("a frame of kind {0}")]
    Kind(u8),
    /// A length that frames of this kind do not have.
    #[error("a frame of kind {kind} with {bytes} bytes")]
    Length {
        /// Which kind.
        kind: u8,
        /// How long.
        bytes: usize,
    },
}

fn put_header(stream: u32, kind: u8, payload_bytes: usize, out: &mut Vec<u8>) {
    out.extend(stream.to_be_bytes());
    out.extend((u32::from(kind) << 24 | payload_bytes as u32).to_be_bytes());
}

/// Appends `piece` to `out` as a frame of its own.
///
/// # Panics
/// If it holds no data, or more than [`WINDOW_BYTES`]: nobody may send that.
pub fn put(piece: Piece<'_>, out: &mut Vec<u8>) {
    match piece {
        Piece::Open { stream, from } => {
            put_header(stream, OPEN, OPEN_BYTES, out);
            let address = match from.ip() {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            out.extend(address.octets());
            out.extend(from.port().to_be_bytes());
        }
        Piece::Data { stream, bytes } => {
            assert!((1..=WINDOW_BYTES).contains(&bytes.len()), "{} bytes of data", bytes.len());
            put_header(stream, DATA, bytes.len(), out);
            out.extend_from_slice(bytes);
        }
        Piece::End(stream) => put_header(stream, END, 0, out),
        Piece::Reset(stream) => put_header(stream, RESET, 0, out),
        Piece::Credit { stream, bytes } => {
            put_header(stream, CREDIT, CREDIT_BYTES, out);
            out.extend(bytes.to_be_bytes());
        }
    }
}

/// Finds frames in the pieces in which bytes come. Data is never collected; of anything else there is one frame at most.
#[derive(Debug, Default)]
pub struct Frames {
    /// The header and what follows it, as far as it came.
    begun: [u8; HEADER_BYTES + OPEN_BYTES],
    filled: usize,
    /// The stream that the next bytes belong to, and how many.
    data: Option<(u32, usize)>,
}

impl Frames {
    /// Takes bytes in up to the end of the next piece: how many, and the piece if there is one already.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn take<'a>(&mut self, bytes: &'a [u8]) -> Result<(usize, Option<Piece<'a>>), FrameError> {
        let mut taken = 0;
        if self.data.is_none() {
            taken += self.collect(HEADER_BYTES, bytes);
            if self.filled < HEADER_BYTES {
                return Ok((taken, None));
            }
            let (stream, kind, length) = self.header();
            if payload_bytes(kind, length)? > 0 && kind == DATA {
                self.data = Some((stream, length));
                self.filled = 0;
            } else {
                taken += self.collect(HEADER_BYTES + length, &bytes[taken..]);
                return Ok((taken, self.complete(stream, kind, length)));
            }
        }
        let Some((stream, left)) = self.data.filter(|_| taken < bytes.len()) else {
            return Ok((taken, None));
        };
        let count = left.min(bytes.len() - taken);
        self.data = (left > count).then_some((stream, left - count));
        let piece = Piece::Data { stream, bytes: &bytes[taken..taken + count] };
        Ok((taken + count, Some(piece)))
    }

    fn header(&self) -> (u32, u8, usize) {
        let number = |at: usize| u32::from_be_bytes(self.begun[at..at + 4].try_into().expect("four bytes"));
        let rest = number(4);
        (number(0), (rest >> 24) as u8, (rest & 0xff_ffff) as usize)
    }

    /// A frame that is not data, if all of it has come.
    fn complete<'a>(&mut self, stream: u32, kind: u8, length: usize) -> Option<Piece<'a>> {
        if self.filled < HEADER_BYTES + length {
            return None;
        }
        self.filled = 0;
        let payload = &self.begun[HEADER_BYTES..HEADER_BYTES + length];
        Some(match kind {
            OPEN => {
                let (address, port) = payload.split_first_chunk::<16>().expect("the length is known");
                let address = IpAddr::V6(Ipv6Addr::from(*address)).to_canonical();
                let port = u16::from_be_bytes(port.try_into().expect("two are left"));
                Piece::Open { stream, from: SocketAddr::new(address, port) }
            }
            END => Piece::End(stream),
            RESET => Piece::Reset(stream),
            _ => {
                let bytes = u32::from_be_bytes(payload.try_into().expect("the length is known"));
                Piece::Credit { stream, bytes }
            }
        })
    }

    /// Takes of `bytes` what `begun` has less than `wanted`, as far as it is there; how many.
    fn collect(&mut self, wanted: usize, bytes: &[u8]) -> usize {
        let count = bytes.len().min(wanted.saturating_sub(self.filled));
        self.begun[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
        self.filled += count;
        count
    }
}

/// The `length` of a payload, if a frame of this kind may have it.
fn payload_bytes(kind: u8, length: usize) -> Result<usize, FrameError> {
    let allowed = match kind {
        OPEN => OPEN_BYTES..=OPEN_BYTES,
        DATA => 1..=WINDOW_BYTES,
        END | RESET => 0..=0,
        CREDIT => CREDIT_BYTES..=CREDIT_BYTES,
        other => return Err(FrameError::Kind(other)),
    };
    allowed.contains(&length).then_some(length).ok_or(FrameError::Length { kind, bytes: length })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything in `pieces` as text, neighbouring data of one stream joined, up to the first error.
    fn all<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<String>, Result<(), FrameError>) {
        let (mut frames, mut found, mut data) = (Frames::default(), Vec::new(), Vec::new());
        for mut bytes in pieces {
            while !bytes.is_empty() {
                let (count, piece) = match frames.take(bytes) {
                    Ok(taken) => taken,
                    Err(error) => return (found, Err(error)),
                };
                match piece {
                    Some(Piece::Data { stream, bytes }) => {
                        data.extend_from_slice(bytes);
                        if frames.data.is_none() {
                            found.push(format!("{stream} {data:?}"));
                            data.clear();
                        }
                    }
                    other => found.extend(other.map(|piece| format!("{piece:?}"))),
                }
                bytes = &bytes[count..];
            }
        }
        (found, Ok(()))
    }

    fn frame(piece: Piece<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        put(piece, &mut out);
        out
    }

    #[test]
    fn every_kind_of_frame_is_read_as_it_was_written() {
        let mut bytes = Vec::new();
        let four = Piece::Open { stream: 7, from: "192.0.2.1:80".parse().unwrap() };
        let six = Piece::Open { stream: 8, from: "[2001:db8::1]:443".parse().unwrap() };
        let others = [Piece::End(7), Piece::Reset(u32::MAX), Piece::Credit { stream: 8, bytes: 70_000 }];
        let pieces = [four, six].into_iter().chain(others);
        pieces.clone().for_each(|piece| put(piece, &mut bytes));
        let expected = pieces.map(|piece| format!("{piece:?}")).collect();
        assert_eq!(all(bytes.chunks(3)), (expected, Ok(())));
    }

    #[test]
    fn the_bytes_of_each_frame_are_these() {
        let data = frame(Piece::Data { stream: 0x0102_0304, bytes: b"abc" });
        assert_eq!(data, b"\x01\x02\x03\x04\x02\x00\x00\x03abc");
        let open = frame(Piece::Open { stream: 1, from: "192.0.2.1:80".parse().unwrap() });
        let address = b"\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x01\0\x50";
        assert_eq!(open, [&b"\0\0\0\x01\x01\0\0\x12"[..], address].concat());
        assert_eq!(frame(Piece::End(2)), b"\0\0\0\x02\x03\0\0\0");
        assert_eq!(frame(Piece::Reset(2)), b"\0\0\0\x02\x04\0\0\0");
        assert_eq!(frame(Piece::Credit { stream: 2, bytes: 258 }), b"\0\0\0\x02\x05\0\0\x04\0\0\x01\x02");
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let take = |kind: u8, length: u32| {
            let mut bytes = vec![0, 0, 0, 1];
            bytes.extend((u32::from(kind) << 24 | length).to_be_bytes());
            Frames::default().take(&bytes).map(drop)
        };
        for kind in [0, 6, 255] {
            assert_eq!(take(kind, 0), Err(FrameError::Kind(kind)));
        }
        for (kind, length) in [(1, 17), (1, 19), (2, 0), (2, 0xff_ffff), (3, 1), (4, 4), (5, 0), (5, 8)] {
            assert_eq!(take(kind, length), Err(FrameError::Length { kind, bytes: length as usize }));
        }
        assert_eq!(take(2, WINDOW_BYTES as u32), Ok(()));
    }

    proptest! {
        #[test]
        fn frames_do_not_depend_on_how_bytes_are_cut(
            kinds in proptest::collection::vec((0u8..7, 0u32..20, 0u32..3), 0..20),
            cut in 1usize..40,
        ) {
            let mut bytes = Vec::new();
            for (kind, length, stream) in kinds {
                bytes.extend(stream.to_be_bytes());
                bytes.extend((u32::from(kind) << 24 | length).to_be_bytes());
                bytes.extend((0..length).map(|byte| byte as u8));
            }
            let whole = all(std::iter::once(&bytes[..]).filter(|all| !all.is_empty()));
            prop_assert_eq!(all(bytes.chunks(cut)), whole);
        }

        #[test]
        fn arbitrary_bytes_are_taken_in_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut frames = Frames::default();
            let mut rest = &bytes[..];
            while let Ok((count, _)) = frames.take(rest) {
                prop_assert!(count > 0 || rest.is_empty());
                rest = &rest[count..];
                if rest.is_empty() {
                    break;
                }
            }
        }
    }
}
