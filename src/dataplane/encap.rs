//! How an IP packet becomes a datagram and back. The data plane asks at exactly two points, seal and open.
//!
//! | | outbound | inbound |
//! |---|---|---|
//! | plain | the packet | the packet |
//! | WireGuard | header 16, packet, zeros up to a multiple of 16, tag 16 | opened in place |
//!
//! The vnet header in front of a TUN read is as long as the WireGuard header, so a packet is sealed where it lies.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::MutexGuard;

use super::allowed_ips::PeerIndex;
use super::view::View;
use crate::proto::activity::{Activity, News};
use crate::proto::replay::{Refused, ReplayWindow};
use crate::proto::session::{Session, Unusable};
use crate::stats::drop::DropReason;
use crate::time::Time;
use crate::wire::message::{
    self, DATA_HEADER_BYTES, DATA_OVERHEAD_BYTES, DATA_TAG_BYTES, KEEPALIVE_BYTES, Kind, padded_bytes,
};

/// The encapsulation of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encap {
    /// The datagram is the IP packet: what the kernel calls FOU with an IPIP or SIT payload. Neither secret nor
    /// authenticated. Source: linux/fou.h; RFC 2003 and 4213 for the payload.
    #[default]
    Plain,
    /// The datagram is a WireGuard data message. Source: WireGuard whitepaper §5.4.6.
    WireGuard,
}

/// How long datagrams are, and where in them the packets lie.
#[derive(Clone, Copy, Debug)]
pub struct Framing {
    /// What is around the packets.
    pub encap: Encap,
    /// Padding does not go beyond.
    pub mtu: usize,
}

impl Framing {
    /// Bytes of the datagram that carries a packet of `packet_bytes`.
    pub fn datagram_bytes(&self, packet_bytes: usize) -> usize {
        match self.encap {
            Encap::Plain => packet_bytes,
            Encap::WireGuard => padded_bytes(packet_bytes, self.mtu) + DATA_OVERHEAD_BYTES,
        }
    }

    /// Where in the datagram the packet starts.
    pub fn packet_start(&self) -> usize {
        match self.encap {
            Encap::Plain => 0,
            Encap::WireGuard => DATA_HEADER_BYTES,
        }
    }

    /// Zeros the padding behind a packet of `packet_bytes` that stands in the room of its `datagram`.
    pub fn pad(&self, datagram: &mut [u8], packet_bytes: usize) {
        if self.encap == Encap::WireGuard {
            let end = datagram.len() - DATA_TAG_BYTES;
            datagram[DATA_HEADER_BYTES + packet_bytes..end].fill(0);
        }
    }
}

/// What an opened datagram is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// A packet, perhaps with padding behind it, lies there.
    Packet(Range<usize>),
    /// A keepalive: nothing in it.
    Keepalive,
    /// A message that makes sessions, for the protocol thread.
    Handshake,
}

/// What one session's messages in one receive amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The peer.
    pub peer: PeerIndex,
    /// The session's receiver index; 0 in plaintext mode.
    pub local_index: u32,
    /// How many they are.
    pub messages: u64,
    /// Their UDP payload bytes.
    pub bytes: u64,
    /// Whether any was more than a keepalive.
    pub data: bool,
    /// Whether this was the first sign that the peer has the keys.
    pub confirmed: bool,
    /// Whether the session should be renewed while there is time.
    pub rekey_due: bool,
}

impl Heard {
    /// Notes it in the peer's `activity`. True if the protocol thread must be told to look.
    pub fn note(&self, activity: &Activity, now: Time) -> bool {
        let mut tell = activity.received(self.messages, self.bytes, self.data, now);
        tell |= self.confirmed && activity.tell(News::Confirmed);
        tell |= self.rekey_due && activity.ask_to_rekey(now);
        tell
    }
}

/// Opens the datagrams of one receive: they come from one address, and mostly belong to one session.
pub struct Opener<'v, 'h> {
    view: &'v View,
    from: IpAddr,
    now: Time,
    /// The session of the newest datagram, with its replay window: looked up and locked once per receive.
    session: Option<(&'v Session, MutexGuard<'v, ReplayWindow>)>,
    /// The inner source that last passed the check, and its peer: neighbours in a train mostly share it.
    last_source: Option<(IpAddr, PeerIndex)>,
    heard: &'h mut Vec<Heard>,
}

impl<'v, 'h> Opener<'v, 'h> {
    /// For datagrams received from `from`. What authenticated peers sent is told in `heard`.
    pub fn new(view: &'v View, from: IpAddr, now: Time, heard: &'h mut Vec<Heard>) -> Opener<'v, 'h> {
        Opener { view, from, now, session: None, last_source: None, heard }
    }

    /// Opens one datagram in place.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn open(&mut self, datagram: &mut [u8]) -> Result<Opened, DropReason> {
        if self.view.encap == Encap::Plain {
            return Ok(Opened::Packet(0..datagram.len()));
        }
        let Some(kind) = message::classify(datagram) else {
            // Whoever sent what came before it need not have sent this.
            self.session = None;
            return Err(DropReason::NotWireGuard);
        };
        match kind {
            Kind::Handshake(_) => Ok(Opened::Handshake),
            Kind::Data { receiver, counter } => {
                self.select(receiver)?;
                self.open_data(counter, datagram)
            }
        }
    }

    /// Whose session the newest datagram named; nobody's in plaintext mode.
    pub fn peer(&self) -> Option<PeerIndex> {
        self.session.as_ref().map(|(session, _)| session.peer())
    }

    /// Makes the session with this receiver index the newest.
    fn select(&mut self, receiver: u32) -> Result<(), DropReason> {
        if self.session.as_ref().is_some_and(|(session, _)| session.local_index() == receiver) {
            return Ok(());
        }
        // The lock of the former session first: a peer must not be able to make us hold two.
        self.session = None;
        let session = self.view.session(receiver).ok_or(DropReason::UnknownIndex)?;
        self.session = Some((session, session.window()));
        self.last_source = None;
        Ok(())
    }

    fn open_data(&mut self, counter: u64, datagram: &mut [u8]) -> Result<Opened, DropReason> {
        let Some((session, window)) = &mut self.session else { return Err(DropReason::UnknownIndex) };
        let bytes = datagram.len() as u64;
        let range = session.open(counter, datagram, self.now).map_err(reason)?;
        // Only now: a forged counter must not move the window.
        window.accept(counter).map_err(|refused| match refused {
            Refused::Replayed => DropReason::Replayed,
            Refused::TooOld => DropReason::TooOld,
        })?;
        let data = bytes as usize != KEEPALIVE_BYTES;
        let session = *session;
        self.tell(session, bytes, data);
        Ok(if data { Opened::Packet(range) } else { Opened::Keepalive })
    }

    fn tell(&mut self, session: &Session, bytes: u64, data: bool) {
        if let Some(heard) = self.heard.last_mut()
            && heard.local_index == session.local_index()
        {
            heard.messages += 1;
            heard.bytes += bytes;
            heard.data |= data;
            return;
        }
        self.heard.push(Heard {
            peer: session.peer(),
            local_index: session.local_index(),
            messages: 1,
            bytes,
            data,
            confirmed: session.confirm(),
            rekey_due: session.rekey_due_on_receive(self.now),
        });
    }

    /// The inner source must belong to the peer that sent the datagram just opened, by longest prefix over all peers.
    ///
    /// # Errors
    /// [`DropReason::SourceNotAllowed`].
    pub fn check_source(&mut self, source: IpAddr) -> Result<(), DropReason> {
        if self.last_source.is_some_and(|(known, _)| known == source) {
            return Ok(());
        }
        let owner = match &self.session {
            Some((session, _)) => self.view.routes.lookup(source).filter(|owner| *owner == session.peer()),
            None => self.view.peer_sending(source, self.from),
        };
        let owner = owner.ok_or(DropReason::SourceNotAllowed)?;
        if self.session.is_none() && self.heard.last().is_none_or(|heard| heard.peer != owner) {
            let plain = Heard {
                peer: owner,
                local_index: 0,
                messages: 0,
                bytes: 0,
                data: true,
                confirmed: false,
                rekey_due: false,
            };
            self.heard.push(plain);
        }
        self.last_source = Some((source, owner));
        Ok(())
    }
}

fn reason(unusable: Unusable) -> DropReason {
    match unusable {
        Unusable::Expired => DropReason::KeyExpired,
        Unusable::CounterExhausted => DropReason::CounterExhausted,
        Unusable::BadTag => DropReason::BadTag,
    }
}
