//! A WireGuard peer that is not ours: it makes and reads every message by itself, and lets a test set each field.
//!
//! Noise is the snow crate's, MACs, cookies and data messages are written here once more from the whitepaper, so that a
//! mistake in `src/proto` cannot cancel itself out. Nothing is sent but what a test asks for: no timer, no answer.
//!
//! Source: WireGuard whitepaper §5.4.

use std::io::{ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::Aad;
use etherparse::PacketBuilder;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;

use crate::raw_session::{Key, Session, Tag, echo_reply, extended, keyed, labelled, number};
use crate::rig::PATIENCE;

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// What mac1 and mac2 take at the end of a handshake message.
const MACS_BYTES: usize = 32;
/// When something is sent again that may have been lost or refused. Late enough for the first answer to be there.
const AGAIN: Duration = Duration::from_secs(5);

static SEQUENCE: AtomicU16 = AtomicU16::new(1);

/// A key pair.
#[derive(Clone)]
pub struct Identity {
    pub private: Key,
    pub public: Key,
}

impl Identity {
    pub fn new() -> Identity {
        let pair = snow::Builder::new(PATTERN.parse().unwrap()).generate_keypair().unwrap();
        Identity { private: pair.private.try_into().unwrap(), public: pair.public.try_into().unwrap() }
    }
}

/// Time since 1970.
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

/// A TAI64N timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(pub [u8; 12]);

impl Stamp {
    pub const LAST: Stamp = Stamp([0xff; 12]);

    /// The time, to the nanosecond.
    pub fn now() -> Stamp {
        Stamp::at(now())
    }

    /// So long after 1970.
    pub fn at(time: Duration) -> Stamp {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&((1 << 62) + 10 + time.as_secs()).to_be_bytes());
        bytes[8..].copy_from_slice(&time.subsec_nanos().to_be_bytes());
        Stamp(bytes)
    }

    pub fn nanos(&self) -> u32 {
        u32::from_be_bytes(*self.0.last_chunk().unwrap())
    }
}

/// A datagram that came.
#[derive(Clone)]
pub struct Heard {
    pub bytes: Vec<u8>,
    pub from: SocketAddr,
    pub tos: u8,
    /// When the kernel took it in, by [`now`].
    pub at: Duration,
}

impl Heard {
    /// The message's type.
    pub fn kind(&self) -> u8 {
        self.bytes[0]
    }
}

impl std::fmt::Debug for Heard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "type {} of {} bytes from {}", self.kind(), self.bytes.len(), self.from)
    }
}

/// A socket at `address` that tells [`hear_on`] how datagrams were marked.
pub fn open_socket(address: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    if address.is_ipv4() {
        setsockopt(&socket, sockopt::IpRecvTos, &true).unwrap();
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvTClass, &true).unwrap();
    }
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).unwrap();
    // Floods of answers must not push out what a test waits for.
    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).unwrap();
    socket
}

/// What comes to `socket` within `patience`.
pub fn hear_on(socket: &UdpSocket, patience: Duration) -> Option<Heard> {
    socket.set_read_timeout(Some(patience.max(Duration::from_micros(1)))).unwrap();
    let mut bytes = vec![0; 1 << 16];
    let mut control = nix::cmsg_space!(i32, TimeSpec);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let got =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty());
    if matches!(got, Err(Errno::EAGAIN)) {
        return None;
    }
    let got = got.unwrap();
    let (mut tos, mut at) = (0, now());
    for message in got.cmsgs().unwrap() {
        match message {
            ControlMessageOwned::Ipv4Tos(mark) => tos = mark,
            ControlMessageOwned::Ipv6TClass(class) => tos = class as u8,
            ControlMessageOwned::ScmTimestampns(time) => at = time.into(),
            _ => {}
        }
    }
    let (length, from) = (got.bytes, socket_address(&got.address.unwrap()));
    bytes.truncate(length);
    Some(Heard { bytes, from, tos, at })
}

fn socket_address(address: &SockaddrStorage) -> SocketAddr {
    let v4 = address.as_sockaddr_in().map(|v4| (IpAddr::from(v4.ip()), v4.port()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| (IpAddr::from(v6.ip()), v6.port()))).unwrap().into()
}

/// An initiation, and what its answer is opened with.
pub struct Initiation {
    pub message: Vec<u8>,
    pub index: u32,
    noise: snow::HandshakeState,
}

/// The response to an initiation that came, and what both said.
pub struct Response {
    pub message: Vec<u8>,
    pub session: Session,
    pub initiator: Key,
    pub stamp: Stamp,
}

/// A peer: a key and a socket.
pub struct RawPeer {
    pub identity: Identity,
    pub psk: Key,
    /// Its inner address.
    pub inner: Ipv4Addr,
    pub socket: UdpSocket,
    /// The other side.
    pub remote: SocketAddr,
    pub remote_key: Key,
}

impl RawPeer {
    pub fn send(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.remote).unwrap();
    }

    /// What comes within `patience`.
    pub fn hear_within(&self, patience: Duration) -> Option<Heard> {
        hear_on(&self.socket, patience)
    }

    /// What comes next, which must be of `kind`.
    #[track_caller]
    pub fn hear(&self, kind: u8) -> Heard {
        let heard = self.hear_within(PATIENCE).unwrap_or_else(|| panic!("waited in vain for type {kind}"));
        assert_eq!(heard.kind(), kind, "{heard:?}");
        heard
    }

    /// All that comes until `patience` has passed in silence.
    pub fn hear_all(&self, patience: Duration) -> Vec<Heard> {
        std::iter::from_fn(|| self.hear_within(patience)).collect()
    }

    /// The next `count`, which must come, and what comes within `patience` behind them.
    #[track_caller]
    pub fn hear_many(&self, count: usize, patience: Duration) -> Vec<Heard> {
        let first = (0..count).map_while(|_| self.hear_within(PATIENCE));
        let mut heard: Vec<Heard> = first.collect();
        assert_eq!(heard.len(), count, "datagrams that came");
        heard.extend(self.hear_all(patience));
        heard
    }

    /// Nothing comes, not even an ICMP error.
    #[track_caller]
    pub fn hears_nothing(&self, patience: Duration) {
        assert!(matches!(self.socket.take_error(), Ok(None)));
        let heard = self.hear_all(patience);
        assert!(heard.is_empty(), "{} datagrams, the first: {:?}", heard.len(), heard[0]);
    }

    fn noise(&self, initiates: bool) -> snow::HandshakeState {
        let builder = snow::Builder::new(PATTERN.parse().unwrap()).prologue(PROLOGUE).unwrap();
        let builder = builder.local_private_key(&self.identity.private).unwrap().psk(2, &self.psk).unwrap();
        if initiates {
            builder.remote_public_key(&self.remote_key).unwrap().build_initiator().unwrap()
        } else {
            builder.build_responder().unwrap()
        }
    }

    /// An initiation with a fitting mac1 and a mac2 of zeros.
    pub fn initiation(&self, index: u32, stamp: Stamp) -> Initiation {
        let mut noise = self.noise(true);
        let mut message = vec![0; 148];
        message[0] = 1;
        message[4..8].copy_from_slice(&index.to_le_bytes());
        assert_eq!(noise.write_message(&stamp.0, &mut message[8..116]).unwrap(), 108);
        self.write_macs(&mut message, None);
        Initiation { message, index, noise }
    }

    /// Writes mac1, and mac2 if there is a cookie, for what lies before them.
    pub fn write_macs(&self, message: &mut [u8], cookie: Option<&Tag>) {
        let (text, macs) = message.split_at_mut(message.len() - MACS_BYTES);
        let mac1 = keyed(&labelled(b"mac1----", &self.remote_key), &[text]);
        macs[..16].copy_from_slice(&mac1);
        macs[16..].copy_from_slice(&cookie.map_or([0; 16], |cookie| keyed(cookie, &[text, &mac1])));
    }

    /// The session that `response` makes, if it opens.
    pub fn session(&self, initiation: Initiation, response: &[u8]) -> Option<Session> {
        let Initiation { index, mut noise, .. } = initiation;
        assert_eq!((response[0], response.len()), (2, 92));
        assert_eq!(response[8..12], index.to_le_bytes());
        self.assert_mac1(response);
        noise.read_message(&response[12..60], &mut [0; 64]).ok()?;
        let (sealing, opening) = noise.dangerously_get_raw_split();
        Some(Session::new(index, number(&response[4..8]), sealing, opening))
    }

    /// A session that this side began, confirmed by a keepalive. Waits until it may: initiations need their distance.
    #[track_caller]
    pub fn handshake(&self, index: u32) -> Session {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let initiation = self.initiation(index, Stamp::now());
            self.send(&initiation.message);
            let heard = self.hear_within(AGAIN);
            if let Some(response) = heard.filter(|heard| heard.kind() == 2) {
                let mut session = self.session(initiation, &response.bytes).expect("a response that opens");
                self.send(&session.seal(&[]));
                return session;
            }
            assert!(Instant::now() < give_up, "no response");
        }
    }

    /// Answers an initiation that came.
    pub fn respond(&self, initiation: &[u8], index: u32) -> Response {
        assert_eq!((&initiation[..4], initiation.len()), (&[1, 0, 0, 0][..], 148));
        self.assert_mac1(initiation);
        let mut noise = self.noise(false);
        let mut stamp = Stamp([0; 12]);
        assert_eq!(noise.read_message(&initiation[8..116], &mut stamp.0).unwrap(), 12);
        let initiator = noise.get_remote_static().unwrap().try_into().unwrap();
        let mut message = vec![0; 92];
        message[0] = 2;
        message[4..8].copy_from_slice(&index.to_le_bytes());
        message[8..12].copy_from_slice(&initiation[4..8]);
        assert_eq!(noise.write_message(&[], &mut message[12..60]).unwrap(), 48);
        self.write_macs(&mut message, None);
        let (opening, sealing) = noise.dangerously_get_raw_split();
        let session = Session::new(index, number(&initiation[4..8]), sealing, opening);
        Response { message, session, initiator, stamp }
    }

    /// A message that came has a mac1 made with our key.
    #[track_caller]
    fn assert_mac1(&self, message: &[u8]) {
        let (text, macs) = message.split_at(message.len() - MACS_BYTES);
        assert_eq!(macs[..16], keyed(&labelled(b"mac1----", &self.identity.public), &[text]));
    }

    /// The mac2 that a message which came has with `cookie`.
    pub fn mac2(message: &[u8], cookie: &Tag) -> Tag {
        keyed(cookie, &[&message[..message.len() - 16]])
    }

    /// The cookie in a reply to `message`.
    pub fn open_cookie(&self, reply: &[u8], message: &[u8]) -> Option<Tag> {
        assert_eq!((&reply[..4], reply.len()), (&[3, 0, 0, 0][..], 64));
        assert_eq!(reply[4..8], message[4..8], "the receiver is the one that sent");
        let (key, nonce) = extended(&labelled(b"cookie--", &self.remote_key), &reply[8..32]);
        let mut sealed = reply[32..].to_vec();
        let opened = key.open_in_place(nonce, Aad::from(mac1(message)), &mut sealed).ok()?;
        Some((&*opened).try_into().unwrap())
    }

    /// The reply that gives the sender of `message` a cookie.
    pub fn cookie_reply(&self, message: &[u8], cookie: Tag) -> Vec<u8> {
        let nonce: [u8; 24] = std::array::from_fn(|place| place as u8);
        let (key, short) = extended(&labelled(b"cookie--", &self.identity.public), &nonce);
        let mut sealed = cookie.to_vec();
        key.seal_in_place_append_tag(short, Aad::from(mac1(message)), &mut sealed).unwrap();
        [&[3, 0, 0, 0], &message[4..8], &nonce, &sealed].concat()
    }

    /// A ping from this peer's inner address to `to`, and its number.
    pub fn echo_request(&self, to: Ipv4Addr, payload: &[u8]) -> (Vec<u8>, u16) {
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let mut packet = Vec::new();
        let builder = PacketBuilder::ipv4(self.inner.octets(), to.octets(), 64);
        builder.icmpv4_echo_request(77, sequence).write(&mut packet, payload).unwrap();
        (packet, sequence)
    }

    /// Pings through `session` while nothing else comes.
    #[track_caller]
    pub fn pings_alone(&self, session: &mut Session) {
        let others = self.ping(session);
        assert!(others.is_empty(), "{others:?}");
    }

    /// Pings through `session` until there is an answer; returns what else came meanwhile. The packets before it on the
    /// same session have been dealt with then.
    #[track_caller]
    pub fn ping(&self, session: &mut Session) -> Vec<Heard> {
        let (request, sequence) = self.echo_request(Ipv4Addr::new(10, 9, 0, 1), &[9; 28]);
        let (give_up, mut others) = (Instant::now() + PATIENCE, Vec::new());
        while Instant::now() < give_up {
            self.send(&session.seal(&request));
            while let Some(heard) = self.hear_within(AGAIN) {
                if session.open(&heard.bytes).and_then(|(_, packet)| echo_reply(&packet)) == Some(sequence) {
                    return others;
                }
                others.push(heard);
            }
        }
        panic!("no answer to a ping; heard {others:?}");
    }
}

/// Datagrams as one send that the kernel cuts: all but the last have the first one's length.
pub fn send_train(socket: &UdpSocket, to: SocketAddr, datagrams: &[Vec<u8>]) {
    let segment_bytes = datagrams[0].len();
    setsockopt(socket, sockopt::UdpGsoSegment, &(segment_bytes as i32)).unwrap();
    for train in datagrams.chunks((65_000 / segment_bytes).min(60)) {
        // The receiver may be slow; what finds no room is lost like any datagram.
        match socket.send_to(&train.concat(), to) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => panic!("a train: {error}"),
            _ => {}
        }
    }
    setsockopt(socket, sockopt::UdpGsoSegment, &0).unwrap();
}

fn mac1(message: &[u8]) -> &[u8] {
    &message[message.len() - MACS_BYTES..message.len() - 16]
}
