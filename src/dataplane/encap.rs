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
use crate::proto::replay::{Refused, ReplayWindow};
use crate::proto::session::{Session, Unusable};
use crate::stats::drop::DropReason;
use crate::time::Time;
use crate::wire::ip::{IpView, PROTOCOL_UDP};
use crate::wire::l4::UDP_HEADER_BYTES;
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

/// Turns the packets of one flow into datagrams.
pub enum Sealer<'a> {
    /// They are the same.
    Plain,
    /// With the keys of a session.
    Session {
        /// The session.
        session: &'a Session,
        /// Padding does not go beyond.
        mtu: usize,
        /// The session may have to be too old.
        now: Time,
    },
}

impl Sealer<'_> {
    /// Bytes of the datagram that carries a packet of `packet_bytes`.
    pub fn datagram_bytes(&self, packet_bytes: usize) -> usize {
        match self {
            Sealer::Plain => packet_bytes,
            Sealer::Session { mtu, .. } => padded_bytes(packet_bytes, *mtu) + DATA_OVERHEAD_BYTES,
        }
    }

    /// Where in the datagram the packet starts.
    pub fn packet_start(&self) -> usize {
        match self {
            Sealer::Plain => 0,
            Sealer::Session { .. } => DATA_HEADER_BYTES,
        }
    }

    /// Whether `packet` is a datagram that this session sealed, or the first fragment of one: the peer's endpoint is routed into
    /// its own tunnel.
    pub fn has_sealed(&self, packet: &[u8], ip: &IpView) -> bool {
        let Sealer::Session { session, .. } = self else { return false };
        let payload = usize::from(ip.header_bytes) + UDP_HEADER_BYTES;
        ip.protocol == PROTOCOL_UDP && packet.get(payload..).is_some_and(|datagram| session.sealed(datagram))
    }

    /// Seals `datagrams`, each the room of [`Sealer::datagram_bytes`] with a packet at [`Sealer::packet_start`] and its length.
    /// All their counters are reserved at once.
    ///
    /// # Errors
    /// [`DropReason::NoSession`]: it ended since it was looked up; nothing is sealed then.
    pub fn seal<'d>(
        &self,
        datagrams: impl ExactSizeIterator<Item = (&'d mut [u8], usize)>,
    ) -> Result<(), DropReason> {
        let Sealer::Session { session, now, .. } = self else { return Ok(()) };
        let first = session.reserve(datagrams.len() as u64, *now).map_err(|_| DropReason::NoSession)?;
        for (counter, (datagram, packet_bytes)) in (first..).zip(datagrams) {
            let padding = DATA_HEADER_BYTES + packet_bytes..datagram.len() - DATA_TAG_BYTES;
            datagram[padding].fill(0);
            session.seal(counter, datagram);
        }
        Ok(())
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
    /// UDP payload bytes.
    pub bytes: u64,
    /// Whether any was more than a keepalive.
    pub data: bool,
    /// Whether this was the first sign that the peer has the keys.
    pub confirmed: bool,
    /// Whether the session should be renewed while there is time.
    pub rekey_due: bool,
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
        match message::classify(datagram).ok_or(DropReason::NotWireGuard)? {
            Kind::Handshake(_) => Ok(Opened::Handshake),
            Kind::Data { receiver, counter } => {
                self.select(receiver)?;
                self.open_data(counter, datagram)
            }
        }
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
            heard.bytes += bytes;
            heard.data |= data;
            return;
        }
        self.heard.push(Heard {
            peer: session.peer(),
            local_index: session.local_index(),
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
