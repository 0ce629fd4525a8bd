//! The client's side of its control connection.
//!
//! Pure: bytes and the time in, what was told and what to say out. [`super::client`] acts on it.
//!
//! ```text
//!  (with a secret)  ◀ Challenge   Authenticate ▶
//!                                 Hello(port) ▶      with the sign that we understand more; Datagrams(port) for UDP
//!  (port leased)    ◀ Challenge   Authenticate ▶     the lease's proof; with a secret only if the port has an owner
//!  (it has leases)  ◀ Lease                          Told::Lease
//!                   ◀ Hello(port)                    Told::Open
//!                   ◀ Heartbeat, Connection …        Told::Visitor; one of ours says Visitor, with the address
//! ```
//!
//! Source: bore 0.6.0, src/client.rs.

use std::net::SocketAddr;

use super::auth::Authenticator;
use super::caller::MESSAGE_TIME;
use super::message::{ClientMessage, FrameError, Frames, ServerMessage, Uuid, extended_frame, frame};
use crate::stats::exposed::public_port::{Protocol, PublicPort};
use crate::time::{Span, Time};

/// Silence after which an open connection is dead: thirty heartbeats.
pub const SILENCE_MAX: Span = Span::from_secs(15);

/// What the server told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The port we are about to get is leased to us under this name.
    Lease(Uuid),
    /// The public port is this one.
    Open(u16),
    /// A visitor has come, and where from if the server says so.
    Visitor(Uuid, Option<SocketAddr>),
    /// Something went wrong there; the connection goes on.
    Trouble(String),
}

/// What a server of ours means that asks for a lease although our secret was right.
const OF_ANOTHER: &str = "the port belongs to another client or is kept for one";

/// Why there is no control connection, or no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The server's own words.
    #[error("{0}")]
    Refused(String),
    /// It wants a secret, and we have none.
    #[error("the server asks for a secret; give --secret-file or --secret")]
    SecretMissing,
    /// It wants a secret, or proof that the port is ours: without a secret of ours both look alike.
    #[error(
        "the server asks for a secret (--secret-file), or the port belongs to another client or is kept for one, as long as its lease lasts"
    )]
    SecretOrLeaseMissing,
    /// We have a secret, and it does not want one.
    #[error("the server did not ask for the secret within 3 seconds; if it has none, leave ours out")]
    SecretUnwanted,
    /// It spoke out of turn before it gave us a port.
    #[error("the server sent something else instead of a port; is this a bore server?")]
    OutOfTurn,
    /// Not the protocol.
    #[error("the server sent {0}; is this a bore server?")]
    Frame(#[from] FrameError),
    /// Nothing came.
    #[error("the server was silent for {} seconds", .0.as_nanos() / 1_000_000_000)]
    Silent(Span),
    /// It ended the connection.
    #[error("the server ended the connection")]
    Ended,
    /// It ended the connection when it was asked for a UDP port.
    #[error(
        "the server ended the connection when it was asked for a UDP port: it is bore's, or an older one of ours, and serves no UDP"
    )]
    NoDatagrams,
    /// The connection did not come about, or broke; the kernel's words.
    #[error("{0}")]
    Io(String),
}

impl ControlError {
    /// Whether it would be the same at the next attempt.
    pub fn is_final(&self) -> bool {
        match self {
            ControlError::SecretMissing
            | ControlError::SecretOrLeaseMissing
            | ControlError::SecretUnwanted => true,
            ControlError::Refused(text) => {
                let last = ["invalid secret", "requires secret", "not in allowed range", "permission denied"];
                last.iter().chain(&["serves no UDP"]).any(|last| text.contains(last))
            }
            _ => false,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Challenge,
    Hello,
    Open,
}

/// One control connection. See the module.
#[derive(Debug)]
pub struct Control {
    frames: Frames,
    stage: Stage,
    secret: Option<Authenticator>,
    /// Of the lease we want to go on with.
    lease: Option<Authenticator>,
    port: PublicPort,
    deadline: Time,
}

impl Control {
    /// A connection that has just come about, to get `port`, and what to say first.
    pub fn new(
        secret: Option<Authenticator>,
        lease: Option<Authenticator>,
        port: PublicPort,
        now: Time,
    ) -> (Control, Vec<u8>) {
        let (stage, greeting) = match secret {
            Some(_) => (Stage::Challenge, Vec::new()),
            None => (Stage::Hello, request(port)),
        };
        let control =
            Control { frames: Frames::default(), stage, secret, lease, port, deadline: now + MESSAGE_TIME };
        (control, greeting)
    }

    /// Whether the port is ours.
    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Whether the port was asked for, and the answer may be under way.
    pub fn awaits_port(&self) -> bool {
        self.stage == Stage::Hello
    }

    /// When the connection is to be given up for silence, as [`Control::silence`].
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// What the silence means.
    pub fn silence(&self) -> ControlError {
        match self.stage {
            Stage::Challenge => ControlError::SecretUnwanted,
            Stage::Hello => ControlError::Silent(MESSAGE_TIME),
            Stage::Open => ControlError::Silent(SILENCE_MAX),
        }
    }

    /// What it means that the server has ended the connection.
    pub fn end(&self) -> ControlError {
        match (&self.stage, self.port.protocol) {
            (Stage::Hello, Protocol::Udp) => ControlError::NoDatagrams,
            _ => ControlError::Ended,
        }
    }

    /// Takes bytes in up to the end of one message: how many, and what it told. What is to be said is appended to `out`.
    ///
    /// # Errors
    /// [`ControlError`]; the connection ends then.
    pub fn take(
        &mut self,
        bytes: &[u8],
        now: Time,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Told>), ControlError> {
        let (count, frame) = self.frames.take(bytes)?;
        let Some(message) = frame.map(|frame| frame.parse::<ServerMessage>()) else {
            return Ok((count, None));
        };
        let (message, _) = message?;
        let told = if self.stage == Stage::Open { told(message) } else { self.opening(message, out)? };
        let patience = if self.stage == Stage::Open { SILENCE_MAX } else { MESSAGE_TIME };
        self.deadline = now + patience;
        Ok((count, told))
    }

    /// A message before the port is ours.
    fn opening(&mut self, message: ServerMessage, out: &mut Vec<u8>) -> Result<Option<Told>, ControlError> {
        match (&self.stage, message) {
            (_, ServerMessage::Error(text)) => return Err(ControlError::Refused(printable(&text))),
            (Stage::Challenge, ServerMessage::Challenge(challenge)) => {
                if let Some(secret) = &self.secret {
                    out.extend(proof(secret, challenge));
                }
                out.extend(request(self.port));
                self.stage = Stage::Hello;
            }
            (Stage::Hello, ServerMessage::Challenge(challenge)) => {
                let lease = self.lease.take().ok_or_else(|| match &self.secret {
                    None if self.port.number == 0 => ControlError::SecretMissing,
                    None => ControlError::SecretOrLeaseMissing,
                    // Our secret was taken: it is asked whose the port is, and that is somebody else.
                    Some(_) => ControlError::Refused(OF_ANOTHER.to_owned()),
                })?;
                out.extend(proof(&lease, challenge));
            }
            (Stage::Hello, ServerMessage::Lease(lease)) => return Ok(Some(Told::Lease(lease))),
            (Stage::Hello, ServerMessage::Hello(port)) => {
                self.stage = Stage::Open;
                return Ok(Some(Told::Open(port)));
            }
            _ => return Err(ControlError::OutOfTurn),
        }
        Ok(None)
    }
}

/// A message on an open connection; those that mean nothing there are ignored, as bore does.
fn told(message: ServerMessage) -> Option<Told> {
    match message {
        ServerMessage::Connection(visitor) => Some(Told::Visitor(visitor, None)),
        ServerMessage::Visitor(visitor, from) => Some(Told::Visitor(visitor, Some(from))),
        ServerMessage::Error(text) => Some(Told::Trouble(printable(&text))),
        _ => None,
    }
}

/// What anybody may have written, without what would steer a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).collect()
}

fn request(port: PublicPort) -> Vec<u8> {
    extended_frame(&ClientMessage::asking_for(port))
}

/// The answer to a challenge as a frame.
pub fn proof(key: &Authenticator, challenge: Uuid) -> Vec<u8> {
    frame(&ClientMessage::Authenticate(key.answer(challenge)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::rng::Rng;

    const NOW: Time = Time::from_nanos(1_000_000_000);

    fn uuid(seed: u8) -> Uuid {
        Uuid::random(&mut Rng::from_seed([seed; 32]))
    }

    fn begin(secret: bool, lease: bool) -> (Control, Vec<u8>) {
        let lease = lease.then(|| Authenticator::for_lease(None, uuid(9)));
        Control::new(secret.then(|| Authenticator::new(b"secret")), lease, PublicPort::tcp(80), NOW)
    }

    fn take(control: &mut Control, message: &ServerMessage) -> Result<(Option<Told>, Vec<u8>), ControlError> {
        let mut out = Vec::new();
        control.take(&frame(message), NOW, &mut out).map(|(_, told)| (told, out))
    }

    #[test]
    fn without_a_secret_the_client_speaks_first() {
        let (mut control, said) = begin(false, false);
        assert_eq!(said, b"{\"Hello\":80} \0");
        assert_eq!(take(&mut control, &ServerMessage::Lease(uuid(2))).unwrap().0, Some(Told::Lease(uuid(2))));
        assert!(!control.is_open());
        assert_eq!(take(&mut control, &ServerMessage::Hello(80)).unwrap().0, Some(Told::Open(80)));
        assert!(control.is_open());
        assert_eq!(take(&mut control, &ServerMessage::Heartbeat).unwrap().0, None);
        let visitor = ServerMessage::Connection(uuid(1));
        assert_eq!(take(&mut control, &visitor).unwrap().0, Some(Told::Visitor(uuid(1), None)));
    }

    #[test]
    fn with_a_secret_the_client_waits_and_answers_with_proof_and_request() {
        let (mut control, said) = begin(true, false);
        assert_eq!(said, b"");
        let (_, out) = take(&mut control, &ServerMessage::Challenge(uuid(1))).unwrap();
        let answer = Authenticator::new(b"secret").answer(uuid(1));
        let proof = format!("{{\"Authenticate\":\"{answer}\"}}\0{{\"Hello\":80}} \0");
        assert_eq!(out, proof.as_bytes());
        assert_eq!(take(&mut control, &ServerMessage::Hello(81)).unwrap().0, Some(Told::Open(81)));
    }

    #[test]
    fn a_lease_is_proven_once() {
        let (mut control, _) = begin(false, true);
        let (_, out) = take(&mut control, &ServerMessage::Challenge(uuid(1))).unwrap();
        assert_eq!(out, proof(&Authenticator::for_lease(None, uuid(9)), uuid(1)));
        let again = take(&mut control, &ServerMessage::Challenge(uuid(2)));
        assert_eq!(again, Err(ControlError::SecretOrLeaseMissing));
    }

    #[test]
    fn a_port_that_is_held_for_somebody_else_is_not_a_missing_secret() {
        let (mut control, _) = begin(true, false);
        take(&mut control, &ServerMessage::Challenge(uuid(1))).unwrap();
        let again = take(&mut control, &ServerMessage::Challenge(uuid(2)));
        assert_eq!(again, Err(ControlError::Refused(OF_ANOTHER.to_owned())));
    }

    #[test]
    fn what_a_server_says_cannot_steer_a_terminal() {
        let (mut control, _) = begin(false, false);
        let said = take(&mut control, &ServerMessage::Error("port \u{1b}[2Jtaken\n".to_owned()));
        assert_eq!(said, Err(ControlError::Refused("port [2Jtaken".to_owned())));
    }

    #[test]
    fn a_secret_on_one_side_only_is_named() {
        let (mut control, _) = begin(false, false);
        let asked = take(&mut control, &ServerMessage::Challenge(uuid(1)));
        assert_eq!(asked, Err(ControlError::SecretOrLeaseMissing));
        assert_eq!(begin(true, false).0.silence(), ControlError::SecretUnwanted);
        let (mut control, _) = begin(true, false);
        assert_eq!(take(&mut control, &ServerMessage::Hello(80)), Err(ControlError::OutOfTurn));
    }

    #[test]
    fn the_servers_words_are_passed_on_and_some_of_them_are_final() {
        let refused =
            |text: &str| take(&mut begin(true, false).0, &ServerMessage::Error(text.into())).unwrap_err();
        for text in ["invalid secret", "client port number not in allowed range"] {
            assert_eq!(refused(text), ControlError::Refused(text.into()));
            assert!(refused(text).is_final());
        }
        assert!(!refused("port already in use").is_final());
    }

    #[test]
    fn a_server_that_ends_the_connection_instead_of_giving_a_udp_port_serves_none() {
        let (mut control, said) = Control::new(None, None, PublicPort::udp(53), NOW);
        assert_eq!((&said[..], control.end()), (&b"{\"Datagrams\":53} \0"[..], ControlError::NoDatagrams));
        take(&mut control, &ServerMessage::Hello(53)).unwrap();
        assert_eq!(control.end(), ControlError::Ended);
        assert_eq!(begin(false, false).0.end(), ControlError::Ended);
        let (control, _) = Control::new(Some(Authenticator::new(b"x")), None, PublicPort::udp(53), NOW);
        assert_eq!(control.end(), ControlError::Ended, "it was not asked yet");
    }

    #[test]
    fn an_open_connection_may_be_silent_for_fifteen_seconds() {
        let (mut control, _) = begin(false, false);
        assert_eq!(control.deadline(), NOW + MESSAGE_TIME);
        take(&mut control, &ServerMessage::Hello(80)).unwrap();
        assert_eq!(
            (control.deadline(), control.silence()),
            (NOW + SILENCE_MAX, ControlError::Silent(SILENCE_MAX))
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_open_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let (mut control, _) = begin(true, false);
            let mut rest = &bytes[..];
            while let Ok((count, told)) = control.take(rest, NOW, &mut Vec::new()) {
                prop_assert_eq!(told, None);
                rest = &rest[count..];
                if rest.is_empty() {
                    break;
                }
            }
        }
    }
}
