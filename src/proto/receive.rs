//! Takes the messages that make sessions: initiation, response, cookie reply.
//!
//! Cheap checks first. Under load a sender must show that it owns its address before anything is multiplied for it. Nothing is
//! remembered of a message that is not accepted, and nothing is answered whose mac1 does not fit.
//!
//! Source: drivers/net/wireguard/receive.c `wg_receive_handshake_packet`; WireGuard whitepaper §5.3.

use super::Endpoint;
use super::device::Device;
use super::noise;
use super::output::{Handled, Message, Transmit};
use super::shared::Moment;
use super::timers::{UNDER_LOAD_QUEUED, UNDER_LOAD_TIME};
use crate::time::{Time, WallTime};
use crate::wire::message::{
    COOKIE_BYTES, Handshake, INITIATION_BYTES, Kind, RESPONSE_BYTES, classify, cookie, initiation, response,
};

impl Device {
    /// Takes a datagram that came from `from`; `queued` others that make sessions wait behind it. Costs at most four
    /// multiplications on the curve and one of its base point for an initiation, two for a response.
    pub fn handle_datagram(
        &mut self,
        bytes: &[u8],
        from: Endpoint,
        queued: usize,
        now: Time,
        wall: WallTime,
    ) -> Handled {
        let Some(Kind::Handshake(kind)) = classify(bytes) else {
            return Handled::NotHandshake;
        };
        if !self.shared.up {
            return Handled::Down;
        }
        let at = Moment { now, wall };
        let loaded = self.under_load(queued, now);
        let handled = match kind {
            Handshake::Cookie => bytes.first_chunk().map(|reply| self.cookie_reply(reply, now)),
            Handshake::Initiation => {
                bytes.first_chunk().map(|message| self.initiation(message, from, loaded, at))
            }
            Handshake::Response => {
                bytes.first_chunk().map(|message| self.response(message, from, loaded, at))
            }
        };
        handled.unwrap_or(Handled::NotHandshake)
    }

    fn under_load(&mut self, queued: usize, now: Time) -> bool {
        if queued >= UNDER_LOAD_QUEUED {
            self.loaded_at = Some(now);
        }
        self.loaded_at.is_some_and(|at| now.since(at) < UNDER_LOAD_TIME)
    }

    fn cookie_reply(&mut self, reply: &[u8; COOKIE_BYTES], now: Time) -> Handled {
        let Some(&peer) = self.shared.indices.get(number(&reply[cookie::RECEIVER])) else {
            return Handled::CookieRefused;
        };
        match self.with_peer(peer, |peer, _| peer.macs.consume_reply(reply, now)) {
            Some(true) => Handled::CookieAccepted(peer),
            _ => Handled::CookieRefused,
        }
    }

    fn initiation(
        &mut self,
        message: &[u8; INITIATION_BYTES],
        from: Endpoint,
        loaded: bool,
        at: Moment,
    ) -> Handled {
        let sender = number(&message[initiation::SENDER]);
        if let Some(refused) = self.refused_by_macs(message, sender, from, loaded, at.now) {
            return refused;
        }
        let Some(local) = &self.shared.local else {
            return Handled::NoPrivateKey;
        };
        let Some(arrived) = noise::open_initiation(&local.keys, message) else {
            return Handled::InitiationUnreadable;
        };
        let Some(peer) = self.find_peer(&arrived.initiator) else {
            return Handled::UnknownPeer;
        };
        let handled = self.with_peer(peer, |peer, shared| {
            let local = &shared.local.as_ref()?.keys;
            let consumed = noise::consume_initiation(arrived, peer.remote_keys(local))?;
            Some(peer.respond(shared, &consumed, from, at))
        });
        handled.flatten().unwrap_or(Handled::InitiationForged(peer))
    }

    fn response(
        &mut self,
        message: &[u8; RESPONSE_BYTES],
        from: Endpoint,
        loaded: bool,
        at: Moment,
    ) -> Handled {
        let sender = number(&message[response::SENDER]);
        if let Some(refused) = self.refused_by_macs(message, sender, from, loaded, at.now) {
            return refused;
        }
        let receiver = number(&message[response::RECEIVER]);
        let Some(&peer) = self.shared.indices.get(receiver) else {
            return Handled::ResponseUnexpected;
        };
        let handled =
            self.with_peer(peer, |peer, shared| peer.consume_response(shared, message, receiver, from, at));
        handled.unwrap_or(Handled::ResponseUnexpected)
    }

    /// Judges mac1, and under load mac2 and how often the source has sent. May send a cookie. `None` if the message may be
    /// looked at.
    fn refused_by_macs(
        &mut self,
        message: &[u8],
        sender: u32,
        from: Endpoint,
        loaded: bool,
        now: Time,
    ) -> Option<Handled> {
        let Some(local) = &mut self.shared.local else {
            return Some(Handled::NoPrivateKey);
        };
        // Workers have checked it, but perhaps with the key before this one.
        if !local.macs.mac1_fits(message) {
            return Some(Handled::BadMac1);
        }
        if !loaded {
            return None;
        }
        let rng = &mut self.shared.rng;
        if !local.macs.mac2_fits(message, from.remote, now, rng) {
            let reply = local.macs.create_reply(message, sender, from.remote, now, rng);
            let bytes = Message::new(&reply);
            self.shared.transmits.push_back(Transmit { peer: None, to: from, bytes, tos: 0 });
            return Some(Handled::CookieSent);
        }
        (!self.limiter.allow(from.remote.ip(), now)).then_some(Handled::RateLimited)
    }
}

fn number(field: &[u8]) -> u32 {
    u32::from_le_bytes(*field.first_chunk().expect("the fields of indices have 4 bytes"))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use super::*;
    use crate::proto::cookie::MacWriter;
    use crate::proto::keys::PrivateKey;
    use crate::proto::rng::Rng;
    use crate::time::Span;

    const WALL: WallTime = WallTime::from_parts(1_700_000_000, 0);

    #[test]
    fn nothing_is_kept_of_a_hundred_thousand_junk_initiations() {
        let mut device = Device::new(4, [1; 32]);
        let key = PrivateKey::from_bytes([2; 32]);
        let mut macs = MacWriter::new(&key.public_key());
        device.set_private_key(Some(key), Time::default(), WALL);
        device.set_up(true, Time::default(), WALL);
        device.add_peer(PrivateKey::from_bytes([3; 32]).public_key());
        while device.poll_update().is_some() {}
        let mut rng = Rng::from_seed([4; 32]);
        let mut answers = 0;
        for number in 0..100_000u32 {
            let now = Time::default() + Span::from_nanos(u64::from(number) * 10_000);
            let mut junk = [0; INITIATION_BYTES];
            rng.fill(&mut junk);
            junk[..4].copy_from_slice(&[1, 0, 0, 0]);
            macs.write_macs(&mut junk, now);
            let from = Endpoint::to(SocketAddr::new(IpAddr::from(number.to_be_bytes()), 9));
            let queued = if number < 1000 { 0 } else { UNDER_LOAD_QUEUED };
            device.handle_datagram(&junk, from, queued, now, WALL);
            while device.poll_transmit().is_some() {
                answers += 1;
            }
        }
        assert_eq!(answers, 99_000, "a cookie each, under load");
        assert!(device.shared.indices.is_empty() && device.poll_update().is_none());
        assert!(device.poll_timeout().is_none() && device.peers().count() == 1);
        assert!(device.shared.transmits.capacity() < 16);
    }
}
