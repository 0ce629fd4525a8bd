//! The server's side of one connection to its control port, until it is clear what the connection is for.
//!
//! Pure: bytes and the time in, what was asked for out. [`super::server`] acts on it.
//!
//! ```text
//!  Challenge ▶ (if there is a secret)   ◀ Authenticate     wrong, or anything else: Error
//!                                       ◀ Hello(port)      Asked::Port
//!  Challenge ▶ (if the port is leased)  ◀ Authenticate     Asked::Leased
//!                                       ◀ Datagrams(port)  the same for UDP; ours
//!                                       ◀ Accept(visitor)  Asked::Visitor; what follows is the visitor's
//!                                       ◀ Carry(lease)     Asked::Carrier, ours; frames of a carrier follow
//! ```
//!
//! Source: bore 0.6.0, src/server.rs `handle_connection`, src/auth.rs `server_handshake`.

use super::auth::Authenticator;
use super::message::{ClientMessage, FrameError, Frames, ServerMessage, Uuid, frame};
use crate::stats::exposed::public_port::PublicPort;
use crate::stats::exposed::reasons::Refused;
use crate::time::{Span, Time};

/// How long a client may take for each of its messages. bore NETWORK_TIMEOUT.
pub const MESSAGE_TIME: Span = Span::from_secs(3);

/// What a connection turned out to be for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A public port, 0 being any.
    Port {
        /// Which.
        port: PublicPort,
        /// The client understands our own messages.
        extended: bool,
    },
    /// A public port that is leased, and the proof that it is leased to this client.
    Leased {
        /// Which.
        port: PublicPort,
        /// What was to be proven, for [`Authenticator::accepts`].
        challenge: Uuid,
        /// The proof.
        answer: String,
    },
    /// A visitor.
    Visitor(Uuid),
    /// To carry the visitors of the port with this lease.
    Carrier(Uuid),
}

/// Why a connection is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not the protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The proof is wrong.
    #[error("invalid secret")]
    WrongSecret,
    /// Something else came instead of a proof.
    #[error("server requires secret, but no secret was provided")]
    NoSecret,
    /// A proof that nobody asked for, or a message that does not belong here.
    #[error("a message out of turn")]
    OutOfTurn,
    /// Nothing came in time.
    #[error("said nothing within 3 seconds")]
    Silent,
    /// The port is taken.
    #[error("port already in use")]
    PortInUse,
    /// The kernel does not let us.
    #[error("permission denied")]
    PermissionDenied,
    /// No descriptor, no such address.
    #[error("failed to bind to port")]
    CannotBind,
    /// Not within the server's range.
    #[error("client port number not in allowed range")]
    OutOfRange,
    /// Any would have done, and none was free.
    #[error("failed to find an available port")]
    NoPort,
    /// A UDP port, and they are not given here.
    #[error("this server serves no UDP")]
    NoUdp,
    /// To carry the visitors of a port that is not there.
    #[error("no port with this lease, or no longer")]
    UnknownLease,
    /// As many as there may be belong to clients that are there.
    #[error("too many public ports in all")]
    TooManyPorts,
}

impl Refusal {
    /// As it is counted.
    pub fn counted(self) -> Refused {
        match self {
            Refusal::Frame(_) => Refused::NotTheProtocol,
            Refusal::WrongSecret => Refused::WrongSecret,
            Refusal::NoSecret => Refused::NoSecret,
            Refusal::OutOfTurn => Refused::OutOfTurn,
            Refusal::Silent => Refused::Silent,
            Refusal::PortInUse => Refused::PortInUse,
            Refusal::PermissionDenied => Refused::PortForbidden,
            Refusal::CannotBind => Refused::CannotBind,
            Refusal::OutOfRange => Refused::OutOfRange,
            Refusal::NoPort => Refused::NoPort,
            Refusal::NoUdp => Refused::NoUdp,
            Refusal::TooManyPorts => Refused::TooManyPorts,
            Refusal::UnknownLease => Refused::UnknownLease,
        }
    }

    /// What the client is told; nothing if it does not speak the protocol. The words are bore's.
    pub fn message(self) -> Option<ServerMessage> {
        match self {
            Refusal::Frame(_) | Refusal::OutOfTurn | Refusal::Silent | Refusal::UnknownLease => None,
            other => Some(ServerMessage::Error(other.to_string())),
        }
    }
}

#[derive(Debug)]
enum Stage {
    Proof(Uuid),
    Request,
    LeaseProof { port: PublicPort, challenge: Uuid },
}

/// One connection. See the module.
#[derive(Debug)]
pub struct Caller {
    frames: Frames,
    stage: Stage,
    deadline: Time,
}

impl Caller {
    /// A connection that has just come, and what to say to it. `challenge` is `None` when there is no secret.
    pub fn new(challenge: Option<Uuid>, now: Time) -> (Caller, Vec<u8>) {
        let (stage, greeting) = match challenge {
            Some(challenge) => (Stage::Proof(challenge), frame(&ServerMessage::Challenge(challenge))),
            None => (Stage::Request, Vec::new()),
        };
        (Caller { frames: Frames::default(), stage, deadline: now + MESSAGE_TIME }, greeting)
    }

    /// When it has been silent for too long. A byte now and then does not move it, a message does.
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// Wants the proof that the lease of `port` is the client's; what to say to it.
    pub fn challenge_lease(&mut self, port: PublicPort, challenge: Uuid, now: Time) -> Vec<u8> {
        self.stage = Stage::LeaseProof { port, challenge };
        self.deadline = now + MESSAGE_TIME;
        frame(&ServerMessage::Challenge(challenge))
    }

    /// Takes bytes in up to the end of one message: how many, and what is asked for if that is clear now. With
    /// [`Asked::Visitor`] what is left of `bytes` is the visitor's, with [`Asked::Carrier`] it is frames.
    ///
    /// # Errors
    /// [`Refusal`]; the connection ends then.
    pub fn take(
        &mut self,
        bytes: &[u8],
        secret: Option<&Authenticator>,
        now: Time,
    ) -> Result<(usize, Option<Asked>), Refusal> {
        let (count, frame) = self.frames.take(bytes)?;
        let Some(message) = frame.map(|frame| frame.parse::<ClientMessage>()) else {
            return Ok((count, None));
        };
        let asked = match (&self.stage, message) {
            (Stage::Proof(challenge), Ok((ClientMessage::Authenticate(answer), _))) => {
                if !secret.is_some_and(|secret| secret.accepts(*challenge, &answer)) {
                    return Err(Refusal::WrongSecret);
                }
                self.stage = Stage::Request;
                self.deadline = now + MESSAGE_TIME;
                None
            }
            (Stage::Proof(_), _) => return Err(Refusal::NoSecret),
            (_, Err(error)) => return Err(error.into()),
            (Stage::Request, Ok((ClientMessage::Hello(port), extended))) => {
                Some(Asked::Port { port: PublicPort::tcp(port), extended })
            }
            (Stage::Request, Ok((ClientMessage::Datagrams(port), _))) => {
                Some(Asked::Port { port: PublicPort::udp(port), extended: true })
            }
            (Stage::Request, Ok((ClientMessage::Accept(visitor), _))) => Some(Asked::Visitor(visitor)),
            (Stage::Request, Ok((ClientMessage::Carry(lease), _))) => Some(Asked::Carrier(lease)),
            (Stage::LeaseProof { port, challenge }, Ok((ClientMessage::Authenticate(answer), _))) => {
                Some(Asked::Leased { port: *port, challenge: *challenge, answer })
            }
            _ => return Err(Refusal::OutOfTurn),
        };
        Ok((count, asked))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::expose::message::extended_frame;
    use crate::proto::rng::Rng;

    const NOW: Time = Time::from_nanos(1_000_000_000);

    fn uuid(seed: u8) -> Uuid {
        Uuid::random(&mut Rng::from_seed([seed; 32]))
    }

    fn caller(challenge: Option<Uuid>) -> Caller {
        Caller::new(challenge, NOW).0
    }

    fn take(caller: &mut Caller, bytes: &[u8]) -> Result<Option<Asked>, Refusal> {
        let secret = Authenticator::new(b"secret");
        let (mut rest, mut asked) = (bytes, None);
        while !rest.is_empty() && asked.is_none() {
            let (count, found) = caller.take(rest, Some(&secret), NOW)?;
            (rest, asked) = (&rest[count..], found);
        }
        Ok(asked)
    }

    fn proof(secret: &[u8], challenge: Uuid) -> Vec<u8> {
        frame(&ClientMessage::Authenticate(Authenticator::new(secret).answer(challenge)))
    }

    #[test]
    fn a_proof_and_the_request_may_come_in_one_piece() {
        let mut caller = caller(Some(uuid(1)));
        let bytes = [proof(b"secret", uuid(1)), frame(&ClientMessage::Hello(7))].concat();
        assert_eq!(
            take(&mut caller, &bytes),
            Ok(Some(Asked::Port { port: PublicPort::tcp(7), extended: false }))
        );
    }

    #[test]
    fn wrong_and_missing_proofs_are_refused_in_the_words_of_bore() {
        let wrong = take(&mut caller(Some(uuid(1))), &proof(b"other", uuid(1)));
        let replayed = take(&mut caller(Some(uuid(1))), &proof(b"secret", uuid(2)));
        let missing = take(&mut caller(Some(uuid(1))), &frame(&ClientMessage::Hello(0)));
        assert_eq!((wrong, replayed), (Err(Refusal::WrongSecret), Err(Refusal::WrongSecret)));
        assert_eq!(missing, Err(Refusal::NoSecret));
        let told = |refusal: Refusal| refusal.message();
        assert_eq!(told(Refusal::WrongSecret), Some(ServerMessage::Error("invalid secret".into())));
        assert_eq!(told(Refusal::NoSecret).unwrap(), {
            let text = "server requires secret, but no secret was provided";
            ServerMessage::Error(text.into())
        });
    }

    #[test]
    fn a_proof_nobody_asked_for_is_out_of_turn() {
        assert_eq!(take(&mut caller(None), &proof(b"secret", uuid(1))), Err(Refusal::OutOfTurn));
        assert_eq!(take(&mut caller(None), &frame(&ClientMessage::Release)), Err(Refusal::OutOfTurn));
    }

    #[test]
    fn bytes_behind_an_accept_are_the_visitors() {
        let message = frame(&ClientMessage::Accept(uuid(3)));
        let bytes = [message.clone(), b"\0raw bytes".to_vec()].concat();
        let taken = caller(None).take(&bytes, None, NOW);
        assert_eq!(taken, Ok((message.len(), Some(Asked::Visitor(uuid(3))))));
    }

    #[test]
    fn only_messages_move_the_deadline() {
        let mut caller = caller(Some(uuid(1)));
        let later = NOW + Span::from_millis(2_900);
        let proof = proof(b"secret", uuid(1));
        let secret = Authenticator::new(b"secret");
        let (first, rest) = proof.split_at(10);
        caller.take(first, Some(&secret), later).unwrap();
        assert_eq!(caller.deadline(), NOW + MESSAGE_TIME);
        caller.take(rest, Some(&secret), later).unwrap();
        assert_eq!(caller.deadline(), later + MESSAGE_TIME);
    }

    #[test]
    fn the_proof_of_a_lease_comes_after_the_request() {
        let mut caller = caller(None);
        let hello = extended_frame(&ClientMessage::Hello(80));
        assert_eq!(
            take(&mut caller, &hello),
            Ok(Some(Asked::Port { port: PublicPort::tcp(80), extended: true }))
        );
        let said = caller.challenge_lease(PublicPort::tcp(80), uuid(4), NOW);
        assert_eq!(said, frame(&ServerMessage::Challenge(uuid(4))));
        let answer = Authenticator::for_lease(None, uuid(5)).answer(uuid(4));
        let asked = take(&mut caller, &frame(&ClientMessage::Authenticate(answer.clone())));
        assert_eq!(asked, Ok(Some(Asked::Leased { port: PublicPort::tcp(80), challenge: uuid(4), answer })));
    }

    #[test]
    fn whoever_asks_for_a_udp_port_understands_our_messages() {
        let asked = take(&mut caller(None), b"{\"Datagrams\":53}\0");
        assert_eq!(asked, Ok(Some(Asked::Port { port: PublicPort::udp(53), extended: true })));
        let missing = take(&mut caller(Some(uuid(1))), b"{\"Datagrams\":53}\0");
        assert_eq!(missing, Err(Refusal::NoSecret));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_ask_for_nothing_without_the_secret(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(matches!(take(&mut caller(Some(uuid(1))), &bytes), Ok(None) | Err(_)));
        }
    }
}
