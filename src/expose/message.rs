//! The messages of the control protocol and the frames they travel in.
//!
//! A frame is JSON text in UTF-8, at most [`FRAME_BYTES_MAX`] bytes, and one NUL behind it. Pure: bytes to meaning and back.
//!
//! Source: bore 0.6.0, src/shared.rs.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::proto::rng::Rng;
use crate::stats::exposed::public_port::{Protocol, PublicPort};

/// Longest frame in bytes, without its NUL. bore MAX_FRAME_LENGTH.
pub const FRAME_BYTES_MAX: usize = 256;

/// Names a visitor, or asks for a proof: a version 4 UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid([u8; 16]);

/// Not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID")]
pub struct NotAUuid;

impl Uuid {
    /// A random one.
    pub fn random(rng: &mut Rng) -> Uuid {
        let mut bytes = [0; 16];
        rng.fill(&mut bytes);
        // RFC 9562 §5.4: version 4, variant 10.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Uuid(bytes)
    }

    /// Its bytes in the order in which they are written.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let hyphen = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{hyphen}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = NotAUuid;

    fn from_str(text: &str) -> Result<Uuid, NotAUuid> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let mut bytes = [0; 16];
        match base16ct::mixed::decode(&digits, &mut bytes) {
            Ok(decoded) if decoded.len() == 16 && matches!(text.len(), 32 | 36) => Ok(Uuid(bytes)),
            _ => Err(NotAUuid),
        }
    }
}

impl Serialize for Uuid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Uuid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// From whoever connects to the control port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientMessage {
    /// The proof asked for by [`ServerMessage::Challenge`], in hexadecimal.
    Authenticate(String),
    /// Asks for a public port, 0 being any.
    Hello(u16),
    /// Takes the visitor over on this connection; behind it come the visitor's bytes.
    Accept(Uuid),
    /// As Hello, for a UDP port. Ours; a server that does not know it ends the connection.
    Datagrams(u16),
    /// This connection carries the visitors of the port with this lease ([`super::mux`]). Ours.
    Carry(Uuid),
    /// The client ends and needs its lease no more. Ours; only on a connection that has a lease.
    Release,
}

impl ClientMessage {
    /// Asks for `port`.
    pub fn asking_for(port: PublicPort) -> ClientMessage {
        match port.protocol {
            Protocol::Tcp => ClientMessage::Hello(port.number),
            Protocol::Udp => ClientMessage::Datagrams(port.number),
        }
    }
}

/// From the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerMessage {
    /// Asks for a proof that the client knows the secret; comes first, on every connection, if there is a secret.
    Challenge(Uuid),
    /// The public port that is now the client's.
    Hello(u16),
    /// The server lives; at least every 500 ms.
    Heartbeat,
    /// A visitor has come.
    Connection(Uuid),
    /// Why the connection ends.
    Error(String),
    /// Names the lease of the port. Ours; only to a client that said it understands, as all that follow.
    Lease(Uuid),
    /// A visitor has come, from this address.
    Visitor(Uuid, SocketAddr),
}

/// Behind the JSON of a Hello: who sends it understands our messages. White space there means nothing to JSON.
const EXTENDED: u8 = b' ';

/// `message` as a frame.
pub fn frame(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(message).expect("these messages have a JSON form");
    bytes.push(0);
    bytes
}

/// As [`frame`], of one who understands our messages.
pub fn extended_frame(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = frame(message);
    bytes.insert(bytes.len() - 1, EXTENDED);
    bytes
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No NUL within [`FRAME_BYTES_MAX`] and one bytes.
    #[error("a frame of more than {FRAME_BYTES_MAX} bytes")]
    TooLong,
    /// Not the JSON of a message that we know.
    #[error("a frame that is no message")]
    NoMessage,
}

/// What `frame`, without its NUL, means; and whether the sender understands our messages.
///
/// # Errors
/// [`FrameError::NoMessage`].
pub fn parse<'a, M: Deserialize<'a>>(frame: &'a [u8]) -> Result<(M, bool), FrameError> {
    let message = serde_json::from_slice(frame).map_err(|_| FrameError::NoMessage)?;
    Ok((message, frame.last() == Some(&EXTENDED)))
}

/// Collects frames from the pieces in which bytes come. Holds at most one frame.
#[derive(Debug, Default)]
pub struct Frames {
    /// What came of a frame whose end has not come.
    begun: Vec<u8>,
}

impl Frames {
    /// Takes bytes in up to the end of the next frame: how many, and the frame without its NUL if it is complete. What is
    /// left of `bytes` belongs to what follows.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]; there is no way to go on then.
    pub fn take<'a>(&'a mut self, bytes: &[u8]) -> Result<(usize, Option<Frame<'a>>), FrameError> {
        let room = FRAME_BYTES_MAX - self.begun.len();
        let end = bytes.iter().take(room + 1).position(|byte| *byte == 0);
        let count = end.unwrap_or(bytes.len());
        if count > room {
            return Err(FrameError::TooLong);
        }
        self.begun.extend_from_slice(&bytes[..count]);
        match end {
            Some(_) => Ok((count + 1, Some(Frame(&mut self.begun)))),
            None => Ok((count, None)),
        }
    }
}

/// A complete frame; makes room for the next one when dropped.
#[derive(Debug)]
pub struct Frame<'a>(&'a mut Vec<u8>);

impl Frame<'_> {
    /// As [`parse`].
    ///
    /// # Errors
    /// [`FrameError::NoMessage`].
    pub fn parse<M: de::DeserializeOwned>(&self) -> Result<(M, bool), FrameError> {
        parse(self.0)
    }
}

impl Drop for Frame<'_> {
    fn drop(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::rng::Rng;

    const ID: &str = "67e55044-10b1-426f-9247-bb680e5fe0c8";

    fn all(bytes: &[u8]) -> Result<Vec<Vec<u8>>, FrameError> {
        let (mut frames, mut found, mut rest) = (Frames::default(), Vec::new(), bytes);
        while !rest.is_empty() {
            let (count, frame) = frames.take(rest)?;
            found.extend(frame.map(|frame| frame.0.clone()));
            rest = &rest[count..];
        }
        Ok(found)
    }

    #[test]
    fn messages_are_written_as_bore_writes_them() {
        let id: Uuid = ID.parse().unwrap();
        assert_eq!(frame(&ClientMessage::Hello(0)), b"{\"Hello\":0}\0");
        assert_eq!(frame(&ClientMessage::Accept(id)), format!("{{\"Accept\":\"{ID}\"}}\0").as_bytes());
        assert_eq!(frame(&ClientMessage::Authenticate("ab".into())), b"{\"Authenticate\":\"ab\"}\0");
        assert_eq!(frame(&ClientMessage::asking_for(PublicPort::tcp(0))), b"{\"Hello\":0}\0");
        assert_eq!(frame(&ClientMessage::asking_for(PublicPort::udp(53))), b"{\"Datagrams\":53}\0");
        assert_eq!(frame(&ServerMessage::Heartbeat), b"\"Heartbeat\"\0");
        assert_eq!(frame(&ServerMessage::Challenge(id)), format!("{{\"Challenge\":\"{ID}\"}}\0").as_bytes());
        assert_eq!(frame(&ServerMessage::Error("no".into())), b"{\"Error\":\"no\"}\0");
    }

    #[test]
    fn the_sign_that_we_understand_more_is_nothing_but_white_space() {
        let with = extended_frame(&ClientMessage::Hello(8080));
        assert_eq!(with, b"{\"Hello\":8080} \0");
        assert_eq!(parse(&with[..with.len() - 1]), Ok((ClientMessage::Hello(8080), true)));
        assert_eq!(parse(b"{\"Hello\":8080}"), Ok((ClientMessage::Hello(8080), false)));
    }

    #[test]
    fn a_frame_may_have_256_bytes_and_not_257() {
        let of = |count| [vec![b'x'; count], vec![0]].concat();
        assert_eq!(all(&of(256)).unwrap()[0].len(), 256);
        assert_eq!(all(&of(257)), Err(FrameError::TooLong));
        assert_eq!(all(&vec![b'x'; 257]), Err(FrameError::TooLong));
        assert_eq!(all(&vec![b'x'; 1 << 20]), Err(FrameError::TooLong));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let deep = "[".repeat(255);
        let bad: [&[u8]; 11] = [
            b"",
            b"{}",
            b"null",
            b"{\"Hello\":70000}",
            b"{\"Hello\":-1}",
            b"{\"Hello\":1,\"Hello\":2}",
            b"{\"Hello\":1}{\"Hello\":2}",
            b"{\"Accept\":\"67e55044\"}",
            b"{\"Goodbye\":1}",
            b"\xff\xfe",
            deep.as_bytes(),
        ];
        for frame in bad {
            assert_eq!(parse::<ClientMessage>(frame), Err(FrameError::NoMessage), "{frame:?}");
        }
    }

    #[test]
    fn a_uuid_is_read_with_and_without_hyphens_and_written_with_them() {
        let id: Uuid = ID.parse().unwrap();
        assert_eq!(id.to_string(), ID);
        assert_eq!(ID.to_uppercase().replace('-', "").parse(), Ok(id));
        for bad in
            ["", "67e55044", "67e55044-10b1-426f-9247-bb680e5fe0c", "zze55044-10b1-426f-9247-bb680e5fe0c8"]
        {
            assert_eq!(bad.parse::<Uuid>(), Err(NotAUuid));
        }
        let (one, two) = (&mut Rng::from_seed([1; 32]), &mut Rng::from_seed([2; 32]));
        let random = Uuid::random(one);
        assert_ne!(random, Uuid::random(two));
        assert_eq!(&random.to_string()[14..15], "4", "{random} is of version 4");
    }

    proptest! {
        #[test]
        fn frames_do_not_depend_on_how_bytes_are_cut(bytes in proptest::collection::vec(0u8..4, 0..600), cut in 1usize..50) {
            let whole = all(&bytes);
            let (mut frames, mut found) = (Frames::default(), Ok(Vec::new()));
            'pieces: for mut piece in bytes.chunks(cut) {
                while !piece.is_empty() {
                    match frames.take(piece) {
                        Ok((count, frame)) => {
                            found.as_mut().unwrap().extend(frame.map(|frame| frame.0.clone()));
                            piece = &piece[count..];
                        }
                        Err(error) => {
                            found = Err(error);
                            break 'pieces;
                        }
                    }
                }
            }
            prop_assert_eq!(found, whole);
        }

        #[test]
        fn arbitrary_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse::<ClientMessage>(&bytes);
            let _ = parse::<ServerMessage>(&bytes);
        }
    }
}
