//! Datagrams on a connection: of each its length in two bytes, big-endian, and its payload.
//!
//! Pure: bytes to payloads and back. Ours; bore carries no datagrams.

use crate::io::tcp::datagrams::PAYLOAD_BYTES_MAX;

/// Bytes in front of each payload.
pub const HEADER_BYTES: usize = 2;
/// Kept for the next frame at most, in bytes.
const SPARE_BYTES: usize = 2048;

/// A length that no datagram has. There is no way to go on then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a datagram of {0} bytes")]
pub struct TooLong(pub u16);

/// What stands in front of a payload of so many bytes.
///
/// # Panics
/// Above [`PAYLOAD_BYTES_MAX`]: no datagram is that long.
pub fn header(payload_bytes: usize) -> [u8; HEADER_BYTES] {
    assert!(payload_bytes <= PAYLOAD_BYTES_MAX, "a datagram of {payload_bytes} bytes");
    (payload_bytes as u16).to_be_bytes()
}

/// Appends the frame of `payload` to `out`.
pub fn put(payload: &[u8], out: &mut Vec<u8>) {
    out.extend(header(payload.len()));
    out.extend_from_slice(payload);
}

/// Collects payloads from the pieces in which bytes come. Holds at most one frame.
#[derive(Debug, Default)]
pub struct Frames {
    /// What came of a frame whose end has not come, or the frame given last.
    begun: Vec<u8>,
    /// `begun` was given.
    given: bool,
}

impl Frames {
    /// Takes bytes in up to the end of the next frame: how many, and its payload if it is complete. Looks at no more than
    /// that, and copies only frames that come in several pieces.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn take<'a>(&'a mut self, bytes: &'a [u8]) -> Result<(usize, Option<&'a [u8]>), TooLong> {
        self.forget_given();
        if self.begun.is_empty()
            && let Some(length) = length(bytes)?
            && let Some(payload) = bytes[HEADER_BYTES..].get(..length)
        {
            return Ok((HEADER_BYTES + length, Some(payload)));
        }
        let mut taken = 0;
        if self.begun.len() < HEADER_BYTES {
            taken = self.collect(HEADER_BYTES, bytes);
        }
        let Some(length) = length(&self.begun)? else { return Ok((taken, None)) };
        taken += self.collect(HEADER_BYTES + length, &bytes[taken..]);
        self.given = self.begun.len() == HEADER_BYTES + length;
        Ok((taken, self.given.then(|| &self.begun[HEADER_BYTES..])))
    }

    /// Takes of `bytes` what `begun` has less than `wanted`, as far as it is there; how many.
    fn collect(&mut self, wanted: usize, bytes: &[u8]) -> usize {
        let count = bytes.len().min(wanted - self.begun.len());
        self.begun.extend_from_slice(&bytes[..count]);
        count
    }

    fn forget_given(&mut self) {
        if std::mem::take(&mut self.given) {
            self.begun.clear();
            // A connection that is quiet holds no memory to speak of.
            self.begun.shrink_to(SPARE_BYTES);
        }
    }
}

/// The length that stands at the beginning of `bytes`, if that much is there.
fn length(bytes: &[u8]) -> Result<Option<usize>, TooLong> {
    let Some(header) = bytes.first_chunk() else { return Ok(None) };
    match u16::from_be_bytes(*header) {
        length if usize::from(length) > PAYLOAD_BYTES_MAX => Err(TooLong(length)),
        length => Ok(Some(usize::from(length))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The payloads in `pieces`, up to the first error.
    fn all<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Result<(), TooLong>) {
        let (mut frames, mut found) = (Frames::default(), Vec::new());
        for mut piece in pieces {
            while !piece.is_empty() {
                match frames.take(piece) {
                    Ok((count, payload)) => {
                        assert!(count > 0, "it goes on");
                        found.extend(payload.map(<[u8]>::to_vec));
                        piece = &piece[count..];
                    }
                    Err(error) => return (found, Err(error)),
                }
            }
        }
        (found, Ok(()))
    }

    #[test]
    fn a_frame_is_a_length_and_so_many_bytes() {
        let mut out = Vec::new();
        put(b"abc", &mut out);
        put(b"", &mut out);
        put(&[7; 258], &mut out);
        assert_eq!(out[..9], *b"\x00\x03abc\x00\x00\x01\x02");
        assert_eq!(all([&out[..]].into_iter()).0, [&b"abc"[..], b"", &[7; 258]]);
    }

    #[test]
    fn a_payload_may_be_as_long_as_a_datagram_and_no_longer() {
        let mut out = Vec::new();
        put(&vec![1; PAYLOAD_BYTES_MAX], &mut out);
        assert_eq!(all(out.chunks(1000)).0[0].len(), PAYLOAD_BYTES_MAX);
        for header in [[0xff, 0xf8], [0xff, 0xff]] {
            let error = TooLong(u16::from_be_bytes(header));
            assert_eq!(Frames::default().take(&header), Err(error));
            assert_eq!(all(header.chunks(1)), (Vec::new(), Err(error)));
        }
    }

    #[test]
    fn a_long_frame_that_is_gone_leaves_no_memory_behind() {
        let (mut out, mut frames) = (Vec::new(), Frames::default());
        put(&[1; 60_000], &mut out);
        let (count, payload) = frames.take(&out[..50_000]).unwrap();
        assert_eq!((count, payload), (50_000, None));
        assert_eq!(frames.take(&out[50_000..]).unwrap().1.unwrap().len(), 60_000);
        assert_eq!(frames.take(b"\0\x01x").unwrap(), (3, Some(&b"x"[..])));
        assert!(frames.begun.capacity() <= SPARE_BYTES);
    }

    proptest! {
        #[test]
        fn payloads_come_back_however_the_bytes_are_cut(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..400), 0..20),
            cut in 1usize..100,
        ) {
            let mut out = Vec::new();
            payloads.iter().for_each(|payload| put(payload, &mut out));
            prop_assert_eq!(all(out.chunks(cut)), (payloads, Ok(())));
        }

        #[test]
        fn arbitrary_bytes_mean_the_same_however_they_are_cut(
            bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(0xff), any::<u8>()], 0..3000),
            cut in 1usize..50,
        ) {
            prop_assert_eq!(all(bytes.chunks(cut)), all(std::iter::once(&bytes[..]).filter(|all| !all.is_empty())));
        }
    }
}
