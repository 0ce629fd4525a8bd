//! Sees every datagram on the wire, every session that is made and everything that a worker takes in, and judges by the
//! laws of the encrypted tunnel. What a worker must accept it works out by itself.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use uringvpn::io::fake::Incoming;
use uringvpn::proto::PeerIndex;
use uringvpn::proto::cookie::Mac1Checker;
use uringvpn::proto::output::Handled;
use uringvpn::proto::session::{REJECT_AFTER_MESSAGES, Role, Session};
use uringvpn::stats::drop::DropReason;
use uringvpn::time::{Span, Time};
use uringvpn::wire::message::KEEPALIVE_BYTES;

use crate::check::{Broken, Checked, HOSTS_MAX, Law, require};
use crate::node::{Due, Seat, private_key};

/// Reject-After-Time, Rekey-Timeout and the replay window: the whitepaper's numbers, not the program's.
const SESSION_LIFE: Span = Span::from_secs(180);
const BETWEEN_INITIATIONS: Span = Span::from_secs(5);
const WINDOW: u64 = 8128;

/// What a data message holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inner {
    Keepalive,
    Packet(Vec<u8>),
    /// A packet whose source is somebody else's.
    Spoofed,
}

/// A session as one host has it, by its receiver index there.
struct Witness {
    host: usize,
    other: usize,
    session: Arc<Session>,
    accepted: HashSet<u64>,
    newest: u64,
    /// Where accepted messages came from.
    sources: HashSet<SocketAddr>,
}

#[derive(Default)]
pub struct Observer {
    witnesses: HashMap<u32, Witness>,
    /// By receiver index and counter: a hash of the message, and what it holds.
    sealed: HashMap<(u32, u64), (u64, Inner)>,
    /// Handshake messages without mac2, and whom they are for.
    handshakes: HashMap<Vec<u8>, usize>,
    /// Those that their addressee has accepted since it started.
    accepted: [HashSet<Vec<u8>>; HOSTS_MAX],
    initiated: HashMap<(usize, PeerIndex), Time>,
    /// Per host its sessions and how much they had sealed when last looked at.
    own: [Vec<(Arc<Session>, u64)>; HOSTS_MAX],
    /// Packets whose session came of age while they were under way: neither end can know that beforehand.
    pub lapsed: Vec<Vec<u8>>,
    /// Where a host has had a reason to look for a peer.
    pub places: HashMap<(usize, PeerIndex), HashSet<SocketAddr>>,
    /// Where it believes the peer to be.
    pub believed: HashMap<(usize, PeerIndex), SocketAddr>,
}

impl Observer {
    /// `host` has a session with `other`.
    pub fn session_added(&mut self, host: usize, other: usize, session: &Arc<Session>) -> Checked {
        let (accepted, sources) = (HashSet::new(), HashSet::new());
        let witness = Witness { host, other, session: session.clone(), accepted, newest: 0, sources };
        let known = self.witnesses.insert(session.local_index(), witness);
        self.own[host].push((session.clone(), 0));
        require(Law::Nonce, known.is_none(), || "a receiver index was given twice".into())
    }

    /// `host` has lost everything but its keys.
    pub fn restarted(&mut self, host: usize) {
        self.accepted[host].clear();
        self.own[host].clear();
        self.places.retain(|(owner, _), _| *owner != host);
        self.believed.retain(|(owner, _), _| *owner != host);
        self.forgot_initiations(host);
    }

    /// `host` may begin handshakes at once.
    pub fn forgot_initiations(&mut self, host: usize) {
        self.initiated.retain(|(owner, _), _| *owner != host);
    }

    /// The sessions of `host` that are still somewhere in use.
    pub fn sessions_of(&self, host: usize) -> impl Iterator<Item = &Arc<Session>> {
        self.own[host].iter().map(|(session, _)| session)
    }

    /// Forgets who sent which handshake message.
    pub fn forget_handshakes(&mut self) {
        self.handshakes.clear();
    }

    /// Any receiver index of `host`; 0 if it has no session.
    pub fn index_of(&self, host: usize) -> u32 {
        self.own[host].last().map_or(0, |(session, _)| session.local_index())
    }

    /// `host` sends a handshake message to `other`; `None` for a cookie reply, whose receiver nobody knows.
    pub fn handshake_sent(
        &mut self,
        host: usize,
        peer: PeerIndex,
        other: Option<usize>,
        bytes: &[u8],
        now: Time,
    ) -> Checked {
        if let Some(other) = other {
            self.handshakes.insert(without_mac2(bytes).to_vec(), other);
        }
        if bytes[0] != 1 {
            return Ok(());
        }
        let before = self.initiated.insert((host, peer), now);
        require(Law::Silence, before.is_none_or(|before| now.since(before) >= BETWEEN_INITIATIONS), || {
            format!("host {host} sent initiations to peer {peer} at {before:?} and {now:?}")
        })
    }

    /// `host` took in a handshake message. Whether it has proven who it is and was not accepted before: then it may be
    /// answered.
    pub fn handshake_handled(&mut self, host: usize, bytes: &[u8], handled: Handled) -> Result<bool, Broken> {
        let accepted = matches!(handled, Handled::InitiationAccepted(_) | Handled::ResponseAccepted(_));
        if !accepted {
            return Ok(false);
        }
        let proven = without_mac2(bytes);
        require(Law::Silence, self.handshakes.get(proven) == Some(&host), || {
            format!("host {host}: {handled:?}, of a message that nobody sent to it")
        })?;
        require(Law::Silence, self.accepted[host].insert(proven.to_vec()), || {
            format!("host {host}: {handled:?}, for the second time")
        })?;
        Ok(true)
    }

    /// A data message left `host`. Says to whom, and what it holds.
    pub fn data_sent(
        &mut self,
        host: usize,
        bytes: &[u8],
        owner: impl Fn(&[u8]) -> Option<usize>,
    ) -> Result<(usize, Inner), Broken> {
        let (index, counter) = header(bytes);
        let witness = self.witnesses.get(&index).filter(|witness| witness.other == host);
        let witness = witness
            .ok_or_else(|| broken(Law::Bytes, format!("host {host} sealed for no session of its peers")))?;
        require(Law::Nonce, !self.sealed.contains_key(&(index, counter)), || {
            format!("host {host} sealed counter {counter} of session {index:08x} twice")
        })?;
        let mut opened = bytes.to_vec();
        let range = witness.session.open(counter, &mut opened, witness.session.created());
        let range = range.map_err(|error| {
            broken(Law::Bytes, format!("host {host} sealed what cannot be opened: {error:?}"))
        })?;
        let inner = inner(&opened[range], host, owner)?;
        let to = witness.host;
        self.sealed.insert((index, counter), (hash(bytes), inner.clone()));
        Ok((to, inner))
    }

    /// After anything that `host` did: none of its old sessions has sealed, and none that the peer has not used.
    pub fn check_sessions(&mut self, host: usize, now: Time) -> Checked {
        for (session, sent) in &mut self.own[host] {
            let before = std::mem::replace(sent, session.sent());
            let old = now.since(session.created()) >= SESSION_LIFE;
            require(Law::Age, !old || before == session.sent(), || {
                let age = now.since(session.created());
                format!("host {host} sealed with session {:08x}, {age:?} old", session.local_index())
            })?;
        }
        let mute = |session: &Session| {
            let heard = self
                .witnesses
                .get(&session.local_index())
                .is_some_and(|witness| !witness.accepted.is_empty());
            session.role() == Role::Initiator || heard || session.sent() == 0
        };
        require(Law::Mute, self.own[host].iter().all(|(session, _)| mute(session)), || {
            format!("host {host} sent before the initiator had shown that it has the keys")
        })?;
        // This list and the witness are all that hold it.
        self.own[host].retain(|(session, _)| Arc::strong_count(session) > 2);
        Ok(())
    }

    /// A worker took in a receive: what must come of it is added to what is due.
    pub fn taken_in(
        &mut self,
        host: usize,
        seat: &mut Seat,
        (incoming, truncated): &(Incoming, bool),
        paused: bool,
        now: Time,
    ) {
        let stride = if incoming.stride == 0 { incoming.bytes.len().max(1) } else { incoming.stride.into() };
        let length = if *truncated { incoming.bytes.len() / 2 } else { incoming.bytes.len() };
        let count = length.div_ceil(stride).max(1) as u64;
        let (due, mac1) = (&mut seat.due, Mac1Checker::new(&private_key(host).public_key()));
        due.datagrams += count;
        if paused || *truncated {
            let reason = if paused { DropReason::TunDown } else { DropReason::Truncated };
            due.drops[reason as usize] += count;
            return;
        }
        if incoming.bytes.is_empty() {
            due.drops[DropReason::NotWireGuard as usize] += 1;
        }
        for datagram in incoming.bytes.chunks(stride) {
            let session = match kind(datagram) {
                Kind::Cookie => {
                    due.handshakes += 1;
                    continue;
                }
                Kind::Handshake if mac1.fits(datagram) => {
                    due.handshakes += 1;
                    continue;
                }
                Kind::Handshake => {
                    Err(DropReason::BadMac1).count(due);
                    continue;
                }
                Kind::Other => None,
                Kind::Data => seat.sessions.get(&header(datagram).0),
            };
            match (kind(datagram), session) {
                (Kind::Data, Some(session)) => {
                    let verdict =
                        self.data_arrived(host, session.peer(), session, datagram, incoming.from, now);
                    verdict.count(due);
                }
                (Kind::Data, None) => Err(DropReason::UnknownIndex).count(due),
                _ => Err(DropReason::NotWireGuard).count(due),
            }
        }
    }

    fn data_arrived(
        &mut self,
        host: usize,
        peer: PeerIndex,
        session: &Session,
        bytes: &[u8],
        from: SocketAddr,
        now: Time,
    ) -> Result<Inner, DropReason> {
        let (index, counter) = header(bytes);
        let genuine = self.sealed.get(&(index, counter)).filter(|(sealed, _)| *sealed == hash(bytes));
        if now.since(session.created()) >= SESSION_LIFE {
            if let Some((_, Inner::Packet(packet))) = genuine {
                self.lapsed.push(packet.clone());
            }
            return Err(DropReason::KeyExpired);
        }
        if counter >= REJECT_AFTER_MESSAGES {
            return Err(DropReason::CounterExhausted);
        }
        let (_, inner) = genuine.ok_or(DropReason::BadTag)?;
        let witness = self.witnesses.get_mut(&index).ok_or(DropReason::UnknownIndex)?;
        if counter + WINDOW < witness.newest {
            return Err(DropReason::TooOld);
        }
        if !witness.accepted.insert(counter) {
            return Err(DropReason::Replayed);
        }
        witness.newest = witness.newest.max(counter);
        witness.sources.insert(from);
        self.places.entry((host, peer)).or_default().insert(from);
        Ok(inner.clone())
    }

    /// Whether a message of the session was accepted from there.
    pub fn came_from(&self, index: u32, from: SocketAddr) -> bool {
        self.witnesses.get(&index).is_some_and(|witness| witness.sources.contains(&from))
    }
}

trait Verdict {
    fn count(self, due: &mut Due);
}

impl Verdict for Result<Inner, DropReason> {
    fn count(self, due: &mut Due) {
        match self {
            Ok(Inner::Packet(_)) => due.packets += 1,
            Ok(Inner::Keepalive) => due.keepalives += 1,
            Ok(Inner::Spoofed) => due.drops[DropReason::SourceNotAllowed as usize] += 1,
            Err(reason) => due.drops[reason as usize] += 1,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// With a mac1.
    Handshake,
    Cookie,
    Data,
    Other,
}

fn kind(datagram: &[u8]) -> Kind {
    match (datagram.first_chunk::<4>(), datagram.len()) {
        (Some([1, 0, 0, 0]), 148) | (Some([2, 0, 0, 0]), 92) => Kind::Handshake,
        (Some([3, 0, 0, 0]), 64) => Kind::Cookie,
        (Some([4, 0, 0, 0]), KEEPALIVE_BYTES..) => Kind::Data,
        _ => Kind::Other,
    }
}

/// Receiver index and counter of a data message.
fn header(bytes: &[u8]) -> (u32, u64) {
    (number(&bytes[4..8]), u64::from_le_bytes(*bytes[8..].first_chunk().expect("a data message")))
}

fn number(field: &[u8]) -> u32 {
    u32::from_le_bytes(*field.first_chunk().expect("four bytes"))
}

/// Nothing proves the last 16 bytes unless the receiver is under load.
fn without_mac2(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len() - 16]
}

fn inner(padded: &[u8], host: usize, owner: impl Fn(&[u8]) -> Option<usize>) -> Result<Inner, Broken> {
    if padded.is_empty() {
        return Ok(Inner::Keepalive);
    }
    let bytes = match padded[0] >> 4 {
        4 => usize::from(u16::from_be_bytes([padded[2], padded[3]])),
        _ => 40 + usize::from(u16::from_be_bytes([padded[4], padded[5]])),
    };
    let (packet, padding) =
        padded.split_at_checked(bytes).ok_or_else(|| broken(Law::Bytes, "a packet was cut off".into()))?;
    let zeros = padding.len() < 16 && padding.iter().all(|byte| *byte == 0);
    require(Law::Bytes, zeros, || format!("host {host} padded with {padding:02x?}"))?;
    Ok(if owner(packet) == Some(host) { Inner::Packet(packet.to_vec()) } else { Inner::Spoofed })
}

fn broken(law: Law, what: String) -> Broken {
    Broken { law, what }
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
